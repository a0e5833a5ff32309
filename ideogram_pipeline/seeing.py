"""A picture as people see it: upright, in RGB of 8 bits, and on white where it is transparent.

Cameras store what the sensor saw and say in EXIF how it is to be turned (Exif 2.32, 4.6.4 A, tag 274); browsers and
editors do so, and so does fal's own SDK (fal.toolkit.image). Where EXIF says nothing, the same tag in XMP counts, as it
does there. EXIF that can't be read turns nothing.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
"""What Pillow says of EXIF that it can't read: nobody has to do anything about it."""

_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What makes a picture of each orientation upright; 1 and what is no orientation need nothing."""
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})


def orientation(image: Image.Image) -> int:
    """Return how a picture is stored: 1 if as it is seen, or 2 to 8, as EXIF numbers the ways to turn and mirror it."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises whatever taking odd bytes apart raises
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def upright(image: Image.Image, stored: int) -> Image.Image:
    """Return a picture of a stored orientation as it is seen. Its modes, palette and profile stay as they are."""
    from PIL import Image

    return image.transpose(Image.Transpose[_TURNS[stored]]) if stored in _TURNS else image


def upright_size(image: Image.Image, stored: int) -> tuple[int, int]:
    """Return width and height of a picture of a stored orientation as it is seen."""
    return image.size[::-1] if stored in _ON_ITS_SIDE else image.size


def flat(image: Image.Image) -> Image.Image:
    """Return a picture's colours as they are seen: RGB, on white where it is transparent. It isn't turned."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        image = image.point(lambda value: value * (1 / 256)).convert("L")
        image.info.pop("transparency", None)
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    ground = Image.new("RGB", clear.size, "white")
    ground.paste(clear, mask=clear.getchannel("A"))
    return ground
