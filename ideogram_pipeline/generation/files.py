"""What lies where in the store, and reading and writing it as rows."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline import digests
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation.buckets import bucket
from ideogram_pipeline.generation.planner import (
    NOT_NAMED,
    NOT_REJECTED,
    ONLY_FAILED,
    PICTURE_COLUMNS,
    Plan,
    References,
)
from ideogram_pipeline.generation.rows import EdgeRow, ImageRow, OutcomeRow, OutcomeState, PlannedRow
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables.erased import Tombstone, refusal, refused
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.references import ReferencesTable
from ideogram_pipeline.tables.reviews import ReviewsTable
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection, Review

PROMPTS = "tables/prompts"
REJECTED_PROMPTS = "tables/rejected_prompts"
BATCHES = "tables/batches.json"
REFERENCES = "tables/references.parquet"
REVIEWS = "tables/reviews.parquet"
REJECTED_REFERENCES = "tables/rejected_references.parquet"

NO_REVIEWS = "There is no reviews table: export one from the gallery, and set IDEOGRAM_REVIEWS to its path."
"""What to do where somebody asks for what was rejected."""
KEEP_RUN_PLANS = timedelta(days=7)
"""A run that is retried or executed again later than this takes the batch's newest plan for its own."""

_OUTCOMES = re.compile(r"outcomes/batch=([^/]+)/outcomes\.parquet")

Row = TypeVar("Row", bound=BaseModel)


class BatchInTable(BaseModel):
    """What the prompts table asks for in one batch, in short."""

    model_config = ConfigDict(frozen=True)

    images: int = Field(description="Pictures that its rows ask for.")
    digest: str = Field(description="Changes with its rows and rejections, wherever in the table they stand.")
    named: tuple[str, ...] = Field(description="The references that its rows name, sorted.")


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    etag: str


class PromptsIndex(BaseModel):
    """The prompts table as it lies in the store: what is known of it without reading its rows."""

    model_config = ConfigDict(frozen=True)

    batches: Mapping[str, BatchInTable] = Field(default={}, description="Every batch, sorted by name.")
    files: Mapping[str, _Written] = Field(default={}, description="The files of rows and rejections.")


def write_prompts(store: Store, table: PromptsTable) -> None:
    """Keep the prompts table in buckets of batches, so that one batch can be read without the others.

    A file that would be as it is isn't written. The index comes last: a batch's own rows are always whole.
    """
    before = prompts_index(store).files if store.exists(BATCHES) else {}
    there = {found.path: found.etag for found in store.objects("tables")}
    files: dict[str, _Written] = {}

    def keep(path: str, content: bytes) -> None:
        sha256, known = hashlib.sha256(content).hexdigest(), before.get(path)
        if known and known.sha256 == sha256 and known.etag == there.get(path):
            files[path] = known
        else:
            files[path] = _Written(sha256=sha256, etag=store.put(path, content))

    rows: dict[str, list[PromptRow]] = defaultdict(list)
    rejections: dict[str, list[Rejection]] = defaultdict(list)
    for row in table.rows:
        rows[bucket(row.batch)].append(row)
    for rejection in table.rejections:
        rejections[bucket(rejection.batch)].append(rejection)
    for name, members in rows.items():
        ordered = sorted(members, key=lambda row: row.batch)
        keep(f"{PROMPTS}/{name}.parquet", parquet.encode(PromptRow, ordered))
    for name, unusable in rejections.items():
        keep(f"{REJECTED_PROMPTS}/{name}.parquet", parquet.encode(Rejection, unusable))
    index = PromptsIndex(batches=_in_short(table), files=files)
    store.put(BATCHES, index.model_dump_json().encode())
    for path in there:
        if path.startswith((f"{PROMPTS}/", f"{REJECTED_PROMPTS}/")) and path not in files:
            store.delete(path)


def _in_short(table: PromptsTable) -> dict[str, BatchInTable]:
    lines: dict[str, list[str]] = defaultdict(list)
    named: dict[str, set[str]] = defaultdict(set)
    images: dict[str, int] = defaultdict(int)
    for row in table.rows:
        lines[row.batch].append(row.model_dump_json(exclude={"row_number"}))
        named[row.batch].update(row.named)
        images[row.batch] += row.num_images or 1
    for rejection in table.rejections:
        lines[rejection.batch].append(f"rejected {rejection.row_id} {rejection.column} {rejection.reason}")
    return {
        batch: BatchInTable(
            images=images[batch],
            digest=digests.of_lines(sorted(lines[batch])),
            named=tuple(sorted(named[batch])),
        )
        for batch in sorted(lines)
    }


def prompts_index(store: Store) -> PromptsIndex:
    """Return what is known of the prompts table without reading its rows.

    Raises:
        FileNotFoundError: the table was never read into this store.
    """
    return PromptsIndex.model_validate_json(store.get(BATCHES))


def batches(store: Store) -> dict[str, int]:
    """Return every batch of the prompts table with the number of pictures its rows ask for.

    Where the table was never read into this store, these are the batches that were run.
    """
    try:
        return {batch: short.images for batch, short in prompts_index(store).batches.items()}
    except FileNotFoundError:
        return dict.fromkeys(batches_with_results(store), 0)


