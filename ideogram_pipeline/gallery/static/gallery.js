// The gallery's pages: cards, filters, the lightbox, and picks and rejects, which this browser keeps until they are exported.
"use strict";

const SLICE = 120; // cards that are built at once
const THEMES = ["system", "light", "dark"];
const REVIEW_COLUMNS = ["image", "sha256", "review", "note", "reviewed_at", "batch", "prompt_id"];

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// --- What the browser keeps. A page opened from disk may be refused all of it: then it works until it is closed.

const kept = {
  get(key) {
    try { return localStorage.getItem(key); } catch { return null; }
  },
  set(key, value) {
    try { localStorage.setItem(key, value); return true; } catch { return false; }
  },
};

let theme = kept.get("ideogram-theme") || "system";
showTheme();

function showTheme() {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

document.addEventListener("DOMContentLoaded", () => {
  const button = byId("theme");
  button.textContent = `Theme: ${theme}`;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    kept.set("ideogram-theme", theme);
    button.textContent = `Theme: ${theme}`;
    showTheme();
  });
  if (byId("grid")) startCards();
  else startIndex();
});

// --- The index

function startIndex() {
  const named = [...document.querySelectorAll("[data-name]")];
  const input = byId("name");
  const find = () => {
    const wanted = input.value.trim().toLowerCase();
    for (const one of named) one.hidden = !one.dataset.name.toLowerCase().includes(wanted);
    byId("count").textContent = wanted ? `${named.filter((one) => !one.hidden).length} of ${named.length}` : "";
  };
  input.addEventListener("input", find);
  input.form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== input) { event.preventDefault(); input.focus(); }
    if (event.key === "Escape" && event.target === input) { input.value = ""; find(); input.blur(); }
  });
  find();
}

// --- Reviews: what the store's table has, and over it what was decided here

class Reviews {
  constructor(entries) {
    this.root = new URL(document.body.dataset.root, location.href).href;
    this.batches = new Map([...new Set(entries.map((entry) => entry.batch))].map((batch) => [batch, this.read(batch)]));
    this.done = [];
  }

  key(batch) { return `ideogram-reviews ${this.root} ${batch}`; }

  read(batch) {
    try { return JSON.parse(kept.get(this.key(batch))) || {}; } catch { return {}; }
  }

  of(entry) {
    const here = (this.batches.get(entry.batch) || {})[entry.image];
    if (here && here.sha256 === entry.facts.sha256) return here;
    return { review: entry.review || "", note: entry.note || "", reviewed_at: entry.reviewed_at || "" };
  }

  set(entry, change, undoable = true) {
    const before = this.of(entry);
    if (undoable) this.done.push([entry, before]);
    const batch = { ...this.read(entry.batch) }; // another page of the same store may have written meanwhile
    const now = new Date().toISOString();
    batch[entry.image] = { ...before, reviewed_at: now, ...change, sha256: entry.facts.sha256 };
    this.batches.set(entry.batch, batch);
    return kept.set(this.key(entry.batch), JSON.stringify(batch));
  }

  undo() {
    const last = this.done.pop();
    if (last) this.set(last[0], last[1], false);
    return last && last[0];
  }

  rows(entries) {
    return entries.filter((entry) => entry.image && this.of(entry).review).map((entry) => {
      const { review, note, reviewed_at } = this.of(entry);
      const { sha256, prompt_id } = entry.facts;
      return { image: entry.image, sha256, review, note, reviewed_at, batch: entry.batch, prompt_id };
    });
  }
}

