"""Whatever is asked, the sandbox has an answer."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ideogram_pipeline.ideogram import ENDPOINTS
from ideogram_pipeline.sandbox.state import State
from ideogram_pipeline.sandbox.studio import input_digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({name for endpoint in ENDPOINTS.values() for name in endpoint.input_model.model_fields})
INPUTS = st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON, max_size=5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(sorted(ENDPOINTS)), INPUTS)
def test_any_json_object_is_accepted_and_ends_in_a_result(call, endpoint, arguments):
    caller = call()
    body = json.dumps({"prompt": "x", **arguments})
    submitted = caller.http.post(f"/fal-ai/ideogram/{endpoint}", content=body)
    assert submitted.status_code == 200
    result = caller.http.get(submitted.json()["response_url"])
    assert result.status_code in (200, 422)
    if result.status_code == 200 and not arguments.get("sync_mode"):
        assert caller.fetch(result.json()["images"][0]["url"]).startswith(b"\x89PNG")
    assert caller.sandbox.stats().accepted == 1
    assert len(caller.sandbox.requests()) == 1


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_a_price_is_noted_for_every_endpoint(call, as_data_uri, portrait, scenery, mask, endpoint):
    whole = {
        "prompt": "x",
        "image_size": "square_hd",
        "reference_image_urls": [as_data_uri(portrait)],
        "image_url": as_data_uri(scenery),
        "mask_url": as_data_uri(mask),
        "num_images": 2,
    }
    fields = ENDPOINTS[endpoint].input_model.model_fields
    caller = call()
    caller.pictures(endpoint, **{name: value for name, value in whole.items() if name in fields})
    stats = caller.sandbox.stats()
    assert str(stats.usd) == ("0.30" if endpoint.startswith("character") else "0.12")
    assert (stats.images, stats.downloads) == (2, 2)


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_the_order_of_fields_does_not_make_another_input(arguments):
    state = State(":memory:")
    backwards = dict(reversed(arguments.items()))
    assert input_digest("x", arguments, state) == input_digest("x", backwards, state)
    assert input_digest("x", arguments, state) != input_digest("y", arguments, state)
    state.close()
