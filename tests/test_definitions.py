"""The code location: light to load, and whole."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = (
    "PIL",
    "aiohttp",
    "boto3",
    "celery",
    "httpx2",
    "jinja2",
    "kubernetes",
    "obstore",
    "opentelemetry",
    "pandas",
    "pyarrow",
    "sqlalchemy",
    "starlette",
    "uvicorn",
)


def test_loading_the_code_location_imports_nothing_heavy():
    code = f"""
import json, sys
from ideogram_pipeline.definitions import defs
defs()
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_places_that_name_the_code_location_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    module = "ideogram_pipeline.definitions"
    assert project["dg"]["project"]["code_location_target_module"] == module
    assert project["dagster"]["module_name"] == module
    assert f"module_name: {module}" in (ROOT / "dagster_cloud.yaml").read_text()


def test_the_lock_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert not [line for line in lock.splitlines() if line.startswith("-")]
