"""From rows to requests: joined with their references, checked, fingerprinted and priced; and what a batch would cost.

The same rows, references and ledger give the same plan, and nothing is sent. All that may be written is what a person
asked of this run, so that its retries ask for the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from heapq import merge
from itertools import islice, takewhile
from typing import NamedTuple

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation.choice import Choice, Decisions
from ideogram_pipeline.generation.ledger import Entry
from ideogram_pipeline.generation.requests import (
    GenerationRequest,
    PictureUse,
    derived_seed,
    fingerprint,
    take_seed,
)
from ideogram_pipeline.generation.rows import LEFT_OUT, Decision, PlannedRow
from ideogram_pipeline.ideogram.endpoints import ENDPOINTS, wire
from ideogram_pipeline.ideogram.prices import price
from ideogram_pipeline.ideogram.rules import Known, PictureFacts, Pictures, check
from ideogram_pipeline.storage.parquet import Rows
from ideogram_pipeline.tables.inputs import (
    PICTURE_COLUMNS,
    endpoint_of,
    input_of,
    named_pictures,
    violations,
)
from ideogram_pipeline.tables.references import picture_path
from ideogram_pipeline.tables.rows import Problem, PromptRow, Reference, Rejection, RowProblem

_LONG = ("prompt", "negative_prompt", "color_palette")

TO_PAY: Collection[Decision] = ("new", "stale")
"""Rows that a run pays for."""
PERHAPS_PAID: Collection[Decision] = ("re-attached", "unknown")
"""Rows that an earlier run submitted, or may have: their cost is not known, and they are not paid for again."""

ONLY_FAILED = f"{LEFT_OUT}only_failed"
"""Why a row that no run was asked for yet is left out of a run that is only for failed ones."""
NOT_REJECTED = f"{LEFT_OUT}regenerate_rejected"
"""Why a row without a picture is left out of a run that is only for rejected ones."""
NOT_NAMED = f"{LEFT_OUT}prompt_ids"
"""Why a row is left out of a run that is only for others, which are named."""
NOT_WORKED = "no run has worked this row yet: run the batch with the table it stands in"
"""Why a row has no picture of which no run has recorded anything."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the rows of a plan add up to."""

    decisions: Mapping[Decision, int]
    """Rows of each decision."""
    images: int
    """Pictures asked for."""
    images_reused: int
    """Those of them that are there."""
    images_at_work: int
    """Those of the rows that a run works, there or not."""
    usd: Decimal
    """List price in US dollars of all rows to pay for whose price is known."""
    usd_max: Decimal
    """The same with the rows that an earlier run may have paid for."""
    unpriced: int
    """Rows to pay for, or perhaps paid, whose price isn't known."""

    @classmethod
    def of(cls, rows: Iterable[PlannedRow]) -> Tally:
        """Add rows up."""
        decisions: Counter[Decision] = Counter()
        usd = dict.fromkeys((*TO_PAY, *PERHAPS_PAID), Decimal(0))
        images = images_reused = at_work = unpriced = 0
        for row in rows:
            decisions[row.decision] += 1
            images += row.images
            at_work += 0 if row.decision == "left out" else row.images
            if row.decision == "reused":
                images_reused += row.images
            elif row.decision in usd and row.price_usd is None:
                unpriced += 1
            elif row.decision in usd:
                usd[row.decision] += Decimal(str(row.price_usd))
        to_pay = sum((usd[decision] for decision in TO_PAY), Decimal(0))
        return cls(decisions, images, images_reused, at_work, to_pay, sum(usd.values(), Decimal(0)), unpriced)


@dataclass(frozen=True)
class Plan:
    """What a run of one batch will do, row by row in table order."""

    batch: str
    """The partition."""
    rows: Rows[PlannedRow]
    """Every row of the batch, in the order of the table."""
    reading: str = ""
    """Which reading of which table it was made of, as `readings` calls it; empty where that isn't known."""

    @cached_property
    def tally(self) -> Tally:
        """What its rows add up to."""
        return Tally.of(self.rows)

    @property
    def requests(self) -> Requests:
        """What a run works: the request of every row that is neither rejected nor left out."""
        return Requests(self)

    def count(self, decision: Decision) -> int:
        """Return how many rows have a decision."""
        return self.tally.decisions.get(decision, 0)

    @property
    def rejected_fraction(self) -> float:
        """Share of the rows that can't be sent."""
        return self.count("rejected") / len(self.rows) if self.rows else 0.0

    @property
    def has_work(self) -> bool:
        """Whether a run would send, fetch or look for anything."""
        return any(self.count(decision) for decision in (*TO_PAY, *PERHAPS_PAID))

    @property
    def cost_usd(self) -> float:
        """List price in US dollars of all rows to pay for whose price is known."""
        return float(self.tally.usd)

    @property
    def cost_usd_max(self) -> float:
        """The same with the rows that an earlier run may have paid for."""
        return float(self.tally.usd_max)


