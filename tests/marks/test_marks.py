"""Marks in JPEG, PNG and WebP files: read back whole, beside what was there, with every pixel as it was."""

import io
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ideogram_pipeline import containers, marks
from ideogram_pipeline.marks import xmp

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


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def with_chunks(*chunks: bytes) -> bytes:
    """A PNG with these chunks before its pixels."""
    content = picture()
    at = content.index(b"IDAT") - 4
    return content[:at] + b"".join(chunks) + content[at:]


def raw(packet: bytes, kind: bytes = b"xmp") -> bytes:
    """A profile of hex digits, as ImageMagick writes them."""
    digits = packet.hex().encode()
    lines = b"\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return b"\n%s\n%8d\n%s\n" % (kind, len(packet), lines)


APP1 = b"http://ns.adobe.com/xap/1.0/\0"
ELSEWHERE = {
    "zTXt": lambda packet: chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(packet)),
    "tEXt": lambda packet: chunk(b"tEXt", b"XML:com.adobe.xmp\0" + packet),
    "raw profile": lambda packet: chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(raw(packet))),
    "plain raw profile": lambda packet: chunk(b"tEXt", b"Raw profile type xmp\0" + raw(packet)),
    "raw profile in iTXt": lambda packet: chunk(b"iTXt", b"Raw profile type xmp\0\0\0\0\0" + raw(packet)),
    "raw APP1": lambda packet: chunk(b"tEXt", b"Raw profile type APP1\0" + raw(APP1 + packet, b"generic")),
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_xmp_that_a_png_has_elsewhere_is_read_and_one_packet_remains(place):
    """Two packets once contradicted each other after sharp, libvips or ImageMagick had written one."""
    content = with_chunks(ELSEWHERE[place](DC))
    assert marks.read(content) is None
    marked = marks.written(content, MARKS)
    (packet,) = containers.xmp_of(marked)
    assert b'dc:format="theirs"' in packet
    assert marks.read(marked) == MARKS
    assert pixels(marked) == pixels(content)
    other = with_chunks(ELSEWHERE[place](xmp.packet(MARKS)))
    assert marks.read(other) == MARKS
    again = MARKS.model_copy(update={"seed": 8, "system": "another"})
    assert marks.read(marks.written(other, again)) == again


def test_the_words_of_several_packets_become_one_of_which_the_first_counts():
    theirs = DC.replace(b'dc:format="theirs"', b'dc:format="other" dc:source="kept"')
    marked = marks.written(with_chunks(ELSEWHERE["zTXt"](theirs), ELSEWHERE["tEXt"](DC)), MARKS)
    (packet,) = containers.xmp_of(marked)
    assert packet.count(b"dc:format=") == 1
    assert b'dc:format="other"' in packet
    assert b'dc:source="kept"' in packet


def test_a_raw_profile_of_exif_stays():
    exif = chunk(b"tEXt", b"Raw profile type APP1\0" + raw(EXIF, b"exif"))
    broken = chunk(b"zTXt", b"Raw profile type APP1\0\0no zlib")
    marked = marks.written(with_chunks(exif, broken), MARKS)
    assert exif in marked
    assert broken in marked
    assert marks.read(marked) == MARKS


def test_iptcs_fields_alone_are_an_answer():
    whole = xmp.packet(MARKS)
    left = re.sub(rb' ideogramPipeline:\w+="[^"]*"', b"", whole)
    content = picture(kind="JPEG", xmp=left)
    assert marks.read(content) is None
    assert marks.origin(content) == marks.Origin.model_validate(
        MARKS.model_dump(include={*marks.Origin.model_fields})
    )
    assert marks.origin(picture()) is None
    assert marks.origin(picture(kind="JPEG", xmp=DC)) is None


def test_marks_that_an_editor_has_spread_over_the_packet_are_replaced_whole():
    """exiftool gives each namespace an element of its own, exiv2 puts all words into one."""
    other = MARKS.model_copy(update={"seed": 8, "fingerprint": "e" * 64, "system": "another"})
    attributes = re.search(rb"<rdf:Description rdf:about=\"\" (.*?) ?/>", xmp.packet(other), re.DOTALL)[1]
    merged = xmp.packet(other).replace(attributes, attributes + b' rdf:ID="x"')
    elements = b"".join(
        b"<%s>%s</%s>" % (name, value, name)
        for name, value in re.findall(rb'([\w]+:\w+)="([^"]*)"', attributes)
    )
    spread = re.sub(
        rb"<rdf:Description.*?/>",
        lambda _: b'<rdf:Description rdf:about="">' + elements + b"</rdf:Description>",
        xmp.packet(other),
        flags=re.DOTALL,
    )
    for packet in (merged, spread):
        content = picture(kind="WEBP", xmp=packet)
        assert marks.read(content) == other
        assert marks.read(marks.written(content, MARKS)) == MARKS


def test_threads_write_the_same_marks():
    """A prefix that one thread was registering anew was missing in what another one wrote."""
    content = picture(size=(2, 2))
    expected = marks.written(content, MARKS)
    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(lambda _: marks.written(content, MARKS), range(400)))
    assert made == {expected}


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
    "a broken zTXt": (with_chunks(chunk(b"zTXt", b"XML:com.adobe.xmp\0\0no zlib")), "can't be unpacked"),
    "a profile of no digits": (
        with_chunks(chunk(b"tEXt", b"Raw profile type xmp\0xmp 4 no digits")),
        "no profile of hex digits",
    ),
    "a profile of another length": (
        with_chunks(chunk(b"tEXt", b"Raw profile type xmp\0xmp 0 00ff")),
        "of the length it says",
    ),
    "a far larger profile": (
        with_chunks(chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(raw(b" " * (2 << 20))))),
        "larger than 1,048,576 bytes",
    ),
    "many packets": (with_chunks(*[ELSEWHERE["tEXt"](DC)] * 17), "more than 16 XMP packets"),
    "many packed chunks": (
        with_chunks(*[ELSEWHERE["zTXt"](b" " * 600_000)] * 9),
        "larger than 1,048,576 bytes",
    ),
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
