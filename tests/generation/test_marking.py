"""Marking and signing what fal sent: whatever credentials it or its references bring."""

import io

import pytest
from PIL import Image

from ideogram_pipeline import marks
from ideogram_pipeline.generation.marking import as_stored, marked, signed, signed_then
from ideogram_pipeline.marks import credentials
from ideogram_pipeline.marks.credentials import CannotSign, Reference, Signer
from ideogram_pipeline.pictures import verify

MARKS = marks.Marks(
    source_type=marks.TRAINED_ALGORITHM,
    system="Ideogram by fal.ai",
    system_version="V3, fal-ai/ideogram/character",
    prompt="a lighthouse",
    prompt_id="row-1",
    fingerprint="f" * 64,
    request_id="0192-abc",
    seed=7,
    image_index=0,
    backend="fal",
)
DIGEST = "cd" * 32


@pytest.fixture(scope="module")
def signer(certificate):
    return Signer.load(str(certificate.chain), str(certificate.key))


def with_odd_xmp(kind):
    """A picture whose XMP is none."""
    sink = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(sink, kind, xmp=b"no XMP")
    return sink.getvalue()


def with_nonsense(content):
    """A PNG with credentials that nobody can read."""
    end = content.index(b"IDAT") - 4
    body = b"caBX\0\0\0\x10jumb c2pa"
    return content[:end] + (len(body) - 4).to_bytes(4, "big") + body + b"\0\0\0\0" + content[end:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_same_file_comes_back_from_what_was_kept_of_the_signature(signer, picture, kind):
    received = picture(kind=kind)
    made = signed(received, MARKS, signer, lambda: [Reference(DIGEST, picture("brown"))])
    again = signed_then(received, MARKS, made.manifest_id, made.signature)
    assert again.content == made.content
    assert (again.manifest_id, again.tells_prompt, again.is_changed) == (made.manifest_id, True, True)
    assert len(made.signature) < 12_000


def test_what_came_signed_is_signed_on_and_comes_back(signer, picture):
    received = signed(picture(), MARKS, signer, list).content
    made = signed(received, MARKS, signer, list)
    assert made.manifest_id != credentials.read(received).manifest_id
    assert credentials.read(made.content).ingredients == ("parentOf as received",)
    assert signed_then(received, MARKS, made.manifest_id, made.signature).content == made.content


def test_without_a_signer_a_picture_that_came_signed_is_left_as_it_is(signer, picture):
    received = signed(picture(), MARKS, signer, list).content
    made = marked(received, MARKS)
    assert (made.content, made.is_changed, made.tells_prompt) == (received, False, False)


def test_a_picture_whose_credentials_nobody_can_read_is_left_as_it_is(signer, picture):
    received = with_nonsense(picture())
    made = signed(received, MARKS, signer, list)
    assert (made.content, made.is_changed, made.manifest_id) == (received, False, None)


def test_credentials_of_a_reference_that_nobody_can_read_are_left_out(signer, picture):
    made = signed(picture(), MARKS, signer, lambda: [Reference(DIGEST, with_nonsense(picture("brown")))])
    found = credentials.read(made.content)
    assert (found.state, found.ingredients) == ("valid", (f"inputTo sha256:{DIGEST}",))


def test_what_can_not_be_signed_though_others_can_is_kept_unsigned_and_says_why(signer, picture):
    made = signed(picture()[:40], MARKS, signer, list)
    assert made.manifest_id is None
    assert made.unmarked_because.startswith("it can't be signed: ")


def test_where_nothing_can_be_signed_a_picture_waits(picture):
    class Broken(Signer):
        def __init__(self):
            pass

        def signed(self, *_, **__):
            raise CannotSign("the key is gone")

    with pytest.raises(CannotSign, match="the key is gone"):
        signed(picture(), MARKS, Broken(), list)


def test_a_picture_with_odd_xmp_is_signed_all_the_same_and_comes_back(signer):
    received = with_odd_xmp("WEBP")
    made = signed(received, MARKS, signer, list)
    assert made.unmarked_because == "its XMP can't be read"
    assert credentials.read(made.content).seed == MARKS.seed
    assert signed_then(received, MARKS, made.manifest_id, made.signature).content == made.content


def test_a_picture_with_odd_xmp_is_left_as_it_is_and_says_why():
    received = with_odd_xmp("JPEG")
    made = marked(received, MARKS)
    assert (made.content, made.is_changed, made.unmarked_because) == (
        received,
        False,
        "its XMP can't be read",
    )


@pytest.mark.parametrize(
    "theirs",
    [{"prompt": None}, {"version": 1}, {"prompt": None, "version": 1}],
    ids=["words", "version", "both"],
)
@pytest.mark.parametrize("signs", [True, False])
def test_a_file_that_another_run_has_signed_otherwise_can_be_made_again(signer, picture, theirs, signs):
    """What is recorded of it has to fit the difference that is kept: it once told the prompt of the other file."""
    received = picture()
    there = signed(received, MARKS.model_copy(update=theirs), signer, tuple)
    ours = signed(received, MARKS, signer, tuple) if signs else marked(received, MARKS)
    stored = as_stored(there.content, verify(received, thumbnail_side=None)[0], ours)
    words = {"version": stored.marks_version, **({} if stored.tells_prompt else {"prompt": None})}
    again = MARKS.model_copy(update=words)
    assert signed_then(received, again, stored.manifest_id, stored.signature).content == there.content
    plain = marked(received, MARKS.model_copy(update=theirs))
    stored = as_stored(plain.content, verify(received, thumbnail_side=None)[0], ours)
    words = {"version": stored.marks_version, **({} if stored.tells_prompt else {"prompt": None})}
    assert marked(received, MARKS.model_copy(update=words)).content == plain.content


def test_a_file_with_credentials_that_another_run_has_signed_over_can_be_made_again(signer, picture):
    received = signer.signed(picture(), MARKS, received=picture(), references=()).content
    there, ours = signed(received, MARKS, signer, tuple), marked(received, MARKS)
    assert not ours.is_changed
    stored = as_stored(there.content, verify(received, thumbnail_side=None)[0], ours)
    assert stored.tells_prompt
    assert signed_then(received, MARKS, stored.manifest_id, stored.signature).content == there.content
