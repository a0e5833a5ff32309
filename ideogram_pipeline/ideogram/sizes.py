"""Picture sizes: what may be asked for, and what comes back.

Ideogram renders 69 resolutions only (its own OpenAPI document, June 2026); fal takes presets and any width
and height. How fal maps one to the other is not documented. A single mapping has been observed
(``portrait_16_9`` comes back as 736x1312); the other presets follow from their aspect ratios, and for custom
sizes ``snap`` is our assumption. Trust the pixels of the picture over anything here.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ideogram_pipeline.ideogram.endpoints import (
    IdeogramInput,
    ImageSize,
    ImageSizePreset,
    Sized,
    V3ReframeInput,
)


class Size(NamedTuple):
    """Pixels across and down; prints as ``1024x768``."""

    width: int
    """Pixels across."""
    height: int
    """Pixels down."""

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


_LANDSCAPE_AND_SQUARE = (
    Size(960, 832),
    Size(960, 896),
    Size(1024, 832),
    Size(1024, 896),
    Size(1024, 960),
    Size(1024, 1024),
    Size(1088, 768),
    Size(1088, 832),
    Size(1088, 896),
    Size(1088, 960),
    Size(1120, 896),
    Size(1152, 704),
    Size(1152, 832),
    Size(1152, 864),
    Size(1152, 896),
    Size(1216, 704),
    Size(1216, 768),
    Size(1216, 832),
    Size(1248, 832),
    Size(1280, 704),
    Size(1280, 768),
    Size(1280, 800),
    Size(1312, 736),
    Size(1344, 640),
    Size(1344, 704),
    Size(1344, 768),
    Size(1408, 576),
    Size(1408, 640),
    Size(1408, 704),
    Size(1472, 576),
    Size(1472, 640),
    Size(1472, 704),
    Size(1536, 512),
    Size(1536, 576),
    Size(1536, 640),
)

RESOLUTIONS: frozenset[Size] = frozenset(_LANDSCAPE_AND_SQUARE) | {
    Size(height, width) for width, height in _LANDSCAPE_AND_SQUARE
}
"""The 69 resolutions Ideogram 3.0 renders: every landscape one has its portrait twin."""

PRESET_SIZES: Mapping[ImageSizePreset, Size] = {
    "square_hd": Size(1024, 1024),
    "square": Size(1024, 1024),
    "portrait_4_3": Size(864, 1152),
    "portrait_16_9": Size(736, 1312),
    "landscape_4_3": Size(1152, 864),
    "landscape_16_9": Size(1312, 736),
}
"""What a preset is expected to come back as."""

ASPECT_RATIOS: Mapping[tuple[int, int], ImageSizePreset | Size] = {
    (1, 1): "square_hd",
    (16, 9): "landscape_16_9",
    (9, 16): "portrait_16_9",
    (4, 3): "landscape_4_3",
    (3, 4): "portrait_4_3",
    (5, 4): Size(1120, 896),
    (4, 5): Size(896, 1120),
    (3, 2): Size(1248, 832),
    (2, 3): Size(832, 1248),
    (16, 10): Size(1280, 800),
    (10, 16): Size(800, 1280),
    (2, 1): Size(1408, 704),
    (1, 2): Size(704, 1408),
    (3, 1): Size(1536, 512),
    (1, 3): Size(512, 1536),
}
"""What to ask fal for where somebody wants one of Ideogram's 15 aspect ratios: fal has a name for five of them, and for
the others the resolution is asked for that has just this ratio."""

NOMINAL_SIZES: Mapping[ImageSizePreset, Size] = {
    "square_hd": Size(1024, 1024),
    "square": Size(512, 512),
    "portrait_4_3": Size(768, 1024),
    "portrait_16_9": Size(576, 1024),
    "landscape_4_3": Size(1024, 768),
    "landscape_16_9": Size(1024, 576),
}
"""What fal's docs say of a preset ("Common Model Arguments"): written for other models than Ideogram's."""


def snap(width: int, height: int) -> Size:
    """The resolution whose aspect ratio is nearest; no two have the same one. That fal does so is our assumption.

    ``width`` and ``height`` are positive.
    """

    def distortion(candidate: Size) -> tuple[float, Size]:
        across, down = width * candidate.height, height * candidate.width
        return max(across, down) / min(across, down), candidate

    return min(RESOLUTIONS, key=distortion)


def expected_size(image_size: ImageSize | ImageSizePreset | None) -> Size:
    """The size to expect back for an ``image_size``; None is fal's default, ``square_hd``."""
    if image_size is None:
        return PRESET_SIZES["square_hd"]
    if isinstance(image_size, ImageSize):
        return snap(image_size.width, image_size.height)
    return PRESET_SIZES[image_size]


def output_size(request: IdeogramInput, source: Size | None) -> Size | None:
    """The size to expect of a request's pictures, or None when it follows a source of unknown size.

    Endpoints without ``image_size`` follow the source, snapped: rule R14 for edits, our assumption for
    replace-background.
    """
    if isinstance(request, Sized | V3ReframeInput):
        return expected_size(request.image_size)
    return snap(*source) if source else None
