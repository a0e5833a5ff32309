"""The input and output types against fal's published schemas, and the bodies that are sent."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ideogram_pipeline.ideogram import (
    ENDPOINTS,
    ENDPOINTS_BY_ID,
    ColorPalette,
    ColorPaletteMember,
    Endpoint,
    IdeogramInput,
    ImageSize,
    Output,
    RGBColor,
    Violation,
    check,
    wire,
)

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("endpoints.json").read_text())
INPUT_FIELDS = {
    endpoint["id"]: {field["name"]: field for field in endpoint["input"]}
    for endpoint in PUBLISHED["endpoints"]
}
SHARED: list[type[BaseModel]] = [ColorPalette, ColorPaletteMember, RGBColor, ImageSize]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.text(),
    "expand_prompt": st.booleans(),
    "reference_image_urls": st.lists(st.text(), max_size=2),
    "reference_mask_urls": st.lists(st.text(), max_size=2),
    "image_urls": st.none() | st.lists(st.text(), max_size=2),
    "rendering_speed": st.sampled_from(PUBLISHED["enums"]["rendering_speed"]),
    "color_palette": st.none()
    | st.fixed_dictionaries({"name": st.sampled_from(PUBLISHED["enums"]["color_palette_name"])})
    | st.fixed_dictionaries(
        {
            "members": st.lists(
                st.fixed_dictionaries(
                    {"rgb": st.fixed_dictionaries({}, optional={"r": st.integers(0, 255)})},
                    optional={"color_weight": st.none() | st.floats(0.05, 1)},
                ),
                max_size=3,
            )
        }
    ),
    "style_codes": st.none()
    | st.lists(st.text("0123456789abcdefABCDEF", min_size=8, max_size=8), max_size=2),
    "num_images": st.integers(1, 8),
    "seed": st.none() | st.integers(),
    "sync_mode": st.booleans(),
    "image_size": st.sampled_from(PUBLISHED["enums"]["image_size_preset"])
    | st.fixed_dictionaries({"width": st.integers(1, 14142), "height": st.integers(1, 14142)}),
    "negative_prompt": st.text(),
    "image_url": st.text(),
    "mask_url": st.text(),
    "strength": st.floats(0.01, 1),
    "style_preset": st.none() | st.sampled_from(PUBLISHED["enums"]["style_preset"]),
}


def minimal(endpoint_name: str) -> dict[str, Any]:
    examples = {
        "prompt": "a lighthouse",
        "reference_image_urls": ["https://example.org/face.png"],
        "image_url": "https://example.org/source.png",
        "mask_url": "https://example.org/mask.png",
        "image_size": "square_hd",
    }
    fields = INPUT_FIELDS[ENDPOINTS[endpoint_name].id].values()
    return {field["name"]: examples[field["name"]] for field in fields if field["required"]}


def parse(endpoint_name: str, **values: Any) -> IdeogramInput:
    return ENDPOINTS[endpoint_name].input_model.model_validate(minimal(endpoint_name) | values)


def values_of(field: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values fal takes for a published field; the two kinds of ``style`` differ by endpoint."""
    if field["name"] == "style":
        return st.sampled_from(PUBLISHED["enums"][field["enum"]])
    return VALUES[field["name"]]


def inputs_of(endpoint: Endpoint) -> st.SearchStrategy[tuple[Endpoint, IdeogramInput]]:
    fields = INPUT_FIELDS[endpoint.id].values()
    bodies = st.fixed_dictionaries(
        {field["name"]: values_of(field) for field in fields if field["required"]},
        optional={field["name"]: values_of(field) for field in fields if not field["required"]},
    )
    return bodies.map(lambda body: (endpoint, endpoint.input_model.model_validate(body)))


REQUESTS = st.one_of([inputs_of(endpoint) for endpoint in ENDPOINTS.values()])


