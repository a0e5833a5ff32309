"""The queries of the documentation, on a store that holds what they ask about."""

import hashlib
import re
from pathlib import Path

import duckdb
import pytest

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"


def queries_in(name):
    return re.findall(r"```sql\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


QUERIES = queries_in("lineage.md")


@pytest.fixture(scope="module")
def worked(make_project):
    project = make_project()
    project.write(
        {"batch": "one", "prompt": "a lighthouse", "reference_id": "ada", "num_images": 2},
        {"batch": "two", "prompt": "a harbour", "endpoint": "v3/remix", "image_id": "ada"},
        {"batch": "two", "prompt": "a storm", "reference_id": "bob"},
    )
    project.run()
    project.run("two", regenerate=True, limit=1)
    return project


def ask(project, query):
    digest = hashlib.sha256((project.folder / "ada.png").read_bytes()).hexdigest()
    store = str(project.folder / "store")
    here = re.sub(r"[0-9a-f]{64}", digest, query)
    return duckdb.sql(here.replace("'var/", f"'{store}/")).fetchall()


def test_pictures_that_came_from_a_photograph(worked):
    found = ask(worked, QUERIES[0])
    assert [(path.split("/")[-1][:2], field) for path, field in found] == [
        ("p1", "reference_image_urls"),
        ("p1", "reference_image_urls"),
        ("p2", "image_url"),
        ("p2", "image_url"),
    ]


def test_what_the_pictures_of_each_reference_have_cost(worked):
    found = ask(worked, QUERIES[1])
    assert [(reference, images) for reference, images, _ in found] == [("ada", 4), ("bob", 1)]
    assert all(usd > 0 for _, _, usd in found)


def test_rows_that_were_submitted_more_than_once(worked):
    ((prompt_id, submits, runs),) = ask(worked, QUERIES[2])
    assert (prompt_id, submits, len(runs)) == ("p2", 2, 2)


def test_pictures_of_different_batches_that_look_alike(make_project):
    project = make_project()
    same = {"prompt": "a lighthouse", "seed": 5}
    project.write({"batch": "one", **same}, {"batch": "two", **same}, {"batch": "two", "prompt": "a harbour"})
    project.run()
    (query,) = queries_in("review.md")
    ((one, other, bits),) = ask(project, query)
    assert [path.split("/")[1] for path in (one, other)] == ["batch=one", "batch=two"]
    assert bits == 0


def test_there_are_three_of_them():
    assert len(QUERIES) == 3
