"""Differences: the same file comes back from the one without what was put into it."""

from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.marks.difference import applied, difference

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
