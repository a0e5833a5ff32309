"""What is checked before anything is paid, and what it stops."""

import dagster as dg
import pytest

from ideogram_pipeline import launch
from ideogram_pipeline.checks.before_paying import CHECKS
from ideogram_pipeline.checks.findings import MAX_HASHED, sampled
from ideogram_pipeline.generation import files
from ideogram_pipeline.ideogram.prices import PRICES
from ideogram_pipeline.resources import LogProgress

pytestmark = pytest.mark.slow

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
TURBO = {"prompt": "a lighthouse", "rendering_speed": "TURBO"}
ADA = {**TURBO, "reference_id": "ada"}


def value(result, name):
    metadata = {}
    for event in result.get_asset_materialization_events():
        metadata |= event.materialization.metadata
    return metadata[name].value


def ledger(project):
    return list(project.store.objects("ledger"))


def test_a_sound_batch_passes_before_and_is_paid(project, evaluations, assets_of):
    project.write(TURBO, ADA)
    result = project.generate()
    found = evaluations(result)
    assert {name: found[name].passed for name in CHECKS} == dict.fromkeys(CHECKS, True)
    assert all(found[name].blocking and found[name].partition == "default" for name in CHECKS)
    assert assets_of(result) == {"generation_requests", "generated_images"}


def test_a_plan_beyond_the_line_warns_and_what_fits_is_made(project, evaluations, rows_of):
    project.write(*[{**TURBO, "seed": seed} for seed in (1, 2, 3)])
    result = project.generate(budget_usd=0.07)
    found = evaluations(result)["plan_fits_the_budget"]
    assert (found.passed, found.severity) == (False, WARN)
    assert rows_of(found) == [("p3", "$0.03 is beyond what is left")]
    assert found.metadata["left_usd"].value == pytest.approx(0.07)
    assert found.metadata["cost_usd"].value == pytest.approx(0.09)
    assert "2 of 3 rows" in found.description
    assert (value(result, "generated"), value(result, "not_reached")) == (2, 1)


def test_a_plan_of_which_nothing_fits_ends_the_run_before_it_pays(project, evaluations, assets_of):
    project.write(TURBO, ADA)
    result = project.generate(budget_usd=0.02)
    found = evaluations(result)["plan_fits_the_budget"]
    assert (found.passed, found.severity) == (False, ERROR)
    assert "IDEOGRAM_BUDGET_USD" in found.description
    assert not result.success
    assert assets_of(result) == {"generation_requests"}
    assert ledger(project) == []


def test_materialize_is_stopped_as_the_job_is(project, evaluations, assets_of):
    project.write(TURBO)
    definitions = project.definitions(budget_usd=0.02)
    result = dg.materialize(
        [*definitions.assets, *definitions.asset_checks],
        selection=["generation_requests", "generated_images"],
        resources=definitions.resources,
        instance=project.instance,
        partition_key="default",
        raise_on_error=False,
    )
    assert not result.success
    assert assets_of(result) == {"generation_requests"}
    assert not evaluations(result)["plan_fits_the_budget"].passed
    assert ledger(project) == []


def test_a_run_with_pictures_to_keep_goes_on_at_the_line(project, evaluations, assets_of):
    project.write(TURBO)
    project.generate()
    project.write(TURBO, {**TURBO, "seed": 7})
    result = project.generate(budget_usd=0.02)
    assert evaluations(result)["plan_fits_the_budget"].severity is WARN
    assert (value(result, "reused"), value(result, "not_reached")) == (1, 1)


def test_the_line_of_the_day_counts_what_other_runs_have_spent(project, evaluations):
    project.write(TURBO, {**TURBO, "seed": 7})
    project.generate(budget_usd_per_day=0.10)
    project.write(TURBO, {**TURBO, "seed": 7}, {**TURBO, "seed": 8}, {**TURBO, "seed": 9})
    found = evaluations(project.generate(budget_usd_per_day=0.10))["plan_fits_the_budget"]
    assert found.metadata["left_usd"].value == pytest.approx(0.04)
    assert not found.passed


@pytest.mark.parametrize(("rows", "severity"), [((TURBO,), ERROR), ((TURBO, ADA), WARN)], ids=["all", "some"])
def test_rows_without_a_known_price(project, evaluations, monkeypatch, rows, severity):
    monkeypatch.delitem(PRICES, "v3")
    project.write(*rows)
    found = evaluations(project.generate())["plan_fits_the_budget"]
    assert (found.passed, found.severity) == (False, severity)
    assert "IDEOGRAM_ALLOW_UNKNOWN_PRICES" in found.description
    assert evaluations(project.generate(allow_unknown_prices=True))["plan_fits_the_budget"].passed


