"""Where a picture came from and what came of it: the part of the lineage's edges that a key leads to.

Every batch has its edges (`lineage/batch=…/edges.parquet`); all are looked through for the key, and then only those of
the batches that it leads to are held. The facts of what they join come from the ledger.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ideogram_pipeline import marks, pictures
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files, readings
from ideogram_pipeline.generation.edges import submit_id
from ideogram_pipeline.generation.ledger import Attempt, Entry, Ledger
from ideogram_pipeline.generation.requests import PictureUse
from ideogram_pipeline.generation.rows import EdgeRow, NodeKind
from ideogram_pipeline.likeness import distance
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.texts import without_access

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{8,63}")

LIKELY = 8
"""A file that looks different from a picture in more bits is not taken for a copy of it. One that was shrunk, saved
anew or brightened differs in 4 at most, two drawings of the sandbox in 9 at least: see docs/review.md."""
_OF_MARKING = {"path", "prompt_marked", "marks_version"}
"""What is recorded of a picture only to make the same file again, and its path, which is its identity."""

NodeId = tuple[NodeKind, str]


class UnknownKey(Exception):
    """Nothing in the store is called so; the message says where was looked."""


class Node(BaseModel):
    """A thing that pictures came from, or that came of it."""

    model_config = ConfigDict(frozen=True)

    kind: NodeKind = Field(description="What it is.")
    id: str = Field(description="Its identity, as `EdgeRow` has it.")
    facts: Mapping[str, JsonValue] = Field(description="What is known of it.")


class Lineage(BaseModel):
    """What a key leads to."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(description="As it was asked for.")
    roots: tuple[NodeId, ...] = Field(description="What the key names.")
    likeness: int | None = Field(
        default=None,
        description="In how many of 64 bits the file looks different from the roots, where it was found by its looks "
        "alone: a likely answer, not a certain one.",
    )
    upstream: tuple[NodeId, ...] = Field(description="All that the roots came from.")
    downstream: tuple[NodeId, ...] = Field(description="All that came of the roots.")
    nodes: tuple[Node, ...] = Field(
        description="The roots and both of these, with what is known of them, and what else it took to make them."
    )
    edges: tuple[EdgeRow, ...] = Field(description="How they are joined, each from what was first.")


def trace(store: Store, key: str, *, upstream: bool = True, downstream: bool = True) -> Lineage:
    """Return what a key leads to, on the sides that are asked for.

    A key is the path of a picture (in the store, or of any copy of one), the SHA-256 of a picture or reference, a
    prompt id, a fingerprint or its first 8 digits and more, a request id of fal, a run id of Dagster, or a reference's
    id. Where one word names several of these, write what is meant before it: `prompt:ada`, `reference:ada`.

    A copy of a picture that was saved anew, and has lost its marks, is looked for by what it looks like. That answer is
    a likely one: see `Lineage.likeness`.

    Raises:
        UnknownKey: nothing is called so.
        ConfigurationError: the key names things of several kinds, or the store has no lineage yet.
    """
    batches = [folder.removeprefix("batch=") for folder in store.folders("lineage")]
    if not batches:
        raise ConfigurationError(
            f"The store {store.url!r} has no lineage yet. `ideogram-pipeline rebuild` makes it from the ledger, or the "
            "next run does."
        )
    words = _words(store, key)
    found = list(_looked_through(store, batches, words.match))
    roots = _one_kind(key, list(dict.fromkeys(node for edge in found for node in words.named(edge))))
    alike = None if roots else _looking_like(store, key)
    if alike:
        found = list(_looked_through(store, batches, _Words("image", alike.paths).match))
        roots = sorted({_end(edge) for edge in found if _end(edge)[1] in alike.paths})
    if not roots:
        raise UnknownKey(
            f"Nothing is called {key!r} among the pictures, prompts, requests, runs and references of "
            f"{len(batches)} batches. A row that was never submitted has no lineage; `ideogram-pipeline plan "
            "--verbose` says what will become of it."
        )
    edges = _with_chains(store, batches, {edge.batch for edge in found})
    before, after = _reachable(edges, roots, up=True), _reachable(edges, roots, up=False)
    kept = {*roots, *(before if upstream else ()), *(after if downstream else ())}
    if downstream:
        kept |= {
            _start(edge) for edge in edges if edge.kind in ("asks", "uses", "sent_by") and _end(edge) in kept
        }
    joined = [edge for edge in edges if _start(edge) in kept and _end(edge) in kept]
    return Lineage(
        key=key,
        roots=tuple(roots),
        likeness=alike.distance if alike else None,
        upstream=tuple(before) if upstream else (),
        downstream=tuple(after) if downstream else (),
        nodes=tuple(_nodes(store, kept, edges)),
        edges=tuple(joined),
    )


