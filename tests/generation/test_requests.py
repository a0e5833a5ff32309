"""What a request is identified by."""

import re
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.generation.requests import GenerationRequest, derived_seed, fingerprint, take_seed

JSON = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


def test_a_fingerprint_never_changes_between_versions():
    """Another value here would have every customer pay for every picture again."""
    arguments = {"prompt": "a lighthouse", "num_images": 1, "seed": 42, "expand_prompt": False}
    assert fingerprint("a", "fal-ai/ideogram/v3", arguments) == (
        "0e5f63e45e7477fff76be30d2c81a8044e57c6628692a5d6d8f807f7449a1919"
    )


@given(arguments=ARGUMENTS)
def test_a_fingerprint_is_64_hexadecimal_digits_whatever_the_order(arguments):
    turned = dict(reversed(arguments.items()))
    assert re.fullmatch("[0-9a-f]{64}", fingerprint("a", "v3", arguments))
    assert fingerprint("a", "v3", arguments) == fingerprint("a", "v3", turned)


@given(ids=st.lists(st.text(max_size=5), min_size=2, max_size=2, unique=True))
def test_prompt_id_and_endpoint_count(ids):
    assert fingerprint(ids[0], "v3", {}) != fingerprint(ids[1], "v3", {})
    assert fingerprint("a", ids[0], {}) != fingerprint("a", ids[1], {})


def test_a_derived_seed_never_changes_between_versions():
    assert derived_seed("eileen-01") == 1736018564


@given(prompt_id=st.text())
def test_a_derived_seed_is_one_that_ideogram_takes(prompt_id):
    assert 0 <= derived_seed(prompt_id) <= 2**31 - 1


def test_the_seed_of_a_take_never_changes_between_versions():
    assert [take_seed(42, take) for take in (1, 2)] == [915771633, 1681939183]


@given(seed=st.integers(0, 2**31 - 1), take=st.integers(1, 10_000))
def test_the_seed_of_a_take_is_one_that_ideogram_takes(seed, take):
    assert 0 <= take_seed(seed, take) <= 2**31 - 1


@given(seed=st.integers(0, 2**31 - 1))
def test_a_take_asks_for_the_same_with_another_seed_and_is_another_request(seed):
    arguments = {"prompt": "a lighthouse", "num_images": 1, "seed": seed}
    first = GenerationRequest(
        prompt_id="a",
        batch="drop",
        row_number=2,
        endpoint="v3",
        arguments=arguments,
        fingerprint=fingerprint("a", "fal-ai/ideogram/v3", arguments),
        price_usd=None,
    )
    takes = list(islice(first.takes(), 4))
    assert takes[0] == first
    assert [request.take for request in takes] == [0, 1, 2, 3]
    assert [request.seed for request in takes[1:]] == [take_seed(seed, take) for take in (1, 2, 3)]
    assert len({request.fingerprint for request in takes}) == 4
    assert [request.replaces for request in takes] == [None, *(request.fingerprint for request in takes[:3])]
    assert {request.arguments["prompt"] for request in takes} == {"a lighthouse"}
    assert [GenerationRequest.model_validate_json(request.model_dump_json()) for request in takes] == takes
