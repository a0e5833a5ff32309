"""A small project in a folder of its own: two batches, a sandbox without delays, and one row that can't be used.

That row fails no run here.
"""

import csv

import pytest
from PIL import Image

from ideogram_pipeline.settings import Settings


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Settings for a project in a temporary folder, with Dagster's home beside it."""
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    (tmp_path / "home").mkdir()
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "ada.png")
    (tmp_path / "references.csv").write_text("reference_id,uri,role\nada,ada.png,character\n")
    with (tmp_path / "prompts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt_id", "batch", "prompt", "reference_id", "rendering_speed", "mood"])
        rows.writerow(["a1", "one", "a lighthouse", "ada", "TURBO", "calm"])
        rows.writerow(["a2", "one", "a harbour", "", "QUALITY", ""])
        rows.writerow(["a3", "one", "a storm", "nobody", "TURBO", ""])
        rows.writerow(["b1", "two", "a market", "ada", "", ""])
    return Settings(
        store=str(tmp_path / "store"),
        prompts=str(tmp_path / "prompts.csv"),
        references=str(tmp_path / "references.csv"),
        max_failed_fraction=1,
    )
