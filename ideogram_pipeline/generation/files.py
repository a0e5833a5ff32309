"""What lies where in the store, and reading and writing it as rows."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.errors import ConfigurationError, DamagedFile
from ideogram_pipeline.generation import readings
from ideogram_pipeline.generation.planner import (
    NOT_NAMED,
    NOT_REJECTED,
    NOT_WORKED,
    ONLY_FAILED,
    TO_PAY,
    Plan,
)
from ideogram_pipeline.generation.readings import newest_numbers, table_and_number
from ideogram_pipeline.generation.rows import EdgeRow, ImageRow, OutcomeRow, OutcomeState, PlannedRow
from ideogram_pipeline.storage import Store, StoredObject, parquet
from ideogram_pipeline.tables.erased import refusal, refused
from ideogram_pipeline.tables.inputs import PICTURE_COLUMNS
from ideogram_pipeline.tables.reviews import ReviewsTable
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection, Review

NO_REVIEWS = "There is no reviews table: export one from the gallery, and set IDEOGRAM_REVIEWS to its path."
"""What to do where somebody asks for what was rejected."""
KEEP_RUN_PLANS = timedelta(days=7)
"""A run that is retried or executed again later than this takes the batch's newest plan for its own."""

_OF_OTHERS = ("dagster", "sandbox")
"""Folders that lie in the store and are written by others, who see to them."""
_TABLE = re.compile(
    r"tables/(?P<kind>(?:rejected_)?(?:prompts|references)|reviews)(?:/[0-9a-z]+(?:-[0-9a-f]{16})?)?\.parquet"
)
_PLAN = re.compile(r"plans/batch=[^/]+/(?:plan|[0-9a-f]{12}-\d+)\.parquet")
_RUN_PLAN = re.compile(r"run_plans/batch=[^/]+/[\w-]+\.parquet")
_OUTCOMES = re.compile(r"outcomes/batch=([^/]+)/outcomes\.parquet")


def batches(store: Store) -> dict[str, int]:
    """Return every batch of the prompts tables, sorted, with the number of pictures that its rows ask for.

    Where no table was read into this store, or what was kept of them is lost, these are the batches that were run.
    """
    asked: Counter[str] = Counter()
    for read in readings.newest_prompts(store):
        asked.update({batch: short.images for batch, short in read.batches.items()})
    return dict(sorted(asked.items())) or dict.fromkeys(batches_with_results(store), 0)


def table_files(store: Store) -> Iterator[tuple[str, type[PromptRow | Reference | Rejection | Review]]]:
    """Yield every file with rows of people's tables, of whichever reading, and what each row is."""
    kinds: Mapping[str, type[PromptRow | Reference | Rejection | Review]] = {
        "prompts": PromptRow,
        "references": Reference,
        "rejected_prompts": Rejection,
        "rejected_references": Rejection,
        "reviews": Review,
    }
    for found in list(store.objects("tables")):
        if name := _TABLE.fullmatch(found.path):
            yield found.path, kinds[name["kind"]]


def write_reviews(store: Store, table: ReviewsTable) -> None:
    """Keep what people think of pictures, but of erased ones, in place of what the same table said before."""
    gone = refused(store)
    kept = (one for one in table.reviews if one.sha256 not in gone)
    parquet.write(store, _reviews_path(table.url), Review, kept)
    store.delete("tables/reviews.parquet")  # where an earlier version kept those of all tables


def read_reviews(store: Store, url: str | None, batch: str) -> dict[str, Review]:
    """Return what people think of a batch's pictures by the reviews table at `url`, by the pictures' paths.

    Raises:
        ConfigurationError: this reviews table was never read into this store.
    """
    with suppress(FileNotFoundError):
        if url is not None:
            found = parquet.read(store, _reviews_path(url), Review)
            return {one.image: one for one in found if one.batch == batch}
    raise ConfigurationError(NO_REVIEWS)


def all_reviews(store: Store, newer: ReviewsTable | None = None) -> list[Review]:
    """Return what people think of pictures by all reviews tables; of several reviews of a picture the latest.

    A `newer` reading of one of the tables counts in place of what the store keeps of that.
    """
    found = [
        review
        for path, model in table_files(store)
        if model is Review and not (newer and path == _reviews_path(newer.url))
        for review in parquet.read(store, path, Review)
    ]
    found += newer.reviews if newer else ()
    return list({one.image: one for one in sorted(found, key=lambda one: one.reviewed_at)}.values())


def _reviews_path(url: str) -> str:
    return f"tables/reviews/{readings.table_key(url)}.parquet"


