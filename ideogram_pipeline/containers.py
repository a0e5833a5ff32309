"""The parts of JPEG, PNG and WebP files: where XMP stands, how it is put there, and what else is no pixel.

JPEG: an APP1 segment (XMP part 3, 1.1.3); PNG: an iTXt chunk (1.1.5); WebP: an `XMP ` chunk, announced in `VP8X`
(https://developers.google.com/speed/webp/docs/riff_container). Other programs put a PNG's XMP elsewhere too: libvips
and sharp into a zTXt chunk of the same keyword, ImageMagick as hex digits into a text chunk `Raw profile type xmp`.
All functions take whole, valid files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_KEYWORD = b"XML:com.adobe.xmp\0"
_RAW_XMP, _RAW_APP1 = b"Raw profile type xmp\0", b"Raw profile type APP1\0"
_TEXTS = (b"iTXt", b"tEXt", b"zTXt")
_APP1 = b"http://ns.adobe.com/xap/1.0/\0"
_SEGMENT = 65_535
"""Bytes of a JPEG segment at most, its length included and its marker not."""
MAX_XMP_BYTES = 1 << 20
"""More than that is not read, packed or not: a packet has room for some kB of words and a small picture."""
MAX_PACKETS = 16
"""A picture with more packets of XMP is not worked with: one is usual, and programs that don't know of each other leave
two or three."""
_LOOK_AT, _DIGITS = 256, 56
"""A profile is told by so many digits at its beginning, within so many bytes."""
_XMP_FLAG, _ALPHA_FLAG = 0x04, 0x10
_METADATA_FLAGS = 0x20 | 0x08 | _XMP_FLAG
"""A WebP's colour profile, EXIF and XMP."""

Part = tuple[bytes, int, int]
"""A part of a file: its name, and where it begins and ends."""


class UnknownContainer(ValueError):
    """The bytes are no JPEG, PNG or WebP."""


class OddMetadata(ValueError):
    """What a picture says of itself can't be read, or is more than anybody should read. The message says why."""


def xmp_of(content: bytes, *, standard_only: bool = False) -> Iterator[bytes]:
    """Yield a picture's XMP packets, those in the standard place first; none for bytes that are no picture.

    `standard_only` leaves out those in other chunks of a PNG. All of them together may have a megabyte.

    Raises:
        OddMetadata: a packet can't be unpacked, or they are too large or too many.
    """
    try:
        parts = [part for part in _parts(content) if _is_xmp(content, part, standard_only=standard_only)]
    except UnknownContainer:
        return
    if len(parts) > MAX_PACKETS and not standard_only:
        raise OddMetadata(f"it has more than {MAX_PACKETS} XMP packets")
    size = 0
    for part in sorted(parts, key=lambda part: not _is_xmp(content, part, standard_only=True)):
        packet = _xmp(content, part)
        size += len(packet)
        if size > MAX_XMP_BYTES and not standard_only:
            raise OddMetadata(f"its XMP is larger than {MAX_XMP_BYTES:,} bytes")
        yield packet


def mime_type(content: bytes) -> str:
    """Return a picture's media type, such as `image/png`.

    Raises:
        UnknownContainer: the bytes are no JPEG, PNG or WebP.
    """
    if content.startswith(_PNG):
        return "image/png"
    if content.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    raise UnknownContainer("the bytes are no JPEG, PNG or WebP")


def has_credentials(content: bytes) -> bool:
    """Say whether a picture brings Content Credentials, valid or not (C2PA specification 2.2, section 11.3)."""
    try:
        return any(
            name in (b"caBX", b"C2PA")
            or (name == b"\xeb" and b"c2pa" in content[start : min(end, start + 128)])
            for name, start, end in _parts(content)
        )
    except UnknownContainer:
        return False


def has_part(content: bytes, name: bytes) -> bool:
    """Say whether a picture has a part of this name, such as the chunk `VP8L`; False for bytes that are no picture."""
    try:
        return any(part[0] == name for part in _parts(content))
    except UnknownContainer:
        return False


