"""Marks that travel with a picture: what it says of itself wherever its file is copied to.

`xmp` writes and reads the words, which stand in JPEG, PNG and WebP files where `containers` says. No pixel is
touched, and the same picture and marks always give the same bytes. `credentials` signs, where there is a certificate,
which gives other bytes each time; `difference` keeps them.

What a picture brings may be anything: reading it is bounded, and a picture that can't take marks stays as it is.
"""

from ideogram_pipeline import containers
from ideogram_pipeline.containers import OddMetadata, has_credentials
from ideogram_pipeline.marks import xmp
from ideogram_pipeline.marks.xmp import ALGORITHM, TRAINED_ALGORITHM, Marks

__all__ = ["ALGORITHM", "TRAINED_ALGORITHM", "CannotMark", "Marks", "has_credentials", "read", "written"]


class CannotMark(Exception):
    """Marks would damage what a picture brings, or can't be added to it. The message says why."""


def written(content: bytes, marks: Marks, *, to_be_signed: bool = False) -> bytes:
    """Return a whole JPEG, PNG or WebP with the marks in it.

    XMP that it brings is kept, and the marks are added to it. A JPEG has room for 64 kB; a longer prompt is left out.

    Raises:
        CannotMark: it brings Content Credentials (C2PA), which are signed over its bytes, so that any change would
            make them invalid, unless it is `to_be_signed` anew; or metadata that can't be worked with.
    """
    try:
        if has_credentials(content) and not to_be_signed:
            raise CannotMark("it brings Content Credentials, which marks would make invalid")
        before = containers.xmp_of(content)
        whole = containers.with_xmp(content, xmp.packet(marks, before))
        if whole is None and marks.prompt:
            marks = marks.model_copy(update={"prompt": None})
            whole = containers.with_xmp(content, xmp.packet(marks, before))
    except CannotMark:
        raise
    except OddMetadata as problem:
        raise CannotMark(str(problem)) from None
    except Exception as error:  # a picture that is paid for is not lost to metadata that nobody foresaw
        raise CannotMark(f"its metadata can't be worked with ({type(error).__name__})") from error
    if whole is None:
        raise CannotMark("its XMP leaves no room for marks")
    return whole


def read(content: bytes) -> Marks | None:
    """Return what a picture says of itself; None if it carries no marks of ours, or is no JPEG, PNG or WebP."""
    try:
        packet = containers.xmp_of(content)
        return xmp.parsed(packet) if packet else None
    except OddMetadata:
        return None
