"""Settings by argument and by environment variable."""

import json

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from ideogram_pipeline.cli import app
from ideogram_pipeline.sandbox import Fault, FaultKind, SandboxSettings


def test_without_any_setting_a_sandbox_is_local_fast_and_forgetful():
    settings = SandboxSettings()
    assert (settings.host, settings.port, settings.state) == ("127.0.0.1", 0, ":memory:")
    assert (settings.concurrency, settings.latency_scale, settings.faults) == (10, 1.0, ())
    assert (settings.key, settings.mask_repaints) == (None, "black")


def test_every_setting_can_come_from_the_environment(monkeypatch):
    for name, value in {
        "HOST": "::1",
        "PORT": "9000",
        "KEY": "id:secret",
        "STATE": "box.db",
        "CONCURRENCY": "3",
        "LATENCY_SCALE": "0.5",
        "SEED": "7",
        "FAULTS": "stuck",
        "RESULT_TTL": "60",
        "MASK_REPAINTS": "white",
        "DRAWING": "plain",
    }.items():
        monkeypatch.setenv(f"SANDBOX_{name}", value)
    settings = SandboxSettings()
    assert (settings.host, settings.port, settings.state) == ("::1", 9000, "box.db")
    assert settings.key is not None
    assert settings.key.get_secret_value() == "id:secret"
    assert (settings.concurrency, settings.latency_scale, settings.seed) == (3, 0.5, 7)
    assert settings.faults == (Fault(FaultKind.STUCK),)
    assert (settings.result_ttl, settings.mask_repaints, settings.drawing) == (60, "white", "plain")


def test_the_key_is_not_shown():
    assert "secret" not in repr(SandboxSettings(key="id:secret"))


def test_faults_can_be_told_in_a_line():
    settings = SandboxSettings(faults=" policy_refusal=0.05, stuck ,, runner_503=1 ")
    assert settings.faults == (
        Fault(FaultKind.POLICY_REFUSAL, 0.05),
        Fault(FaultKind.STUCK),
        Fault(FaultKind.RUNNER_503),
    )


def test_faults_can_be_told_in_json():
    told = json.dumps([{"kind": "slow", "rate": 0.5, "match": "a tree, with leaves"}])
    assert SandboxSettings(faults=told).faults == (Fault(FaultKind.SLOW, 0.5, "a tree, with leaves"),)


@pytest.mark.parametrize(
    "told", ["surprise", "stuck=often", "stuck=2", "stuck=-1", "[1]", '[{"kind": "x"}]', "["]
)
def test_faults_that_make_no_sense_are_refused(told):
    with pytest.raises(ValidationError):
        SandboxSettings(faults=told)


@pytest.mark.parametrize(
    "settings", [{"concurrency": 0}, {"latency_scale": -1}, {"port": 70000}, {"speed": 1}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        SandboxSettings(**settings)


def test_the_help_of_the_command_names_every_variable():
    shown = CliRunner().invoke(app, ["sandbox", "--help"]).stdout
    assert [name for name in SandboxSettings.model_fields if f"SANDBOX_{name.upper()}" not in shown] == []
