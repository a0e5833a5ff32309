"""The key shows nothing of itself."""

import pytest

from ideogram_pipeline.fal import FalKey, InvalidCall

SECRET = "abcd1234:0123456789abcdef"


def test_a_key_shows_at_most_four_characters_of_its_id():
    assert repr(FalKey(SECRET)) == str(FalKey(SECRET)) == "FalKey(abcd…)"
    assert repr(FalKey("abcdefgh-without-an-id")) == "FalKey(…)"


def test_the_header_is_fals_own_scheme():
    assert FalKey(f" {SECRET}\n").header() == f"Key {SECRET}"


@pytest.mark.parametrize("value", ["", "  ", "a b", "a:b\r\nX-Other: 1", "schlüssel:1"])
def test_what_can_not_stand_in_a_header_is_refused_without_being_quoted(value):
    with pytest.raises(InvalidCall) as caught:
        FalKey(value)
    assert not value.strip() or value not in str(caught.value)


def test_a_key_is_read_from_the_environment_whole_or_in_halves():
    assert FalKey.from_environment({"FAL_KEY": SECRET, "FAL_KEY_ID": "x", "FAL_KEY_SECRET": "y"}) == FalKey(
        SECRET
    )
    assert FalKey.from_environment({"FAL_KEY_ID": "x", "FAL_KEY_SECRET": "y"}) == FalKey("x:y")
    with pytest.raises(InvalidCall):
        FalKey.from_environment({"FAL_KEY_ID": "x"})


def test_the_key_is_blacked_out_of_text_also_by_halves():
    key = FalKey(SECRET)
    assert key.redact(f"you sent {SECRET} or 0123456789abcdef".encode()) == b"you sent [fal key] or [fal key]"