def rejected_requests(store: Store, batch: str, reviews: Iterable[Review]) -> set[str]:
    """Return the fingerprints of requests of which a picture, as it lies in the store, is rejected."""
    return {one.fingerprint for one in _reviewed(store, batch, reviews, "rejected")}


class PickedPicture(BaseModel):
    """A picture that a person has picked, and that a run would replace."""

    model_config = ConfigDict(frozen=True)

    batch: str = Field(description="The partition.")
    row_number: int = Field(description="Where its row stands in the table.")
    prompt_id: str = Field(description="Its row.")
    file_name: str = Field(description="The picture, in its batch's folder.")


def picked_to_replace(store: Store, plan: Plan, reviews: Iterable[Review]) -> list[PickedPicture]:
    """Return the picked pictures, as they lie in the store, that the rows to be paid for would no longer ask for."""
    picked: dict[str, list[str]] = defaultdict(list)
    for one in _reviewed(store, plan.batch, reviews, "picked"):
        if one.current:
            picked[one.prompt_id].append(one.file_name)
    if not picked:
        return []
    return [
        PickedPicture(
            batch=plan.batch, row_number=row.row_number, prompt_id=row.prompt_id, file_name=file_name
        )
        for row in plan.rows
        if row.decision in TO_PAY
        for file_name in picked.get(row.prompt_id, ())
    ]


def _reviewed(store: Store, batch: str, reviews: Iterable[Review], verdict: str) -> list[PictureFacts]:
    """Return a batch's pictures, as they lie in the store, that have this review."""
    reviewed = {one.image: one.sha256 for one in reviews if one.review == verdict}
    try:
        pictures = picture_facts(store, batch) if reviewed else []
    except (FileNotFoundError, DamagedFile):
        return []
    return [one for one in pictures if reviewed.get(f"images/batch={batch}/{one.file_name}") == one.sha256]


def sweep(store: Store, batch: str) -> int:
    """Remove what killed processes have left half-written of a batch, and beside the batches; say how many files."""

    def is_left_alone(folder: str) -> bool:
        return folder in _OF_OTHERS or (folder.startswith("batch=") and folder != f"batch={batch}")

    return store.sweep("", but=is_left_alone)


def named_by(rows: Iterable[PromptRow]) -> set[str]:
    """Return the ids of all references that rows name."""
    return {name for row in rows for name in row.named}


def plan_path(batch: str, reading: str = "") -> str:
    """Return where a batch's plan lies that was made of a reading of a prompts table."""
    return f"{_plans(batch)}/{reading or 'plan'}.parquet"


def run_plan_path(batch: str, root_run_id: str) -> str:
    """Return where the plan lies that a run and its retries made for themselves."""
    return f"run_plans/batch={batch}/{root_run_id}.parquet"


def write_plan(store: Store, plan: Plan, *, root_run_id: str | None = None) -> None:
    """Keep the plan of a batch and a table; with the id of a run's first attempt also as what that run was asked for.

    A plan of an earlier reading of its table goes, and is not kept beside one of a later reading. What runs of the
    batch were asked for more than `KEEP_RUN_PLANS` ago goes too.
    """
    table, number = table_and_number(plan.reading)
    there = newest_numbers(PurePosixPath(found.path).stem for found in _plan_files(store, plan.batch))
    if there.get(table, 0) <= number:
        store.put(plan_path(plan.batch, plan.reading), plan.rows.content)
        for found in _plan_files(store, plan.batch):
            its_table, its_number = table_and_number(PurePosixPath(found.path).stem)
            if plan.reading and (not its_table or (its_table == table and its_number < number)):
                store.delete(found.path)
    if root_run_id:
        own = run_plan_path(plan.batch, root_run_id)
        store.put(own, plan.rows.content)
        for found in list(store.objects(own.rpartition("/")[0])):
            is_plan = _RUN_PLAN.fullmatch(found.path)
            if is_plan and found.path != own and found.is_older_than(KEEP_RUN_PLANS):
                store.delete(found.path)


def read_plan(store: Store, batch: str, *, root_run_id: str | None = None) -> Plan:
    """Return what the tables ask of a batch; with the id of a run's first attempt that run's own plan, if it made one.

    Two runs may be asked for different things in one batch. Rows are rejected whose pictures were erased since.

    Raises:
        FileNotFoundError: the batch has no plan.
    """
    if root_run_id:
        with suppress(FileNotFoundError, DamagedFile):
            own = parquet.rows(store, run_plan_path(batch, root_run_id), PlannedRow)
            return without_erased(store, Plan(batch, own))
    found = plans(store, batch)
    if not found:
        raise FileNotFoundError(f"There is no {store.where(plan_path(batch))!r}.")
    return together(found)


