"""Many texts that are alike, kept in little memory and each to be had alone."""

from __future__ import annotations

import zlib


class Packer:
    """Packs texts, each without what it shares with the first one: often a quarter of them is left, or less."""

    def __init__(self) -> None:
        self._likeness = b""

    def packed(self, text: bytes) -> bytes:
        """Return a text packed, for this packer alone to unpack."""
        self._likeness = self._likeness or text
        packing = zlib.compressobj(1, zdict=self._likeness)
        return packing.compress(text) + packing.flush()

    def unpacked(self, packed: bytes) -> bytes:
        """Return the text."""
        return zlib.decompressobj(zdict=self._likeness).decompress(packed)
