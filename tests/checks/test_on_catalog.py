"""What is checked on the catalog: each check passing, and failing for a real cause."""

import hashlib
import shutil

import pytest

from ideogram_pipeline.generation import catalog, files
from ideogram_pipeline.provenance.erasing import descent
from ideogram_pipeline.repair import erase
from ideogram_pipeline.storage import parquet

pytestmark = pytest.mark.slow


@pytest.fixture
def published(project):
    project.write({"prompt": "a lighthouse"}, {"prompt": "a harbour"})
    project.generate()
    project.run("publish")
    return project


def edit(project, change):
    rows = list(catalog.read(project.store, catalog.path("default")))
    parquet.write(project.store, catalog.path("default"), catalog.CatalogRow, change(rows))


def test_a_fresh_catalog_passes(published, evaluations):
    found = evaluations(published.run("publish"))
    assert {name: evaluation.passed for name, evaluation in found.items()} == {
        "catalog_complete": True,
        "erased_stays_erased": True,
        "one_backend": True,
    }
    assert found["catalog_complete"].metadata["pictures"].value == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[1:], "is missing from the catalog"),
        (
            lambda rows: [*rows, rows[0].model_copy(update={"path": "images/batch=default/x.png"})],
            "is in no batch",
        ),
        (
            lambda rows: [rows[0].model_copy(update={"cost_usd": 9.0}), *rows[1:]],
            "is not as its batch has it",
        ),
    ],
    ids=["missing", "added", "edited"],
)
def test_a_catalog_that_is_not_the_sum_of_its_batches_is_an_error(
    published, evaluations, rows_of, change, says
):
    edit(published, change)
    found = published.check_again("image_catalog")["catalog_complete"]
    assert not found.passed
    ((_, why),) = rows_of(found)
    assert why == says
    assert evaluations(published.run("publish"))["catalog_complete"].passed


def test_a_catalog_that_was_not_made_for_a_batch_is_an_error(published):
    published.store.delete(catalog.path("default"))
    found = published.check_again("image_catalog")["catalog_complete"]
    assert found.metadata["findings"].value == 2


def test_a_file_of_the_catalog_without_a_batch_is_named(published, rows_of):
    published.store.put("catalog/ghost.parquet", published.store.get(catalog.path("default")))
    found = published.check_again("image_catalog")["catalog_complete"]
    assert rows_of(found) == [("catalog/ghost.parquet", "belongs to no batch that was run")]


def test_a_picture_of_another_backend_is_an_error(published, evaluations, rows_of):
    rows = files.read_images(published.store, "default")
    rows[0] = rows[0].model_copy(update={"backend": "fal"})
    files.write_results(published.store, "default", rows, files.read_outcomes(published.store, "default"))
    found = evaluations(published.run("publish"))["one_backend"]
    assert not found.passed
    assert rows_of(found) == [(f"images/batch=default/{rows[0].file_name}", "is of the backend fal")]


def test_only_what_changed_is_compared_row_by_row(published, evaluations):
    assert published.check_again("image_catalog")["catalog_complete"].metadata["compared"].value == 2
    found = evaluations(published.run("publish"))["catalog_complete"]
    assert (found.metadata["pictures"].value, found.metadata["compared"].value) == (2, 0)


def test_rows_that_stand_twice_in_a_file_are_an_error(published, rows_of):
    edit(published, lambda rows: [*rows, rows[0]])
    found = published.check_again("image_catalog")["catalog_complete"]
    assert rows_of(found) == [(catalog.path("default"), "has rows twice")]


def test_what_was_erased_and_came_back_from_a_backup_is_an_error(project, rows_of):
    project.write({"prompt": "a lighthouse", "reference_id": "ada"}, {"prompt": "a harbour"})
    project.generate()
    project.run("publish")
    before = project.folder / "before"
    shutil.copytree(project.folder / "store", before)
    digest = hashlib.sha256((project.folder / "ada.png").read_bytes()).hexdigest()

    erase(project.settings, descent(project.store, "ada"))
    assert project.check_again("image_catalog")["erased_stays_erased"].metadata["erased"].value == 1
    assert project.check_again("image_catalog")["erased_stays_erased"].passed

    shutil.copytree(before, project.folder / "store", dirs_exist_ok=True)
    found = project.check_again("image_catalog")["erased_stays_erased"]
    assert not found.passed
    assert [path for path, why in rows_of(found) if why == "it is a copy of what was erased"] == [
        f"gallery/references/{digest}.webp",
        f"references/{digest}.png",
    ]
    pictures = [path for path, why in rows_of(found) if why == f"it came from {digest}"]
    assert any(path.startswith("images/batch=default/p1-") for path in pictures)
    folders = {path.split("/")[0] for path, _ in rows_of(found)}
    assert {"images", "references", "gallery", "ledger", "plans", "outcomes", "lineage", "catalog"} <= folders

    erase(project.settings, descent(project.store, digest))
    assert project.check_again("image_catalog")["erased_stays_erased"].passed
