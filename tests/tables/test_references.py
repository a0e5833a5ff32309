"""The references table: every picture is opened, and kept under the digest of its bytes."""

import base64
import hashlib
import struct
import zlib

import pytest

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.tables.references import picture_path, read_references


def test_a_reference_is_measured_and_hashed_and_its_bytes_are_kept(write, picture, store):
    content = picture(size=(64, 48))
    write("eileen.png", content)
    path = write("r.csv", "reference_id,uri,role,license,shot by\neileen,eileen.png,style,CC0,NASA\n")
    [reference] = read_references(path, store).references
    assert (reference.kind, reference.width, reference.height) == ("png", 64, 48)
    assert (reference.role, reference.license, reference.extra) == ("style", "CC0", '{"shot by": "NASA"}')
    assert reference.sha256 == hashlib.sha256(content).hexdigest()
    assert store.get(picture_path(reference)) == content


def test_without_a_store_nothing_is_kept(write, picture, tmp_path):
    write("a.png", picture())
    path = write("r.csv", "reference_id,uri\na,a.png\n")
    assert len(read_references(path, None).references) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "r.csv"]


@pytest.mark.parametrize(("kind", "known_as"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")])
def test_the_kind_is_what_the_bytes_are_whatever_the_name_says(write, picture, kind, known_as):
    write("a.bin", picture(kind=kind))
    [reference] = read_references(write("r.csv", "reference_id,uri\na,a.bin\n"), None).references
    assert reference.kind == known_as
    assert picture_path(reference).endswith({"jpeg": ".jpg", "png": ".png", "webp": ".webp"}[known_as])


def test_a_data_uri_is_a_picture_and_is_not_copied_into_the_row(write, picture, store):
    content = picture()
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    [reference] = read_references(write("r.csv", f'reference_id,uri\na,"{uri}"\n'), store).references
    assert reference.uri == "data:image/png"
    assert store.get(picture_path(reference)) == content


def test_two_references_of_one_picture_share_its_copy(write, picture, store):
    write("a.png", picture())
    write("b.png", picture())
    read_references(write("r.csv", "reference_id,uri\na,a.png\nb,b.png\n"), store)
    assert len(list(store.objects("references"))) == 1


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def unusable(picture, name: str) -> bytes | None:
    contents = {
        "missing.png": None,
        "words.png": b"not a picture",
        "empty.png": b"",
        "cut.png": picture(size=(300, 300))[:100],
        "film.gif": picture(kind="GIF"),
        "bomb.png": png_that_claims(20_000, 20_000),
    }
    return contents[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "the picture can't be read: there is no file"),
        ("words.png", "not a picture that can be decoded"),
        ("empty.png", "the file is empty; download or copy it again"),
        ("cut.png", "can't be decoded to the end"),
        ("film.gif", "it is GIF, not JPEG, PNG or WebP"),
        ("bomb.png", "it claims"),
    ],
)
def test_a_picture_that_cannot_be_used_rejects_its_row_only(write, picture, name, reason):
    write("good.png", picture())
    content = unusable(picture, name)
    if content is not None:
        write(name, content)
    path = write("r.csv", f"reference_id,uri\nbad,{name}\ngood,good.png\n")
    table = read_references(path, None)
    assert [entry.reference_id for entry in table.references] == ["good"]
    [rejection] = table.rejections
    assert (rejection.file, rejection.row_number, rejection.row_id) == (path, 2, "bad")
    assert rejection.column == "uri"
    assert reason in rejection.reason


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("ftp://host/a.png", "given as a path, https://, s3:// or a data URI"),
        ("http://host/a.png", "name the host in IDEOGRAM_PRIVATE_HOSTS"),
        ("s3://bucket", "names no object"),
        ("s3://bucket/..", "can't be read"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,!!", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
        ("https://nobody.invalid/a.png", "can't be fetched"),
        ("https://127.0.0.1:1/a.png", "name the host in IDEOGRAM_PRIVATE_HOSTS"),
        ("https://127.0.0.1:port/a.png", "is not a plain http or https URL"),
        ("https://user:password@example.com/a.png", "is not a plain http or https URL"),
        (f"https://{'a' * 300}/a.png", "can't be fetched"),
    ],
)
def test_an_address_that_leads_nowhere_rejects_its_row(write, uri, reason):
    [rejection] = read_references(write("r.csv", f'reference_id,uri\na,"{uri}"\n'), None).rejections
    assert rejection.column == "uri"
    assert reason in rejection.reason
    assert "\n" not in rejection.reason


def test_a_file_beyond_the_limit_is_not_read(write, tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(50 * 1024 * 1024 + 1)
    [rejection] = read_references(write("r.csv", "reference_id,uri\na,huge.png\n"), None).rejections
    assert rejection.reason == "the picture can't be read: the file is larger than 50 MiB"


@pytest.mark.parametrize(
    ("cells", "column"), [("../a,x.png,", "reference_id"), ("a,,", "uri"), ("a,x.png,hero", "role")]
)
def test_a_row_that_is_no_reference_is_rejected(write, cells, column):
    [rejection] = read_references(write("r.csv", f"reference_id,uri,role\n{cells}\n"), None).rejections
    assert rejection.column == column


def test_a_repeated_id_is_an_error(write):
    with pytest.raises(TableError, match="reference_id 'a' stands in rows 2, 3"):
        read_references(write("r.csv", "reference_id,uri\na,x.png\na,y.png\n"), None)


def test_references_keep_the_order_of_the_table(write, picture):
    names = [f"r{number}" for number in range(30)]
    write("a.png", picture())
    lines = "\n".join(f"{name},a.png" for name in names)
    table = read_references(write("r.csv", f"reference_id,uri\n{lines}\n"), None)
    assert [entry.reference_id for entry in table.references] == names
