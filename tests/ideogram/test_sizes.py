"""Resolutions, presets and snapping."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ideogram_pipeline.ideogram import (
    ASPECT_RATIOS,
    NOMINAL_SIZES,
    PRESET_SIZES,
    RESOLUTIONS,
    CharacterEditInput,
    CharacterInput,
    IdeogramInput,
    ImageSize,
    Size,
    V3EditInput,
    V3Input,
    V3ReframeInput,
    V3RemixInput,
    V3ReplaceBackgroundInput,
    expected_size,
    output_size,
    snap,
)

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("endpoints.json").read_text())
SIDES = st.integers(1, 14142)


def distortion(size: Size, wanted: Size) -> Fraction:
    ratio = Fraction(size.width * wanted.height, size.height * wanted.width)
    return max(ratio, 1 / ratio)


def test_the_resolutions_are_the_published_ones() -> None:
    assert {tuple(size) for size in PUBLISHED["resolutions"]} == RESOLUTIONS
    assert len(RESOLUTIONS) == 69


def test_the_presets_are_the_published_ones() -> None:
    presets = PUBLISHED["presets"]
    assert {name: list(size) for name, size in PRESET_SIZES.items()} == {
        name: preset["expected"] for name, preset in presets.items()
    }
    assert {name: list(size) for name, size in NOMINAL_SIZES.items()} == {
        name: preset["nominal"] for name, preset in presets.items()
    }


@pytest.mark.parametrize("preset", NOMINAL_SIZES)
def test_a_presets_nominal_pixels_snap_to_what_comes_back(preset: str) -> None:
    assert snap(*PUBLISHED["presets"][preset]["nominal"]) == PRESET_SIZES[preset]  # type: ignore[index]  # a str of the table


@pytest.mark.parametrize(("ratio", "size"), PUBLISHED["aspect_ratios"].items())
def test_ideograms_aspect_ratios_snap_to_their_resolution(ratio: str, size: list[int]) -> None:
    across, down = map(int, ratio.split("x"))
    assert snap(across, down) == tuple(size)


@given(st.sampled_from(sorted(RESOLUTIONS)))
def test_a_resolution_snaps_to_itself(size: Size) -> None:
    assert snap(*size) == size


@given(SIDES, SIDES)
@example(1, 14142)
@example(14142, 1)
@example(407, 449)  # the difference of the cross products would choose another shape
def test_snapping_gives_a_resolution_of_the_least_distortion(width: int, height: int) -> None:
    wanted = Size(width, height)
    snapped = snap(width, height)
    assert snapped in RESOLUTIONS
    assert distortion(snapped, wanted) == min(distortion(size, wanted) for size in RESOLUTIONS)


def test_the_shape_alone_decides_because_no_two_resolutions_share_one() -> None:
    assert len({Fraction(*size) for size in RESOLUTIONS}) == len(RESOLUTIONS)
    assert snap(100, 100) == snap(9000, 9000) == (1024, 1024)


@given(SIDES, SIDES)
def test_a_custom_size_is_expected_snapped(width: int, height: int) -> None:
    assert expected_size(ImageSize(width=width, height=height)) == snap(width, height)


def test_no_size_is_expected_as_fals_default() -> None:
    assert expected_size(None) == (1024, 1024)


SOURCE = {"prompt": "a lighthouse", "image_url": "https://example.org/source.png"}
MASKED = SOURCE | {"mask_url": "https://example.org/mask.png"}
REFERENCED = {"reference_image_urls": ["https://example.org/face.png"]}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (CharacterInput.model_validate({"prompt": "a lighthouse"} | REFERENCED), (1024, 1024)),
        (V3Input(prompt="a lighthouse", image_size="portrait_16_9"), (736, 1312)),
        (V3RemixInput.model_validate(SOURCE | {"image_size": "landscape_4_3"}), (1152, 864)),
        (
            V3ReframeInput(image_url="https://example.org/source.png", image_size="landscape_16_9"),
            (1312, 736),
        ),
    ],
)
def test_a_request_with_a_size_comes_back_in_it(request_: IdeogramInput, expected: tuple[int, int]) -> None:
    assert output_size(request_, Size(1920, 1080)) == expected
    assert output_size(request_, None) == expected


@pytest.mark.parametrize(
    "request_",
    [
        V3EditInput.model_validate(MASKED),
        CharacterEditInput.model_validate(MASKED | REFERENCED),
        V3ReplaceBackgroundInput.model_validate(SOURCE),
    ],
)
def test_a_request_without_a_size_follows_its_source(request_: IdeogramInput) -> None:
    assert output_size(request_, Size(1920, 1080)) == (1312, 736)
    assert output_size(request_, None) is None


def test_a_size_prints_as_people_write_it() -> None:
    assert f"{Size(1024, 768)}" == "1024x768"


def test_every_aspect_ratio_of_ideogram_is_asked_for_as_what_has_it() -> None:
    assert len(ASPECT_RATIOS) == 15
    for (width, height), asked in ASPECT_RATIOS.items():
        size = PRESET_SIZES[asked] if isinstance(asked, str) else asked
        assert size in RESOLUTIONS
        assert snap(width, height) == size
