"""A picture shows what the parameters say."""

import io
from functools import lru_cache

import pytest
from PIL import Image, ImageChops, ImageStat

from ideogram_pipeline.ideogram import ENDPOINTS, RESOLUTIONS
from ideogram_pipeline.sandbox.draw import SOFTWARE, draw, repeat
from ideogram_pipeline.sandbox.pictures import decode
from ideogram_pipeline.sandbox.scene import PALETTES, Pictures, compose

WHOLE = {
    "prompt": "a lighthouse in the fog",
    "image_size": "square_hd",
    "reference_image_urls": ["r"],
    "image_url": "i",
    "mask_url": "m",
}


@pytest.fixture
def scene(portrait, scenery, mask):
    """Composes a scene for an endpoint, with a picture in every role it has."""

    decoded = lru_cache(decode)

    def make(endpoint, index=0, mask_repaints="black", reference=portrait, source=scenery, **arguments):
        fields = ENDPOINTS[endpoint].input_model.model_fields
        known = {name: value for name, value in WHOLE.items() if name in fields}
        request = ENDPOINTS[endpoint].input_model.model_validate({**known, **arguments})
        return compose(
            ENDPOINTS[endpoint],
            request,
            Pictures(
                reference=decoded(reference) if "reference_image_urls" in known else None,
                reference_mask=None,
                style=None,
                source=decoded(source) if "image_url" in known else None,
                mask=decoded(mask) if "mask_url" in known else None,
            ),
            digest="digest",
            seed=1,
            index=index,
            mask_repaints=mask_repaints,
        )

    return make


@pytest.fixture
def drawn(scene):
    """Draws a scene."""
    return lambda *args, **kwargs: Image.open(io.BytesIO(draw(scene(*args, **kwargs))))


def differing(one, other):
    """The box outside of which two pictures are the same."""
    return ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_draws_a_marked_picture_of_a_supported_size(drawn, endpoint):
    image = drawn(endpoint)
    image.load()
    assert (image.format, image.mode) == ("PNG", "RGB")
    assert image.size in RESOLUTIONS
    assert image.text["Software"] == SOFTWARE == "ideogram_pipeline sandbox"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_same_scene_is_the_same_bytes(scene, endpoint):
    assert draw(scene(endpoint)) == draw(scene(endpoint))


@pytest.mark.parametrize("size", sorted(RESOLUTIONS))
def test_the_pixels_are_those_asked_for(drawn, size):
    assert drawn("v3", image_size={"width": size.width, "height": size.height}).size == size


@pytest.mark.parametrize("endpoint", [name for name in ENDPOINTS if "edit" not in name])
def test_the_corner_says_sandbox(drawn, endpoint):
    colors = drawn(endpoint).crop((900, 0, 1024, 124)).getcolors(124 * 124)
    assert {(226, 62, 72), (255, 255, 255)} <= {color for _, color in colors}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_repeated_picture_is_marked_and_whole_and_has_the_scene_s_own_notes(scene, endpoint):
    one, other = (repeat(scene(endpoint, index=index, num_images=2)) for index in range(2))
    assert one != other
    with Image.open(io.BytesIO(one)) as image, Image.open(io.BytesIO(other)) as same:
        assert differing(image, same) is None
        assert image.size == scene(endpoint).size
        assert (image.text["Software"], image.text["Description"]) == (SOFTWARE, scene(endpoint).caption)
        assert (226, 62, 72) in {color for _, color in image.getcolors(image.width * image.height)}


def test_several_pictures_of_a_request_differ(drawn):
    first, second = (drawn("character", index=index, num_images=2) for index in range(2))
    assert differing(first, second) is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "another prompt"},
        {"rendering_speed": "TURBO"},
        {"negative_prompt": "fog"},
        {"style": "FICTION"},
        {"style": "REALISTIC"},
        {"color_palette": {"name": "EMBER"}},
        {"style_codes": ["0123abcd"]},
        {"expand_prompt": False},
    ],
)
def test_a_changed_parameter_shows(drawn, changed):
    assert differing(drawn("character"), drawn("character", **changed)) is not None


