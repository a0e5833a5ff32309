"""Faces: the one of the reference is near, whatever its dress; where there is none, nothing is said."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageOps

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.faces import FAR, Faces

DATA = Path(__file__).parents[1] / "data"
ASTRONAUT = (DATA / "astronaut.png").read_bytes()
CAT = (DATA / "chelsea.png").read_bytes()


@pytest.fixture(scope="module")
def faces():
    return Faces()


def changed(change):
    sink = io.BytesIO()
    change(Image.open(io.BytesIO(ASTRONAUT)).convert("RGB")).save(sink, "JPEG", quality=80)
    return sink.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.crop((100, 0, 400, 300)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        ImageOps.mirror,
    ],
    ids=["cropped", "darker", "mirrored"],
)
def test_the_same_face_is_near(faces, change):
    distance = faces.distance(changed(change), {"a": lambda: ASTRONAUT})
    assert 0 < distance < FAR


def test_a_picture_or_references_without_a_face_have_no_distance(faces):
    assert faces.distance(CAT, {"a": lambda: ASTRONAUT}) is None
    assert faces.distance(ASTRONAUT, {"cat": lambda: CAT}) is None
    assert faces.distance(ASTRONAUT, {}) is None
    assert faces.distance(ASTRONAUT[:20_000], {"a": lambda: ASTRONAUT}) is None


@pytest.mark.parametrize(
    ("orientation", "stored"), [(6, Image.Transpose.ROTATE_90), (3, Image.Transpose.ROTATE_180)]
)
def test_a_face_in_a_photo_that_exif_turns_is_found(faces, orientation, stored):
    tags = Image.Exif()
    tags[0x0112] = orientation
    sink = io.BytesIO()
    Image.open(io.BytesIO(ASTRONAUT)).convert("RGB").transpose(stored).save(
        sink, "JPEG", exif=tags, quality=90
    )
    assert 0 < faces.distance(ASTRONAUT, {"phone": sink.getvalue}) < FAR / 2


@pytest.mark.parametrize("absent", ["dlib", "face_recognition_models"])
def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'ideogram-pipeline\[faces\]'"):
        Faces()


def test_of_several_references_the_nearest_counts_and_each_is_read_once(faces):
    def read():
        reads.append("mirrored")
        return changed(ImageOps.mirror)

    def gone():
        raise FileNotFoundError

    reads = []
    references = {"mirrored": read, "gone": gone, "cat": lambda: CAT}
    farther = faces.distance(ASTRONAUT, references)
    assert faces.distance(ASTRONAUT, references) == farther > 0
    assert reads == ["mirrored"]
    assert faces.distance(ASTRONAUT, {**references, "same": lambda: ASTRONAUT}) == 0
