"""What is checked on a batch's pictures: each check passing, and failing for a real cause."""

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest

from ideogram_pipeline.checks.on_pictures import CHECKS
from ideogram_pipeline.faces import FAR
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.rows import ImageRow
from ideogram_pipeline.likeness import distance
from ideogram_pipeline.pictures import inspect
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.storage import parquet

pytestmark = pytest.mark.slow

ASTRONAUT = Path(__file__).parents[2] / "data" / "astronaut.png"
WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
ROWS = ({"prompt": "a lighthouse"}, {"prompt": "a harbour", "image_size": "1000x500"})


@pytest.fixture
def worked(project):
    """A batch of two pictures."""
    project.write(*ROWS)
    project.generate()
    return project


def pictures(project):
    return sorted((project.folder / "store" / "images" / "batch=default").glob("*.png"))


def with_faults(project, *faults):
    """Work the batch at a sandbox with faults; return the checks by name."""
    with running_sandbox(SandboxSettings(latency_scale=0, faults=faults)) as sandbox:
        project.generate(fal_queue_url=sandbox.url)
        return project.check_again("generated_images")


def test_a_batch_in_order_passes_all(project, evaluations):
    project.write(*ROWS)
    found = evaluations(project.generate())
    assert {name: found[name].passed for name in CHECKS} == dict.fromkeys(CHECKS, True)
    assert all(found[name].description is None for name in CHECKS)
    assert found["pictures_in_the_store"].metadata["hashed"].value == 2


def test_an_unanswered_submit_warns_and_is_named(project, rows_of):
    project.write(*ROWS)
    found = with_faults(project, Fault("drop_before_accept", match="harbour"))["no_unanswered_submits"]
    assert (found.passed, found.severity) == (False, WARN)
    assert [row for row, _ in rows_of(found)] == ["p2"]
    assert found.metadata["unknown"].value == 1
    assert "reconcile" in found.description


def test_a_batch_without_pictures_has_nothing_to_complain_of(project):
    project.write(*ROWS)
    found = with_faults(project, Fault("policy_refusal"))
    failed = {name for name, evaluation in found.items() if not evaluation.passed}
    assert failed == {"refusals_allowed", "batch_is_whole"}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.unlink(), "is missing"),
        (flip, "other bytes than when it came"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "100 bytes instead of"),
    ],
    ids=["gone", "flipped", "cut"],
)
def test_a_picture_that_is_not_as_it_came_is_an_error(worked, rows_of, harm, says):
    harmed = pictures(worked)[0]
    harm(harmed)
    found = worked.check_again("generated_images")["pictures_in_the_store"]
    assert (found.passed, found.severity) == (False, ERROR)
    ((row, why),) = rows_of(found)
    assert row == harmed.name.partition("-")[0]
    assert says in why


def test_running_again_mends_what_was_deleted(worked, evaluations):
    pictures(worked)[0].unlink()
    assert evaluations(worked.generate())["pictures_in_the_store"].passed


def test_a_generated_row_whose_picture_has_no_row_is_an_error(worked, rows_of):
    rows = files.read_images(worked.store, "default")
    outcomes = files.read_outcomes(worked.store, "default")
    files.write_results(worked.store, "default", rows[:1], outcomes)
    found = worked.check_again("generated_images")["pictures_in_the_store"]
    assert rows_of(found) == [(rows[1].prompt_id, "0 of its 1 pictures have a row")]


def test_a_picture_of_another_size_than_asked_for_warns(worked, rows_of):
    rows = [
        row.model_copy(update={"width": row.width + 64}) for row in files.read_images(worked.store, "default")
    ]
    files.write_results(worked.store, "default", rows, files.read_outcomes(worked.store, "default"))
    found = worked.check_again("generated_images")["sizes_as_asked"]
    assert (found.passed, found.severity) == (False, WARN)
    assert [row for row, _ in rows_of(found)] == ["p1", "p2"]
    assert rows_of(found)[0][1].endswith("is 1088x1024; asked for 1024x1024")
    assert "asked for 1000x500 or 1408x704" in rows_of(found)[1][1]


def test_a_picture_that_follows_its_source_has_no_size_to_compare(project, evaluations):
    project.write({"prompt": "a desert", "endpoint": "v3/replace-background", "image_id": "ada"})
    found = evaluations(project.generate())["sizes_as_asked"]
    assert found.passed
    assert (found.metadata["compared"].value, found.metadata["free"].value) == (0, 1)


