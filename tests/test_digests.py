"""Digests: those of the whole text."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline import digests


@given(lines=st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_the_digest_is_that_of_the_lines_as_one_text(lines):
    assert digests.of_lines(iter(lines)) == hashlib.sha256("\n".join(lines).encode()).hexdigest()
