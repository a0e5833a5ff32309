"""Differences: the same file comes back from the one without what was put into it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.marks import ALGORITHM, Marks
from ideogram_pipeline.marks.credentials import Signer
from ideogram_pipeline.marks.difference import applied, difference, removed

HEAD = st.binary(min_size=12, max_size=12)


@given(before=st.binary(min_size=12), after=st.binary(min_size=12))
def test_any_file_comes_back(before, after):
    assert applied(before, difference(before, after)) == after


@given(heads=st.tuples(HEAD, HEAD), start=st.binary(), own=st.binary(), end=st.binary())
def test_what_is_kept_is_what_was_put_in(heads, start, own, end):
    before, after = heads[0] + start + end, heads[1] + start + own + end
    kept = difference(before, after)
    assert applied(before, kept) == after
    assert len(kept) <= 8 + 8 + 12 + len(own)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_comes_back_without_what_signing_put_in(picture, certificate, kind):
    before = picture(kind=kind)
    signer = Signer.load(str(certificate.chain), str(certificate.key))
    marks = Marks(
        source_type=ALGORITHM,
        system="test",
        system_version="1",
        prompt=None,
        prompt_sha256=None,
        prompt_id="p",
        fingerprint="f" * 64,
        request_id="r",
        seed=1,
        image_index=0,
        backend="sandbox",
    )
    after = signer.signed(before, marks, received=before, references=()).content
    assert removed(after, difference(before, after)) == before