// RFC 4180. A spreadsheet takes what begins with = + - @, a tab or a return for a formula: an apostrophe makes it text.
function csvCell(value) {
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv(rows) {
  const lines = [REVIEW_COLUMNS, ...rows.map((row) => REVIEW_COLUMNS.map((column) => row[column]))];
  return lines.map((cells) => `${cells.map(csvCell).join(",")}\r\n`).join("");
}

// --- Batches and characters

const SORTS = {
  row: (a, b) => a.batch.localeCompare(b.batch) || (a.row || Infinity) - (b.row || Infinity) || byTake(a, b),
  newest: (a, b) => (b.facts.completed_at || "").localeCompare(a.facts.completed_at || ""),
  dearest: (a, b) => (b.facts.cost_usd ?? -1) - (a.facts.cost_usd ?? -1),
  cheapest: (a, b) => (a.facts.cost_usd ?? Infinity) - (b.facts.cost_usd ?? Infinity),
  slowest: (a, b) => (b.facts.inference_s ?? -1) - (a.facts.inference_s ?? -1),
  id: (a, b) => a.facts.prompt_id.localeCompare(b.facts.prompt_id, undefined, { numeric: true }),
  review: (a, b) => reviewOrder(a) - reviewOrder(b),
  alike: (a, b) => likeness(a) - likeness(b),
  unlike: (a, b) => (b.facts.face_distance ?? -1) - (a.facts.face_distance ?? -1),
};
const FILTERS = {
  state: (entry) => words(entry.state),
  review: (entry) => reviews.of(entry).review || "not reviewed",
  character: (entry) => entry.character || "none",
  batch: (entry) => entry.batch,
  endpoint: (entry) => entry.facts.endpoint || "none",
  speed: (entry) => entry.facts.rendering_speed || "none",
  cost: (entry) => dollars(entry.facts.cost_usd),
};

let entries, reviews, filters, grid, lightbox;
let shown = []; // entries that pass the filters, in order
let current = null; // the entry that keys act on
let building = 0;
let built = 0; // cards in the grid
let waiting; // until a word is typed to its end
let comparing = false;

const byTake = (a, b) =>
  (b.facts.take || 0) - (a.facts.take || 0) || (a.facts.image_index || 0) - (b.facts.image_index || 0);
const reviewOrder = (entry) => ["picked", "", "rejected"].indexOf(reviews.of(entry).review);
const likeness = (entry) => Math.min(entry.facts.nearest_distance ?? 64, entry.facts.reference_distance ?? 64);
const words = (name) => name.replaceAll("_", " ");
const dollars = (amount) => (amount === undefined ? "unknown" : `$${amount.toFixed(3).replace(/0$/, "")}`);
const link = (path) => document.body.dataset.root + path.split("/").map(encodeURIComponent).join("/");
const label = (entry) => `${entry.facts.prompt_id}: ${(entry.facts.prompt || words(entry.state)).slice(0, 300)}`;

function startCards() {
  const embedded = byId("entries");
  entries = embedded ? JSON.parse(embedded.textContent) : (self.galleryEntries || []).flat();
  for (const entry of entries) {
    const { prompt_id, prompt, seed, negative_prompt, fingerprint, request_id, extra } = entry.facts;
    entry.words = [prompt_id, prompt, negative_prompt, seed, fingerprint, request_id, extra, entry.reason, entry.batch]
      .join("\n").toLowerCase();
  }
  entries.sort(SORTS.row);
  reviews = new Reviews(entries);
  filters = byId("filters");
  grid = byId("grid");
  lightbox = byId("lightbox");
  for (const name of Object.keys(FILTERS)) offer(name);
  if (!entries.some((entry) => entry.older)) filters.elements.older.closest("label").hidden = true;
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = filters.elements[name];
    if (field) field.type === "checkbox" ? (field.checked = true) : (field.value = value);
  }
  filters.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 60); });
  filters.addEventListener("reset", () => setTimeout(filter));
  filters.addEventListener("submit", (event) => event.preventDefault());
  grid.addEventListener("click", clicked);
  grid.addEventListener("focusin", (event) => { const card = event.target.closest(".card"); if (card) makeCurrent(card.entry); });
  lightbox.addEventListener("click", clicked);
  lightbox.addEventListener("close", () => focusCard(lightbox.entry));
  byId("note").addEventListener("change", noteTyped);
  byId("export").addEventListener("click", exportReviews);
  document.addEventListener("keydown", keyPressed);
  addEventListener("storage", () => { reviews = new Reviews(entries); for (const entry of entries) mark(entry); });
  filter();
}

