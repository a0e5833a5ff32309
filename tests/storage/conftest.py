"""The same suite on every kind of store: a folder, memory, and a server that speaks S3."""

import pytest

from ideogram_pipeline.storage import Store


@pytest.fixture
def on_disk(tmp_path):
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def on_s3(s3):
    return Store.open(f"s3://{s3.bucket()}/some/prefix")


@pytest.fixture(params=["on_disk", "on_s3"])
def shared(request):
    """A store that several processes can open."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["on_disk", "on_s3", "in_memory"])
def store(request):
    if request.param == "in_memory":
        return Store.open("memory://")
    return request.getfixturevalue(request.param)
