"""What is left of the marks when other programs had a picture in their hands."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from ideogram_pipeline import containers, marks
from ideogram_pipeline.provenance.verifying import verified

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "javascript"
MARKS = marks.Marks(
    source_type=marks.TRAINED_ALGORITHM,
    system="Ideogram by fal.ai",
    system_version="V3, fal-ai/ideogram/character",
    prompt='A "cat" & <a dog> 🐈',
    prompt_sha256="ab" * 32,
    prompt_id="row-1",
    fingerprint="f" * 64,
    request_id="0192-abc",
    seed=7,
    image_index=0,
    backend="fal",
)
KINDS = ("png", "jpg", "webp")


def program(name):
    """Where a program is; the test is skipped without it, and fails where it has to be there."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return found


def run(*command):
    subprocess.run([str(word) for word in command], check=True, capture_output=True, cwd=SCRIPTS)


def exiv2(source, target):
    shutil.copy(source, target)
    run(program("exiv2"), "-M", "set Xmp.dc.source edited", target)


def exiftool(source, target):
    run(program("exiftool"), "-q", "-XMP-dc:Source=edited", "-o", target, source)


def vips(source, target):
    run(program("vips"), "copy", source, target)


def image_magick(source, target):
    run(program("convert"), source, target)


def sharp(source, target):
    node = program("node")
    if not (SCRIPTS / "node_modules" / "sharp").is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("sharp is not installed: make oracles-install")
    run(node, "resave.mjs", source, target)


EDITS = [
    *((exiv2, kind, kind) for kind in KINDS),
    *((exiftool, kind, kind) for kind in ("png", "jpg")),  # 12 writes no WebP
    *((editor, kind, target) for editor in (vips, sharp) for kind in KINDS for target in KINDS),
    *((image_magick, "jpg", target) for target in ("jpg", "png")),  # it keeps XMP of a JPEG only
]


@pytest.mark.parametrize("version", [1, marks.VERSION])
@pytest.mark.parametrize(
    ("editor", "kind", "target"), EDITS, ids=[f"{e.__name__} {a}-{b}" for e, a, b in EDITS]
)
def test_marks_survive_an_editor(tmp_path, picture, editor, kind, target, version):
    """exiv2 once made another namespace of ours; zTXt and raw profiles were not looked into."""
    source, edited = tmp_path / f"source.{kind}", tmp_path / f"edited.{target}"
    said = MARKS.model_copy(update={"version": version})
    plain = picture(size=(320, 200), kind={"jpg": "JPEG"}.get(kind, kind.upper()))
    source.write_bytes(marks.written(plain, said))
    editor(source, edited)
    content = edited.read_bytes()
    assert marks.read(content) == said
    (found,) = verified([str(edited)])
    assert found.is_sound
    again = marks.written(content, MARKS.model_copy(update={"seed": 8}))
    (packet,) = containers.xmp_of(again)
    assert (b"edited" in packet) is (editor in (exiv2, exiftool))
    assert marks.read(again).seed == 8
    with Image.open(edited) as before:
        edited.write_bytes(again)
        with Image.open(edited) as after:
            assert before.size == after.size


@pytest.mark.parametrize("kind", KINDS)
def test_other_programs_find_the_marks(tmp_path, picture, kind):
    file = tmp_path / f"picture.{kind}"
    plain = picture(kind={"jpg": "JPEG"}.get(kind, kind.upper()))
    file.write_bytes(marks.written(plain, MARKS))
    told = subprocess.run(
        [program("exiftool"), "-json", "-G1", "-n", file], check=True, capture_output=True, text=True
    ).stdout
    (facts,) = json.loads(told)
    assert facts["XMP-iptcExt:DigitalSourceType"] == MARKS.source_type
    assert facts["XMP-ideogramPipeline:Fingerprint"] == MARKS.fingerprint
    assert not any("Warning" in name for name in facts)
    command = [program("exiv2"), "-pa", file]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Xmp.ideogramPipeline.RequestId" in told