/** Fill a filter with the values that occur; one that couldn't tell entries apart is not shown. */
function offer(name) {
  const counts = new Map();
  for (const entry of entries) {
    const value = FILTERS[name](entry);
    counts.set(value, (counts.get(value) || 0) + 1);
  }
  if (name === "review") for (const value of ["picked", "rejected", "not reviewed"]) counts.set(value, 0);
  const field = filters.elements[name];
  field.append(element("option", { value: "" }, "All"));
  for (const [value, count] of [...counts].sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true }))) {
    field.append(element("option", { value }, name === "review" ? value : `${value} (${count})`));
  }
  field.closest("label").hidden = counts.size < 2;
}

function filter() {
  clearTimeout(waiting);
  const asked = Object.fromEntries([...new FormData(filters)].filter(([, value]) => value));
  const text = (asked.text || "").toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = Object.entries(FILTERS).filter(([name]) => asked[name]);
  shown = entries.filter((entry) =>
    (asked.older || !entry.older) &&
    chosen.every(([name, value]) => value(entry) === asked[name]) &&
    text.every((word) => entry.words.includes(word)));
  if (asked.sort !== "row") shown.sort(SORTS[asked.sort]);
  shown.forEach((entry, place) => { entry.place = place; });
  const remembered = new URLSearchParams(asked);
  if (asked.sort === "row") remembered.delete("sort");
  history.replaceState(null, "", `#${remembered}`);
  if (!isShown(current)) current = shown[0] || null;
  build();
  count();
}

/** Show the first cards at once, and the others slice by slice, so that the page answers meanwhile. */
function build() {
  const turn = ++building;
  const focused = grid.contains(document.activeElement);
  grid.replaceChildren();
  delete grid.dataset.built;
  built = 0;
  const slice = () => {
    if (turn !== building) return;
    more(SLICE);
    if (built < shown.length) setTimeout(slice);
  };
  slice();
  if (!shown.length) grid.append(element("p", { class: "none" }, "Nothing passes these filters."));
  if (focused) focusCard(current);
}

function more(number) {
  grid.append(...shown.slice(built, built + number).map(cardOf));
  built = Math.min(built + number, shown.length);
  if (built === shown.length) grid.dataset.built = built;
}

function count() {
  const all = filters.elements.older.checked ? entries : entries.filter((entry) => !entry.older);
  const made = reviews.rows(entries);
  const picked = made.filter((row) => row.review === "picked").length;
  byId("count").textContent = `${shown.length} of ${all.length} shown · ${picked} picked · ${made.length - picked} rejected`;
  byId("export").disabled = !made.length;
}

const isShown = (entry) => entry !== null && shown[entry.place] === entry;

function cardOf(entry) {
  if (entry.card) return entry.card;
  const { facts } = entry;
  const open = element("button", { type: "button", class: "open", "data-act": "open", tabindex: entry === current ? 0 : -1 });
  open.setAttribute("aria-label", `Open ${label(entry)}`);
  if (entry.image) {
    const size = { width: 320, height: 320, loading: "lazy", decoding: "async" };
    open.append(element("img", { ...size, src: link(entry.thumbnail), alt: label(entry) }));
  } else {
    open.append(element("span", { class: "missing" },
      element("span", { class: `state ${entry.state}` }, words(entry.state)),
      element("span", { class: "why", dir: "auto" }, entry.reason || "")));
  }
  const faces = (entry.references || []).filter(([, path]) => path).slice(0, 3)
    .map(([name, path]) => element("img", { loading: "lazy", src: link(path), alt: `Reference ${name}`, title: name }));
  const text = element("div", { class: "text" },
    element("p", { class: "prompt", dir: "auto", title: (facts.prompt || "").slice(0, 1000) }, (facts.prompt || "(no prompt)").slice(0, 300)),
    element("div", { class: "line" }, ...faces, element("b", { title: facts.prompt_id }, facts.prompt_id),
      element("span", { class: "speed" }, (facts.rendering_speed || "").toLowerCase()),
      element("span", {}, entry.image ? dollars(facts.cost_usd) : "")));
  entry.card = element("article", { class: "card" }, open, text);
  entry.card.entry = entry;
  if (facts.take || entry.older) {
    entry.card.append(element("span", { class: "tag" }, `take ${facts.take || 0}${entry.older ? ", older" : ""}`));
  }
  if (entry.image) {
    const button = (act, sign, name) =>
      element("button", { type: "button", tabindex: -1, "data-act": act, "aria-label": `${name} ${facts.prompt_id}` }, sign);
    entry.card.append(element("div", { class: "marks" }, button("picked", "✓", "Pick"), button("rejected", "✕", "Reject")));
  }
  mark(entry);
  return entry.card;
}