def ours(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """A model's fields in the words of the published schemas."""
    schema = model.model_json_schema()
    return {
        name: _described(name, field, name in schema.get("required", ()))
        for name, field in schema["properties"].items()
    }


def _described(name: str, field: dict[str, Any], required: bool) -> dict[str, Any]:
    options = field.get("anyOf", [field])
    facts: dict[str, Any] = {
        "name": name,
        "required": required,
        "nullable": {"type": "null"} in options,
        "default": field.get("default"),
        "type": " | ".join(
            _reference(option) or option["type"] for option in options if option != {"type": "null"}
        ),
    }
    words = {"minimum": "min", "maximum": "max", "exclusiveMinimum": "exclusive_min", "enum": "enum"}
    for option in options:
        facts |= {words[word]: value for word, value in option.items() if word in words}
        if option.get("type") == "array":
            facts["items"] = _reference(option["items"]) or option["items"]["type"]
    return facts


def _reference(schema: dict[str, Any]) -> str | None:
    return cast(str, schema["$ref"]).rpartition("/")[2] if "$ref" in schema else None


def theirs(fields: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The published fields, with the enums in place of their names."""
    return {
        field["name"]: {"default": None}
        | field
        | ({"enum": PUBLISHED["enums"][field["enum"]]} if "enum" in field else {})
        for field in fields
    }


def test_the_endpoints_are_the_published_ones() -> None:
    assert sorted(ENDPOINTS_BY_ID) == sorted(endpoint["id"] for endpoint in PUBLISHED["endpoints"])
    assert {endpoint.id: name for name, endpoint in ENDPOINTS.items()} == {
        id: id.removeprefix("fal-ai/ideogram/") for id in INPUT_FIELDS
    }


@pytest.mark.parametrize("published", PUBLISHED["endpoints"], ids=lambda endpoint: endpoint["id"])
def test_an_input_has_exactly_the_published_fields(published: dict[str, Any]) -> None:
    assert ours(ENDPOINTS_BY_ID[published["id"]].input_model) == theirs(published["input"])


@pytest.mark.parametrize("published", PUBLISHED["endpoints"], ids=lambda endpoint: endpoint["id"])
def test_every_endpoint_answers_with_the_one_output(published: dict[str, Any]) -> None:
    assert {field["name"] for field in published["output"]} == {"images", "seed"}


@pytest.mark.parametrize("model", SHARED, ids=lambda model: model.__name__)
def test_a_shared_type_has_exactly_the_published_fields(model: type[BaseModel]) -> None:
    assert ours(model) == theirs(PUBLISHED["types"][model.__name__])


def test_every_published_shared_type_is_modelled() -> None:
    assert {model.__name__ for model in SHARED} | {"File"} == set(PUBLISHED["types"])


def test_every_field_is_described() -> None:
    inputs = [endpoint.input_model for endpoint in ENDPOINTS.values()]
    models: list[type[BaseModel]] = [*SHARED, *inputs]
    assert [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
    ] == []


VECTORS: dict[str, Callable[[Any], IdeogramInput]] = {
    "num_images": lambda value: parse("v3", num_images=value),
    "strength": lambda value: parse("v3/remix", strength=value),
    "ImageSize.width/height": lambda value: parse("v3", image_size={"width": value, "height": value}),
    "color_weight": lambda value: parse(
        "v3", color_palette={"members": [{"rgb": {}, "color_weight": value}]}
    ),
    "rgb channel": lambda value: parse("v3", color_palette={"members": [{"rgb": {"g": value}}]}),
    "style_codes item": lambda value: parse("v3", style_codes=[value]),
    "color_palette": lambda value: parse("v3", color_palette=value),
    "reframe.image_size": lambda value: parse_or_omit("v3/reframe", "image_size", value),
    "character.reference_image_urls": lambda value: parse_or_omit("character", "reference_image_urls", value),
}


def parse_or_omit(endpoint_name: str, field: str, value: Any) -> IdeogramInput:
    body = minimal(endpoint_name)
    del body[field]
    if value != "missing":
        body[field] = value
    return ENDPOINTS[endpoint_name].input_model.model_validate(body)


def violates(request: IdeogramInput) -> bool:
    return any(isinstance(finding, Violation) for finding in check(request))


def test_every_published_vector_is_exercised() -> None:
    assert [vector["field"] for vector in PUBLISHED["validation_vectors"]] == list(VECTORS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (vector["field"], value)
        for vector in PUBLISHED["validation_vectors"]
        for value in vector.get("ok", []) + vector.get("schema_ok", [])
    ],
)
def test_a_good_value_is_taken(field: str, value: Any) -> None:
    assert not violates(VECTORS[field](value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (vector["field"], value)
        for vector in PUBLISHED["validation_vectors"]
        for value in vector.get("bad", [])
        # fal's schema says only "string" of a style code; the prose rule is what refuses it.
        if vector["field"] != "style_codes item"
    ],
)
def test_a_bad_value_does_not_parse(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        VECTORS[field](value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (vector["field"], value)
        for vector in PUBLISHED["validation_vectors"]
        for value in vector.get("bad_by_rule", [])
        + (vector["bad"] if vector["field"] == "style_codes item" else [])
    ],
)
def test_a_value_bad_by_rule_parses_and_violates(field: str, value: Any) -> None:
    assert violates(VECTORS[field](value))


@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_field_of_another_endpoint_is_refused(name: str) -> None:
    every_field = {field for fields in INPUT_FIELDS.values() for field in fields}
    for foreign in every_field - set(INPUT_FIELDS[ENDPOINTS[name].id]):
        with pytest.raises(ValidationError, match=rf"{foreign}\n  Extra inputs are not permitted"):
            parse(name, **{foreign: None})


def test_an_input_is_immutable_and_hashable() -> None:
    request = parse("character", color_palette={"members": [{"rgb": {"r": 1}}]}, style_codes=["AAFF5733"])
    assert hash(request) == hash(request.model_copy(deep=True))
    with pytest.raises(ValidationError, match="frozen"):
        request.seed = 1  # type: ignore[misc]  # that it cannot be assigned is what is tested


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_number_json_cannot_carry_is_refused(strength: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        parse("v3/remix", strength=strength)


ONE = "https://example.org/1.png"


@pytest.mark.parametrize(
    ("rest", "seed"),
    [
        ({"seed": 7, "timings": {}}, 7),
        ({"seed": None}, None),
        ({}, None),
        ({"seed": 2**63}, None),
        ({"seed": 10**30}, None),
        ({"seed": -1}, None),
        ({"seed": 1.5}, None),
        ({"seed": "7"}, None),
        ({"seed": True}, None),
        ({"seed": 0}, 0),
    ],
)
def test_an_answer_with_a_missing_odd_or_new_field_still_brings_its_pictures(
    rest: Any, seed: int | None
) -> None:
    file = {"url": ONE, "width": 1024, "file_size": "huge", "content_type": 7}
    assert Output.read({"images": [file], **rest}) == Output((ONE,), seed)


@pytest.mark.parametrize(
    "images",
    [None, [], {}, "x", [None], [ONE], [{"url": ""}], [{"url": 7}], [{"url": ONE}, {}], [{"href": ONE}]],
)
def test_an_answer_that_does_not_tell_where_its_pictures_are_is_not_read(images: Any) -> None:
    assert Output.read({"images": images, "seed": 7}) is None
    assert Output.read({"seed": 7}) is None


@given(REQUESTS)
def test_only_fields_of_the_endpoint_are_sent(drawn: tuple[Endpoint, IdeogramInput]) -> None:
    endpoint, request = drawn
    assert set(wire(request)) <= set(INPUT_FIELDS[endpoint.id])


@given(REQUESTS)
def test_a_body_survives_json(drawn: tuple[Endpoint, IdeogramInput]) -> None:
    _, request = drawn
    body = wire(request)
    assert json.loads(json.dumps(body, allow_nan=False)) == body


@given(REQUESTS)
def test_a_body_parses_to_an_input_with_the_same_body(drawn: tuple[Endpoint, IdeogramInput]) -> None:
    endpoint, request = drawn
    body = wire(request)
    assert wire(endpoint.input_model.model_validate(body)) == body


@pytest.mark.parametrize(
    "nulls",
    [{"image_size": None}, {"color_palette": {"members": [{"rgb": {}, "color_weight": None}]}}],
    ids=["image_size", "color_weight"],
)
def test_null_for_a_field_with_a_default_asks_for_the_default(nulls: dict[str, Any]) -> None:
    spelled_out = {
        "image_size": "square_hd",
        "color_palette": {"members": [{"rgb": {"r": 0, "g": 0, "b": 0}, "color_weight": 0.5}]},
    }
    (name,) = nulls
    assert wire(parse("v3", **nulls))[name] == spelled_out[name]


@given(REQUESTS)
def test_null_is_never_sent(drawn: tuple[Endpoint, IdeogramInput]) -> None:
    _, request = drawn
    assert "null" not in json.dumps(_without_texts(wire(request)))


def _without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    return "" if isinstance(value, str) else value


@given(REQUESTS)
def test_required_values_and_defaults_are_spelled_out(drawn: tuple[Endpoint, IdeogramInput]) -> None:
    endpoint, request = drawn
    spelled_out = {
        name
        for name, field in INPUT_FIELDS[endpoint.id].items()
        if field["required"] or field.get("default") is not None
    }
    assert spelled_out - set(wire(request)) <= ({"style"} if request.style_codes else set())


@given(REQUESTS)
def test_style_is_never_sent_beside_style_codes(drawn: tuple[Endpoint, IdeogramInput]) -> None:
    _, request = drawn
    assert not {"style", "style_codes"} <= set(wire(request))


def test_the_whole_body_of_a_character_request() -> None:
    request = parse(
        "character",
        color_palette={"members": [{"rgb": {"r": 180, "g": 112, "b": 179}}]},
        image_size={"width": 864, "height": 1152},
        style_codes=["AAFF5733"],
        image_urls=[],
        seed=0,
    )
    assert wire(request) == {
        "prompt": "a lighthouse",
        "expand_prompt": True,
        "reference_image_urls": ["https://example.org/face.png"],
        "rendering_speed": "BALANCED",
        "color_palette": {"members": [{"rgb": {"r": 180, "g": 112, "b": 179}, "color_weight": 0.5}]},
        "image_size": {"width": 864, "height": 1152},
        "style_codes": ["AAFF5733"],
        "negative_prompt": "",
        "num_images": 1,
        "seed": 0,
        "sync_mode": False,
    }
