"""A time-stamping authority that answers as a test wants it to."""

import pytest

from tests.marks.authority import Authority


@pytest.fixture(scope="module")
def made_authority(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("authority"))
    yield authority
    authority.close()


@pytest.fixture
def authority(made_authority):
    made_authority.answer, made_authority.asked = made_authority.stamp, 0
    return made_authority
