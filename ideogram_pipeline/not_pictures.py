"""What bytes are that are no JPEG, PNG or WebP, and what to do about it: one sentence for each kind.

Such files come under a picture's name: phones and browsers save HEIC and AVIF, a share link leads to a web page, a
clone without Git LFS has pointers. They are told by their first bytes and never decoded.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

_HEAD = 4096
"""So many bytes are looked at: what stands before the root of an XML document can be long."""


class NotPicture(NamedTuple):
    """What bytes are, in the words of an error."""

    what: str
    """A clause that says it, such as "it is a PDF"."""
    mend: str = ""
    """What whoever gave them does about it; empty where nobody knows."""


def _other(kind: str) -> NotPicture:
    return NotPicture(f"it is {kind}, not JPEG, PNG or WebP", "save it as one of these")


_VIDEO = NotPicture("it is a video", "save one frame of it as PNG")
_TEXT = NotPicture("it is text, not a picture that can be decoded")
_TIFF = NotPicture(
    "it is TIFF, not JPEG, PNG or WebP", "save it as one of these (raw files of cameras are TIFF too)"
)
_BASE64 = NotPicture(
    "it is a picture written as base64", "decode it, or write it into the cell as a data URI"
)

_SIGNATURES: tuple[tuple[bytes, NotPicture], ...] = (
    (b"GIF8", _other("GIF")),
    (b"II*\0", _TIFF),
    (b"MM\0*", _TIFF),
    (b"\0\0\1\0", _other("ICO")),
    (b"8BPS", _other("a Photoshop document")),
    (b"gimp xcf", _other("a GIMP document")),
    (b"\xff\x0a", _other("JPEG XL")),
    (b"\0\0\0\x0cJXL ", _other("JPEG XL")),
    (b"\0\0\0\x0cjP  ", _other("JPEG 2000")),
    (b"\xff\x4f\xff\x51", _other("JPEG 2000")),
    (b"%PDF-", NotPicture("it is a PDF", "export the page as PNG")),
    (b"%!PS", NotPicture("it is PostScript", "export it as PNG")),
    (b"\x1aE\xdf\xa3", _VIDEO),
    (b"OggS", _VIDEO),
    (
        b"\0\5\x16\7",
        NotPicture("it is macOS's note beside a file (its name begins with `._`)", "name the picture itself"),
    ),
    (b"PK\3\4", NotPicture("it is a ZIP archive, or a document that is one", "take the picture out of it")),
    (b"\x1f\x8b", NotPicture("it is packed with gzip", "unpack it")),
    (b"7z\xbc\xaf\x27\x1c", NotPicture("it is a 7z archive", "take the picture out of it")),
    (b"Rar!", NotPicture("it is a RAR archive", "take the picture out of it")),
    (
        b"version https://git-lfs.github.com/spec/",
        NotPicture(
            "it is a pointer of Git LFS in place of the picture", "run `git lfs pull` where the file lies"
        ),
    ),
    (
        b"/annex/objects/",
        NotPicture(
            "it is a pointer of git-annex in place of the picture", "run `git annex get` where the file lies"
        ),
    ),
    (b"iVBORw0KGgo", _BASE64),
    (b"/9j/", _BASE64),
)
_BRANDS: tuple[tuple[frozenset[bytes], NotPicture], ...] = (
    (frozenset({b"avif", b"avis"}), _other("AVIF")),
    (
        frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}),
        NotPicture("it is HEIC, as phones store photos, not JPEG, PNG or WebP", "export it as JPEG"),
    ),
    (frozenset({b"crx "}), _other("a camera's raw file")),
)
"""What the brands of an ISO media file tell (ISO/IEC 14496-12, 4.3; 23008-12, 10); all others are videos."""
_ROOT = re.compile(
    rb"(?>\s+|<\?.*?\?>|<!--.*?-->|<!doctype\s+(?P<doctype>\w+)[^>\[]*(?:\[.*?\]\s*)?>)*+<(?:\w+:)?(?P<root>\w+)",
    re.IGNORECASE | re.DOTALL,
)
_PAGE_TAGS = frozenset({b"html", b"head", b"body", b"script", b"title", b"meta", b"div"})
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def described(content: bytes) -> NotPicture:
    """Return what bytes are that can't be decoded as a JPEG, PNG or WebP, and what to do about it."""
    if not content:
        return NotPicture("the file is empty", "download or copy it again")
    head = content[:_HEAD]
    if not any(head) and not content.strip(b"\0"):
        return NotPicture(
            "it holds nothing but zero bytes, as a copy leaves that was broken off", "copy it again"
        )
    found = _binary(head) or _media(head) or _text(head)
    return found or NotPicture("it is not a picture that can be decoded", "save it as JPEG, PNG or WebP")


def _binary(head: bytes) -> NotPicture | None:
    """Return which file of a fixed beginning it is, if it is one."""
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return _other("BMP")
    return next((found for signature, found in _SIGNATURES if head.startswith(signature)), None)


def _media(head: bytes) -> NotPicture | None:
    """Return which ISO media file or video it is, if it is one."""
    if head[4:8] != b"ftyp":
        return _VIDEO if head.startswith(b"RIFF") and head[8:12] == b"AVI " else None
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, end - 3, 4))}
    return next((found for known, found in _BRANDS if not brands.isdisjoint(known)), _VIDEO)


def _text(head: bytes) -> NotPicture | None:
    """Return which text it is, if it is any."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return _TEXT
    written = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if found := _ROOT.match(written):
        root, doctype = found["root"].lower(), (found["doctype"] or b"").lower()
        if root == b"svg":
            return NotPicture("it is an SVG drawing", "export it as PNG")
        if root in _PAGE_TAGS or doctype == b"html":
            return NotPicture(
                "it is a web page, as share links and log-in pages are, and not the picture",
                "give the address of the picture itself, or save the picture and name the file",
            )
    if written.startswith((b"<?xml", b"<Error", b"{", b"[{")):
        return NotPicture(
            "it is what a server answers with that has no picture", "open its address and read what it says"
        )
    try:
        codecs.getincrementaldecoder("utf-8")().decode(written)  # leaves out a letter cut at the end
    except UnicodeDecodeError:
        return None
    return None if not written or _CONTROL.search(written) else _TEXT
