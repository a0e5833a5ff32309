"""Looking at files alone: what made them, and whether they are whole."""

import json

import pytest

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files
from ideogram_pipeline.marks import Marks, credentials
from ideogram_pipeline.provenance.verifying import verified
from tests.marks.authority import Authority

pytestmark = pytest.mark.slow


@pytest.fixture
def worked(project):
    project.write({"prompt": "a lighthouse"}, {"prompt": "a harbour"})
    project.run()
    return project.folder / "store"


def test_pictures_of_a_store_say_which_request_they_are_of(worked):
    found = list(verified([str(worked / "images")]))
    assert [one.is_sound for one in found] == [True, True]
    assert [one.marks.prompt_id for one in found] == ["p1", "p2"]
    assert {one.marks.fingerprint[:8] in one.path for one in found} == {True}


def test_damaged_and_silent_files_are_told_apart(worked, tmp_path, picture):
    damaged_file = next((worked / "images").rglob("*.png"))
    damaged_file.write_bytes(damaged_file.read_bytes()[:-400])
    silent = tmp_path / "silent.png"
    silent.write_bytes(picture())
    (tmp_path / "text.txt").write_text("no picture")
    damaged, said_nothing, no_picture = verified([str(damaged_file), str(silent), str(tmp_path / "text.txt")])
    assert damaged.problem
    assert isinstance(damaged.marks, Marks)
    assert (said_nothing.problem, said_nothing.marks) == ("", None)
    assert no_picture.problem
    assert not any(one.is_sound for one in (damaged, said_nothing, no_picture))
    assert json.loads(no_picture.model_dump_json())["marks"] is None


def test_signed_pictures_are_validated_by_whom_one_trusts(project, certificate):
    signing = {"c2pa_certificate": str(certificate.chain), "c2pa_key": str(certificate.key)}
    project.settings = project.settings.model_copy(update=signing)
    project.write({"prompt": "a lighthouse"})
    project.run()
    (file,) = (project.folder / "store" / "images").rglob("*.png")
    (unknown,) = verified([str(file)])
    (trusted,) = verified([str(file)], str(certificate.authority))
    assert (unknown.credentials.state, trusted.credentials.state) == ("valid", "trusted")
    assert trusted.credentials.request_id == trusted.marks.request_id
    assert unknown.is_sound
    content = file.read_bytes()
    file.write_bytes(content.replace(b"IDAT", b"IDAT", 1)[:-12] + b"\0\0\0\0teST\0\0\0\0" + content[-12:])
    (changed,) = verified([str(file)], str(certificate.authority))
    assert (changed.credentials.state, changed.is_sound) == ("invalid", False)


def test_a_run_whose_authority_falls_silent_ends_well_and_says_which_pictures_have_no_stamp(
    project, certificate, tmp_path, monkeypatch
):
    authority = Authority(tmp_path)
    monkeypatch.setattr(credentials, "PROMPT_STAMP_S", 0.0)
    monkeypatch.setattr(credentials, "STAMP_WAIT_S", 1e-6)
    signing = {
        "c2pa_certificate": str(certificate.chain),
        "c2pa_key": str(certificate.key),
        "c2pa_tsa_url": authority.url,
    }
    project.settings = project.settings.model_copy(update=signing)
    project.write({"prompt": "a lighthouse", "num_images": 8}, {"prompt": "a harbour"})
    try:
        project.run()
    finally:
        authority.close()
    rows = list(files.images(project.store, "default"))
    stamped = [row for row in rows if row.stamped_at]
    assert 1 <= len(stamped) < len(rows) == 9
    assert all("kept the batch waiting" in row.unstamped_because for row in rows if not row.stamped_at)
    assert {row.unstamped_because for row in stamped} == {None}
    names = {row.file_name: row.stamped_at for row in rows}
    images = project.folder / "store" / "images" / "batch=default"
    for found in verified([str(images)]):
        assert found.is_sound
        assert found.credentials.stamped_at == names[found.path.rsplit("/", 1)[1]]


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigurationError, match=r"nowhere.png.*No such file"):
        list(verified(["nowhere.png"]))
