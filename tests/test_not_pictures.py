"""Files that are no picture we take: each is named, and what to do is said, in one sentence."""

import base64
import gzip
import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ideogram_pipeline.not_pictures import described
from ideogram_pipeline.pictures import BadPicture, inspect
from ideogram_pipeline.tables.references import read_references


def media(*brands):
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(body) + 4).to_bytes(4, "big") + body + b"\0\0\0\x08mdat"


def zipped():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.png", b"x")
    return sink.getvalue()


PNG = io.BytesIO()
Image.new("RGB", (4, 4)).save(PNG, "PNG")
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
STRANGERS = {
    "empty": (b"", "the file is empty; download or copy it again"),
    "zeros": (bytes(5000), "zero bytes"),
    "HEIC of an iPhone": (media(b"heic", b"mif1", b"heic"), "it is HEIC, as phones store photos"),
    "HEIC by its second brand": (media(b"mif1", b"mif1", b"heic"), "it is HEIC"),
    "AVIF": (media(b"avif", b"mif1", b"miaf"), "it is AVIF, not JPEG, PNG or WebP"),
    "AVIF by its second brand": (media(b"mif1", b"avif", b"miaf"), "it is AVIF"),
    "Canon's raw": (media(b"crx ", b"crx ", b"isom"), "a camera's raw file"),
    "MP4": (media(b"isom", b"iso2", b"avc1", b"mp41"), "it is a video; save one frame"),
    "QuickTime": (media(b"qt  ", b"qt  "), "it is a video"),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(20), "it is a video"),
    "AVI": (b"RIFF\x24\0\0\0AVI LIST", "it is a video"),
    "a share page": (b"\n<!DOCTYPE html><html><head><title>photo.jpg</title>", "it is a web page, as share"),
    "a page with a mark and a comment": (b"\xef\xbb\xbf<!-- saved --><HTML lang='en'>", "it is a web page"),
    "a page of XHTML": (
        b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0//EN" "x"><html xmlns="y">',
        "it is a web page",
    ),
    "a page in UTF-16": ("<html>".encode("utf-16"), "it is text"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><title>x</title>', "it is an SVG drawing"),
    "SVG of an editor": (
        b'<?xml version="1.0"?>\n<!-- Inkscape -->\n<!DOCTYPE svg PUBLIC "a" "b" [<!ENTITY n "v">]>\n<svg:svg>',
        "it is an SVG drawing; export it as PNG",
    ),
    "S3's refusal": (
        b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>',
        "what a server answers with",
    ),
    "an API's refusal": (b'{"error": "not found"}', "what a server answers with"),
    "Git LFS": (POINTER, "it is a pointer of Git LFS in place of the picture; run `git lfs pull`"),
    "git-annex": (b"/annex/objects/SHA256E-s12--ab.jpg\n", "run `git annex get`"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "it is a PDF; export the page as PNG"),
    "Photoshop": (b"8BPS\0\1" + bytes(20), "it is a Photoshop document"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n", "it is JPEG XL"),
    "bare JPEG XL": (b"\xff\x0a\xfa\x1f", "it is JPEG XL"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "it is JPEG 2000"),
    "ZIP": (zipped(), "it is a ZIP archive"),
    "gzip": (gzip.compress(b"x"), "it is packed with gzip"),
    "macOS's note": (b"\0\5\x16\7\0\2\0\0Mac OS X", "name the picture itself"),
    "base64": (base64.b64encode(PNG.getvalue()), "written as base64"),
    "text": ("Ein schönes Bild".encode(), "it is text, not a picture"),
    "a Windows link": (b"[InternetShortcut]\r\nURL=https://example.org", "it is text"),
    "noise": (bytes(range(1, 200)), "it is not a picture that can be decoded"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_that_is_no_picture_is_named(name, tmp_path):
    content, says = STRANGERS[name]
    with pytest.raises(BadPicture) as caught:
        inspect(content)
    assert says in f"{caught.value}; {caught.value.mend}"
    (tmp_path / "photo.jpg").write_bytes(content)
    (tmp_path / "r.csv").write_text("reference_id,uri\na,photo.jpg\n")
    [rejection] = read_references(str(tmp_path / "r.csv"), None).rejections
    assert rejection.column == "uri"
    assert rejection.reason.startswith("the picture can't be used: ")
    assert says in rejection.reason
    assert "\n" not in rejection.reason


@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_of_any_bytes_something_is_said_and_nothing_of_what_they_say(content):
    said = described(content)
    assert said.what
    assert f"{said.what}{said.mend}".isprintable()


@pytest.mark.parametrize("beginning", [b"<!--", b"<?", b"<!doctype x [", b"<!doctype ", b"<!-- -->", b" "])
def test_a_long_prolog_is_looked_at_no_longer_than_a_short_one(beginning):
    assert described(beginning * 100_000)
