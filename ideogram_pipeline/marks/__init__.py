"""Marks that travel with a picture: what it says of itself wherever its file is copied to.

`xmp` writes and reads the words, which stand in JPEG, PNG and WebP files where `containers` says. No pixel is
touched, and the same picture and marks always give the same bytes. `credentials` signs, where there is a certificate,
which gives other bytes each time; `difference` keeps them.

What a picture brings may be anything: reading it is bounded, and a picture that can't take marks stays as it is.
"""

from collections.abc import Iterator
from contextlib import suppress

from ideogram_pipeline import containers
from ideogram_pipeline.containers import OddMetadata, has_credentials
from ideogram_pipeline.marks import xmp
from ideogram_pipeline.marks.xmp import ALGORITHM, TRAINED_ALGORITHM, VERSION, Marks, Origin

__all__ = [
    "ALGORITHM",
    "TRAINED_ALGORITHM",
    "VERSION",
    "CannotMark",
    "Marks",
    "Origin",
    "has_credentials",
    "origin",
    "read",
    "written",
]


class CannotMark(Exception):
    """Marks would damage what a picture brings, or can't be added to it. The message says why."""


def written(content: bytes, marks: Marks, *, to_be_signed: bool = False) -> bytes:
    """Return a whole JPEG, PNG or WebP with the marks in it.

    XMP that it brings is kept, wherever it stands, and the marks are added to it: one packet remains. Marks of version
    1 are written as they were then, beside XMP that a PNG has elsewhere than in its standard place. A JPEG has room for
    64 kB; a longer prompt is left out.

    Raises:
        CannotMark: it brings Content Credentials (C2PA), which are signed over its bytes, so that any change would
            make them invalid, unless it is `to_be_signed` anew; or metadata that can't be worked with.
    """
    try:
        if has_credentials(content) and not to_be_signed:
            raise CannotMark("it brings Content Credentials, which marks would make invalid")
        standard_only = marks.version == 1
        before = list(containers.xmp_of(content, standard_only=standard_only))
        if standard_only:
            before = before[:1]
        whole = containers.with_xmp(content, xmp.packet(marks, before), standard_only=standard_only)
        if whole is None and marks.prompt:
            marks = marks.model_copy(update={"prompt": None})
            whole = containers.with_xmp(content, xmp.packet(marks, before), standard_only=standard_only)
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
    """Return what a picture of ours says of itself; None if it carries no marks, or is no JPEG, PNG or WebP."""
    return next((said for said in _said(content) if isinstance(said, Marks)), None)


def origin(content: bytes) -> Origin | None:
    """Return what a picture says of how it came to be, in IPTC's terms; None if it says nothing.

    Anybody may have written it. What an editor has left of our marks counts too.
    """
    return read(content) or next(_said(content), None)


def _said(content: bytes) -> Iterator[Origin]:
    """Yield what each of a picture's packets says, as far as they can be read."""
    with suppress(OddMetadata):
        for packet in containers.xmp_of(content):
            with suppress(OddMetadata):
                if said := xmp.parsed(packet):
                    yield said
