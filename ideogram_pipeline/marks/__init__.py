"""Marks that travel with a picture: what it says of itself wherever its file is copied to.

`xmp` writes and reads the words, `containers` the places of JPEG, PNG and WebP files where they stand. No pixel is
touched, and the same picture and marks always give the same bytes. `credentials` signs, where there is a certificate,
which gives other bytes each time; `difference` keeps them.
"""

from ideogram_pipeline.marks import containers, xmp
from ideogram_pipeline.marks.containers import has_credentials
from ideogram_pipeline.marks.xmp import ALGORITHM, TRAINED_ALGORITHM, Marks

__all__ = ["ALGORITHM", "TRAINED_ALGORITHM", "Marks", "has_credentials", "read", "written"]


def written(content: bytes, marks: Marks, *, to_be_signed: bool = False) -> bytes | None:
    """Return a whole JPEG, PNG or WebP with the marks in it; None where they would damage what it brings.

    That is a picture with Content Credentials (C2PA): they are signed over its bytes, and any change would make them
    invalid, unless it is `to_be_signed` anew, with them as what it came from. XMP that it brings is kept, and the marks
    are added to it. A JPEG has room for 64 kB; a longer prompt is left out.
    """
    if has_credentials(content) and not to_be_signed:
        return None
    before = containers.xmp_of(content)
    whole = containers.with_xmp(content, xmp.packet(marks, before))
    if whole is None and marks.prompt:
        return containers.with_xmp(content, xmp.packet(marks.model_copy(update={"prompt": None}), before))
    return whole


def read(content: bytes) -> Marks | None:
    """Return what a picture says of itself; None if it carries no marks of ours, or is no JPEG, PNG or WebP."""
    packet = containers.xmp_of(content)
    return xmp.parsed(packet) if packet else None
