"""The resources: what the settings say reaches the parts below."""

import asyncio
from decimal import Decimal

import pytest
import yaml
from dagster._core.snap.snap_to_yaml import default_values_yaml_from_type_snap

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.generation.budget import OverBudget, UnknownPrice
from ideogram_pipeline.settings import Settings


def opened(store, run_id, **settings):
    resources = build_definitions(Settings(**settings)).resources
    return resources["budget"].open(store, run_id)


def test_the_budget_is_that_of_the_settings_to_the_cent(store):
    budget = opened(store, "run-1", budget_usd=Decimal("0.1"), budget_usd_per_day=Decimal("0.3"))
    asyncio.run(budget.reserve(Decimal("0.1")))
    assert budget.remaining_usd == 0
    for run in ("run-2", "run-3"):
        asyncio.run(opened(store, run, budget_usd_per_day=Decimal("0.3")).reserve(Decimal("0.1")))
    with pytest.raises(OverBudget, match="IDEOGRAM_BUDGET_USD_PER_DAY"):
        asyncio.run(opened(store, "run-4", budget_usd_per_day=Decimal("0.3")).reserve(Decimal("0.01")))


def test_without_settings_there_is_no_line_and_no_unknown_price(store):
    budget = opened(store, "run-1")
    assert budget.remaining_usd is None
    with pytest.raises(UnknownPrice):
        asyncio.run(budget.reserve(None))
    asyncio.run(opened(store, "run-1", allow_unknown_prices=True).reserve(None))


def test_the_launchpad_fills_in_where_the_key_stands_and_not_asterisks(monkeypatch):
    monkeypatch.setenv("FAL_KEY", "planted-id:planted-secret")
    snapshot = (
        build_definitions(Settings.from_environment()).resolve_job_def("generate_batch").get_job_snapshot()
    )
    schema = snapshot.config_schema_snapshot
    root = schema.get_config_snap(snapshot.mode_def_snaps[0].root_config_key)
    filled_in = yaml.safe_load(default_values_yaml_from_type_snap(schema, root))
    assert filled_in["resources"]["fal"]["config"]["key"] == {"env": "FAL_KEY"}


def test_how_references_on_the_web_are_read_and_given_reaches_the_tables_resource():
    chosen = build_definitions(Settings(private_hosts=("intranet.example",), pass_urls=True)).resources[
        "tables"
    ]
    assert (chosen.private_hosts, chosen.pass_urls) == (["intranet.example"], True)
    usual = build_definitions(Settings()).resources["tables"]
    assert (usual.private_hosts, usual.pass_urls) == ([], False)
