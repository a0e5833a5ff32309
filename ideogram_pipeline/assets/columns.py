"""What Dagster shows of the tables' columns: their schemas, and which column of which asset each one comes from."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from ideogram_pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from pydantic import BaseModel

Source = tuple[str, str]
"""An asset's name and one of its columns."""


def described(
    pipeline: Pipeline, rows: "type[BaseModel]", sources: Mapping[str, Iterable[Source]], folder: str
) -> dict[str, object]:
    """Return the metadata of an asset's definition: the columns of its rows, where they come from, where they lie."""
    return {
        "dagster/column_schema": _schema(rows),
        "dagster/column_lineage": dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(pipeline.key(asset), name) for asset, name in origins]
                for column, origins in sources.items()
            }
        ),
        "dagster/uri": pipeline.uri(folder),
    }


def _schema(rows: "type[BaseModel]") -> dg.TableSchema:
    from ideogram_pipeline.storage.parquet import columns

    return dg.TableSchema(
        [
            dg.TableColumn(
                column.name,
                f"list<{column.type}>" if column.is_list else column.type,
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in columns(rows)
        ]
    )


def request_sources() -> dict[str, list[Source]]:
    """Return where the columns of a plan come from. A decision comes from the ledger, which is no asset."""
    asked = [("prompts", column) for column in _asked()]
    pictures = [("references", "reference_id"), ("references", "sha256")]
    return {
        "prompt_id": [("prompts", "prompt_id")],
        "row_number": [("prompts", "row_number")],
        "endpoint": [("prompts", column) for column in ("endpoint", *_PICTURES, "style_reference_ids")],
        "images": [("prompts", "num_images")],
        "price_usd": [("prompts", column) for column in ("endpoint", "rendering_speed", "num_images")],
        "fingerprint": [("prompts", "prompt_id"), *asked, *pictures],
        "request_json": [*(("prompts", column) for column in _carried()), *pictures, ("references", "uri")],
    }


def image_sources() -> dict[str, list[Source]]:
    """Return where the columns of a picture's row come from: through the request, and first of all the tables."""
    carried = ("generation_requests", "request_json")
    sources: dict[str, list[Source]] = {
        column: [carried, ("prompts", column)] for column in _carried() if column != "row_number"
    }
    sources |= {
        f"{ids.removesuffix('_ids').removesuffix('_id')}_sha256{'s' if ids.endswith('s') else ''}": [
            carried,
            ("references", "sha256"),
        ]
        for ids in (*_PICTURES, "style_reference_ids")
    }
    sources["fingerprint"] = [("generation_requests", "fingerprint")]
    sources["endpoint"] = [("generation_requests", "endpoint"), ("prompts", "endpoint")]
    sources["request_json"] = [carried]
    return sources


def catalog_sources() -> dict[str, list[Source]]:
    """Return where the columns of the catalog come from: all of them from the pictures' rows."""
    from ideogram_pipeline.generation.records import ImageRow

    sources: dict[str, list[Source]] = {
        column: [("generated_images", column)] for column in ImageRow.model_fields
    }
    return {**sources, "path": [("generated_images", "batch"), ("generated_images", "file_name")]}


_PICTURES = ("reference_ids", "reference_mask_ids", "image_id", "mask_id")
"""The prompts table's columns that choose an endpoint by the pictures they name."""


def _carried() -> Iterator[str]:
    """Yield the columns of the prompts table that a request carries."""
    from ideogram_pipeline.tables.rows import PromptRow

    yield from PromptRow.model_fields


def _asked() -> Iterator[str]:
    """Yield those of them that decide which picture is asked for."""
    return (column for column in _carried() if column not in ("prompt_id", "batch", "row_number", "extra"))
