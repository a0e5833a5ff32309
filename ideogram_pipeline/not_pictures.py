"""What bytes are that are no JPEG, PNG or WebP, and what to do about it: one sentence for each kind.

Such files come under a picture's name: phones and browsers save HEIC and AVIF, a share link leads to a web page, a
clone without Git LFS has pointers. They are told by their first bytes and never decoded.
"""

from __future__ import annotations

import codecs
import re

_HEAD = 4096
"""So many bytes are looked at: what stands before the root of an XML document can be long."""
_CONVERT = "not JPEG, PNG or WebP; save it as one of these"

_VIDEO = "it is a video; save one frame of it as PNG"
_TEXT = "it is text, not a picture that can be decoded"

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", f"it is GIF, {_CONVERT}"),
    (b"II*\0", f"it is TIFF, {_CONVERT} (raw files of cameras are TIFF too)"),
    (b"MM\0*", f"it is TIFF, {_CONVERT} (raw files of cameras are TIFF too)"),
    (b"\0\0\1\0", f"it is ICO, {_CONVERT}"),
    (b"8BPS", f"it is a Photoshop document, {_CONVERT}"),
    (b"gimp xcf", f"it is a GIMP document, {_CONVERT}"),
    (b"\xff\x0a", f"it is JPEG XL, {_CONVERT}"),
    (b"\0\0\0\x0cJXL ", f"it is JPEG XL, {_CONVERT}"),
    (b"\0\0\0\x0cjP  ", f"it is JPEG 2000, {_CONVERT}"),
    (b"\xff\x4f\xff\x51", f"it is JPEG 2000, {_CONVERT}"),
    (b"%PDF-", "it is a PDF; export the page as PNG"),
    (b"%!PS", "it is PostScript; export it as PNG"),
    (b"\x1aE\xdf\xa3", _VIDEO),
    (b"OggS", _VIDEO),
    (b"\0\5\x16\7", "it is macOS's note beside a file (its name begins with `._`); name the picture itself"),
    (b"PK\3\4", "it is a ZIP archive, or a document that is one; take the picture out of it"),
    (b"\x1f\x8b", "it is packed with gzip; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive; take the picture out of it"),
    (b"Rar!", "it is a RAR archive; take the picture out of it"),
    (
        b"version https://git-lfs.github.com/spec/",
        "it is a pointer of Git LFS in place of the picture; run `git lfs pull` where the file lies",
    ),
    (
        b"/annex/objects/",
        "it is a pointer of git-annex in place of the picture; run `git annex get` where the file lies",
    ),
    (b"iVBORw0KGgo", "it is a picture written as base64; decode it, or write it into the cell as a data URI"),
    (b"/9j/", "it is a picture written as base64; decode it, or write it into the cell as a data URI"),
)
_BRANDS: tuple[tuple[frozenset[bytes], str], ...] = (
    (frozenset({b"avif", b"avis"}), f"it is AVIF, {_CONVERT}"),
    (
        frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}),
        "it is HEIC, as phones store photos, not JPEG, PNG or WebP; export it as JPEG",
    ),
    (frozenset({b"crx "}), f"it is a camera's raw file, {_CONVERT}"),
)
"""What the brands of an ISO media file tell (ISO/IEC 14496-12, 4.3; 23008-12, 10); all others are videos."""
_ROOT = re.compile(
    rb"(?>\s+|<\?.*?\?>|<!--.*?-->|<!doctype\s+(?P<doctype>\w+)[^>\[]*(?:\[.*?\]\s*)?>)*+<(?:\w+:)?(?P<root>\w+)",
    re.IGNORECASE | re.DOTALL,
)
_PAGE_TAGS = frozenset({b"html", b"head", b"body", b"script", b"title", b"meta", b"div"})
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def described(content: bytes) -> str:
    """Return what bytes are that can't be decoded as a JPEG, PNG or WebP, and what to do about it."""
    if not content:
        return "the file is empty; download or copy it again"
    if not any(content[:_HEAD]) and not content.strip(b"\0"):
        return "it holds nothing but zero bytes, as a download or copy leaves that was broken off; fetch it again"
    head = content[:_HEAD]
    return _binary(head) or _media(head) or _text(head) or "it is not a picture that can be decoded"


def _binary(head: bytes) -> str:
    """Return which file of a fixed beginning it is; nothing where it is none."""
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return f"it is BMP, {_CONVERT}"
    return next((says for signature, says in _SIGNATURES if head.startswith(signature)), "")


def _media(head: bytes) -> str:
    """Return which ISO media file or video it is; nothing where it is none."""
    if head[4:8] != b"ftyp":
        return _VIDEO if head.startswith(b"RIFF") and head[8:12] == b"AVI " else ""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, end - 3, 4))}
    return next((says for known, says in _BRANDS if not brands.isdisjoint(known)), _VIDEO)


def _text(head: bytes) -> str:
    """Return which text it is; nothing where it is none."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return _TEXT
    written = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if found := _ROOT.match(written):
        root, doctype = found["root"].lower(), (found["doctype"] or b"").lower()
        if root == b"svg":
            return "it is an SVG drawing; export it as PNG"
        if root in _PAGE_TAGS or doctype == b"html":
            return (
                "it is a web page, as share links and log-in pages are, and not the picture; give the address of the "
                "picture itself, or save the picture and name the file"
            )
    if written.startswith((b"<?xml", b"<Error", b"{", b"[{")):
        return "it is what a server answers with that has no picture; open the address and read what it says"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(
            written
        )  # which leaves out a letter that is cut at the end
    except UnicodeDecodeError:
        return ""
    return "" if not written or _CONTROL.search(written) else _TEXT
