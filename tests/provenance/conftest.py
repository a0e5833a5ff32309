"""A project whose table is written by a test and run as the command runs it, against the embedded sandbox."""

import csv

import pytest
from PIL import Image

from ideogram_pipeline.generation.choice import Choice
from ideogram_pipeline.launch import run
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store


class Quiet:
    """Watches nothing."""

    def begin(self, batch, images):
        pass

    def ended(self, outcome, spent_usd):
        pass


class Project:
    """Tables and a store in one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.settings = Settings(
            store=str(folder / "store"),
            prompts=str(folder / "prompts.csv"),
            references=str(folder / "references.csv"),
            max_failed_fraction=1,
        )
        for name, color in (("ada", "teal"), ("bob", "brown")):
            Image.new("RGB", (64, 64), color).save(folder / f"{name}.png")
        (folder / "references.csv").write_text("reference_id,uri\nada,ada.png\nbob,bob.png\n")

    @property
    def store(self):
        return Store.open(self.settings.store)

    def write(self, *rows):
        columns = dict.fromkeys(["prompt_id", *(column for row in rows for column in row)])
        with (self.folder / "prompts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows({"prompt_id": f"p{number}", **row} for number, row in enumerate(rows, 1))

    def run(self, *batches, **choice):
        return run(self.settings, batches, progress=Quiet(), expect=len, choice=Choice(**choice))


@pytest.fixture(scope="module")
def make_project(tmp_path_factory):
    """Make projects that last as long as the module's tests."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SANDBOX_LATENCY_SCALE", "0")
        environment.setenv("DAGSTER_DISABLE_TELEMETRY", "1")

        def make():
            folder = tmp_path_factory.mktemp("project")
            environment.setenv("DAGSTER_HOME", str(folder / "home"))
            return Project(folder)

        yield make


@pytest.fixture
def project(make_project):
    return make_project()