class _Words:
    """What a key may mean."""

    def __init__(self, kind: NodeKind | None, words: Iterable[str]) -> None:
        self._kind = kind
        self._words = frozenset(words)

    def match(self, edge: EdgeRow) -> bool:
        """Say whether an edge names the key."""
        return any(True for _ in self.named(edge))

    def named(self, edge: EdgeRow) -> Iterator[NodeId]:
        """Yield those ends of an edge that the key names."""
        for node, names in (
            (_start(edge), (edge.from_id, edge.reference_id, edge.sent_sha256)),
            (_end(edge), (edge.to_id, edge.sha256, edge.sha256_received)),
        ):
            if self._kind in (None, node[0]) and any(self._is_named(node, name) for name in names):
                yield node

    def _is_named(self, node: NodeId, name: str | None) -> bool:
        if name is None:
            return False
        return name in self._words or (
            node[0] == "request"
            and any(_PREFIX.fullmatch(word) and name.startswith(word) for word in self._words)
        )


def _words(store: Store, key: str) -> _Words:
    kind, colon, rest = key.partition(":")
    if colon and kind in get_args(NodeKind):
        return _Words(kind, [rest])  # type: ignore[arg-type]  # it is one of them
    words = {key}
    if store.folder:
        path = Path(key).expanduser()
        if path.resolve().is_relative_to(store.folder.resolve()):
            words.add(path.resolve().relative_to(store.folder.resolve()).as_posix())
    words.add(key.removeprefix(store.url.rstrip("/") + "/"))
    if Path(key).is_file():
        content = Path(key).read_bytes()
        words.add(hashlib.sha256(content).hexdigest())
        said = marks.read(content)
        if said and said.fingerprint:
            words.add(said.fingerprint)
    return _Words(None, words)


class _Looks(NamedTuple):
    """What a picture looks like; the columns are those of `ImageRow`."""

    file_name: str
    perceptual_hash: str | None


class _Alike(NamedTuple):
    """The pictures that look most like a file."""

    paths: frozenset[str]
    distance: int


def _looking_like(store: Store, key: str) -> _Alike | None:
    """Return which pictures of the store look most like a file, if any does."""
    try:
        looks = pictures.inspect(Path(key).read_bytes()).perceptual_hash
    except (OSError, ValueError, pictures.BadPicture):
        return None
    if looks is None:
        return None
    nearest, paths = LIKELY + 1, set[str]()
    for batch in files.batches_with_results(store):
        for row in parquet.view(store, files.metadata_path(batch), _Looks):
            bits = nearest + 1 if row.perceptual_hash is None else distance(looks, row.perceptual_hash)
            if bits < nearest:
                nearest, paths = bits, set()
            if bits == nearest and bits <= LIKELY:
                paths.add(f"images/batch={batch}/{row.file_name}")
    return _Alike(frozenset(paths), nearest) if paths else None


def _one_kind(key: str, nodes: list[NodeId]) -> list[NodeId]:
    """Return what a key names: of one that names a file, the picture goes before what else has its bytes or marks."""
    images = [node for node in nodes if node[0] == "image"]
    if images and (Path(key).is_file() or _DIGEST.fullmatch(key)):
        return images
    kinds = sorted({kind for kind, _ in nodes})
    names_many = [node for node in nodes if node[0] == "request"]
    if len(kinds) > 1 or (len(names_many) > 1 and not _DIGEST.fullmatch(key)):
        could_be = ", ".join(f"{kind}:{identity}" for kind, identity in nodes[:5])
        raise ConfigurationError(f"{key!r} names several things. Write which is meant: {could_be}.")
    return nodes


def _looked_through(
    store: Store, batches: Iterable[str], wanted: Callable[[EdgeRow], bool]
) -> Iterator[EdgeRow]:
    for batch in batches:
        yield from (edge for edge in parquet.read(store, files.edges_path(batch), EdgeRow) if wanted(edge))


def _with_chains(store: Store, batches: list[str], first: set[str]) -> list[EdgeRow]:
    """Return the edges of batches, and of those where their pictures were used, or their references made, and so on."""
    edges: list[EdgeRow] = []
    held: set[str] = set()
    waiting = set(first)
    while waiting:
        edges += _looked_through(store, sorted(waiting), lambda _: True)
        held |= waiting
        others = [batch for batch in batches if batch not in held]
        waiting = {edge.batch for edge in _looked_through(store, others, _continuing(edges))}
    return edges


def _continuing(edges: Iterable[EdgeRow]) -> Callable[[EdgeRow], bool]:
    """Return what tells whether an edge goes on from these: a picture is used, or a reference was made."""
    made, used = set[str | None](), set[str | None]()
    for edge in edges:
        made |= {edge.sha256, edge.sha256_received} if edge.kind == "made" else set()
        used |= {edge.from_id} if edge.kind == "uses" else set()
    return lambda edge: (
        edge.from_id in made
        if edge.kind == "uses"
        else not used.isdisjoint({edge.sha256, edge.sha256_received})
    )


def _start(edge: EdgeRow) -> NodeId:
    return edge.from_kind, edge.from_id


def _end(edge: EdgeRow) -> NodeId:
    return edge.to_kind, edge.to_id


