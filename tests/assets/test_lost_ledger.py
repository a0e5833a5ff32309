"""A run in Dagster, whoever starts it, pays for nothing where the ledger lacks what was paid for."""

import shutil

import dagster as dg

from ideogram_pipeline.assets.retries import Unmendable
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox


def test_the_ledger_folder_is_gone_and_a_dagster_run_fails_before_it_pays(project, tmp_path):
    with (
        running_sandbox(SandboxSettings(latency_scale=0)) as sandbox,
        dg.DagsterInstance.ephemeral() as instance,
    ):
        settings = project.model_copy(update={"fal_queue_url": sandbox.url})
        definitions = build_definitions(settings)

        def run(job, batch=None):
            return definitions.resolve_job_def(job).execute_in_process(
                instance=instance, partition_key=batch, raise_on_error=False
            )

        run("refresh_tables")
        assert run("generate_batch", "one").success
        paid = sandbox.stats().submits
        shutil.rmtree(tmp_path / "store" / "ledger")
        ended = run("generate_batch", "one")
        (failure,) = [event for event in ended.all_events if event.is_step_failure]
        assert failure.step_key == "generated_images"
        error = failure.step_failure_data.error
        assert error.cls_name == Unmendable.__name__
        assert f"lacks {paid} requests" in error.message
        assert (paid, sandbox.stats().submits) == (2, 2)
