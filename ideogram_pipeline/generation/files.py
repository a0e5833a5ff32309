"""What lies where in the store, and reading and writing it as rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from ideogram_pipeline.generation.planner import ONLY_FAILED, Plan, References
from ideogram_pipeline.generation.rows import ImageRow, OutcomeRow, OutcomeState, PlannedRow
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.references import ReferencesTable
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection

PROMPTS = "tables/prompts.parquet"
REJECTED_PROMPTS = "tables/rejected_prompts.parquet"
REFERENCES = "tables/references.parquet"
REJECTED_REFERENCES = "tables/rejected_references.parquet"


def write_prompts(store: Store, table: PromptsTable) -> None:
    """Keep the prompts table, by batch, so that one batch can be read without the others."""
    parquet.write(store, PROMPTS, PromptRow, sorted(table.rows, key=lambda row: row.batch))
    parquet.write(store, REJECTED_PROMPTS, Rejection, table.rejections)


def batches(store: Store) -> dict[str, int]:
    """Return every batch of the prompts table with the number of pictures its rows ask for.

    Where the table was never read into this store, these are the batches that were run.
    """
    asked: dict[str, int] = {}
    try:
        for row in parquet.read(store, PROMPTS, PromptRow):
            asked[row.batch] = asked.get(row.batch, 0) + (row.num_images or 1)
    except FileNotFoundError:
        return dict.fromkeys(batches_with_results(store), 0)
    for rejection in parquet.read(store, REJECTED_PROMPTS, Rejection):
        asked.setdefault(rejection.batch, 0)
    return asked


def read_prompts(store: Store, batch: str) -> tuple[list[PromptRow], list[Rejection]]:
    """Return a batch's rows and its rejected records."""
    rows = list(parquet.read(store, PROMPTS, PromptRow, where=("batch", batch)))
    return rows, list(parquet.read(store, REJECTED_PROMPTS, Rejection, where=("batch", batch)))


def read_all_prompts(store: Store) -> tuple[list[PromptRow], list[Rejection]]:
    """Return the rows and rejected records of all batches, batch by batch."""
    rows = list(parquet.read(store, PROMPTS, PromptRow))
    return rows, list(parquet.read(store, REJECTED_PROMPTS, Rejection))


def write_references(store: Store, table: ReferencesTable) -> None:
    """Keep the references table."""
    parquet.write(store, REFERENCES, Reference, table.references)
    parquet.write(store, REJECTED_REFERENCES, Rejection, table.rejections)


def read_references(store: Store) -> References:
    """Return the references table."""
    return References.of(
        parquet.read(store, REFERENCES, Reference), parquet.read(store, REJECTED_REFERENCES, Rejection)
    )


def plan_path(batch: str) -> str:
    """Return where a batch's plan lies."""
    return f"plans/batch={batch}/plan.parquet"


def run_plan_path(batch: str, root_run_id: str) -> str:
    """Return where the plan lies that a run and its retries made for themselves."""
    return f"run_plans/batch={batch}/{root_run_id}.parquet"


def write_plan(store: Store, plan: Plan, *, root_run_id: str | None = None) -> None:
    """Keep a batch's plan; with the id of a run's first attempt also as what that run was asked for."""
    for path in (plan_path(plan.batch), *([run_plan_path(plan.batch, root_run_id)] if root_run_id else [])):
        store.put(path, plan.rows.content)


def read_plan(store: Store, batch: str, *, root_run_id: str | None = None) -> Plan:
    """Return a batch's newest plan; with the id of a run's first attempt that run's own, if it has made one.

    Two runs may be asked for different things in one batch, and the newest plan may be the other one's.
    """
    if root_run_id:
        with suppress(FileNotFoundError):
            return Plan(batch, parquet.rows(store, run_plan_path(batch, root_run_id), PlannedRow))
    return Plan(batch, parquet.rows(store, plan_path(batch), PlannedRow))


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


def batches_with_results(store: Store) -> list[str]:
    """Return the batches that were run, sorted."""
    return [folder.removeprefix("batch=") for folder in store.folders("outcomes")]


class PictureFacts(NamedTuple):
    """What is checked of a picture; the columns are those of `ImageRow`."""

    prompt_id: str
    file_name: str
    fingerprint: str
    current: bool
    sha256: str
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
        if row.state != "generated" and row.reason != ONLY_FAILED
    }
