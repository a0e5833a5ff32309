"""A store in Azure, on Azurite: how its variables are read, that claims hold, and a batch the whole way through."""

from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.claims import prove_claims
from tests.network.conftest import ACCOUNT, ACCOUNT_KEY
from tests.storage.races import check_that_one_wins_each

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"


def signed_for(azurite, container):
    """A signature for one container, as a colleague hands it out who keeps the key."""
    may, ends = "rwdlac", (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    schemes, version, container_kind = "https,http", "2020-08-04", "c"
    parts = [may, "", ends, f"/blob/{ACCOUNT}/{container}", "", "", schemes, version, container_kind]
    signature = azurite.signature("\n".join([*parts, *[""] * 6]))
    query = {"sp": may, "se": ends, "spr": schemes, "sv": version, "sr": container_kind}
    return urlencode({**query, "sig": signature})


def by_variables(azurite, container):
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
        "AZURE_STORAGE_ENDPOINT": f"{azurite.url}/{ACCOUNT}",
    }


def by_signature(azurite, container):
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_SAS_TOKEN": signed_for(azurite, container),
        "AZURE_STORAGE_ENDPOINT": f"{azurite.url}/{ACCOUNT}",
    }


def by_connection_string(azurite, container):
    return {CONNECTION_STRING: azurite.connection_string()}


def by_connection_string_with_signature(azurite, container):
    signature = f"SharedAccessSignature=?{signed_for(azurite, container)}"
    return {CONNECTION_STRING: f"BlobEndpoint={azurite.url}/{ACCOUNT}/;{signature}"}


def by_emulator(azurite, container):
    return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": azurite.url}


def by_emulator_in_a_connection_string(azurite, container):
    return {CONNECTION_STRING: "UseDevelopmentStorage=true", "AZURITE_BLOB_STORAGE_URL": azurite.url}


WAYS = [
    by_variables,
    by_signature,
    by_connection_string,
    by_connection_string_with_signature,
    by_emulator,
    by_emulator_in_a_connection_string,
]


@pytest.fixture
def container(azurite, monkeypatch):
    for name, value in by_connection_string(azurite, "").items():
        monkeypatch.setenv(name, value)
    return azurite.container()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_name_an_account_opens_its_container(azurite, way, monkeypatch):
    container = azurite.container()
    for name, value in way(azurite, container).items():
        monkeypatch.setenv(name, value)
    store = Store.open(f"az://{container}/a folder")
    store.put("b=ö/x", b"1")
    assert [found.path for found in store.objects("")] == ["b=ö/x"]
    assert store.get("b=ö/x") == b"1"
    prove_claims(store)


@pytest.mark.slow
def test_of_many_writers_at_once_one_wins_each_race_in_azure(container):
    check_that_one_wins_each(Store.open(f"az://{container}"), races=20)


@pytest.mark.slow
def test_what_is_wrong_with_a_container_is_told_with_azures_own_variables(azurite, container, monkeypatch):
    with pytest.raises(StoreError, match=r"the bucket 'no-such-container' is not there"):
        Store.open("az://no-such-container").put("x", b"")
    with pytest.raises(StoreError, match=r"no bucket or container can be called 'a'"):
        Store.open("az://a").put("x", b"")
    monkeypatch.setenv(CONNECTION_STRING, azurite.connection_string(AccountKey="a2V5"))
    with pytest.raises(StoreError) as refused:
        Store.open(f"az://{container}").put("x", b"")
    assert "Check AZURE_STORAGE_CONNECTION_STRING" in str(refused.value)
    assert "AWS_" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "no Azure account is named. Set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME"),
        ({CONNECTION_STRING: "secret"}, f"{CONNECTION_STRING} is no connection string"),
        ({CONNECTION_STRING: "AccountName=a;EndpointSuffix=secret"}, f"{CONNECTION_STRING} lacks"),
        ({CONNECTION_STRING: "AccountKey=secret"}, f"{CONNECTION_STRING} lacks its AccountName"),
        ({CONNECTION_STRING: "AccountName=a;AccountKey=sec!ret"}, "is no key: it is not in base64"),
        (
            {CONNECTION_STRING: "AccountName=a;AccountKey=c2VjcmV0", "AZURE_STORAGE_ACCOUNT_NAME": "b"},
            "name different accounts, 'a' and 'b'. Unset one",
        ),
        (
            {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "sec!ret"},
            "AZURE_STORAGE_ACCOUNT_KEY, or .* is no key",
        ),
    ],
)
def test_a_configuration_of_azure_that_can_not_be_used_is_refused_by_name(given, says, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=says) as refused:
        Store.open("az://container")
    assert "IDEOGRAM_STORE" not in str(refused.value)
    assert not any(secret in str(refused.value) for secret in ("secret", "sec!ret", "c2VjcmV0"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_batch_goes_the_whole_way_in_azure(project, container, tmp_path):
    """A lost answer, a lost ledger, reconcile, rerun, gallery, export, doctor, erase; rows are paid once."""
    project = project(rows=4, faults=({"kind": "drop_after_accept", "match": "scene 2"},))
    url = f"az://{container}/store"
    first = project.run(IDEOGRAM_STORE=url)  # it reconciles the lost answer itself
    assert (first["images"], first["unknown"]) == (4, 0)
    store = Store.open(url)
    for entry in list(store.objects("ledger")):
        store.delete(entry.path)
    assert project("reconcile", "--adopt", IDEOGRAM_STORE=url)[0] == 0, project.output[-2:]
    again = project.run(IDEOGRAM_STORE=url)
    assert (again["reused"], again["spent_usd"]) == (4, 0)
    stats = project.sandbox.stats()
    assert (stats.accepted, stats.duplicates) == (4, 0)

    assert {entry.state for entry in Ledger(store, "default").entries.values()} == {"generated"}
    assert any(found.path.endswith(".html") for found in store.objects("gallery"))
    assert project("export", "--webdataset", str(tmp_path / "shards"), IDEOGRAM_STORE=url)[0] == 0
    assert list((tmp_path / "shards").rglob("*.tar"))
    code, out = project("doctor", IDEOGRAM_STORE=url)
    assert f"{url}/: readable, writable, creates only what is absent" in out
    code, out = project("erase", "--reference", "ada", "--yes", IDEOGRAM_STORE=url)
    assert code == 3, project.output[
        -2:
    ]  # nobody can see through the store what Azure keeps of what was deleted
    assert "erased; fal has deleted" in out
    [kept] = [line for line in out.splitlines() if line.startswith("still there:")]
    assert "soft delete" in kept
    left = [found.path for found in store.objects("images")]
    assert sorted(path.rpartition("/")[2].partition("-")[0] for path in left if path.endswith(".png")) == [
        "p000",
        "p002",
    ]
    project.check_that_the_key_is_nowhere()
    assert not any(ACCOUNT_KEY in said for said in project.output)
