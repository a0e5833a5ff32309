"""The asset checks, on a real instance and a real store."""

import dagster as dg
import pytest

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.settings import Settings


@pytest.fixture
def evaluation(tmp_path):
    """Run a batch against a sandbox with faults and return the check's evaluation."""
    (tmp_path / "prompts.csv").write_text("prompt_id,prompt\np1,a lighthouse\np2,a harbour\n")
    (tmp_path / "references.csv").write_text("reference_id,uri\n")
    tables = {name: str(tmp_path / f"{name}.csv") for name in ("prompts", "references")}

    def run(*faults):
        with (
            running_sandbox(SandboxSettings(latency_scale=0, faults=faults)) as sandbox,
            dg.DagsterInstance.ephemeral() as instance,
        ):
            settings = Settings(
                store=str(tmp_path / "store"),
                **tables,
                fal_queue_url=sandbox.url,
                max_failed_fraction=1,  # Dagster evaluates no check of a step that failed
            )
            definitions = build_definitions(settings)
            definitions.resolve_job_def("refresh_tables").execute_in_process(instance=instance)
            job = definitions.resolve_job_def("generate_batch")
            (evaluation,) = job.execute_in_process(
                instance=instance, partition_key="default"
            ).get_asset_check_evaluations()
            return evaluation

    return run


def test_a_batch_whose_submits_were_all_answered_passes(evaluation):
    assert evaluation().passed


def test_an_unanswered_submit_warns_and_is_named(evaluation):
    found = evaluation(Fault("drop_before_accept", match="harbour"))
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert "p2" in found.metadata["rows"].value
    assert "reconcile" in found.description