/** Show an entry's review on its card, if it has one already. */
function mark(entry) {
  if (!entry.card) return;
  const { review } = reviews.of(entry);
  for (const name of ["picked", "rejected"]) entry.card.classList.toggle(name, review === name);
  for (const button of entry.card.querySelectorAll(".marks button")) {
    button.setAttribute("aria-pressed", review === button.dataset.act);
  }
}

function makeCurrent(entry) {
  if (current && current.card) current.card.querySelector(".open").tabIndex = -1;
  current = entry;
  if (current && current.card) current.card.querySelector(".open").tabIndex = 0;
}

function focusCard(entry) {
  if (!entry) return;
  if (isShown(entry) && entry.place >= built) more(entry.place + 1 - built);
  const card = cardOf(entry);
  if (!card.isConnected) return;
  makeCurrent(entry);
  card.querySelector(".open").focus();
  card.scrollIntoView({ block: "nearest" });
}

// --- Reviewing

function review(entry, decision) {
  if (!entry || !entry.image) return;
  const now = reviews.of(entry).review === decision ? "" : decision;
  const stays = reviews.set(entry, { review: now });
  changed(entry, `${entry.facts.prompt_id} ${now || "no longer reviewed"}${stays ? "" : "; this browser can't keep it, export before you leave"}`);
}

function undo() {
  const entry = reviews.undo();
  if (entry) changed(entry, `${entry.facts.prompt_id} as before`);
}

function noteTyped(event) {
  reviews.set(current, { note: event.target.value.trim() });
  changed(current, "Note kept");
}

function changed(entry, said) {
  mark(entry);
  count();
  byId("said").textContent = said;
  if (lightbox.open) showReview();
}

