"""The request that made a picture, written down: it asks for the very same."""

import ast
import csv
import io
import json
import re
import shlex

import pytest

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.provenance.lineage import UnknownKey
from ideogram_pipeline.provenance.replaying import request_of, written
from ideogram_pipeline.settings import Settings

pytestmark = pytest.mark.slow

ROW = {
    "prompt": 'it\'s "here" & <there> $HOME\nand ünïcode 🐈',
    "reference_id": "ada",
    "num_images": 2,
    "seed": 7,
    "mood": "calm, very",
}


@pytest.fixture(scope="module")
def worked(make_project):
    """The sample tables, and a batch with a hostile prompt."""
    project = make_project()
    project.write({"batch": "one", **ROW}, {"batch": "one", "prompt": "a harbour"})
    project.run()
    project.run("one", regenerate=True, limit=1)
    return project


@pytest.fixture(scope="module")
def sampled(make_project):
    project = make_project()
    sample = Settings()
    project.settings = project.settings.model_copy(
        update={"prompts": sample.prompts, "references": sample.references}
    )
    project.run()
    return project


def first_take(project):
    entries = Ledger(project.store, "one").entries.values()
    requests = [entry.last for entry in entries if entry.last.reserved.request.prompt_id == "p1"]
    return min(requests, key=lambda attempt: attempt.reserved.request.take)


def test_every_way_to_name_a_picture_leads_to_its_request(worked):
    first = first_take(worked)
    request = first.reserved.request
    for key in (
        request.fingerprint,
        first.submitted.request_id,
        *(image.path for image in first.settled.images),
    ):
        assert request_of(worked.store, key) == request
    assert request_of(worked.store, "p1").take == 1
    with pytest.raises(ConfigurationError, match="doesn't lead to one request"):
        request_of(worked.store, first.reserved.owner)
    with pytest.raises(UnknownKey):
        request_of(worked.store, "p9")


def test_the_rows_of_the_sample_table_ask_for_the_same_again(sampled, tmp_path):
    store = sampled.store
    requests = [
        entry.last.reserved.request
        for batch in files.batches_with_results(store)
        for entry in Ledger(store, batch).entries.values()
    ]
    assert len(requests) > 30
    tables = [list(csv.DictReader(io.StringIO(written(request, "row", store)))) for request in requests]
    columns = dict.fromkeys(name for (row,) in tables for name in row)
    with (tmp_path / "prompts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(row for (row,) in tables)
    sampled.settings = sampled.settings.model_copy(update={"prompts": str(tmp_path / "prompts.csv")})
    assert sampled.run().reused == len(requests)


def test_a_row_keeps_what_a_table_makes_hard(worked):
    (row,) = csv.DictReader(io.StringIO(written(first_take(worked).reserved.request, "row", worked.store)))
    assert {name: row[name] for name in ROW} == {name: str(value) for name, value in ROW.items()}


def test_curl_sends_the_same_body(worked):
    request = first_take(worked).reserved.request
    words = shlex.split(written(request, "curl", worked.store).replace("\\\n", ""))
    assert words[3] == "https://queue.fal.run/fal-ai/ideogram/character"
    assert "Authorization: Key $FAL_KEY" in words
    body = json.loads(words[words.index("--data") + 1])
    (reference,) = body.pop("reference_image_urls")
    assert reference == f"URL of {worked.store.where(request.pictures[0].path)}"
    assert body == {
        name: value for name, value in request.arguments.items() if name != "reference_image_urls"
    }


def test_python_sends_the_same_arguments(worked):
    request = first_take(worked).reserved.request
    code = written(request, "python", worked.store)
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and node.keywords]
    given = call.keywords[0].value
    sent = {key.value: value for key, value in zip(given.keys, given.values, strict=True)}
    upload = ast.unparse(sent.pop("reference_image_urls"))
    assert upload == f"[fal_client.upload_file({worked.store.where(request.pictures[0].path)!r})]"
    assert {name: ast.literal_eval(value) for name, value in sent.items()} == {
        name: value for name, value in request.arguments.items() if name != "reference_image_urls"
    }


def test_javascript_sends_the_same_input(worked):
    request = first_take(worked).reserved.request
    code = written(request, "javascript", worked.store)
    copy = json.dumps(worked.store.where(request.pictures[0].path))
    upload = f"await fal.storage.upload(new Blob([await readFile({copy})]))"
    sent = re.search(r"input: (\{.*\}),\n", code)[1]
    assert json.loads(sent.replace(upload, json.dumps(request.pictures[0].token))) == request.arguments