def with_xmp(content: bytes, packet: bytes, *, standard_only: bool = False) -> bytes | None:
    """Return a picture with this packet and no other; None where a JPEG has no room for so long a one.

    `standard_only` leaves packets in other chunks of a PNG where they are.

    Raises:
        UnknownContainer: the bytes are no JPEG, PNG or WebP.
        OddMetadata: a WebP's parts are not what its lengths say.
    """
    parts = [part for part in _parts(content) if not _is_xmp(content, part, standard_only=standard_only)]
    if content.startswith(_PNG):
        body = b"iTXt" + _KEYWORD + b"\0\0\0\0" + packet
        length = (len(body) - 4).to_bytes(4, "big")
        own = length + body + zlib.crc32(body).to_bytes(4, "big")
        return _joined(content, _PNG, parts, own, after=1)
    if content.startswith(b"\xff\xd8"):
        size = 2 + len(_APP1) + len(packet)
        if size > _SEGMENT:
            return None
        own = b"\xff\xe1" + size.to_bytes(2, "big") + _APP1 + packet
        first = parts[0][0] if parts else b""
        return _joined(content, b"\xff\xd8", parts, own, after=1 if first == b"\xe0" else 0)
    return _webp(content, parts, packet)


def without_metadata(content: bytes) -> bytes:
    """Return a picture without the parts that only tell of it: text, EXIF, XMP, colour profiles. No pixel is touched.

    Raises:
        UnknownContainer: the bytes are no JPEG, PNG or WebP.
    """
    kept = [part for part in _parts(content) if not _tells(part[0])]
    if not content.startswith(b"RIFF"):
        return _joined(content, content[: len(_PNG) if content.startswith(_PNG) else 2], kept, b"", after=0)
    plain = bytearray(_joined(content, b"", kept, b"", after=0))
    if plain.startswith(b"VP8X"):
        plain[8] &= ~_METADATA_FLAGS
    return b"RIFF" + (4 + len(plain)).to_bytes(4, "little") + b"WEBP" + plain


def _tells(name: bytes) -> bool:
    if len(name) == 1:  # a JPEG's APP1 to APP13, APP15 and comments; APP14 says how its colours are stored
        return (0xE1 <= name[0] <= 0xEF and name != b"\xee") or name == b"\xfe"
    return name in (
        b"iTXt",
        b"zTXt",
        b"tEXt",
        b"eXIf",
        b"iCCP",
        b"tIME",
        b"caBX",
        b"EXIF",
        b"XMP ",
        b"ICCP",
        b"C2PA",
    )


def _webp(content: bytes, parts: list[Part], packet: bytes) -> bytes:
    if not parts or parts[-1][2] > len(content):
        raise OddMetadata("its parts are not as long as they say")
    name, start, end = parts[0]
    if name == b"VP8X":
        head = bytearray(content[start:end])
        head[8] |= _XMP_FLAG
        parts = parts[1:]
    else:
        width, height, alpha = _webp_size(name, content[start + 8 : end])
        flags = _XMP_FLAG | (_ALPHA_FLAG if alpha else 0)
        canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        head = bytearray(b"VP8X\x0a\0\0\0" + bytes([flags, 0, 0, 0]) + canvas)
    own = b"XMP " + len(packet).to_bytes(4, "little") + packet + b"\0" * (len(packet) % 2)
    size = 4 + len(head) + sum(end - start for _, start, end in parts) + len(own)
    riff = b"RIFF" + size.to_bytes(4, "little") + b"WEBP"
    return _joined(content, riff + head, parts, own, after=len(parts))


def _webp_size(name: bytes, body: bytes) -> tuple[int, int, bool]:
    """Return width, height and whether there is an alpha channel, of a lossy or lossless WebP without VP8X."""
    if name == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    return (
        int.from_bytes(body[6:8], "little") & 0x3FFF,
        int.from_bytes(body[8:10], "little") & 0x3FFF,
        False,
    )


def _joined(content: bytes, head: bytes | bytearray, parts: list[Part], own: bytes, *, after: int) -> bytes:
    """Return the head, the parts with our own after some of them, and what follows the last one: one copy."""
    view = memoryview(content)
    kept = [view[start:end] for _, start, end in parts]
    return b"".join([head, *kept[:after], own, *kept[after:]])


def _is_xmp(content: bytes, part: Part, *, standard_only: bool) -> bool:
    name, start, _ = part
    if name in _TEXTS:
        if content.startswith(_KEYWORD, start + 8):
            return name == b"iTXt" or not standard_only
        return not standard_only and _is_raw_xmp(content, part)
    return (name == b"\xe1" and content.startswith(_APP1, start + 4)) or name == b"XMP "


