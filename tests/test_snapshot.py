"""Everything that Dagster is told, as one readable file: a change of the graph is a change of that file.

`UPDATE_SNAPSHOT=1 pytest tests/test_snapshot.py` writes it anew.
"""

import json
import os
from pathlib import Path

import dagster as dg
import pytest

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.settings import Settings

SNAPSHOTS = Path(__file__).parent / "snapshots"


def described(definitions):
    graph = definitions.resolve_asset_graph()
    return {
        "assets": {
            asset.key.to_user_string(): _asset(asset, graph.get(asset.key)) for asset in definitions.assets
        },
        "asset_checks": [
            {
                "name": spec.name,
                "asset": spec.asset_key.to_user_string(),
                "description": spec.description,
                "blocking": spec.blocking,
                "partitions": spec.partitions_def and spec.partitions_def.name,
            }
            for checks in definitions.asset_checks
            for spec in checks.check_specs
        ],
        "jobs": {job.name: _job(definitions.resolve_job_def(job.name)) for job in definitions.jobs},
        "schedules": {
            schedule.name: {
                "description": schedule.description,
                "job": schedule.job_name,
                "when": f"{schedule.cron_schedule} {schedule.execution_timezone}",
                "status": schedule.default_status.name,
            }
            for schedule in definitions.schedules
        },
        "sensors": {
            sensor.name: {"description": sensor.description, "status": sensor.default_status.name}
            for sensor in definitions.sensors
        },
        "resources": {name: type(resource).__name__ for name, resource in definitions.resources.items()},
        "executor": definitions.executor and definitions.executor.name,
    }


def _asset(asset, node):
    (spec,) = asset.specs
    policy, metadata = asset.op.retry_policy, spec.metadata
    schema, lineage = metadata.get("dagster/column_schema"), metadata.get("dagster/column_lineage")
    return {
        "op": asset.op.name,
        "description": spec.description,
        "deps": sorted(key.to_user_string() for key in node.parent_keys),
        "group": spec.group_name,
        "kinds": sorted(spec.kinds),
        "owners": list(spec.owners),
        "code_version": spec.code_version,
        "partitions": spec.partitions_def and spec.partitions_def.name,
        "retries": f"{policy.max_retries}, {policy.delay} s, {policy.backoff.name}, {policy.jitter.name}",
        "pool": asset.op.pool,
        "freshness": str(spec.freshness_policy) if spec.freshness_policy else None,
        "automation": spec.automation_condition and spec.automation_condition.get_label(),
        "resources": sorted(asset.required_resource_keys),
        "metadata": sorted(metadata),
        "uri": metadata["dagster/uri"],
        "columns": {
            column.name: f"{column.type}{' or empty' if column.constraints.nullable else ''}"
            for column in (schema.columns if schema else ())
        },
        "lineage": {
            column: [f"{dep.asset_key.to_user_string()}.{dep.column_name}" for dep in deps]
            for column, deps in (lineage.deps_by_column if lineage else {}).items()
        },
    }


def _job(job):
    return {
        "description": job.description,
        "assets": sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys),
        "ops": sorted(node.name for node in job.nodes),
        "executor": job.executor_def.name,
        "partitions": job.partitions_def and job.partitions_def.name,
    }


@pytest.mark.parametrize("prefix", ["", "acme"])
def test_the_definitions_are_those_of_the_snapshot(prefix):
    settings = Settings(
        store="s3://pictures/ideogram", key_prefix=prefix, owners=("team:data",) if prefix else ()
    )
    snapshot = json.dumps(described(build_definitions(settings)), indent=2, ensure_ascii=False) + "\n"
    file = SNAPSHOTS / f"definitions{prefix and f'_{prefix}'}.json"
    if os.environ.get("UPDATE_SNAPSHOT"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(snapshot)
    assert file.read_text() == snapshot


def test_a_snapshot_of_other_definitions_differs():
    one = described(build_definitions(Settings(store="s3://pictures/ideogram")))
    other = described(build_definitions(Settings(store="s3://pictures/ideogram", owners=("team:data",))))
    assert one != other


def test_lineage_names_only_columns_that_exist():
    definitions = build_definitions(Settings())
    specs = {spec.key: spec.metadata for spec in definitions.resolve_all_asset_specs()}
    columns = {
        key: {column.name for column in metadata["dagster/column_schema"].columns}
        for key, metadata in specs.items()
        if "dagster/column_schema" in metadata
    }
    assert len(columns) == 5
    for key, metadata in specs.items():
        lineage = metadata.get("dagster/column_lineage", dg.TableColumnLineage({})).deps_by_column
        assert set(lineage) <= columns.get(key, set())
        for deps in lineage.values():
            assert all(dep.column_name in columns[dep.asset_key] for dep in deps)


def test_a_picture_is_traced_to_its_prompt_and_its_reference():
    definitions = build_definitions(Settings())
    (images,) = (s for s in definitions.resolve_all_asset_specs() if s.key == dg.AssetKey("generated_images"))
    lineage = images.metadata["dagster/column_lineage"].deps_by_column
    assert dg.TableColumnDep(dg.AssetKey("prompts"), "prompt") in lineage["prompt"]
    for column in ("reference_sha256s", "style_reference_sha256s", "image_sha256", "mask_sha256"):
        assert dg.TableColumnDep(dg.AssetKey("references"), "sha256") in lineage[column]