def read_prompts(store: Store, batch: str) -> tuple[parquet.Rows[PromptRow], parquet.Rows[Rejection]]:
    """Return a batch's rows and its rejected records.

    Raises:
        FileNotFoundError: the table was never read into this store.
    """
    store.etag(BATCHES)

    def of_batch(folder: str, model: type[Row]) -> parquet.Rows[Row]:
        path = f"{folder}/{bucket(batch)}.parquet"
        try:
            return parquet.rows(store, path, model, where=("batch", [batch]))
        except FileNotFoundError:
            return parquet.Rows.of(model, [])

    return of_batch(PROMPTS, PromptRow), of_batch(REJECTED_PROMPTS, Rejection)


def write_references(store: Store, table: ReferencesTable) -> None:
    """Keep the references table."""
    parquet.write(store, REFERENCES, Reference, table.references)
    parquet.write(store, REJECTED_REFERENCES, Rejection, table.rejections)


def read_references(store: Store, named: Collection[str]) -> References:
    """Return the references of these names, as far as the table has them, and nothing was erased since it was read."""
    stones = refused(store)
    known = list(parquet.read(store, REFERENCES, Reference, where=("reference_id", named)))
    return References.of(
        [one for one in known if one.sha256 not in stones],
        [
            *parquet.read(store, REJECTED_REFERENCES, Rejection, where=("row_id", named)),
            *(
                Rejection(
                    file=REFERENCES,
                    row_number=one.row_number,
                    row_id=one.reference_id,
                    column="uri",
                    reason=refusal(stones[one.sha256]),
                )
                for one in known
                if one.sha256 in stones
            ),
        ],
    )


def write_reviews(store: Store, table: ReviewsTable) -> None:
    """Keep what people think of pictures, but of those that were erased."""
    gone = refused(store)
    parquet.write(store, REVIEWS, Review, (one for one in table.reviews if one.sha256 not in gone))


def read_reviews(store: Store, batch: str) -> dict[str, Review]:
    """Return what people think of a batch's pictures, by their paths.

    Raises:
        ConfigurationError: no reviews table was ever read into this store.
    """
    if not store.exists(REVIEWS):
        raise ConfigurationError(NO_REVIEWS)
    return {one.image: one for one in all_reviews(store) if one.batch == batch}


def all_reviews(store: Store) -> list[Review]:
    """Return what people think of pictures; nothing where no reviews table was read."""
    try:
        return list(parquet.read(store, REVIEWS, Review))
    except FileNotFoundError:
        return []


def rejected_requests(store: Store, batch: str, reviews: Iterable[Review]) -> set[str]:
    """Return the fingerprints of requests of which a picture, as it lies in the store, is rejected."""
    verdicts = {one.image: one.sha256 for one in reviews if one.review == "rejected"}
    try:
        pictures = picture_facts(store, batch)
    except FileNotFoundError:
        return set()
    return {
        one.fingerprint
        for one in pictures
        if verdicts.get(f"images/batch={batch}/{one.file_name}") == one.sha256
    }


def named_by(rows: Iterable[PromptRow]) -> set[str]:
    """Return the ids of all references that rows name."""
    return {name for row in rows for name in row.named}


def plan_path(batch: str) -> str:
    """Return where a batch's plan lies."""
    return f"plans/batch={batch}/plan.parquet"


def run_plan_path(batch: str, root_run_id: str) -> str:
    """Return where the plan lies that a run and its retries made for themselves."""
    return f"run_plans/batch={batch}/{root_run_id}.parquet"


def write_plan(store: Store, plan: Plan, *, root_run_id: str | None = None) -> None:
    """Keep a batch's plan; with the id of a run's first attempt also as what that run was asked for.

    What runs of the batch were asked for more than `KEEP_RUN_PLANS` ago goes.
    """
    store.put(plan_path(plan.batch), plan.rows.content)
    if root_run_id:
        own = run_plan_path(plan.batch, root_run_id)
        store.put(own, plan.rows.content)
        for found in store.objects(own.rpartition("/")[0]):
            if found.path != own and datetime.now(UTC) - found.modified > KEEP_RUN_PLANS:
                store.delete(found.path)


def read_plan(store: Store, batch: str, *, root_run_id: str | None = None) -> Plan:
    """Return a batch's newest plan; with the id of a run's first attempt that run's own, if it has made one.

    Two runs may be asked for different things in one batch, and the newest plan may be the other one's. Rows whose
    pictures were erased since the plan was made are rejected in it.
    """
    stones = refused(store)
    if root_run_id:
        with suppress(FileNotFoundError):
            own = parquet.rows(store, run_plan_path(batch, root_run_id), PlannedRow)
            return Plan(batch, _without_erased(own, stones))
    return Plan(batch, _without_erased(parquet.rows(store, plan_path(batch), PlannedRow), stones))