def test_two_rows_with_the_very_same_picture_warn(project, evaluations, rows_of):
    project.write(*[{"prompt": "a lighthouse", "seed": 5}] * 3, {"prompt": "a lighthouse", "seed": 6})
    found = evaluations(project.generate())["no_duplicate_pictures"]
    assert (found.passed, found.severity) == (False, WARN)
    assert rows_of(found) == [("p1", "has the same picture as p2, p3")]
    assert (found.metadata["pictures"].value, found.metadata["different"].value) == (4, 2)


def edited(project, **changes):
    """Change the rows of pictures, by prompt id, and check them again."""
    rows = files.read_images(project.store, "default")
    changed = [row.model_copy(update=changes.get(row.prompt_id, {})) for row in rows]
    parquet.write(project.store, files.metadata_path("default"), ImageRow, changed)
    return project.check_again("generated_images")


def test_pictures_that_look_alike_warn_and_name_each_other(project, evaluations, rows_of):
    project.write(*[{"prompt": "a lighthouse", "seed": 5}] * 2, {"prompt": "a harbour, at night", "seed": 6})
    found = evaluations(project.generate())["no_near_duplicates"]
    first, second, _ = [path.name for path in pictures(project)]
    assert (found.passed, found.severity) == (False, WARN)
    assert rows_of(found) == [
        ("p1", f"{first} looks like {second}: 0 of 64 bits differ"),
        ("p2", f"{second} looks like {first}: 0 of 64 bits differ"),
    ]
    assert (found.metadata["compared"].value, found.metadata["pictures"].value) == (3, 3)


def test_a_characters_picture_is_compared_with_its_reference(project):
    project.write({"prompt": "a lighthouse", "reference_id": "ada"}, {"prompt": "a harbour"})
    project.generate()
    reference = inspect((project.folder / "ada.png").read_bytes()).perceptual_hash
    first, second = files.read_images(project.store, "default")
    assert first.perceptual_hash == inspect(pictures(project)[0].read_bytes()).perceptual_hash
    assert first.reference_distance == distance(first.perceptual_hash, reference)
    assert second.reference_distance is None


def test_a_picture_that_looks_like_its_reference_warns_and_one_just_beyond_does_not(worked, rows_of):
    first = pictures(worked)[0].name
    found = edited(worked, p1={"reference_distance": 4}, p2={"reference_distance": 5})["no_near_duplicates"]
    assert rows_of(found) == [("p1", f"{first} looks like its reference: 4 of 64 bits differ")]
    nothing = {"nearest_distance": None, "reference_distance": None}
    found = edited(worked, p1={"reference_distance": None}, p2=nothing)["no_near_duplicates"]
    assert found.passed
    assert found.metadata["compared"].value == 1


def test_faces_are_measured_where_that_is_asked_for_and_those_far_from_their_reference_warn(
    project, evaluations, rows_of
):
    shutil.copy(ASTRONAUT, project.folder / "ada.png")
    project.write(*[{"prompt": f"a portrait, {number}", "reference_id": "ada"} for number in range(4)])
    found = evaluations(project.generate(faces=True))["faces_near_reference"]
    measured = [row for row in files.read_images(project.store, "default") if row.face_distance is not None]
    assert found.passed
    assert found.metadata["measured"].value == len(measured) >= 1
    assert all(0 <= row.face_distance < FAR for row in measured)
    far = measured[0]
    found = edited(project, **{far.prompt_id: {"face_distance": 0.61}})["faces_near_reference"]
    assert (found.passed, found.severity) == (False, WARN)
    assert rows_of(found) == [(far.prompt_id, f"{far.file_name} is 0.61 from its reference")]


def test_without_being_asked_for_no_face_is_looked_at(worked):
    assert all(row.face_distance is None for row in files.read_images(worked.store, "default"))