class Requests(Collection[GenerationRequest]):
    """The requests of a plan's rows, in their order, made anew each time they are gone through."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[GenerationRequest]:
        """Yield the requests."""
        for row in self._plan.rows:
            if row.decision != "left out" and (request := row.request):
                yield request

    def __len__(self) -> int:
        """Return how many requests there are."""
        plan = self._plan
        return len(plan.rows) - plan.count("rejected") - plan.count("left out")

    def __contains__(self, request: object) -> bool:
        """Say whether a request is among them; goes through all."""
        return any(request == one for one in self)


class References(NamedTuple):
    """The references table, by id."""

    usable: Mapping[str, Reference]
    """Those whose picture was opened."""
    rejected: Mapping[str, Rejection]
    """The others."""

    @classmethod
    def of(cls, usable: Iterable[Reference], rejected: Iterable[Rejection]) -> References:
        """Index both kinds by id."""
        return cls(
            {entry.reference_id: entry for entry in usable}, {entry.row_id: entry for entry in rejected}
        )


def plan_batch(
    batch: str,
    rows: Collection[PromptRow],
    rejections: Iterable[Rejection],
    references: References,
    entries: Mapping[str, Entry],
    *,
    choice: Choice | None = None,
    left_without: Mapping[str, str | None] | None = None,
    rejected: Collection[str] = (),
    decisions: Decisions | None = None,
    pass_urls: bool = False,
) -> Plan:
    """Return what a run of a batch will do, given what the ledger knows of its fingerprints.

    A `choice` of only failed rows needs the rows that the last run `left_without` a picture, by prompt id, with the
    fingerprint of what they asked for. A choice of rejected pictures needs the fingerprints of the requests they are
    of. Without `decisions` nothing is written, and every call decides for itself. With `pass_urls`, fal is given the
    addresses of references on the web.

    Raises:
        ConfigurationError: the choice names a row that the batch doesn't have.
    """
    choice, rejections = choice or Choice(), list(rejections)
    unknown = set(choice.prompt_ids)
    if unknown:
        unknown -= {*(row.prompt_id for row in rows), *(rejection.row_id for rejection in rejections)}
    if unknown:
        raise ConfigurationError(
            f"No row of the batch {batch!r} is called {', '.join(map(repr, sorted(unknown)))}: look at prompt_ids."
        )
    drafts = _Drafts(_in_order(rows), references, entries, pass_urls)
    chosen = _Chosen(drafts, choice, left_without or {}, rejected, decisions)
    earlier = _newest_requests(entries)
    planned = (
        draft if isinstance(draft, PlannedRow) else _planned(draft, chosen, entries, earlier)
        for draft in drafts.with_rejected()
    )
    unusable = (
        PlannedRow(
            prompt_id=rejection.row_id,
            batch=batch,
            row_number=rejection.row_number,
            decision="rejected",
            reason=rejection.reason,
            column=rejection.column,
        )
        for rejection in sorted(rejections, key=lambda rejection: rejection.row_number)
    )
    return Plan(batch, Rows.of(PlannedRow, merge(planned, unusable, key=lambda row: row.row_number)))


def _in_order(rows: Collection[PromptRow]) -> Collection[PromptRow]:
    """Return rows in the order of the table, which most come in, without holding those that come from a file."""
    numbers = [row.row_number for row in rows]
    return rows if numbers == sorted(numbers) else sorted(rows, key=lambda row: row.row_number)


class _Draft:
    """A row that can be sent, before it is known what this run asks of it."""

    def __init__(self, row: PromptRow, first: GenerationRequest, entries: Mapping[str, Entry]) -> None:
        self.row = row
        self.first = first
        """Its take 0."""
        known = takewhile(lambda request: request.fingerprint in entries, first.takes())
        self.current = [first, *known][-1]
        """Its newest take that the ledger knows; take 0 if it knows none."""
        entry = entries.get(self.current.fingerprint)
        self.state = entry.state if entry else None
        """What the ledger says of the current take."""

    @property
    def is_to_pay(self) -> bool:
        """Whether the current take will be submitted."""
        return self.state in (None, "new", "retryable")

    def take(self, number: int) -> GenerationRequest:
        """Return one of the row's takes."""
        return next(islice(self.first.takes(), number, None))

    def was_left_without(self, left_without: Mapping[str, str | None]) -> bool:
        """Say whether an earlier run should have brought a picture and did not."""
        if self.state is None:
            return self.row.prompt_id in left_without
        if self.state == "generated":  # unless that run was asked for a further take, and did not get there
            asked = left_without.get(self.row.prompt_id)
            return asked is not None and asked == self.take(self.current.take + 1).fingerprint
        return True


