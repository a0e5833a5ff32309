"""Pictures' rows as frames, for assets downstream of this pipeline: a parameter and its annotation are all they need.

    @dg.asset
    def by_prompt(image_catalog: pd.DataFrame) -> None: ...

`image_catalog` is the catalog of all batches; `generated_images` the rows of the batches that the asset depends on: one
for an asset partitioned alike, all of them for one without partitions. The annotation chooses pandas, Arrow or Polars,
and `dg.AssetIn(metadata={"columns": ["prompt_id", "path"]})` the columns. Pictures are files, and are opened by path.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import dagster as dg

from ideogram_pipeline.errors import PipelineError
from ideogram_pipeline.resources import StoreResource

if TYPE_CHECKING:
    import pyarrow as pa

    from ideogram_pipeline.storage import Store


class NotAFrame(PipelineError):
    """What a downstream asset asks for can't be loaded as a frame; says what can."""


class FramesIOManager(dg.ConfigurableIOManager):
    """Loads a pipeline's picture rows from its store. It writes nothing: the pipeline's assets do that themselves."""

    store: dg.ResourceDependency[StoreResource]

    def handle_output(self, context: dg.OutputContext, obj: object) -> NoReturn:  # noqa: ARG002 - as Dagster has it
        """Refuse: frames are read here, and written by whoever makes them.

        Raises:
            NotAFrame: always.
        """
        raise NotAFrame(
            f"{context.asset_key.to_user_string()} returns a value, and its IO manager only reads. Give the asset an "
            "io_manager_key of your own."
        )

    def load_input(self, context: dg.InputContext) -> Any:
        """Return the upstream asset's rows as the type that the parameter is annotated with; pandas without one.

        Raises:
            NotAFrame: the type is no frame, a column doesn't exist, or no batch of those asked for was run.
        """
        store = self.store.open()
        columns = (context.definition_metadata or {}).get("columns")
        table = _table(store, _files(store, context), columns, context.asset_key)
        return _as(context.dagster_type.typing_type, table)


def _files(store: "Store", context: dg.InputContext) -> list[str]:
    """Return the Parquet files that hold an input's rows, those that exist."""
    from ideogram_pipeline.generation import catalog, files

    name = context.asset_key.path[-1]
    if name == "image_catalog":
        return catalog.paths(store)
    if name != "generated_images":
        raise NotAFrame(
            f"{context.asset_key.to_user_string()} has no frame; image_catalog and generated_images have."
        )
    return [
        path for batch in context.asset_partition_keys if store.exists(path := files.metadata_path(batch))
    ]


def _table(store: "Store", paths: list[str], columns: list[str] | None, asset: dg.AssetKey) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not paths:
        raise NotAFrame(
            f"{asset.to_user_string()} has no rows yet in the store {store.url!r}. Materialize it first."
        )

    def read() -> Iterator["pa.Table"]:
        for path in paths:
            source = pa.BufferReader(store.get(path))
            known = pq.read_schema(source).names
            source.seek(0)
            missing = [column for column in columns or () if column not in known]
            if missing:
                raise NotAFrame(
                    f"{asset.to_user_string()} has no column {missing[0]!r}; it has {', '.join(known)}."
                )
            yield pq.read_table(source, columns=columns, partitioning=None)

    # a batch that was run before a column was added lacks it
    return pa.concat_tables(list(read()), promote_options="default")


def _as(kind: Any, table: "pa.Table") -> Any:
    import pandas as pd
    import pyarrow as pa

    if kind in (Any, None, pd.DataFrame):
        return table.to_pandas()
    if kind is pa.Table:
        return table
    name = getattr(kind, "__name__", str(kind))
    if getattr(kind, "__module__", "").partition(".")[0] == "polars" and name in ("DataFrame", "LazyFrame"):
        frame = import_module("polars").from_arrow(table)  # there, or nobody could have named its type
        return frame.lazy() if name == "LazyFrame" else frame
    raise NotAFrame(
        f"{name!r} is no frame; annotate the parameter as pandas.DataFrame, pyarrow.Table, polars.DataFrame or "
        "polars.LazyFrame."
    )