def _reachable(edges: Iterable[EdgeRow], roots: Iterable[NodeId], *, up: bool) -> list[NodeId]:
    """Return all that lies before the roots, or after them; a picture that is a reference's bytes lies before it."""
    near: dict[NodeId, list[NodeId]] = defaultdict(list)
    for edge in edges:
        start, end = _start(edge), _end(edge)
        near[end if up else start].append(start if up else end)
        for digest in {edge.sha256, edge.sha256_received} - {None}:
            reference: NodeId = ("reference", str(digest))
            near[reference if up else end].append(end if up else reference)
    seen: dict[NodeId, None] = {}
    waiting = list(roots)
    while waiting:
        for node in near[waiting.pop()]:
            if node not in seen:
                seen[node] = None
                waiting.append(node)
    known = {node for edge in edges for node in (_start(edge), _end(edge))}
    return [node for node in seen if node in known and node not in roots]


def _nodes(store: Store, wanted: set[NodeId], edges: Iterable[EdgeRow]) -> Iterator[Node]:
    batches = {node: edge.batch for edge in edges for node in (_start(edge), _end(edge)) if node in wanted}
    fingerprints: dict[str, set[str]] = defaultdict(set)
    for edge in edges:
        for kind, identity in (_start(edge), _end(edge)):
            near = _start(edge) in wanted or _end(edge) in wanted
            if kind == "request" and near:
                fingerprints[edge.batch].add(identity)
    facts: dict[NodeId, dict[str, JsonValue]] = {}
    for batch, members in fingerprints.items():
        entries = Ledger(store, batch).entries
        for fingerprint in members & entries.keys():
            for node, says in _facts(entries[fingerprint]):
                facts[node] = {**facts.get(node, {}), **says}
    references = [identity for kind, identity in wanted if kind == "reference"]
    for sha256, terms in readings.terms_of(store, references).items():
        facts["reference", sha256] = {
            **facts.get(("reference", sha256), {}),
            "license": terms.license,
            "notes": terms.notes,
        }
    for kind, identity in sorted(wanted, key=lambda node: (get_args(NodeKind).index(node[0]), node[1])):
        known = {"batch": batches.get((kind, identity)), **facts.get((kind, identity), {})}
        if kind in ("reference", "run"):
            known.pop("batch")  # they may be of many
        yield Node(kind=kind, id=identity, facts=known)


def _facts(entry: Entry) -> Iterator[tuple[NodeId, dict[str, JsonValue]]]:
    """Yield what an entry knows of its request and of all that is joined to it."""
    if not entry.attempts:
        return
    request = entry.last.reserved.request
    yield (
        ("prompt", request.prompt_id),
        {"row": request.row_number, "prompt": request.arguments.get("prompt")},
    )
    yield (
        ("request", request.fingerprint),
        {
            "endpoint": request.endpoint_id,
            "take": request.take,
            "seed": request.seed,
            "state": entry.state,
            "attempts": entry.paid_attempts,
            "cost_usd": _usd(entry.cost.usd),
            "cost_source": entry.cost.source,
            "arguments": dict(request.arguments),
            "extra": request.extra,
        },
    )
    for use in request.pictures:
        yield (
            ("reference", use.sha256),
            {
                "reference_id": use.reference_id,
                "uri": without_access(use.uri),
                "path": use.path,
                **_copy_facts(use),
            },
        )
    for attempt in entry.attempts:
        yield ("submit", submit_id(attempt)), _submit_facts(attempt)
        yield ("run", attempt.reserved.owner), {"backend": attempt.reserved.backend}
        for image in attempt.settled.images if attempt.settled else ():
            yield ("image", image.path), image.model_dump(mode="json", exclude=_OF_MARKING)


def _copy_facts(use: PictureUse) -> dict[str, JsonValue]:
    """Return what was sent in the place of a picture, where that was an upright copy."""
    sha256, path = use.sent
    return {"sent_sha256": sha256, "sent_path": path} if use.sent_sha256 else {}


def _submit_facts(attempt: Attempt) -> dict[str, JsonValue]:
    reserved, submitted, settled = attempt.reserved, attempt.submitted, attempt.settled
    return {
        "attempt": reserved.attempt,
        "state": _state(attempt),
        "reason": without_access(settled.reason) if settled else None,
        "reserved_at": reserved.reserved_at.isoformat(),
        "submitted_at": submitted.submitted_at.isoformat() if submitted else None,
        "completed_at": settled.completed_at.isoformat() if settled else None,
        "seed_returned": settled.seed if settled else None,
        "inference_s": settled.inference_s if settled else None,
        "cost_usd": _usd(attempt.cost.usd),
        "cost_source": attempt.cost.source,
        "code_version": reserved.code_version,
        "backend": reserved.backend,
    }


def _state(attempt: Attempt) -> str:
    if attempt.released:
        return "never accepted"
    if attempt.settled:
        return attempt.settled.state
    return "submitted" if attempt.submitted else "unknown"


def _usd(usd: object) -> str | None:
    return None if usd is None else str(usd)