def test_a_signature_that_no_longer_holds_warns(project, evaluations, rows_of, certificate):
    project.write(*ROWS)
    signing = {"c2pa_certificate": str(certificate.chain), "c2pa_key": str(certificate.key)}
    found = evaluations(project.generate(**signing))["marks_in_the_pictures"]
    assert (found.passed, found.metadata["signed"].value) == (True, 2)
    first = pictures(project)[0]
    content = bytearray(first.read_bytes())
    start = content.rindex(b"IDAT") + 8
    content[start] ^= 1
    first.write_bytes(content)
    found = project.check_again("generated_images", **signing)["marks_in_the_pictures"]
    assert (found.passed, found.severity) == (False, WARN)
    ((row, why),) = rows_of(found)
    assert row == "p1"
    assert why.startswith(f"{first.name} has Content Credentials that don't hold")


@pytest.mark.parametrize(
    ("what", "instead", "says"),
    [
        (b"XML:com.adobe.xmp", b"XML:com.adobe.old", "has no marks"),
        (
            b'ideogramPipeline:Fingerprint="',
            b'ideogramPipeline:Fingerprint="0',
            "says it is another request's",
        ),
    ],
)
def test_marks_that_somebody_has_changed_warn(worked, rows_of, what, instead, says):
    first = pictures(worked)[0]
    content = first.read_bytes()
    start = content.index(what)
    first.write_bytes(content[:start] + instead + content[start + len(instead) :])
    found = worked.check_again("generated_images")["marks_in_the_pictures"]
    assert (found.passed, found.severity) == (False, WARN)
    assert rows_of(found) == [("p1", f"{first.name} {says}")]
    assert (found.metadata["read"].value, found.metadata["marked"].value) == (2, 2)


def attempts(project):
    """The ledger's files of the first row's first attempt."""
    return [path for path in (project.folder / "store" / "ledger").rglob("1-*.json") if "p1" in owner(path)]


def owner(path):
    reserved = json.loads((path.parent / "1-reserved.json").read_text())
    return reserved["request"]["prompt_id"]


def test_a_second_paid_request_is_an_error(worked, rows_of):
    for path in attempts(worked):
        path.with_name(path.name.replace("1-", "2-")).write_bytes(path.read_bytes())
    found = worked.check_again("generated_images")["paid_once"]
    assert (found.passed, found.severity) == (False, ERROR)
    ((row, why),) = rows_of(found)
    assert row == "p1"
    assert why.startswith("2 paid requests: ")


def test_a_generated_row_that_nobody_paid_for_is_an_error(worked, rows_of):
    for path in attempts(worked):
        path.unlink()
    found = worked.check_again("generated_images")["paid_once"]
    assert rows_of(found) == [("p1", "0 paid requests: none")]


def test_an_earlier_attempt_of_unknown_cost_warns(worked, rows_of):
    for path in attempts(worked):
        path.with_name(path.name.replace("1-", "2-")).write_bytes(path.read_bytes())
        if path.name == "1-settled.json":
            settled = {**json.loads(path.read_text()), "state": "failed", "images": [], "cost_usd": None}
            path.write_text(json.dumps(settled))
    found = worked.check_again("generated_images")["paid_once"]
    assert (found.passed, found.severity) == (False, WARN)
    assert found.metadata["perhaps_billed_twice"].value == 1
    assert "may have been billed as well" in rows_of(found)[0][1]


def test_a_row_that_fal_failed_for_free_and_made_the_second_time_passes(project, evaluations):
    project.write({"prompt": "a lighthouse", "seed": 1})
    faults = (Fault("runner_503", rate=0.5),)
    with running_sandbox(SandboxSettings(latency_scale=0, faults=faults, seed=0)) as sandbox:
        result = project.generate(fal_queue_url=sandbox.url)
    found = evaluations(result)["paid_once"]
    assert found.passed
    assert (found.metadata["generated"].value, found.metadata["resubmitted"].value) == (1, 1)
    told = result.get_asset_materialization_events()[-1].materialization.metadata
    assert told["retries"].value == 1


@pytest.mark.parametrize(("allowed", "passes"), [(0.1, False), (0.5, True)])
def test_more_refusals_than_allowed_warn(project, rows_of, allowed, passes):
    project.write(*ROWS)
    project.settings = project.settings.model_copy(update={"max_refused_fraction": allowed})
    found = with_faults(project, Fault("policy_refusal", match="harbour"))["refusals_allowed"]
    assert found.passed is passes
    assert found.severity is WARN
    assert (found.metadata["refused"].value, found.metadata["fraction"].value) == (1, 0.5)
    assert [row for row, _ in rows_of(found)] == ([] if passes else ["p2"])