def test_rejected_rows_warn_and_the_others_are_made(project, evaluations, rows_of):
    project.write(TURBO, {**TURBO, "reference_id": "nobody"})
    result = project.generate()
    found = evaluations(result)["rejected_rows_allowed"]
    assert (found.passed, found.severity) == (False, WARN)
    ((row, why),) = rows_of(found)
    assert row == "p2"
    assert "nobody" in why
    assert value(result, "generated") == 1


@pytest.mark.parametrize(("allowed", "severity"), [(0.5, WARN), (0.49, ERROR)])
def test_more_rejected_rows_than_allowed_end_the_run(project, evaluations, assets_of, allowed, severity):
    project.write(TURBO, {**TURBO, "reference_id": "nobody"})
    result = project.generate(max_rejected_fraction=allowed)
    assert evaluations(result)["rejected_rows_allowed"].severity is severity
    assert ("generated_images" in assets_of(result)) is (severity is WARN)


def damage(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(("harm", "says"), [(lambda path: path.unlink(), "missing"), (damage, "other bytes")])
def test_a_row_without_its_reference_is_not_sent_and_the_others_are_made(
    project, evaluations, rows_of, harm, says
):
    project.write(TURBO, ADA)
    (copy,) = (project.folder / "store" / "references").iterdir()
    harm(copy)
    result = project.generate()
    found = evaluations(result)["references_readable"]
    assert (found.passed, found.severity) == (False, WARN)
    ((reference, why),) = rows_of(found)
    assert reference == "ada"
    assert says in why
    assert (value(result, "generated"), value(result, "not_reached")) == (1, 1)
    unsent = next(row for row in files.read_outcomes(project.store, "default") if row.prompt_id == "p2")
    assert (unsent.attempts, unsent.cost_usd) == (0, 0)
    copy.unlink(missing_ok=True)
    project.run("refresh_tables")
    assert evaluations(project.generate())["references_readable"].passed


def test_a_batch_whose_references_are_all_gone_ends_before_it_pays(project, evaluations, assets_of):
    project.write(ADA)
    for copy in (project.folder / "store" / "references").iterdir():
        copy.unlink()
    result = project.generate()
    assert evaluations(result)["references_readable"].severity is ERROR
    assert assets_of(result) == {"generation_requests"}
    assert ledger(project) == []


def test_a_batch_that_a_check_blocked_leaves_an_outcome_for_every_row(project, evaluations, assets_of):
    project.write(TURBO)
    project.generate()
    project.write(TURBO, {**TURBO, "seed": 7}, {**TURBO, "reference_id": "nobody"})
    result = project.generate(max_rejected_fraction=0.3)
    assert "generated_images" not in assets_of(result)
    says = evaluations(result)["rejected_rows_allowed"].description
    first, second, third = files.read_outcomes(project.store, "default")
    assert (first.state, first.reason, first.images) == ("generated", "", 1)
    assert (second.state, second.attempts, second.cost_usd) == ("not_reached", 0, 0)
    assert second.reason == f"the check rejected_rows_allowed ended the run before it paid: {says}"
    assert (third.state, third.column) == ("rejected", "reference_id")
    assert [row.current for row in files.images(project.store, "default")] == [True]
    project.generate()
    assert [row.state for row in files.read_outcomes(project.store, "default")] == [
        "generated",
        "generated",
        "rejected",
    ]


def test_the_command_counts_the_rows_of_a_batch_that_was_stopped_and_publishes(project):
    project.write(ADA)
    settings = project.settings.model_copy(update={"budget_usd": 0.05})
    summary = launch.run(settings, [], progress=LogProgress(), expect=lambda _: None)
    assert (summary.rows, summary.generated, summary.not_reached) == (1, 0, 1)
    (reason,) = summary.reasons
    assert str(reason).startswith(
        "the batch default: not_reached: plan_fits_the_budget: 0 of 1 rows to pay for fit."
    )
    (row,) = files.read_outcomes(project.store, "default")
    assert row.state == "not_reached"
    assert "0 of 1 rows to pay for fit." in row.reason
    assert project.store.exists("gallery/index.html")


@pytest.mark.parametrize("count", [0, 1, MAX_HASHED, MAX_HASHED + 1, 1234])
def test_a_sample_is_bounded_and_of_few_it_is_all(count):
    paths = [str(number) for number in range(count)]
    sample = sampled(paths)
    assert len(sample) == min(count, len(sample)) <= MAX_HASHED
    assert (sample == paths) is (count <= MAX_HASHED)
