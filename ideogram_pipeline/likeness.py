"""How much pictures look alike: a hash of what each looks like, and the bits in which two hashes differ.

The hash is a difference hash: of the picture in grey, nine wide and eight high, one bit for each pixel that is darker
than its neighbour to the right. It survives another size, another compression, another brightness; it doesn't survive
turning or cropping. It compares pictures, not what they show: it says nothing of who or what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

NEAR_DUPLICATE = 4
"""Bits in which the same picture differs at most after shrinking to half, JPEG at quality 30, 20 % more light or 20 %
less contrast. Two pictures of different content differ in about 32 bits; docs/review.md has the figures."""
_COLUMNS, _ROWS = 9, 8
_BLOCK = 64
"""So many pictures at a time are compared with all the others, which bounds the memory it takes."""


def perceptual_hash(image: Image.Image) -> str:
    """Return what an image looks like: 64 bits as 16 hex digits."""
    from PIL import Image

    grey = image.convert("L").resize((_COLUMNS, _ROWS), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(0, len(grey), _COLUMNS):
        for left in range(row, row + _COLUMNS - 1):
            bits = bits << 1 | (grey[left] < grey[left + 1])
    return f"{bits:016x}"


def distance(one: str, other: str) -> int:
    """Return in how many bits two hashes differ: 0 to 64."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


class Nearest(NamedTuple):
    """The other picture that looks most like one."""

    at: int
    """Which of them it is, from 0."""
    distance: int
    """In how many bits the two differ."""


def nearest(hashes: Sequence[str]) -> Iterator[Nearest]:
    """Yield for each hash the other one that differs least from it; nothing where there are no two.

    Every hash is compared with every other: 10,000 take under a second.
    """
    import numpy as np

    if len(hashes) < 2:
        return
    values = np.array([int(one, 16) for one in hashes], dtype=np.uint64)
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        differing = np.bitwise_count(block[:, None] ^ values[None, :])
        own = np.arange(len(block))
        differing[own, start + own] = 255
        for row, at in enumerate(differing.argmin(axis=1)):
            yield Nearest(int(at), int(differing[row, at]))
