"""What Dagster shows of the tables' columns: their schemas, and which column of which asset each one comes from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from ideogram_pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from pydantic import BaseModel

Source = tuple[str, str]
"""An asset's name and one of its columns."""


def described(
    pipeline: Pipeline, rows: "type[BaseModel]", sources: Mapping[str, Sequence[Source]], folder: str
) -> dict[str, object]:
    """Return the metadata of an asset's definition: the columns of its rows, where they come from, where they lie."""
    lineage = {
        column: [dg.TableColumnDep(pipeline.key(asset), name) for asset, name in origins]
        for column, origins in sources.items()
    }
    return {
        "dagster/column_schema": _schema(rows),
        **({"dagster/column_lineage": dg.TableColumnLineage(lineage)} if lineage else {}),
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


_CHOOSING = ("reference_ids", "reference_mask_ids", "image_id", "mask_id", "style_reference_ids")
"""The prompts table's columns that name pictures; a row without an endpoint gets the one that takes them."""


def request_sources() -> dict[str, list[Source]]:
    """Return where the columns of a plan come from. A decision comes from the ledger, which is no asset."""
    carried = [("prompts", column) for column in _carried()]
    asked = [source for source in carried if source[1] not in ("batch", "row_number", "extra")]
    pictures = [("references", "reference_id"), ("references", "sha256")]
    return {
        "prompt_id": [("prompts", "prompt_id")],
        "batch": [("prompts", "batch")],
        "row_number": [("prompts", "row_number")],
        "endpoint": [("prompts", column) for column in ("endpoint", *_CHOOSING)],
        "images": [("prompts", "num_images")],
        "price_usd": [("prompts", column) for column in ("endpoint", "rendering_speed", "num_images")],
        "fingerprint": [*asked, *pictures],
        "request_json": [*carried, *pictures, ("references", "uri")],
    }


def image_sources() -> dict[str, list[Source]]:
    """Return where the columns of a picture's row come from: through the request, and first of all the tables."""
    request = ("generation_requests", "request_json")
    sources = {column: [request, ("prompts", column)] for column in _carried() if column != "row_number"}
    digests = {column.replace("_id", "_sha256"): [request, ("references", "sha256")] for column in _CHOOSING}
    return {
        **sources,
        **digests,
        "sent_sha256s": [request, ("references", "sha256"), ("references", "sent_sha256")],
        "endpoint": [("generation_requests", "endpoint"), ("prompts", "endpoint")],
        "fingerprint": [("generation_requests", "fingerprint")],
        "request_json": [request],
        "reference_distance": [request, ("references", "perceptual_hash")],
        "face_distance": [request, ("references", "sha256")],
    }


def catalog_sources() -> dict[str, list[Source]]:
    """Return where the columns of the catalog come from: all of them from the pictures' rows."""
    from ideogram_pipeline.generation.rows import ImageRow

    sources = {column: [("generated_images", column)] for column in ImageRow.model_fields}
    return {**sources, "path": [("generated_images", "batch"), ("generated_images", "file_name")]}


def _carried() -> list[str]:
    """Return the columns of the prompts table; a request carries all of them."""
    from ideogram_pipeline.tables.rows import PromptRow

    return list(PromptRow.model_fields)
