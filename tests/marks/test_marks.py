"""Marks in JPEG, PNG and WebP files: read back whole, beside what was there, with every pixel as it was."""

import io
import zlib
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ideogram_pipeline import marks

MARKS = marks.Marks(
    source_type=marks.TRAINED_ALGORITHM,
    system="Ideogram by fal.ai",
    system_version="V3, fal-ai/ideogram/character",
    prompt='A "cat" & <a dog>\n\u202e 🐈',
    prompt_sha256="ab" * 32,
    prompt_id="row-1",
    fingerprint="f" * 64,
    request_id="0192-abc",
    seed=7,
    image_index=0,
    backend="fal",
)
DC = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="theirs"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
FILES = {
    "png": ("RGB", "PNG", {}),
    "png with alpha": ("RGBA", "PNG", {}),
    "palette png": ("P", "PNG", {}),
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg with exif": ("RGB", "JPEG", {"exif": EXIF}),
    "progressive jpeg": ("L", "JPEG", {"progressive": True}),
    "lossy webp": ("RGB", "WEBP", {}),
    "lossy webp with alpha": ("RGBA", "WEBP", {}),
    "lossless webp": ("RGB", "WEBP", {"lossless": True}),
    "lossless webp with alpha": ("RGBA", "WEBP", {"lossless": True}),
    "webp with exif": ("RGB", "WEBP", {"exif": EXIF}),
}


def picture(mode="RGB", kind="PNG", size=(37, 23), **options) -> bytes:
    image = Image.radial_gradient("L").resize(size).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(size))
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def pixels(content: bytes) -> tuple[str, tuple[int, int], bytes]:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image.mode, image.size, image.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_marks_are_read_back_and_no_pixel_changes(name):
    mode, kind, options = FILES[name]
    content = picture(mode, kind, **options)
    marked = marks.written(content, MARKS)
    assert marked is not None
    assert marks.read(content) is None
    assert marks.read(marked) == MARKS
    assert pixels(marked) == pixels(content)
    assert marks.written(content, MARKS) == marked


