"""A table, a standing sandbox with a key of its own, and real processes to kill, stop and race."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from pydantic import SecretStr

from ideogram_pipeline.sandbox import RunningSandbox, SandboxSettings, running_sandbox

COMMAND = [sys.executable, "-c", "from ideogram_pipeline.cli import main; main()"]
PLANTED_KEY = "planted-key-id:planted-key-secret"


@dataclass
class Project:
    """A table of rows in one batch, and the command run on it in processes of their own."""

    folder: Path
    sandbox: RunningSandbox
    rows: int
    output: list[str] = field(default_factory=list)
    """All that the processes said."""
    within: tuple[str, ...] = ()
    """What the command is started through, to see a disk that nobody else sees."""

    def __post_init__(self):
        self.store = self.folder / "store"
        Image.new("RGB", (64, 64), "teal").save(self.folder / "ada.png")
        (self.folder / "references.csv").write_text("reference_id,uri\nada,ada.png\n")
        self.write_rows((f"p{number:03}", "default", f"scene {number}") for number in range(self.rows))

    def write_rows(self, rows):
        """Write the prompts table: id, batch and prompt of each row; every other one has a reference."""
        lines = [",".join((*row, "ada" if number % 2 else "")) for number, row in enumerate(rows)]
        self.rows = len(lines)
        table = ["prompt_id,batch,prompt,reference_id", *lines]
        (self.folder / "prompts.csv").write_text("\n".join(table))

    def start(self, *arguments, **environment):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("IDEOGRAM_", "FAL_"))
        }
        kept.pop("DAGSTER_HOME", None)
        hosts = {f"FAL_{host}_URL": self.sandbox.url for host in ("QUEUE", "REST", "API")}
        settings = {
            "IDEOGRAM_BACKEND": "fal",
            "FAL_KEY": PLANTED_KEY,
            "IDEOGRAM_STORE": str(self.store),
            "IDEOGRAM_PROMPTS": str(self.folder / "prompts.csv"),
            "IDEOGRAM_REFERENCES": str(self.folder / "references.csv"),
        }
        return subprocess.Popen(
            [*self.within, *COMMAND, *arguments],
            env={**kept, **hosts, **settings, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process):
        out, err = process.communicate()
        self.output += [out, err]
        return process.returncode, out

    def __call__(self, *arguments, **environment):
        return self.finish(self.start(*arguments, **environment))

    def run(self, **environment):
        code, out = self("run", "--json", **environment)
        assert code in (0, 3), self.output[-1]
        return self.summary(out)

    def summary(self, out):
        return json.loads(out.splitlines()[-1])

    def wait_until(self, process, true):
        """Wait for something that a process is about to do."""
        while not true():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)

    def home(self, name):
        """Make a Dagster instance of its own for a process."""
        folder = self.folder / f"dagster-{name}"
        folder.mkdir()
        return str(folder)

    def check_that_every_row_was_paid_once(self, summary):
        """Every row has its picture, and the sandbox accepted one submit for each."""
        stats = self.sandbox.stats()
        assert (summary["images"], summary["unknown"]) == (self.rows, 0)
        assert (stats.accepted, stats.duplicates) == (self.rows, 0)
        self.check_that_everything_is_whole()
        self.check_that_the_key_is_nowhere()

    def settle(self, **environment):
        """Run to the end as a person would who wants every picture, and return the last summary."""
        self.run(**environment)
        self("reconcile", "--resubmit-unknown-after", "0s", **environment)
        return self.run(**environment)

    def ledger_files(self, step="*"):
        return list(self.store.glob(f"ledger/batch=default/*/*-{step}.json"))

    def check_that_everything_is_whole(self):
        """Every row of the metadata has its picture, whole, and every picture its row."""
        metadata = pd.concat(
            pd.read_parquet(path) for path in (self.store / "images").glob("*/metadata.parquet")
        )
        pictures = {path.name: path for path in (self.store / "images").rglob("*.png")}
        assert set(metadata["file_name"]) == set(pictures)
        for row in metadata.itertuples():
            with Image.open(pictures[row.file_name]) as picture:
                picture.load()
                assert picture.size == (row.width, row.height)
        return metadata

    def check_that_the_key_is_nowhere(self):
        secret = PLANTED_KEY.partition(":")[2].encode()
        holding = [path for path in self.folder.rglob("*") if path.is_file() and secret in path.read_bytes()]
        assert holding == []
        assert not any(secret.decode() in text for text in self.output)


@pytest.fixture(scope="session")
def s3_server(seaweedfs):
    """Claims are raced for here, so the server has to be a real one."""
    return seaweedfs


@pytest.fixture
def project(tmp_path):
    """Make a project with so many rows; the sandbox has these settings."""
    running = []

    def make(rows, **settings):
        context = running_sandbox(SandboxSettings(key=SecretStr(PLANTED_KEY), concurrency=20, **settings))
        running.append(context)
        return Project(tmp_path, context.__enter__(), rows)

    yield make
    for context in running:
        context.__exit__(None, None, None)