class _Drafts:
    """The rows of a batch that can be sent, drafted anew each time they are gone through."""

    def __init__(
        self,
        rows: Collection[PromptRow],
        references: References,
        entries: Mapping[str, Entry],
        pass_urls: bool,
    ) -> None:
        self._rows = rows
        self._references = references
        self._entries = entries
        self._pass_urls = pass_urls

    def __iter__(self) -> Iterator[_Draft]:
        return (draft for draft in self.with_rejected() if isinstance(draft, _Draft))

    def with_rejected(self) -> Iterator[_Draft | PlannedRow]:
        """Yield what becomes of every row: a draft, or why it can't be sent."""
        for row in self._rows:
            try:
                first = plan_row(row, self._references, pass_urls=self._pass_urls)
            except RowProblem as problem:
                yield _rejected(row, problem)
            else:
                yield _Draft(row, first, self._entries)


class _Chosen:
    """What a person's choice means for each row."""

    def __init__(
        self,
        drafts: _Drafts,
        choice: Choice,
        left_without: Mapping[str, str | None],
        rejected: Collection[str],
        decisions: Decisions | None,
    ) -> None:
        self._choice = choice
        self._left_without = left_without
        self._takes: Mapping[str, int] = {}
        if choice.regenerate or choice.regenerate_rejected:
            takes = {
                draft.first.fingerprint: draft.current.take + 1
                for draft in drafts
                if draft.state in ("generated", "refused", "failed") and self._is_regenerated(draft, rejected)
            }
            self._takes = decisions.takes(takes) if decisions else takes
        self._let_through: Collection[str] | None = None
        if choice.limit is not None:
            wanted = ((draft, self._asked(draft)) for draft in drafts if not self._left_out(draft))
            to_pay = (
                request.fingerprint
                for draft, request in wanted
                if draft.is_to_pay or request is not draft.current
            )
            first = list(islice(to_pay, choice.limit))
            self._let_through = set(decisions.limited(choice.limit, first) if decisions else first)

    def request(self, draft: _Draft) -> tuple[GenerationRequest, str]:
        """Return what is asked for a row, and why the row is left out if it is."""
        if reason := self._left_out(draft):
            return draft.current, reason if draft.is_to_pay else ""
        asked = self._asked(draft)
        if self._let_through is None or asked.fingerprint in self._let_through:
            return asked, ""
        return draft.current, f"{LEFT_OUT}limit {self._choice.limit}" if draft.is_to_pay else ""

    def _is_named(self, draft: _Draft) -> bool:
        return not self._choice.prompt_ids or draft.row.prompt_id in self._choice.prompt_ids

    def _is_regenerated(self, draft: _Draft, rejected: Collection[str]) -> bool:
        if self._choice.regenerate_rejected:
            return draft.current.fingerprint in rejected and self._is_named(draft)
        return not self._left_out(draft)

    def _left_out(self, draft: _Draft) -> str:
        """Return why a row is left out; nothing if it isn't."""
        if not self._is_named(draft):
            return NOT_NAMED
        if self._choice.regenerate_rejected and draft.first.fingerprint not in self._takes:
            return NOT_REJECTED
        if self._choice.only_failed and not draft.was_left_without(self._left_without):
            return ONLY_FAILED
        return ""

    def _asked(self, draft: _Draft) -> GenerationRequest:
        take = self._takes.get(draft.first.fingerprint, 0)
        return draft.take(take) if take > draft.current.take else draft.current


