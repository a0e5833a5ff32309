"""A project in a folder of its own, its jobs, and its checks: run with the assets, or again on what is in the store."""

import csv
import warnings

import dagster as dg
import pytest
from PIL import Image

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store

BATCHES = dg.DynamicPartitionsDefinition(name="ideogram_batches")


class Project:
    """The tables, the jobs and the store of one project."""

    def __init__(self, folder, instance):
        self.instance = instance
        self.folder = folder
        self.settings = Settings(
            store=str(folder / "store"),
            prompts=str(folder / "prompts.csv"),
            references=str(folder / "references.csv"),
        )
        Image.new("RGB", (640, 640), "teal").save(folder / "ada.png")
        (folder / "references.csv").write_text("reference_id,uri,role\nada,ada.png,character\n")

    @property
    def store(self):
        return Store.open(self.settings.store)

    def definitions(self, **changed):
        return build_definitions(self.settings.model_copy(update=changed))

    def write(self, *rows):
        """Write the prompts table and have it read."""
        columns = dict.fromkeys(["prompt_id", *(column for row in rows for column in row)])
        with (self.folder / "prompts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows({"prompt_id": f"p{number}", **row} for number, row in enumerate(rows, 1))
        self.run("refresh_tables")

    def run(self, job, batch=None, **changed):
        definition = self.definitions(**changed).resolve_job_def(job)
        return definition.execute_in_process(
            instance=self.instance, partition_key=batch, raise_on_error=False
        )

    def generate(self, **changed):
        return self.run("generate_batch", "default", **changed)

    def check_again(self, asset, **changed):
        """Run the checks of an asset and leave what is in the store as it is; return them by name."""
        partitions = None if asset == "image_catalog" else BATCHES

        @dg.asset(key=asset, partitions_def=partitions)
        def as_it_is():
            return None

        definitions = self.definitions(**changed)
        checks = [
            checks
            for checks in definitions.asset_checks
            if {spec.asset_key for spec in checks.check_specs} == {dg.AssetKey(asset)}
        ]
        result = dg.materialize(
            [as_it_is, *checks],
            instance=self.instance,
            resources=definitions.resources,
            partition_key=partitions and "default",
            raise_on_error=False,
        )
        return by_name(result)


def by_name(result):
    """The evaluations of a run by the names of their checks."""
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def table(evaluation):
    """The rows that a check has shown."""
    shown = evaluation.metadata.get("rows")
    return [tuple(record.data.values()) for record in shown.records] if shown else []


def materialized(result):
    return {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    (tmp_path / "home").mkdir()
    with warnings.catch_warnings(), dg.DagsterInstance.ephemeral() as instance:
        warnings.simplefilter("ignore")
        yield Project(tmp_path, instance)


@pytest.fixture
def evaluations():
    return by_name


@pytest.fixture
def rows_of():
    return table


@pytest.fixture
def assets_of():
    return materialized
