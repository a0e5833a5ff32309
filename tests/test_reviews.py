"""Rejected pictures made anew: exactly those, once, and with their history."""

import csv
import sqlite3
from contextlib import closing

import pytest

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.choice import Choice
from ideogram_pipeline.launch import run
from ideogram_pipeline.preview import PlanSummary, picked_to_replace, preview
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store

pytestmark = pytest.mark.slow


class Quiet:
    """Watches nothing."""

    def begin(self, batch, images):
        pass

    def ended(self, outcome, spent_usd):
        pass


class Project:
    """Four rows in one batch, one of them with two pictures; a reviews table that grows."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "references.csv").write_text("reference_id,uri\n")
        (folder / "prompts.csv").write_text(
            "prompt_id,prompt,num_images\na,a lighthouse,1\nb,a harbour,2\nc,a storm,1\nd,a calm,1\n"
        )
        self.settings = Settings(
            store=str(folder / "store"),
            prompts=str(folder / "prompts.csv"),
            references=str(folder / "references.csv"),
            reviews=str(folder / "reviews.csv"),
        )
        self.review()

    def review(self, *verdicts):
        with (self.folder / "reviews.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "sha256", "review", "note", "reviewed_at"])
            for picture, verdict in verdicts:
                path = f"images/batch=default/{picture.file_name}"
                table.writerow([path, picture.sha256, verdict, "", "2026-11-27T10:00:00Z"])

    def run(self, **choice):
        return run(self.settings, [], progress=Quiet(), expect=len, choice=Choice(**choice))

    def pictures(self, prompt_id):
        rows = files.images(Store.open(self.settings.store), "default")
        return sorted((row for row in rows if row.prompt_id == prompt_id), key=lambda row: row.take)

    def submits(self):
        with closing(sqlite3.connect(self.folder / "store" / "sandbox" / "state.sqlite")) as state:
            return state.execute("SELECT count(*) FROM requests").fetchone()[0]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    return Project(tmp_path)


def test_exactly_the_rejected_rows_get_a_new_take_once(project):
    project.run()
    (first,), (one, other) = project.pictures("a"), project.pictures("b")
    (picked,) = project.pictures("c")
    project.review((first, "rejected"), (one, "picked"), (other, "rejected"), (picked, "picked"))
    priced = PlanSummary.of(preview(project.settings, [], Choice(regenerate_rejected=True)), None)
    assert (priced.batches[0].new, priced.batches[0].reused) == (2, 2)
    plans = preview(project.settings, [], Choice(regenerate_rejected=True))
    (pick,) = picked_to_replace(project.settings, plans)
    assert (pick.prompt_id, pick.row_number, pick.file_name) == ("b", 3, one.file_name), (
        "a plan says so before"
    )
    assert picked_to_replace(project.settings, preview(project.settings, [])) == []
    summary = project.run(regenerate_rejected=True)
    assert (summary.generated, summary.reused) == (2, 2)
    assert summary.spent_usd == pytest.approx(priced.estimated_usd)
    assert project.submits() == 4 + 2
    assert [(row.take, row.current) for row in project.pictures("a")] == [(0, False), (1, True)]
    assert [(row.take, row.current) for row in project.pictures("b")] == [(0, False)] * 2 + [(1, True)] * 2
    assert project.run(regenerate_rejected=True).spent_usd == 0
    assert project.run().spent_usd == 0
    assert project.submits() == 6


def test_rows_that_were_added_meanwhile_are_not_paid_for(project):
    project.run()
    with (project.folder / "prompts.csv").open("a") as table:
        table.write("e,a new one,1\n")
    (first,) = project.pictures("a")
    project.review((first, "rejected"))
    summary = project.run(regenerate_rejected=True)
    assert (summary.generated, summary.reused, summary.left_out) == (1, 3, 1)
    assert summary.complete, "nobody asked for the new row"
    assert project.submits() == 5


def test_a_review_of_other_bytes_rejects_nothing(project):
    project.run()
    (first,) = project.pictures("a")
    project.review((first.model_copy(update={"sha256": "0" * 64}), "rejected"))
    assert project.run(regenerate_rejected=True).spent_usd == 0


def test_without_reviews_the_wish_is_refused(project):
    project.run()
    project.settings = project.settings.model_copy(update={"reviews": None})
    with pytest.raises(ConfigurationError, match="IDEOGRAM_REVIEWS"):
        preview(project.settings, [], Choice(regenerate_rejected=True))
    with pytest.raises(ConfigurationError, match="IDEOGRAM_REVIEWS"):
        project.run(regenerate_rejected=True)
    with pytest.raises(ConfigurationError, match="regenerate_rejected is for rejected pictures alone"):
        Choice(regenerate=True, regenerate_rejected=True)