def _newest_requests(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Return what each prompt id asked for before, by fingerprint: its newest with pictures, else its newest."""
    newest: dict[str, tuple[tuple[bool, datetime], str]] = {}
    for known, entry in entries.items():
        if not entry.attempts:
            continue
        reserved, prompt_id = entry.last.reserved, entry.last.reserved.request.prompt_id
        rank = (entry.state == "generated", reserved.reserved_at)
        if prompt_id not in newest or newest[prompt_id][0] <= rank:
            newest[prompt_id] = rank, known
    return {prompt_id: known for prompt_id, (_, known) in newest.items()}


def _rejected(row: PromptRow, problem: RowProblem) -> PlannedRow:
    return PlannedRow(
        prompt_id=row.prompt_id,
        batch=row.batch,
        row_number=row.row_number,
        decision="rejected",
        reason=problem.reason,
        column=problem.column,
        endpoint=row.endpoint,
    )


def _planned(
    draft: _Draft,
    chosen: _Chosen,
    entries: Mapping[str, Entry],
    earlier: Mapping[str, str],
) -> PlannedRow:
    request, left_out = chosen.request(draft)
    entry = entries.get(request.fingerprint)
    if entry is None:
        before = earlier.get(request.prompt_id)
        decision, reason = _never_asked(request, entries[before].last.reserved.request if before else None)
    else:
        decision, reason = _decide(entry)
    return PlannedRow(
        prompt_id=request.prompt_id,
        batch=request.batch,
        row_number=request.row_number,
        decision="left out" if left_out else decision,
        reason=left_out or reason,
        endpoint=request.endpoint,
        fingerprint=request.fingerprint,
        images=request.num_images,
        price_usd=None if request.price_usd is None else float(request.price_usd),
        request_json=request.model_dump_json(),
    )


def _decide(entry: Entry) -> tuple[Decision, str]:
    if entry.damage:
        return "unknown", entry.damage
    last = entry.last
    match entry.state:
        case "new" | "retryable":
            ended = last.released or last.settled
            return "new", f"its last attempt brought nothing and is repeated: {ended.reason if ended else ''}"
        case "generated":
            return "reused", "its pictures are in the store"
        case "submitted":
            return (
                "re-attached",
                f"run {last.reserved.owner} submitted it; the result is fetched, not paid again",
            )
        case "reserved":
            return "unknown", f"run {last.reserved.owner} got no answer to it; it is looked for at fal"
        case state:
            why = last.settled.reason if last.settled else ""
            return "settled", f"it ended {state} and is not asked again: {why}"


def _never_asked(request: GenerationRequest, earlier: GenerationRequest | None) -> tuple[Decision, str]:
    if request.take:
        return "new", f"a new take was asked for: take {request.take}"
    return ("stale", _changes(earlier, request)) if earlier else ("new", "it was never asked for")


def _changes(before: GenerationRequest, after: GenerationRequest) -> str:
    """Say what a row asks for that it didn't ask for before."""
    found: list[str] = []
    fields = dict.fromkeys([*after.arguments, *before.arguments])
    if before.endpoint != after.endpoint:
        found.append(f"endpoint {before.endpoint} -> {after.endpoint}")
        both = [ENDPOINTS[request.endpoint].input_model.model_fields for request in (before, after)]
        fields = {field: None for field in fields if all(field in known for known in both)}
    for field in fields:
        old, new = before.arguments.get(field), after.arguments.get(field)
        if old == new or (field == "seed" and before.take and old == take_seed(after.seed, before.take)):
            continue
        if field in PICTURE_COLUMNS:
            found += _changed_pictures(field, before, after)
        elif field in _LONG:
            found.append(f"{field} changed")
        else:
            found.append(f"{field} {_shown(old)} -> {_shown(new)}")
    return ", ".join(dict.fromkeys(found)) or "requests are told apart in another way than before"


def _changed_pictures(field: str, before: GenerationRequest, after: GenerationRequest) -> list[str]:
    old, new = ([use for use in request.pictures if use.field == field] for request in (before, after))
    old_ids, new_ids = ([use.reference_id for use in uses] for uses in (old, new))
    if old_ids != new_ids:
        return [f"{PICTURE_COLUMNS[field]} {_shown(old_ids)} -> {_shown(new_ids)}"]
    pairs = zip(old, new, strict=True)
    return [f"reference {now.reference_id} changed" for was, now in pairs if was.sha256 != now.sha256]


def _shown(value: object) -> str:
    match value:
        case None | []:
            return "none"
        case list():
            return "|".join(map(str, value))
        case bool():
            return str(value).lower()
        case {"width": width, "height": height}:
            return f"{width}x{height}"
        case _:
            return str(value)


def plan_row(row: PromptRow, references: References, *, pass_urls: bool = False) -> GenerationRequest:
    """Turn a row of the prompts table into the request it asks for.

    With `pass_urls`, fal is given the addresses of references on the web, and the row's advice says so.

    Raises:
        RowProblem: the row can't be sent; names the column at fault and the way to mend it.
    """
    uses, problems = _uses(row, references, pass_urls)
    try:
        endpoint = endpoint_of(row)
    except RowProblem as problem:
        raise RowProblem(*problems, *problem.problems) from None
    model, found = input_of(row, endpoint, _tokens(row, uses), derived_seed(row.prompt_id))
    findings = check(model, _pictures(row, references)) if model else []
    problems += found + violations(findings, found)
    if problems or model is None:
        raise RowProblem(*problems)
    advice = [str(finding) for finding in findings]
    if row.prompt and "prompt" not in type(model).model_fields:
        advice.append("prompt: the endpoint has no prompt; it is not sent")
    arguments = wire(model)
    return GenerationRequest(
        prompt_id=row.prompt_id,
        batch=row.batch,
        row_number=row.row_number,
        endpoint=endpoint.name,
        arguments=arguments,
        pictures=uses,
        fingerprint=fingerprint(row.prompt_id, endpoint.id, arguments),
        price_usd=price(endpoint.name, model.rendering_speed, model.num_images),
        advice=(*advice, *_passed_on(uses)),
        extra=row.extra,
    )


def with_its_references(rejection: Rejection, rest: PromptRow, references: References) -> Rejection:
    """Return the rejection of a row with what is wrong with its references; `rest` is the row without its bad cells."""
    _, problems = _uses(rest, references, pass_urls=False)
    reason = "; ".join(
        [rejection.reason, *(f"{one.column}: {one.reason}" for one in dict.fromkeys(problems))]
    )
    return rejection.model_copy(update={"reason": reason})


def _uses(
    row: PromptRow, references: References, pass_urls: bool
) -> tuple[tuple[PictureUse, ...], list[Problem]]:
    """Return the pictures that a row names, and what is wrong with the others."""
    uses: list[PictureUse] = []
    problems: list[Problem] = []
    for field, ids in named_pictures(row).items():
        for reference_id in ids:
            reference = references.usable.get(reference_id)
            if reference is None:
                problems.append(Problem(PICTURE_COLUMNS[field], _why_not(reference_id, references)))
                continue
            uses.append(
                PictureUse(
                    field=field,
                    reference_id=reference_id,
                    uri=reference.uri,
                    sha256=reference.sha256,
                    path=picture_path(reference),
                    by_address=pass_urls
                    and reference.uri.startswith("https://")
                    and reference.sent_sha256 is None,
                    perceptual_hash=reference.perceptual_hash,
                    sent_sha256=reference.sent_sha256,
                )
            )
    return tuple(uses), problems


def _why_not(reference_id: str, references: References) -> str:
    if reference_id in references.rejected:
        return f"the reference {reference_id!r} can't be used: {references.rejected[reference_id]}"
    return f"there is no reference {reference_id!r} in the references table"


def _tokens(row: PromptRow, uses: Sequence[PictureUse]) -> dict[str, list[str]]:
    """Return what stands for each picture that a row names, by field; for one that can't be used its id."""
    known = {(use.field, use.reference_id): use.token for use in uses}
    return {
        field: [known.get((field, one), one) for one in ids] for field, ids in named_pictures(row).items()
    }


def _passed_on(uses: Iterable[PictureUse]) -> tuple[str, ...]:
    """Return the advice for a row whose references fal fetches by itself, one for each column."""
    columns = dict.fromkeys(PICTURE_COLUMNS[use.field] for use in uses if use.by_address)
    return tuple(
        f"{column}: fal is given the address (IDEOGRAM_PASS_URLS) and fetches what lies there then, which may not be "
        "what this row was planned with."
        for column in columns
    )


def _facts(reference: Reference) -> PictureFacts:
    """Return what the rules ask of a picture as it is sent."""
    return PictureFacts(
        kind=reference.kind,
        bytes=reference.bytes if reference.sent_bytes is None else reference.sent_bytes,
        width=reference.width,
        height=reference.height,
        is_turned=reference.sent_sha256 is not None,
        as_mask=reference.as_mask,
    )


def _pictures(row: PromptRow, references: References) -> Pictures:
    """Return what is known of the pictures that a row names."""
    asked = named_pictures(row)

    def facts(field: str) -> Known:
        found = [references.usable.get(one) for one in asked[field]]
        return tuple(_facts(entry) if entry else None for entry in found)

    return Pictures(
        references=facts("reference_image_urls"),
        reference_masks=facts("reference_mask_urls"),
        style_references=facts("image_urls"),
        image=next(iter(facts("image_url")), None),
        mask=next(iter(facts("mask_url")), None),
    )