def test_another_reference_shows(drawn, scenery):
    assert differing(drawn("character"), drawn("character", reference=scenery)) is not None


@pytest.mark.parametrize("name", PALETTES)
def test_the_colours_of_a_named_palette_are_in_the_picture(drawn, name):
    image = drawn("v3", color_palette={"name": name})
    found = {color for _, color in image.getcolors(image.width * image.height)}
    assert set(PALETTES[name]) <= found


def test_the_colours_of_a_palette_s_members_are_in_the_picture(drawn):
    colors = [(12, 200, 30), (250, 10, 240), (7, 7, 90), (255, 240, 1), (120, 60, 30)]
    members = [{"rgb": dict(zip("rgb", color, strict=True))} for color in colors]
    image = drawn("v3", color_palette={"members": members})
    assert set(colors) <= {color for _, color in image.getcolors(image.width * image.height)}


@pytest.mark.parametrize("endpoint", ["character/edit", "v3/edit"])
@pytest.mark.parametrize(
    ("repaints", "kept"), [("black", (0, 0, 512, 1024)), ("white", (512, 0, 1024, 1024))]
)
def test_an_edit_changes_nothing_outside_the_masked_area(drawn, scenery, endpoint, repaints, kept):
    source, image = Image.open(io.BytesIO(scenery)), drawn(endpoint, mask_repaints=repaints)
    assert differing(source.crop(kept), image.crop(kept)) is None
    assert differing(source, image) is not None


def test_a_stronger_remix_is_closer_to_its_source(drawn, scenery):
    source = Image.open(io.BytesIO(scenery)).convert("RGB")

    def distance(strength):
        image = drawn("v3/remix", strength=strength)
        top = (0, 0, 800, 400)  # neither ribbon nor caption
        return sum(ImageStat.Stat(ImageChops.difference(source.crop(top), image.crop(top))).mean)

    distances = [distance(strength) for strength in (0.1, 0.5, 0.9, 1.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == 0


def test_a_reframe_keeps_its_source_whole(drawn):
    corners = Image.new("RGB", (300, 200), (0, 0, 255))
    for color, box in (
        ((255, 0, 0), (0, 0, 60, 40)),
        ((0, 255, 0), (240, 160, 300, 200)),
    ):
        corners.paste(color, box)
    file = io.BytesIO()
    corners.save(file, "PNG")
    image = drawn("v3/reframe", source=file.getvalue(), image_size="portrait_16_9")
    colors = {color for _, color in image.getcolors(image.width * image.height)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colors


def test_a_new_background_keeps_the_middle_of_the_source(drawn, scenery):
    source, image = Image.open(io.BytesIO(scenery)), drawn("v3/replace-background")
    middle = (412, 400, 612, 600)
    assert differing(source.crop(middle), image.crop(middle)) is None
    assert differing(source.crop((0, 0, 100, 100)), image.crop((0, 0, 100, 100))) is not None


def test_only_the_masked_part_of_a_reference_is_the_character(call, as_data_uri, portrait):
    caller, reference = call(), as_data_uri(portrait)
    mask = Image.new("L", (512, 640))
    mask.paste(255, (150, 110, 362, 380))
    file = io.BytesIO()
    mask.save(file, "PNG")
    arguments = {"prompt": "x", "reference_image_urls": [reference], "color_palette": {"name": "FRESH"}}
    (whole,) = caller.pictures("character", **arguments)
    (masked,) = caller.pictures("character", **arguments, reference_mask_urls=[as_data_uri(file.getvalue())])
    blue = (30, 60, 140)
    found = [
        {color for _, color in Image.open(io.BytesIO(content)).getcolors(1 << 20)}
        for content in (whole, masked)
    ]
    assert [blue in colors for colors in found] == [True, False]


@pytest.mark.parametrize(
    "prompt", ["", " ", "x" * 400, "word " * 400, "\n\ttabs", "日本語 emoji 🦊 ümläut", "\0"]
)
def test_any_prompt_can_be_drawn(drawn, prompt):
    assert drawn("character", prompt=prompt, image_size={"width": 512, "height": 1536}).size == (512, 1536)