def _is_raw_xmp(content: bytes, part: Part) -> bool:
    """Say whether a text chunk is a profile that is XMP: one of the type APP1 may be EXIF as well."""
    name, start, end = part
    if content.startswith(_RAW_XMP, start + 8):
        return True
    if name == b"iTXt" or not content.startswith(_RAW_APP1, start + 8):
        return False
    begin = start + 8 + len(_RAW_APP1)
    try:
        packed = content[begin + 1 : end - 4]
        text = (
            zlib.decompressobj().decompress(packed, _LOOK_AT)
            if name == b"zTXt"
            else content[begin : begin + _LOOK_AT]
        )
        return text.split()[2].startswith(_APP1.hex()[:_DIGITS].encode())
    except (zlib.error, IndexError):
        return False


def _xmp(content: bytes, part: Part) -> bytes:
    """Return the packet that a part is."""
    name, start, end = part
    if name == b"\xe1":
        return content[start + 4 + len(_APP1) : end]
    if name == b"XMP ":
        return content[start + 8 : start + 8 + int.from_bytes(content[start + 4 : start + 8], "little")]
    if content.startswith(_KEYWORD, start + 8):
        return _text(content, part, MAX_XMP_BYTES)
    return _profile(content, part).removeprefix(_APP1)


def _profile(content: bytes, part: Part) -> bytes:
    """Return a `Raw profile`, as ImageMagick writes them: its type, its length, and its bytes as hex digits."""
    try:
        _, length, digits = _text(content, part, 3 * MAX_XMP_BYTES).split(maxsplit=2)
        profile = bytes.fromhex(digits.decode("ascii"))
        if len(profile) == int(length):
            return profile
    except OddMetadata:
        raise
    except ValueError:
        pass
    raise OddMetadata("its XMP can't be read: it is no profile of hex digits, of the length it says")


def _text(content: bytes, part: Part, limit: int) -> bytes:
    """Return what a PNG's text chunk says, of at most `limit` bytes where it is packed."""
    name, start, end = part
    after = content.index(b"\0", start + 8, end) + 1
    if name == b"tEXt":
        return content[after : end - 4]
    if name == b"zTXt":
        return _unpacked(content[after + 1 : end - 4], limit)
    language = content.find(b"\0", after + 2, end - 4)
    keyword = content.find(b"\0", language + 1, end - 4)
    if language < 0 or keyword < 0:
        raise OddMetadata("its XMP can't be read: the iTXt chunk has no end of its keyword")
    packet = content[keyword + 1 : end - 4]
    return _unpacked(packet, limit) if content[after] else packet


def _unpacked(packed: bytes, limit: int) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(packed, limit + 1)
    except zlib.error:
        raise OddMetadata("its XMP can't be unpacked") from None
    if len(text) > limit:
        raise OddMetadata(f"its XMP is larger than {MAX_XMP_BYTES:,} bytes")
    if not unpacking.eof:
        raise OddMetadata("its XMP can't be unpacked: it is cut short")
    return text


def _parts(content: bytes) -> Iterator[Part]:
    """Yield a file's parts behind its signature: PNG and RIFF chunks; JPEG segments, the last with all the rest."""
    walk = {"image/png": _png_chunks, "image/jpeg": _jpeg_segments, "image/webp": _riff_chunks}
    return walk[mime_type(content)](content)


def _png_chunks(content: bytes) -> Iterator[Part]:
    start = len(_PNG)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        yield content[start + 4 : start + 8], start, end
        start = end
    if start < len(content):
        yield b"", start, len(content)


def _riff_chunks(content: bytes) -> Iterator[Part]:
    start = 12
    while start + 8 <= len(content):
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        end = start + 8 + size + size % 2
        yield content[start : start + 4], start, end
        start = end


def _jpeg_segments(content: bytes) -> Iterator[Part]:
    """Yield the segments before the first scan, named by their marker's second byte, and then the rest as one."""
    start = 2
    while content[start : start + 1] == b"\xff" and content[start + 1 : start + 2] not in (
        b"\xda",
        b"\xd9",
        b"\xff",
    ):
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        if end <= start + 3 or end > len(content):
            break
        yield content[start + 1 : start + 2], start, end
        start = end
    yield b"", start, len(content)
