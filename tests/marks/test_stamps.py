"""Time stamps on Content Credentials: had from an authority, and what becomes of pictures where it brings none."""

import socket
from datetime import UTC, datetime, timedelta

import pytest

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation.marking import as_stored, signed
from ideogram_pipeline.marks import TRAINED_ALGORITHM, Marks, credentials
from ideogram_pipeline.marks.credentials import Signer
from ideogram_pipeline.pictures import verify
from ideogram_pipeline.settings import check_signing

MARKS = Marks(
    source_type=TRAINED_ALGORITHM,
    system="Ideogram by fal.ai",
    system_version="V3",
    prompt_id="row-1",
    fingerprint="f" * 64,
    request_id="0192-abc",
    seed=7,
    image_index=0,
    backend="fal",
)


@pytest.fixture
def signer(certificate, authority):
    return Signer.load(str(certificate.chain), str(certificate.key), tsa_url=authority.url)


def test_a_stamp_says_when_and_is_trusted_by_whom_the_authority_is(signer, certificate, authority, picture):
    made = signed(picture(), MARKS, signer, tuple)
    assert abs(made.stamped_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert (made.unstamped_because, authority.asked) == ("", 1)
    anchors = certificate.authority.read_text() + authority.certificate.read_text()
    found = credentials.read(made.content, anchors=anchors)
    assert (found.state, found.stamped_at, found.problems) == ("trusted", made.stamped_at, ())


@pytest.mark.parametrize("answer", [b"", b"junk"], ids=["an error", "no answer to the question"])
def test_a_picture_that_gets_no_stamp_is_signed_without_and_says_so(signer, authority, picture, answer):
    authority.answer = lambda _: answer
    made = signed(picture(), MARKS, signer, tuple)
    assert made.stamped_at is None
    assert made.unstamped_because
    assert credentials.read(made.content).state == "valid"


def test_an_authority_that_nobody_reaches_is_named(certificate, picture):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        signer = Signer.load(str(certificate.chain), str(certificate.key), tsa_url=url)
        made = signed(picture(), MARKS, signer, tuple)
    assert url in made.unstamped_because
    assert made.manifest_id


def test_a_slow_authority_is_not_asked_for_every_picture(signer, authority, picture, monkeypatch):
    """A silent one costs 30 s a picture in c2pa-python: the batch has a limit of its own."""
    monkeypatch.setattr(credentials, "PROMPT_STAMP_S", 0.0)
    monkeypatch.setattr(credentials, "STAMP_WAIT_S", 1e-6)
    first, *others = [signed(picture(), MARKS, signer, tuple) for _ in range(3)]
    assert first.stamped_at
    assert {one.stamped_at for one in others} == {None}
    assert all("kept the batch waiting" in one.unstamped_because for one in others)
    assert all(one.manifest_id for one in others)
    assert authority.asked == 1


def test_what_another_run_has_signed_without_a_stamp_is_recorded_so(signer, certificate, picture):
    content = picture()
    theirs = signed(content, MARKS, Signer.load(str(certificate.chain), str(certificate.key)), tuple)
    ours = signed(content, MARKS, signer, tuple)
    received, _ = verify(content, thumbnail_side=None)
    stored = as_stored(theirs.content, received, ours)
    assert (stored.stamped_at, stored.manifest_id) == (None, theirs.manifest_id)
    assert stored.unstamped_because == "another run has signed it without one"
    again = as_stored(ours.content, received, theirs)
    assert (again.stamped_at, again.unstamped_because) == (ours.stamped_at, "")


@pytest.mark.parametrize("url", ["tsa.example.com", "ftp://tsa.example.com", "http://"])
def test_an_address_that_is_none_is_bad_configuration(url):
    with pytest.raises(ConfigurationError, match="IDEOGRAM_C2PA_TSA_URL"):
        check_signing("chain.pem", "key.pem", url)


def test_a_stamp_without_a_signature_is_bad_configuration():
    with pytest.raises(ConfigurationError, match=r"TSA_URL is set and IDEOGRAM_C2PA_CERTIFICATE is not"):
        check_signing(None, None, "https://tsa.example.com")
