"""Object stores that fail: what is repeated, whose a claim is whose answer was lost, and what a person is told."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import stamina

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.storage import Store, remote


@pytest.fixture
def store(s3, s3_wire):
    return Store.open(f"s3://{s3.bucket()}/prefix")


@pytest.fixture
def impatient(monkeypatch):
    """Nothing is repeated for long."""
    monkeypatch.setattr(remote, "REPEAT_FOR_S", 0.05)
    with stamina.set_testing(True, attempts=2):
        yield


READS = {
    "get": lambda store: store.get("there"),
    "get_async": lambda store: asyncio.run(store.get_async("there")),
    "exists": lambda store: store.exists("there"),
    "etag": lambda store: store.etag("there"),
    "objects": lambda store: [found.path for found in store.objects("")],
    "objects_async": lambda store: [found.path for found in asyncio.run(store.objects_async(""))],
    "folders": lambda store: store.folders(""),
}
WRITES = {
    "put": lambda store: bool(store.put("new", b"1")),
    "put_async": lambda store: asyncio.run(store.put_async("new", b"1")),
    "create": lambda store: store.create("new", b"1"),
    "create_async": lambda store: asyncio.run(store.create_async("new", b"1")),
    "delete": lambda store: store.delete("there"),
    "delete_async": lambda store: asyncio.run(store.delete_async(["there"])),
}
CALLS = READS | WRITES


@pytest.mark.parametrize("fault", ["reset", "lose the answer", "SlowDown", "InternalError"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_fails_once_is_repeated_and_succeeds(store, s3_wire, call, fault):
    store.put("there", b"content")
    expected = call(Store.open("memory://")) if call in WRITES.values() else call(store)
    s3_wire.fail(fault)
    assert call(store) == expected
    assert s3_wire.failed == 1


@pytest.mark.parametrize("create", [WRITES["create"], WRITES["create_async"]], ids=["create", "create_async"])
@pytest.mark.parametrize("fault", ["lose the answer", "SlowDown"])
def test_a_claim_that_another_made_meanwhile_is_lost_whatever_was_repeated(store, s3_wire, create, fault):
    assert store.create("new", b"another's")
    s3_wire.fail(fault, "PUT")
    assert create(store) is False
    assert store.get("new") == b"another's"


@pytest.mark.parametrize("create", [WRITES["create"], WRITES["create_async"]], ids=["create", "create_async"])
def test_a_claim_that_another_tried_and_gave_up_is_made(store, s3_wire, create):
    s3_wire.fail("ConditionalRequestConflict", "PUT")
    assert create(store) is True
    assert store.get("new") == b"1"


@pytest.mark.parametrize("call", [READS["get"], WRITES["create_async"]], ids=["get", "create_async"])
def test_a_server_that_stalls_is_asked_again(s3, s3_wire, monkeypatch, call):
    monkeypatch.setattr(remote, "_STALLED", timedelta(seconds=0.3))
    store = Store.open(f"s3://{s3.bucket()}")
    store.put("there", b"content")
    s3_wire.fail("hang")
    assert call(store) in (b"content", True)


MEANINGS = {
    "SlowDown": "takes no more requests for now .503 SlowDown.*IDEOGRAM_MAX_IN_FLIGHT.*run again",
    "InternalError": "answers 500 InternalError.*run again",
    "AccessDenied": "access is denied .403 AccessDenied.*listing the bucket",
    "InvalidAccessKeyId": "credentials are not accepted .403 InvalidAccessKeyId.*AWS_PROFILE",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "PermanentRedirect": "lies in another region. Set AWS_REGION",
    "reset": "does not answer.*Check the network and AWS_ENDPOINT_URL",
}


@pytest.mark.parametrize(("fault", "meaning"), MEANINGS.items(), ids=MEANINGS)
def test_what_keeps_failing_says_what_happened_and_what_to_do(impatient, store, s3_wire, fault, meaning):
    store.put("there", b"content")
    store = Store.open(store.url)
    s3_wire.fail(fault, times=float("inf"))
    with pytest.raises(StoreError, match=rf"Can't read 's3://bucket-\d+/prefix/there'.*{meaning}") as raised:
        store.get("there")
    assert "planted" not in str(raised.value)
    assert raised.value.__cause__ is None
    s3_wire.mend()
    assert store.get("there") == b"content"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whatever_is_denied_names_its_object(impatient, store, s3_wire, call):
    s3_wire.fail("AccessDenied", times=float("inf"))
    with pytest.raises(StoreError, match=r"'s3://bucket-\d+/prefix/(there|new)?': access is denied .403"):
        call(store)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("exists", "etag")])
def test_a_bucket_that_is_gone_is_no_missing_object(impatient, s3, name):
    with pytest.raises(StoreError, match=r"the bucket 'no-such-bucket' is not there.*run again"):
        CALLS[name](Store.open("s3://no-such-bucket"))


def test_without_credentials_nothing_is_opened(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match=r"there are no AWS credentials.*AWS_PROFILE.*aws sso login"):
        Store.open("s3://bucket")


@pytest.mark.parametrize("url", ["s3://", "s3:///folder", "s3://bucket/folder?x=1", "gs://", "az://"])
def test_a_url_without_a_bucket_is_refused(s3, url):
    with pytest.raises(StoreError, match="can't be opened: write it as"):
        Store.open(url)


def test_a_profile_gives_credentials_region_and_endpoint(s3, monkeypatch, tmp_path):
    bucket = s3.bucket()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    (tmp_path / "config").write_text(
        "[profile team]\nregion = eu-north-1\nservices = local\n"
        f"[services local]\ns3 =\n  endpoint_url = {s3.url}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    store = Store.open(f"s3://{bucket}")
    store.put("a", b"1")
    url = asyncio.run(store.presigned("a", lasting_s=60))
    assert url.startswith(f"{s3.url}/{bucket}/a?")
    assert parse_qs(urlsplit(url).query)["X-Amz-Credential"][0].split("/")[::2] == [
        "key",
        "eu-north-1",
        "aws4_request",
    ]


def test_the_endpoint_of_s3_counts_before_that_of_all_services(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    store = Store.open(f"s3://{s3.bucket()}")
    store.put("a", b"1")
    assert store.get("a") == b"1"


@pytest.mark.parametrize(
    ("region", "endpoint"),
    [
        ("eu-west-1", "https://s3.eu-west-1.amazonaws.com"),
        ("cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_without_an_endpoint_it_is_the_regions_own(s3, monkeypatch, region, endpoint):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert Store.open("s3://bucket").endpoint == endpoint


RENEWING = """
import json, sys
from pathlib import Path
count = Path(sys.argv[1])
count.write_text(str(int(count.read_text()) + 1))
print(json.dumps({
    "Version": 1, "AccessKeyId": f"key-{count.read_text()}", "SecretAccessKey": "secret", "SessionToken": "token",
    "Expiration": sys.argv[2],
}))
"""


@pytest.fixture
def credentials_until(s3, monkeypatch, tmp_path):
    """Have credentials come from a program, with a token that ends at some time; count how often it is asked."""

    def make(end):
        (tmp_path / "count").write_text("0")
        (tmp_path / "program.py").write_text(RENEWING)
        (tmp_path / "config").write_text(
            f"[default]\ncredential_process = {sys.executable} {tmp_path}/program.py {tmp_path}/count "
            f"{end.isoformat()}\n"
        )
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        return tmp_path / "count"

    return make


def test_credentials_that_end_are_renewed_before_that(s3, credentials_until, monkeypatch):
    asked = credentials_until(datetime.now(UTC) + timedelta(minutes=5))
    monkeypatch.setattr(remote, "_CREDENTIALS_FOR", timedelta(0))
    store = Store.open(f"s3://{s3.bucket()}")
    for number in range(3):
        store.put(str(number), b"")
    assert int(asked.read_text()) >= 3


def test_a_url_is_signed_only_if_its_credentials_last_as_long(s3, credentials_until):
    credentials_until(datetime.now(UTC) + timedelta(hours=2))
    store = Store.open(f"s3://{s3.bucket()}")
    store.put("a", b"1")
    assert asyncio.run(store.presigned("a", lasting_s=3 * 3600)) is None
    url = asyncio.run(store.presigned("a", lasting_s=3600))
    assert "X-Amz-Security-Token" in url
    assert httpx2.get(url).content == b"1"


def test_a_token_whose_end_nobody_knows_signs_nothing(s3, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert asyncio.run(Store.open(f"s3://{s3.bucket()}").presigned("a", lasting_s=1)) is None


def test_keys_without_an_end_sign_for_a_week_and_no_longer(store):
    url = asyncio.run(store.presigned("a", lasting_s=7 * 86_400))
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["604800"]
    assert asyncio.run(store.presigned("a", lasting_s=7 * 86_400 + 1)) is None


def test_a_store_outside_s3_signs_nothing(tmp_path):
    assert asyncio.run(Store.open(str(tmp_path)).presigned("a", lasting_s=1)) is None


def test_credentials_that_can_no_longer_be_had_are_an_error_that_says_so(
    s3, credentials_until, monkeypatch, impatient
):
    credentials_until(datetime.now(UTC) + timedelta(minutes=5))
    monkeypatch.setattr(remote, "_CREDENTIALS_FOR", timedelta(0))
    store = Store.open(f"s3://{s3.bucket()}")
    store.put("a", b"1")
    Path(os.environ["AWS_CONFIG_FILE"]).parent.joinpath("program.py").write_text(
        "raise SystemExit('logged out')"
    )
    with pytest.raises(StoreError, match=r"the credentials can't be had:.*logged out.*Log in again"):
        store.get("a")


def test_requests_are_counted_as_they_are_billed(store, s3_wire):
    before = len(s3_wire.seen)
    store.put("small", b"1")
    store.put("large", b"x" * (11 * 1024 * 1024))
    store.put_parts("in parts", [b"x" * 1024] * (11 * 1024))
    store.put_parts("small, in parts", [b"x"] * 2)
    store.create("claim", b"1")
    store.get("small")
    store.exists("small")
    list(store.objects(""))
    store.delete("small")
    assert store.requests == {
        "write": 1 + 5 + 5 + 1,
        "create": 1,
        "read": 1,
        "look up": 1,
        "list": 1,
        "delete": 1,
    }
    assert len(s3_wire.seen) - before == store.requests.total()


def test_every_page_of_a_listing_is_counted():
    store = Store.open("memory://")
    for number in range(1001):
        store.put(str(number), b"")
    assert len(list(store.objects(""))) == 1001
    assert store.requests["list"] == 2


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        (
            "az://container/prefix",
            {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"},
        ),
        (
            "gs://bucket/prefix",
            {
                "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(
                    {
                        "gcs_base_url": "http://127.0.0.1:9",
                        "disable_oauth": True,
                        "client_email": "",
                        "private_key": "",
                        "private_key_id": "",
                    }
                )
            },
        ),
    ],
)
def test_azure_and_google_are_opened_from_their_own_variables(monkeypatch, url, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Store.open(url).where("a/b") == f"{url}/a/b"
