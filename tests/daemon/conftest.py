"""A deployment on loopback: code server, Dagster's daemon and web server as processes, and a standing sandbox."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import dagster as dg
import httpx2
import pytest
from PIL import Image

from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox

BIN = Path(sys.executable).parent
WAIT_S = 300
"""For what the daemon does in its own time: some of its loops turn every 30 s."""

LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
BACKFILL = """
mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
BACKFILL_STATUS = """
query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }
"""
TERMINATE = "mutation ($id: String!) { terminateRun(runId: $id) { __typename } }"
REPOSITORY = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


class Deployment:
    """A project with its processes. Whatever is started here is stopped here, by its pid."""

    def __init__(self, folder, sandbox, prefix=""):
        self.folder, self.sandbox, self.prefix = folder, sandbox, prefix
        self.store = folder / "store"
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_bytes(
            files("ideogram_pipeline").joinpath("dagster.yaml").read_bytes()
        )
        Image.new("RGB", (64, 64), "teal").save(folder / "ada.png")
        (folder / "references.csv").write_text("reference_id,uri\nada,ada.png\n")
        self.processes = []
        self.ports = {name: free_port() for name in ("code", "web")}

    def write(self, *rows):
        lines = [",".join(row) for row in rows]
        draft = self.folder / "draft.csv"
        draft.write_text("\n".join(["prompt_id,batch,prompt,rendering_speed", *lines]) + "\n")
        draft.rename(self.folder / "prompts.csv")

    def start(self, **settings):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("IDEOGRAM_", "FAL_"))
        }
        self.environment = {
            **kept,
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "FAL_QUEUE_URL": self.sandbox.url,
            "IDEOGRAM_STORE": str(self.store),
            "IDEOGRAM_PROMPTS": str(self.folder / "prompts.csv"),
            "IDEOGRAM_REFERENCES": str(self.folder / "references.csv"),
            "IDEOGRAM_KEY_PREFIX": self.prefix,
            **settings,
        }
        code, web = str(self.ports["code"]), str(self.ports["web"])
        self._start(
            "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", code, "-m", "ideogram_pipeline.definitions"
        )
        self.wait(lambda: listens(self.ports["code"]))
        at_code = ("--grpc-host", "127.0.0.1", "--grpc-port", code)
        self._start("dagster-webserver", "-h", "127.0.0.1", "-p", web, *at_code)
        self.wait(lambda: listens(self.ports["web"]))
        self._start("dagster-daemon", "run", *at_code)
        (repository,) = self.ask(REPOSITORY)["repositoriesOrError"]["nodes"]
        self.repository = {
            "repositoryName": repository["name"],
            "repositoryLocationName": repository["location"]["name"],
        }
        self.instance = dg.DagsterInstance.from_config(str(self.home))

    def _start(self, command, *arguments):
        with (self.folder / f"{command}-{len(self.processes)}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [str(BIN / command), *arguments],
                    env=self.environment,
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def stop(self):
        for signal_number, patience in ((signal.SIGINT, 15), (signal.SIGKILL, 15)):
            for process in reversed(self.processes):
                if process.poll() is None:
                    process.send_signal(signal_number)
            for process in self.processes:
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue

    def wait(self, true):
        """Wait until something is true and return it."""
        until = time.monotonic() + WAIT_S
        while not (found := true()):
            assert all(process.poll() is None for process in self.processes), self.logs()
            assert time.monotonic() < until, self.logs()
            time.sleep(0.1)
        return found

    def logs(self):
        return "\n".join(log.read_text()[-3000:] for log in self.folder.glob("*.log"))

    def ask(self, query, **variables):
        answer = httpx2.post(
            f"http://127.0.0.1:{self.ports['web']}/graphql",
            json={"query": query, "variables": variables},
            timeout=60,
        )
        found = answer.json()
        assert "errors" not in found, found["errors"]
        return found["data"]

    def launch(self, job, batch=None, assets=()):
        """Launch a job, or assets by themselves, as the UI does, and return the run's id."""
        tags = [{"key": "dagster/partition", "value": batch}] if batch else []
        selected = {"assetSelection": [self.key(asset) for asset in assets]} if assets else {}
        params = {
            "selector": {**self.repository, "jobName": job, **selected},
            "runConfigData": {},
            "mode": "default",
            "executionMetadata": {"tags": tags},
        }
        answer = self.ask(LAUNCH, params=params)["launchRun"]
        assert "run" in answer, answer
        return answer["run"]["runId"]

    def backfill(self, batches):
        """Backfill batches as the UI does and return how it ended."""
        assets = [self.key(asset) for asset in ("generation_requests", "generated_images")]
        answer = self.ask(BACKFILL, params={"assetSelection": assets, "partitionNames": batches})
        backfill_id = answer["launchPartitionBackfill"]["backfillId"]

        def status():
            found = self.ask(BACKFILL_STATUS, id=backfill_id)["partitionBackfillOrError"]["status"]
            return found if found.startswith(("COMPLETED", "FAILED", "CANCELED")) else None

        return self.wait(status)

    def key(self, asset):
        return {"path": [self.prefix, asset] if self.prefix else [asset]}

    def name(self, name):
        return f"{self.prefix}_{name}" if self.prefix else name

    def terminate(self, run_id):
        assert self.ask(TERMINATE, id=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"

    def end_of(self, run_id):
        """Wait for a run's end and return its status."""

        def status():
            found = self.instance.get_run_by_id(run_id).status
            return found if found in ENDED else None

        return self.wait(status)

    def runs(self, job):
        return self.instance.get_runs(dg.RunsFilter(job_name=self.name(job)))

    def process_of(self, run_id):
        """Return the pid of the process that works a run, as the run's log says it."""

        def pid():
            said = " ".join(entry.user_message for entry in self.instance.all_logs(run_id))
            return re.search(r"Executing steps in process \(pid: (\d+)\)", said)

        return int(self.wait(pid)[1])

    def refresh(self):
        assert self.end_of(self.launch(self.name("refresh_tables"))) is dg.DagsterRunStatus.SUCCESS

    def pictures(self, batch):
        return len(list(self.store.glob(f"images/batch={batch}/*.png")))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def listens(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def deploy(tmp_path):
    """Start a deployment whose table has these rows; the sandbox has these settings."""
    running = []

    def make(rows, *, prefix="", settings=None, **sandbox):
        context = running_sandbox(SandboxSettings(**sandbox))
        running.append(lambda: context.__exit__(None, None, None))
        deployment = Deployment(tmp_path, context.__enter__(), prefix)
        deployment.write(*rows)
        running.append(deployment.stop)
        deployment.start(**(settings or {}))
        return deployment

    yield make
    for stop in reversed(running):
        stop()
