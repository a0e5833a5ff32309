"""What a materialization tells: numbers that plot, the rows that went wrong, a picture to look at.

Everybody who may see Dagster may see it, and it is kept for ever: no key is in it, and no URL that opens something.
What others wrote stands in tables and texts, and never in Markdown, of which Dagster makes links and pictures.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import dagster as dg

from ideogram_pipeline.texts import shown

if TYPE_CHECKING:
    from ideogram_pipeline.generation.files import PickedPicture
    from ideogram_pipeline.generation.planner import Plan
    from ideogram_pipeline.generation.reasons import Reason
    from ideogram_pipeline.generation.rows import ImageRow, OutcomeRow
    from ideogram_pipeline.storage import Store
    from ideogram_pipeline.tables.rows import Rejection

Value = int | float | dg.TableMetadataValue
"""What numbers and tables are told as."""

MAX_ROWS = 50
"""A table shows so many rows; all of them are in the store."""
NOTHING = "nothing"
"""What an asset tells where there is nothing to tell."""
PREVIEWS = 12
"""Pictures on the contact sheet."""


def table(
    name: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, str | int]]
) -> dict[str, dg.TableMetadataValue]:
    """Return rows as a table with these columns and their types; texts are as `shown`. Nothing of no rows."""
    if not rows:
        return {}
    records = [
        dg.TableRecord({name: shown(cell) if isinstance(cell, str) else cell for name, cell in row.items()})
        for row in rows
    ]
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()])
    return {name: dg.MetadataValue.table(records, schema)}


def rejections(rejected: Sequence[Rejection]) -> dict[str, dg.TableMetadataValue]:
    """Return the first records of a table that can't be used, and why."""
    return table(
        "rejected_rows",
        {"row_id": "string", "row_number": "int", "column": "string", "reason": "string"},
        [
            {
                "row_id": row.row_id,
                "row_number": row.row_number,
                "column": row.column,
                "reason": row.reason,
            }
            for row in rejected[:MAX_ROWS]
        ],
    )


def reasons(found: Sequence[Reason]) -> dict[str, dg.TableMetadataValue]:
    """Return why rows have no picture, a line for each reason."""
    columns = {"rows": "int", "names": "string", "state": "string", "reason": "string"}
    return table("reasons", columns, [one._asdict() | {"names": ", ".join(one.names)} for one in found])


def replaced(picked: Sequence[PickedPicture]) -> dict[str, dg.TableMetadataValue]:
    """Return the pictures that people have picked and that a run would replace."""
    return table(
        "replaces_picked",
        {"prompt_id": "string", "row_number": "int", "picture": "string"},
        [
            {"prompt_id": one.prompt_id, "row_number": one.row_number, "picture": one.file_name}
            for one in picked[:MAX_ROWS]
        ],
    )


def of_plan(plan: Plan) -> dict[str, Value]:
    """Return what a batch's plan tells: how many rows there are of each kind, and what they cost."""
    rejected = list(islice((row for row in plan.rows if row.decision == "rejected"), MAX_ROWS))
    return {
        "rows": len(plan.rows),
        "dagster/partition_row_count": len(plan.rows),
        "new": plan.count("new"),
        "stale": plan.count("stale"),
        "reused": plan.count("reused"),
        "re_attached": plan.count("re-attached"),
        "settled": plan.count("settled"),
        "unknown": plan.count("unknown"),
        "rejected": plan.count("rejected"),
        "left_out": plan.count("left out"),
        "images": plan.tally.images,
        "estimated_usd": plan.cost_usd,
        "estimated_usd_max": plan.cost_usd_max,
        "unpriced": plan.tally.unpriced,
        **table(
            "rejected_rows",
            {"prompt_id": "string", "row_number": "int", "column": "string", "reason": "string"},
            [
                {
                    "prompt_id": row.prompt_id,
                    "row_number": row.row_number,
                    "column": row.column,
                    "reason": row.reason,
                }
                for row in rejected
            ],
        ),
    }


