"""What the doctor says of a store in S3: that it can be relied on, or what to mend."""

import re

import pytest
import stamina

from ideogram_pipeline.doctor import examine
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store

ALWAYS = float("inf")


@pytest.fixture
def store_url(s3, s3_wire):
    return f"s3://{s3.bucket()}/store"


def finding(url):
    return next(found for found in examine(Settings(store=url)) if found.what == "store")


def test_a_store_that_can_be_relied_on_is_named_with_its_server_and_left_as_it_was(store_url, s3_wire):
    found = finding(store_url)
    assert found.ok, found.says
    assert f"{store_url}/ at {s3_wire.url}: readable, writable" in found.says
    assert [one.path for one in Store.open(store_url).objects("")] == ["store.json"]


@pytest.mark.parametrize(
    ("fault", "method", "says"),
    [
        ("AccessDenied", "PUT", "Can't create .*: access is denied .*reading, writing and deleting"),
        ("AccessDenied", "GET", "Can't read .*: access is denied"),
        ("AccessDenied", "POST", "Can't delete .*: access is denied"),
        ("PermanentRedirect", "", "lies in another region. Set AWS_REGION"),
        ("InvalidAccessKeyId", "", "credentials are not accepted"),
        ("overwrite", "PUT", "does not refuse to create what exists"),
    ],
)
def test_a_store_that_can_not_be_relied_on_is_said_to_be_so(store_url, s3_wire, fault, method, says):
    s3_wire.fail(fault, method, times=ALWAYS)
    with stamina.set_testing(True, attempts=1):
        found = finding(store_url)
    assert not found.ok
    assert re.search(says, found.says), found.says


def test_a_missing_bucket_and_missing_credentials_are_told_apart(s3, monkeypatch):
    assert "the bucket 'no-such-bucket' is not there" in finding("s3://no-such-bucket").says
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "there are no AWS credentials" in finding("s3://no-such-bucket").says