def _without_erased(
    rows: parquet.Rows[PlannedRow], stones: Mapping[str, Tombstone]
) -> parquet.Rows[PlannedRow]:
    """Return a plan's rows, with those rejected that name a picture which was erased: nothing of them is kept."""
    if not stones:
        return rows

    def of(row: PlannedRow) -> PlannedRow:
        request = row.request
        use = next((use for use in request.pictures if use.sha256 in stones), None) if request else None
        if use is None:
            return row
        return PlannedRow(
            prompt_id=row.prompt_id,
            row_number=row.row_number,
            decision="rejected",
            reason=refusal(stones[use.sha256]),
            column=PICTURE_COLUMNS[use.field],
            endpoint=row.endpoint,
        )

    return parquet.Rows.of(PlannedRow, map(of, rows))


def metadata_path(batch: str) -> str:
    """Return where the rows of a batch's pictures lie: beside the pictures."""
    return f"images/batch={batch}/metadata.parquet"


def outcomes_path(batch: str) -> str:
    """Return where the outcomes of a batch's prompt rows lie."""
    return f"outcomes/batch={batch}/outcomes.parquet"


@dataclass(frozen=True, slots=True)
class Results:
    """What a run leaves of a batch."""

    images: parquet.Rows[ImageRow]
    """A row a picture."""
    outcomes: parquet.Rows[OutcomeRow]
    """A row a prompt row."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all there is to say."""
        return hashlib.sha256(self.images.content + self.outcomes.content).hexdigest()


def write_results(
    store: Store, batch: str, images: Iterable[ImageRow], outcomes: Iterable[OutcomeRow]
) -> Results:
    """Keep a batch's picture rows and outcomes, and return them as they lie there."""
    results = Results(parquet.Rows.of(ImageRow, images), parquet.Rows.of(OutcomeRow, outcomes))
    store.put(metadata_path(batch), results.images.content)
    store.put(outcomes_path(batch), results.outcomes.content)
    return results


def edges_path(batch: str) -> str:
    """Return where it lies how a batch's pictures came to be."""
    return f"lineage/batch={batch}/edges.parquet"


def write_edges(store: Store, batch: str, edges: Iterable[EdgeRow]) -> None:
    """Keep how a batch's pictures came to be."""
    parquet.write(store, edges_path(batch), EdgeRow, edges)


def results(store: Store) -> dict[str, str]:
    """Return the batches that were run, sorted, each with a mark that every writing of its results changes."""
    marks = {
        name[1]: f"{found.etag} {found.modified.isoformat()}"
        for found in store.objects("outcomes")
        if (name := _OUTCOMES.fullmatch(found.path))
    }
    return dict(sorted(marks.items()))


def batches_with_results(store: Store) -> list[str]:
    """Return the batches that were run, sorted."""
    return list(results(store))


class PictureFacts(NamedTuple):
    """What is checked of a picture; the columns are those of `ImageRow`."""

    prompt_id: str
    file_name: str
    fingerprint: str
    current: bool
    sha256: str
    sha256_received: str
    manifest_id: str | None
    nearest_image: str | None
    nearest_distance: int | None
    reference_distance: int | None
    face_distance: float | None
    bytes: int
    width: int
    height: int
    image_size: str | None


class RowEnd(NamedTuple):
    """What is checked of a row; the columns are those of `OutcomeRow`."""

    prompt_id: str
    state: OutcomeState
    reason: str
    due: bool
    fingerprint: str | None
    images: int


class RowInShort(NamedTuple):
    """What is counted of a row, likewise."""

    state: OutcomeState
    cost_usd: float | None


def rows_in_short(store: Store, batch: str) -> list[RowInShort]:
    """Return what is counted of a batch's rows."""
    return parquet.view(store, outcomes_path(batch), RowInShort)


def picture_facts(store: Store, batch: str) -> list[PictureFacts]:
    """Return what is checked of a batch's pictures."""
    return parquet.view(store, metadata_path(batch), PictureFacts)


def row_ends(store: Store, batch: str) -> list[RowEnd]:
    """Return what is checked of a batch's rows."""
    return parquet.view(store, outcomes_path(batch), RowEnd)


def images(store: Store, batch: str) -> parquet.Rows[ImageRow]:
    """Return the rows of a batch's pictures as they lie there, for those who go through them one by one."""
    return parquet.rows(store, metadata_path(batch), ImageRow)


def outcomes(store: Store, batch: str) -> parquet.Rows[OutcomeRow]:
    """Return how a batch's prompt rows ended, likewise."""
    return parquet.rows(store, outcomes_path(batch), OutcomeRow)


def read_images(store: Store, batch: str) -> list[ImageRow]:
    """Return the rows of a batch's pictures."""
    return list(images(store, batch))


def read_outcomes(store: Store, batch: str) -> list[OutcomeRow]:
    """Return how a batch's prompt rows ended."""
    return list(outcomes(store, batch))


def left_without_picture(store: Store, batch: str) -> dict[str, str | None]:
    """Return the rows that the last run should have made and did not: what each asked for, by prompt id."""
    try:
        ended = outcomes(store, batch)
    except FileNotFoundError:
        return {}
    return {
        row.prompt_id: row.fingerprint
        for row in ended
        if row.state != "generated" and row.reason not in (ONLY_FAILED, NOT_REJECTED, NOT_NAMED)
    }
