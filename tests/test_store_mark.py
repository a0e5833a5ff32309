"""A store opened for work: its claims are proven once, at each address, and what keeps none is not paid for."""

import json
import shutil

import pytest
import stamina

from ideogram_pipeline.errors import ConfigurationError, StoreError
from ideogram_pipeline.storage import Store
from ideogram_pipeline.store_mark import STORE_MARK, open_for_work

pytestmark = pytest.mark.slow

ALWAYS = float("inf")


def proofs(wire):
    """The writes by which claims were tried so far."""
    return sum(method == "PUT" and "/claims/" in target for method, target in wire.seen)


@pytest.fixture
def url(s3, s3_wire):
    return f"s3://{s3.bucket()}/store"


def test_a_store_without_conditional_writes_is_refused_for_fal_in_one_clear_sentence(url, s3_wire):
    s3_wire.fail("overwrite", "PUT", times=ALWAYS)
    for _ in range(2):
        with pytest.raises(ConfigurationError) as refused:
            open_for_work(url, "fal", "")
    said = str(refused.value)
    assert f"The store {url!r} at {s3_wire.url} does not refuse to create what exists" in said
    assert "two runs at once would pay for the same row" in said
    assert "`If-None-Match: *`" in said
    assert "set IDEOGRAM_STORE" in said
    assert [found.path for found in Store.open(url).objects("")] == [STORE_MARK]


def test_a_store_without_conditional_writes_is_warned_of_for_the_sandbox_once(url, s3_wire, caplog):
    s3_wire.fail("overwrite", "PUT", times=ALWAYS)
    for _ in range(3):
        open_for_work(url, "sandbox", "")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "does not refuse to create what exists" in caplog.text
    assert proofs(s3_wire) == 6  # nothing was proven, so it is tried again


def test_a_server_that_refuses_conditional_writes_is_said_to_lack_them(url, s3_wire):
    s3_wire.fail("NotImplemented", "PUT", times=ALWAYS)
    with (
        stamina.set_testing(True, attempts=1),
        pytest.raises(StoreError, match="Claims need conditional writes"),
    ):
        open_for_work(url, "fal", "")


def test_claims_are_proven_once_and_later_opens_cost_one_read(url, s3_wire):
    open_for_work(url, "fal", "")
    assert proofs(s3_wire) == 2
    opened = open_for_work(url, "fal", "")
    assert proofs(s3_wire) == 2
    assert opened.requests == {"read": 1}
    mark = json.loads(opened.get(STORE_MARK))
    assert mark["keeps_claims"] == [{"url": f"{url}/", "endpoint": s3_wire.url}]


def test_a_copied_store_json_proves_nothing_elsewhere(url, s3, s3_wire):
    mark = open_for_work(url, "fal", "").get(STORE_MARK)
    copy = f"s3://{s3.bucket()}/copy"
    Store.open(copy).put(STORE_MARK, mark)
    s3_wire.fail("overwrite", "PUT", "/copy/", times=ALWAYS)
    with pytest.raises(ConfigurationError, match="does not refuse to create"):
        open_for_work(copy, "fal", "")
    s3_wire.mend()
    before = proofs(s3_wire)
    open_for_work(copy, "fal", "")
    open_for_work(copy, "fal", "")
    open_for_work(url, "fal", "")
    assert proofs(s3_wire) - before == 2


def test_the_same_bucket_behind_another_endpoint_is_proven_anew(url, s3, s3_wire, monkeypatch):
    open_for_work(url, "fal", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    opened = open_for_work(url, "fal", "")
    endpoints = [proof["endpoint"] for proof in json.loads(opened.get(STORE_MARK))["keeps_claims"]]
    assert endpoints == [s3_wire.url, s3.url]
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_wire.url)
    before = proofs(s3_wire)
    open_for_work(url, "fal", "")
    assert proofs(s3_wire) == before


def test_a_copied_folder_is_proven_anew(tmp_path):
    open_for_work(str(tmp_path / "a"), "fal", "")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    opened = open_for_work(str(tmp_path / "b"), "fal", "")
    proven = [proof["url"] for proof in json.loads(opened.get(STORE_MARK))["keeps_claims"]]
    assert proven == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_store_of_before_is_proven_and_keeps_what_its_mark_says(tmp_path):
    (tmp_path / STORE_MARK).write_text('{"backend": "fal", "pipeline": "acme", "of_a_later_version": [1]}')
    mark = json.loads(open_for_work(str(tmp_path), "fal", "acme").get(STORE_MARK))
    assert (mark["backend"], mark["pipeline"], mark["of_a_later_version"]) == ("fal", "acme", [1])
    assert [proof["url"] for proof in mark["keeps_claims"]] == [str(tmp_path)]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [STORE_MARK]


def test_a_store_that_does_not_list_what_was_written_is_refused(url, s3_wire):
    s3_wire.fail("list nothing", "GET", "list-type=2", times=ALWAYS)
    with pytest.raises(ConfigurationError, match="does not list at once what was written"):
        open_for_work(url, "fal", "")