def of_pictures(
    rows: Collection[OutcomeRow], pictures: Collection[ImageRow], *, reused: int
) -> dict[str, Value]:
    """Return what a batch's pictures tell.

    Counts are of rows, those that a person left out of the run among the `not_reached`; `images` and `bytes` of the
    pictures they ask for now, `dagster/partition_row_count` of all pictures ever made for the batch. `cost_usd` is what
    the rows cost over all runs, as far as that is known; `retries` counts submits beyond a row's first. Seconds are of
    the requests whose pictures are shown: of fal's work, and from the submit to the moment this project saw the end,
    which is late where a run had to take it up again.
    """
    from ideogram_pipeline.generation.reasons import is_left_out

    states: Counter[str] = Counter()
    missing: list[OutcomeRow] = []
    cost, unknown, retries, left_out = 0.0, 0, 0, 0
    for row in rows:
        states[row.state] += 1
        cost += row.cost_usd or 0.0
        unknown += row.cost_usd is None
        retries += max(row.attempts - 1, 0)
        left_out += is_left_out(row)
        if row.state != "generated" and len(missing) < MAX_ROWS:
            missing.append(row)
    images, size = 0, 0
    inference_s: dict[str, float | None] = {}
    waited_s: list[float] = []
    for picture in pictures:
        if not picture.current:
            continue
        images += 1
        size += picture.bytes
        if picture.fingerprint not in inference_s and picture.submitted_at is not None:
            waited_s.append((picture.completed_at - picture.submitted_at).total_seconds())
        inference_s.setdefault(picture.fingerprint, picture.inference_s)
    return {
        "rows": len(rows),
        "dagster/partition_row_count": len(pictures),
        "generated": states["generated"] - reused,
        "reused": reused,
        "rejected": states["rejected"],
        "refused": states["refused"],
        "failed": states["failed"],
        "unknown": states["unknown"],
        "not_reached": states["not_reached"],
        "left_out": left_out,
        "images": images,
        "bytes": size,
        "cost_usd": round(cost, 6),
        "rows_of_unknown_cost": unknown,
        "retries": retries,
        **_spread("inference_s", [seconds for seconds in inference_s.values() if seconds is not None]),
        **_spread("submit_to_completion_s", waited_s),
        "rows_without_pictures": states.total() - states["generated"],
        **table(
            "without_pictures",
            {
                "prompt_id": "string",
                "row_number": "int",
                "state": "string",
                "attempts": "int",
                "reason": "string",
            },
            [
                {
                    "prompt_id": row.prompt_id,
                    "row_number": row.row_number,
                    "state": row.state,
                    "attempts": row.attempts,
                    "reason": row.reason,
                }
                for row in missing
            ],
        ),
    }


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile, by nearest rank; nothing of nothing."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        f"{name}_p{percent}": round(ordered[math.ceil(percent / 100 * len(ordered)) - 1], 3)
        for percent in (50, 95)
    }


def preview(store: Store, pictures: Iterable[ImageRow], *, thumbnails: bool) -> dg.MarkdownMetadataValue:
    """Return a contact sheet as Markdown with the picture inside, so that the UI can show it from anywhere.

    Without thumbnails there is none: it is made of them.
    """
    if not thumbnails:
        return dg.MetadataValue.md("no contact sheet: IDEOGRAM_THUMBNAILS is false")
    from ideogram_pipeline.gallery.entries import Thumbnails
    from ideogram_pipeline.gallery.sheet import contact_sheet
    from ideogram_pipeline.generation.fetching import thumbnail_path

    first = list(islice((picture for picture in pictures if picture.current), PREVIEWS))
    there = Thumbnails(store, first[0].batch) if first else ()
    paths = [f"images/batch={row.batch}/{row.file_name}" for row in first]
    small = [store.get(thumbnail_path(path)) for path in paths if path in there]
    if not small:
        return dg.MetadataValue.md("no pictures")
    sheet = contact_sheet(small)
    return dg.MetadataValue.md(
        f"![the first pictures](data:image/webp;base64,{base64.b64encode(sheet).decode()})"
    )


def requests(store: Store) -> str:
    """Return the requests that were made of a store, by kind."""
    return ", ".join(f"{count} {kind}" for kind, count in store.requests.most_common()) or "none"