function exportReviews() {
  const url = URL.createObjectURL(new Blob([csv(reviews.rows(entries))], { type: "text/csv" }));
  element("a", { href: url, download: "reviews.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// --- The lightbox

function show(entry) {
  makeCurrent(entry);
  lightbox.entry = entry; // the browser gives the focus back to where it was, this one to where it went
  const { facts } = entry;
  const takes = takesOf(entry);
  const stage = byId("stage");
  const figures = comparing && takes.length > 1 ? takes : [entry];
  stage.classList.toggle("compare", figures.length > 1);
  stage.replaceChildren(...(entry.image ? figures.map((one) => figure(one, one === entry)) : [
    element("p", { class: "missing" }, element("span", { class: `state ${entry.state}` }, words(entry.state)))]));
  byId("lightbox-title").textContent = facts.prompt_id;
  byId("lightbox-prompt").textContent = facts.prompt || "";
  byId("lightbox-reason").textContent = entry.reason || "";
  byId("place").textContent = isShown(entry) ? `${entry.place + 1} of ${shown.length}` : "older take";
  byId("reviewing").hidden = byId("noting").hidden = !entry.image;
  byId("takes").replaceChildren(...(takes.length > 1 ? [takesStrip(entry, takes)] : []));
  byId("references").replaceChildren(...(entry.references?.length ? [element("h3", {}, "References"), referencesStrip(entry)] : []));
  byId("facts").replaceChildren(...factsOf(entry));
  showReview();
  if (!lightbox.open) lightbox.showModal(); // which gives the focus to the button with autofocus
}

function takesOf(entry) {
  return entries.filter((one) => one.image && one.batch === entry.batch && one.facts.prompt_id === entry.facts.prompt_id)
    .sort((a, b) => (a.facts.take || 0) - (b.facts.take || 0) || SORTS.newest(b, a) || byTake(a, b));
}

const takeName = (entry) =>
  `take ${entry.facts.take || 0}${entry.facts.num_images > 1 ? `, picture ${(entry.facts.image_index || 0) + 1}` : ""}`;

function figure(entry, isThis) {
  return element("figure", isThis ? { class: "this" } : {},
    element("a", { href: link(entry.image), target: "_blank", rel: "noopener", "aria-label": "Open the file" },
      element("img", { src: link(entry.image), alt: label(entry) })),
    element("figcaption", {}, `${takeName(entry)} · seed ${entry.facts.seed} · ${entry.facts.width} × ${entry.facts.height}`));
}

function takesStrip(entry, takes) {
  const strip = element("div", { class: "strip-of-takes" });
  for (const one of takes) {
    const button = element("button", { type: "button", "data-act": "take" },
      element("img", { src: link(one.thumbnail), alt: "" }), takeName(one));
    if (one === entry) button.setAttribute("aria-current", "true");
    button.entry = one;
    strip.append(button);
  }
  const beside = { type: "button", "data-act": "compare", "aria-pressed": comparing, "aria-keyshortcuts": "t" };
  return element("div", {}, element("h3", {}, "Pictures of this row"), strip,
    element("p", {}, element("button", beside, comparing ? "One by one" : "Side by side")));
}

function referencesStrip(entry) {
  return element("div", { class: "refs" }, ...entry.references.map(([name, path]) =>
    element("span", {}, ...(path ? [element("img", { src: link(path), alt: "" })] : []), name,
      ...(entry.terms?.[name] || []).filter(Boolean).map((told) => element("small", { dir: "auto" }, told)))));
}

function factsOf(entry) {
  const columns = JSON.parse(byId("columns").textContent);
  const facts = { batch: entry.batch, state: entry.state, ...entry.facts };
  return Object.entries(facts).filter(([name]) => !["prompt", "prompt_id"].includes(name)).flatMap(([name, value]) => [
    element("dt", { title: columns[name] || "" }, words(name)),
    element("dd", { dir: "auto" }, Array.isArray(value) ? value.join(", ") : String(value))]);
}

function showReview() {
  const { review: decision, note } = reviews.of(current);
  for (const name of ["picked", "rejected"]) {
    lightbox.querySelector(`[data-act="${name}"]`).setAttribute("aria-pressed", decision === name);
  }
  if (document.activeElement !== byId("note")) byId("note").value = note || "";
}

function step(by) {
  const place = isShown(current) ? current.place + by : 0;
  const next = shown[Math.max(0, Math.min(shown.length - 1, place))];
  if (lightbox.open) { leaveNote(); if (next) show(next); } else focusCard(next);
}

/** A note that is being typed belongs to the picture it was typed for. */
function leaveNote() {
  if (document.activeElement === byId("note")) byId("note").blur();
}

// --- Clicks and keys, one listener each for all cards

function clicked(event) {
  if (event.target === lightbox) { lightbox.close(); return; }
  const button = event.target.closest("[data-act]");
  if (!button) return;
  const entry = button.closest(".card")?.entry || current;
  const acts = {
    open: () => show(entry),
    picked: () => review(entry, "picked"),
    rejected: () => review(entry, "rejected"),
    undo,
    previous: () => step(-1),
    next: () => step(1),
    take: () => show(button.entry),
    compare,
    close: () => lightbox.close(),
  };
  acts[button.dataset.act]();
}

function compare() {
  comparing = !comparing;
  show(current);
  byId("takes").querySelector("[data-act=compare]")?.focus();
}

function columnsOfGrid() {
  return getComputedStyle(grid).gridTemplateColumns.split(" ").length;
}

function keyPressed(event) {
  const typing = event.target.matches("input[type=search], textarea, select");
  if (event.key === "Escape" && event.target === filters.elements.text) {
    filters.elements.text.value = "";
    filter();
    focusCard(current);
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const inGrid = !lightbox.open;
  const keys = {
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
    ArrowDown: inGrid && (() => step(columnsOfGrid())),
    ArrowUp: inGrid && (() => step(-columnsOfGrid())),
    Home: inGrid && (() => focusCard(shown[0])),
    End: inGrid && (() => focusCard(shown.at(-1))),
    p: () => review(current, "picked"),
    r: () => review(current, "rejected"),
    u: undo,
    t: () => { if (inGrid && current) { comparing = true; show(current); } else if (!inGrid) compare(); },
    "/": inGrid && (() => filters.elements.text.focus()),
  };
  const act = keys[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}
