"""Frames for assets downstream: loaded from the store by a parameter's name and annotation."""

import importlib.util
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.frames import FramesIOManager, NotAFrame
from ideogram_pipeline.generation import catalog
from ideogram_pipeline.resources import StoreResource
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store

ROOT = Path(__file__).parents[1]
BATCHES = dg.DynamicPartitionsDefinition(name="ideogram_batches")
SEEN: list[Any] = []
MEMORY = Store.open("memory://")


class InMemory(StoreResource):
    """A store that is no folder."""

    def open(self) -> Store:
        return MEMORY


@dg.asset
def all_pictures(image_catalog: pd.DataFrame) -> None:
    SEEN.append(image_catalog)


@dg.asset(ins={"image_catalog": dg.AssetIn(metadata={"columns": ["prompt_id", "path"]})})
def two_columns(image_catalog: pa.Table) -> None:
    SEEN.append(image_catalog)


@dg.asset
def all_batches(generated_images: pd.DataFrame) -> None:
    SEEN.append(generated_images)


@dg.asset(partitions_def=BATCHES)
def one_batch(generated_images) -> None:
    SEEN.append(generated_images)


@dg.asset(ins={"image_catalog": dg.AssetIn(metadata={"columns": ["prompt_id", "colour"]})})
def no_such_column(image_catalog: pd.DataFrame) -> None: ...


@dg.asset
def no_frame(image_catalog: dict) -> None: ...


@pytest.fixture
def settings(store, work_batch):
    """A store with the pictures of two batches, one of them with two rows."""
    for batch, names in {"one": ["a1", "a2"], "two": ["b1"]}.items():
        work_batch([{"prompt_id": name, "prompt": name} for name in names], batch=batch)
    catalog.refresh(store)
    return Settings(store=str(store.folder))


@pytest.fixture
def load(settings):
    """Materialize a downstream asset, and return what it was given."""

    def run(asset, settings=settings, batch=None):
        SEEN.clear()
        definitions = dg.Definitions.merge(
            build_definitions(settings), dg.Definitions([asset], jobs=[dg.define_asset_job("down", [asset])])
        )
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("ideogram_batches", ["one", "two", "not run yet"])
            definitions.resolve_job_def("down").execute_in_process(instance=instance, partition_key=batch)
        return SEEN[0]

    return run


def test_the_catalog_is_loaded_whole_as_pandas(load):
    frame = load(all_pictures)
    assert isinstance(frame, pd.DataFrame)
    assert sorted(frame["prompt_id"]) == ["a1", "a2", "b1"]
    assert str(frame["completed_at"].dtype).startswith("datetime64")


def test_the_annotation_chooses_the_kind_and_the_input_the_columns(load):
    table = load(two_columns)
    assert isinstance(table, pa.Table)
    assert table.column_names == ["prompt_id", "path"]


def test_an_asset_without_partitions_gets_all_batches_that_were_run(load):
    assert sorted(load(all_batches)["prompt_id"]) == ["a1", "a2", "b1"]


def test_a_partitioned_asset_gets_its_batch_as_pandas_where_nothing_is_annotated(load):
    frame = load(one_batch, batch="one")
    assert isinstance(frame, pd.DataFrame)
    assert list(frame["prompt_id"]) == ["a1", "a2"]


@pytest.mark.parametrize("kind", ["DataFrame", "LazyFrame"])
def test_polars_where_it_is_installed(load, kind):
    polars = pytest.importorskip("polars")

    @dg.asset(name="in_polars")
    def asset(image_catalog: getattr(polars, kind)) -> None:
        SEEN.append(image_catalog.lazy().select("prompt_id").collect())

    assert sorted(load(asset)["prompt_id"]) == ["a1", "a2", "b1"]


def test_a_batch_that_was_not_run_a_missing_column_and_a_strange_type_are_named(load):
    with pytest.raises(NotAFrame, match=r"generated_images has no rows yet.*Materialize it"):
        load(one_batch, batch="not run yet")
    with pytest.raises(NotAFrame, match="no column 'colour'; it has file_name"):
        load(no_such_column)
    with pytest.raises(NotAFrame, match=r"annotate the parameter as pandas\.DataFrame"):
        load(no_frame)


def test_rows_from_before_a_column_was_added_are_loaded_with_the_others(load, store):
    older = pa.BufferOutputStream()
    import pyarrow.parquet as pq

    path = catalog.path("one")
    pq.write_table(pq.read_table(store.where(path)).drop_columns(["take"]), older)
    store.put(path, older.getvalue().to_pybytes())
    assert load(all_pictures)["take"].isna().sum() == 2


def test_the_store_may_be_anywhere_and_have_a_prefix(settings):
    """A store in memory: nothing is read past it, from a disk."""
    path = catalog.path("one")
    MEMORY.put(path, (Path(settings.store) / path).read_bytes())
    resources = {"acme_frames": FramesIOManager(store=InMemory(url="memory://", backend="sandbox"))}
    upstream = dg.AssetSpec(["acme", "image_catalog"]).with_io_manager_key("acme_frames")

    @dg.asset(ins={"pictures": dg.AssetIn(["acme", "image_catalog"])})
    def downstream(pictures: pd.DataFrame) -> None:
        assert len(pictures) == 2

    assert dg.materialize([downstream, upstream], resources=resources).success


def test_a_pipeline_with_a_prefix_has_frames_of_its_own(load, settings):
    @dg.asset(ins={"image_catalog": dg.AssetIn(["acme", "image_catalog"])})
    def guest(image_catalog: pd.DataFrame) -> None:
        SEEN.append(image_catalog)

    assert len(load(guest, settings.model_copy(update={"key_prefix": "acme"}))) == 3


def test_it_does_not_pretend_to_write(settings):
    @dg.asset(io_manager_key="frames")
    def value() -> int:
        return 1

    with pytest.raises(NotAFrame, match="io_manager_key of your own"):
        dg.materialize([value], resources={"frames": build_definitions(settings).resources["frames"]})


def test_the_example_runs_on_a_real_batch(tmp_path, monkeypatch):
    (tmp_path / "prompts.csv").write_text("prompt_id,batch,prompt\na,one,a lighthouse\nb,one,a harbour\n")
    (tmp_path / "references.csv").write_text("reference_id,uri\n")
    for name, value in {"STORE": "store", "PROMPTS": "prompts.csv", "REFERENCES": "references.csv"}.items():
        monkeypatch.setenv(f"IDEOGRAM_{name}", str(tmp_path / value))
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    file = ROOT / "examples" / "downstream" / "downstream" / "definitions.py"
    spec = importlib.util.spec_from_file_location("downstream_definitions", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    definitions = module.defs()
    dg.Definitions.validate_loadable(definitions)
    with dg.DagsterInstance.ephemeral() as instance:
        for job, batch in {"refresh_tables": None, "generate_batch": "one", "publish": None}.items():
            definitions.resolve_job_def(job).execute_in_process(instance=instance, partition_key=batch)
        implicit = definitions.resolve_implicit_global_asset_job_def()
        costs = implicit.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("cost_by_endpoint")]
        )
        levels = implicit.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("brightness")], partition_key="one"
        )
    (cost,) = costs.get_asset_materialization_events()
    assert cost.materialization.metadata["v3"].value == pytest.approx(0.12)
    (level,) = levels.get_asset_materialization_events()
    assert level.materialization.metadata["pictures"].value == 2