@pytest.mark.parametrize("name", FILES)
def test_another_reader_finds_iptcs_terms(name):
    mode, kind, options = FILES[name]
    marked = marks.written(picture(mode, kind, **options), MARKS)
    with Image.open(io.BytesIO(marked)) as image:
        packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
        assert image.info.get("exif", b"")[-14:] == options.get("exif", b"")[-14:]
    said = {name: value for element in ET.fromstring(packet).iter() for name, value in element.attrib.items()}
    iptc = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
    assert said[f"{iptc}DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert said[f"{iptc}AISystemUsed"] == MARKS.system
    assert said[f"{iptc}AIPromptInformation"] == MARKS.prompt


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_a_picture_said_before_stays(kind):
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", DC.decode(), zip=True)
        content = picture(kind=kind, pnginfo=info)
    else:
        content = picture(kind=kind, xmp=DC)
    marked = marks.written(content, MARKS)
    assert b'dc:format="theirs"' in marked
    assert marks.read(marked) == MARKS
    assert pixels(marked) == pixels(content)


def test_marking_again_replaces_the_marks():
    other = MARKS.model_copy(update={"seed": 8, "fingerprint": "e" * 64})
    twice = marks.written(marks.written(picture(), other), MARKS)
    assert twice == marks.written(picture(), MARKS)


@pytest.mark.parametrize("part", [b"caBX"])
def test_a_picture_with_content_credentials_is_left_as_it_is(part):
    content = picture()
    end = content.index(b"IDAT") - 4
    body = part + b"\0\0\0\x10jumb c2pa"
    chunk = (len(body) - 4).to_bytes(4, "big") + body + b"\0\0\0\0"
    with pytest.raises(marks.CannotMark, match="Content Credentials"):
        marks.written(content[:end] + chunk + content[end:], MARKS)


def test_a_very_long_prompt_has_no_room_in_a_jpeg_and_the_rest_stands_there():
    long = MARKS.model_copy(update={"prompt": "x" * 70_000})
    assert marks.read(marks.written(picture(kind="JPEG"), long)) == long.model_copy(update={"prompt": None})
    assert marks.read(marks.written(picture(kind="PNG"), long)) == long


@given(prompt=st.text(max_size=300), prompt_id=st.text(min_size=1, max_size=30))
def test_any_text_survives_but_for_what_xml_cannot_hold(prompt, prompt_id):
    given_marks = MARKS.model_copy(update={"prompt": prompt, "prompt_id": prompt_id})
    found = marks.read(marks.written(picture(size=(2, 2)), given_marks))
    assert found is not None
    shown = "".join(
        letter
        if letter in "\t\n\r"
        or " " <= letter < "\ud800"
        or "\ue000" <= letter < "\ufffe"
        or letter > "\uffff"
        else "\ufffd"
        for letter in prompt
    )
    assert found.prompt == shown


@given(
    content=st.binary(max_size=300),
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFF\0\0\0\0WEBP"]),
)
def test_nonsense_says_nothing(content, start):
    assert marks.read(start + content) is None


def test_a_packet_with_entities_is_not_read():
    bomb = DC.replace(b"<x:xmpmeta", b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x:xmpmeta', 1)
    content = picture(kind="WEBP", xmp=bomb)
    assert marks.read(content) is None
    with pytest.raises(marks.CannotMark, match="entities"):
        marks.written(content, MARKS)


def itxt(text: bytes, *, packed: bool = False, end: bytes = b"\0\0") -> bytes:
    """A PNG with an XMP chunk of this text."""
    content = picture()
    at = content.index(b"IDAT") - 4
    body = b"iTXtXML:com.adobe.xmp\0" + bytes([packed, 0]) + end + text
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return content[:at] + chunk + content[at:]


def nested(depth: int) -> bytes:
    """XMP whose elements stand so deep in each other."""
    return DC.replace(b"</rdf:RDF>", b"<a>" * depth + b"</a>" * depth + b"</rdf:RDF>")


ODD = {
    "packed and broken": (itxt(b"no zlib", packed=True), "can't be unpacked"),
    "packed and cut short": (itxt(zlib.compress(DC)[:-8], packed=True), "cut short"),
    "packed and far larger": (
        itxt(zlib.compress(b" " * (2 << 20)), packed=True),
        "larger than 1,048,576 bytes",
    ),
    "without an end of its keyword": (itxt(b"", end=b""), "no end of its keyword"),
    "large": (picture(kind="WEBP", xmp=b" " * (1 << 20) + DC), "larger than 1,048,576 bytes"),
    "deep": (picture(kind="WEBP", xmp=nested(5_000)), "more than 100 elements deep"),
    "deep in a PNG": (itxt(zlib.compress(nested(5_000)), packed=True), "more than 100 elements deep"),
    "not XML": (picture(kind="JPEG", xmp=b"<x:xmpmeta"), "can't be read"),
    "another XML": (picture(kind="JPEG", xmp=b"<svg/>"), "is not XMP"),
    "no room": (picture(kind="JPEG", xmp=DC.replace(b"theirs", b"x" * 65_000)), "no room"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_xmp_never_loses_the_picture_and_is_left_as_it_is(name):
    content, reason = ODD[name]
    assert marks.read(content) is None
    with pytest.raises(marks.CannotMark, match=reason):
        marks.written(content, MARKS)


@pytest.mark.parametrize(
    "content",
    [
        itxt(zlib.compress(DC), packed=True),
        itxt(b""),
        itxt(b" \0\n"),
        picture(kind="WEBP", xmp=nested(90)),
        picture(
            kind="JPEG", xmp=DC.replace(b"<rdf:Description", b"<!--").replace(b"</rdf:RDF>", b"--></rdf:RDF>")
        ),
        picture(kind="JPEG", exif=b"Exif\0\0nonsense"),
        picture(kind="WEBP", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        picture(kind="PNG") + b"what others leave at the end",
        picture(kind="JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    ],
    ids=["packed", "empty", "blank", "deep enough", "no words", "exif", "webp exif", "tail", "filled"],
)
def test_what_is_odd_and_valid_takes_marks(content):
    marked = marks.written(content, MARKS)
    assert marks.read(marked) == MARKS
    assert pixels(marked) == pixels(content)


def test_a_webp_that_is_not_as_long_as_it_says_takes_no_marks():
    content = picture(kind="WEBP", exif=EXIF)
    with pytest.raises(marks.CannotMark, match="not as long as they say"):
        marks.written(content + b"EXIF\xff\0\0\0", MARKS)