def plans(store: Store, batch: str, *, but: str | None = None) -> list[Plan]:
    """Return the newest plan of a batch for each table that has it, in an order that doesn't depend on who wrote when.

    A table that was read again without the batch has it no longer, unless no other one has it either. Plans of the
    table of the reading `but` are left out, where one is given. Rows whose pictures were erased since are rejected.
    """
    found_here = _newest_readings(found.path for found in _plan_files(store, batch))
    if len(found_here) > 1:
        left = {
            readings.table_key(read.table)
            for read in readings.newest_prompts(store)
            if batch not in read.batches
        }
        found_here = [one for one in found_here if table_and_number(one)[0] not in left] or found_here
    if but is not None:
        table = table_and_number(but)[0]
        found_here = [one for one in found_here if one and table_and_number(one)[0] != table]
    found = []
    for reading in found_here:
        with suppress(FileNotFoundError, DamagedFile):  # a later one has taken its place, or will
            rows = parquet.rows(store, plan_path(batch, reading), PlannedRow)
            found.append(without_erased(store, Plan(batch, rows, reading)))
    return found


def without_erased(store: Store, plan: Plan) -> Plan:
    """Return a plan with those rows rejected that name a picture which was erased by now: nothing of them is kept."""
    stones = refused(store)
    if not stones:
        return plan

    def of(row: PlannedRow) -> PlannedRow:
        request = row.request
        use = next((use for use in request.pictures if use.sha256 in stones), None) if request else None
        if use is None:
            return row
        return PlannedRow(
            prompt_id=row.prompt_id,
            batch=plan.batch,
            row_number=row.row_number,
            decision="rejected",
            reason=refusal(stones[use.sha256]),
            column=PICTURE_COLUMNS[use.field],
            endpoint=row.endpoint,
        )

    return Plan(plan.batch, parquet.Rows.of(PlannedRow, map(of, plan.rows)), plan.reading)


def delete_damaged_plans(store: Store, batch: str) -> None:
    """Remove the plans of a batch that can't be read: the next run of their table writes them again."""
    for path in [found.path for found in _plan_files(store, batch)]:
        try:
            parquet.rows(store, path, PlannedRow)
        except DamagedFile:
            store.delete(path)
        except FileNotFoundError:
            continue  # a later one has taken its place


def together(found: Sequence[Plan]) -> Plan:
    """Return plans of one batch as one: a row that several have stands in it once."""
    if len(found) == 1:
        return found[0]
    rows = {
        (row.prompt_id, row.fingerprint or f"{row.column} {row.reason}"): row
        for one in found
        for row in one.rows
    }
    return Plan(found[0].batch, parquet.Rows.of(PlannedRow, rows.values()))


def plan_marks(store: Store, batch: str) -> list[str]:
    """Return what changes with every plan of a batch."""
    return sorted(f"{found.path} {found.etag} {found.modified}" for found in _plan_files(store, batch))


def _plans(batch: str) -> str:
    return f"plans/batch={batch}"


def _plan_files(store: Store, batch: str) -> list[StoredObject]:
    return [found for found in store.objects(_plans(batch)) if _PLAN.fullmatch(found.path)]


def _newest_readings(paths: Iterable[str]) -> list[str]:
    """Return the newest reading of each table among plans, sorted; a plan without one counts where no other is."""
    numbers = newest_numbers(PurePosixPath(path).stem for path in paths)
    if len(numbers) > 1:
        numbers.pop("", None)
    return [f"{table}-{number}" if table else "" for table, number in numbers.items()]


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


def read_results(store: Store, batch: str) -> Results:
    """Return a batch's picture rows and outcomes as they lie there.

    Raises:
        FileNotFoundError: the batch has none.
    """
    return Results(images(store, batch), outcomes(store, batch))


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
    unmarked_because: str | None
    unstamped_because: str | None
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


class TakeCost(NamedTuple):
    """What a picture cost, likewise of `ImageRow`."""

    current: bool
    cost_usd: float | None


def replaced_usd(store: Store, batch: str) -> float:
    """Return the dollars of a batch's pictures that its rows no longer ask for, as far as they are known."""
    pictures = parquet.view(store, metadata_path(batch), TakeCost)
    return sum(one.cost_usd or 0.0 for one in pictures if not one.current)


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
    except (FileNotFoundError, DamagedFile):
        return {}
    return {
        row.prompt_id: row.fingerprint
        for row in ended
        if row.state != "generated" and row.reason not in (ONLY_FAILED, NOT_REJECTED, NOT_NAMED, NOT_WORKED)
    }
