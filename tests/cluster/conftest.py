"""What several machines would share, on loopback: Postgres, Redis, an S3 server, a sandbox, and Dagster's processes."""

import io
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import boto3
import dagster as dg
import httpx2
import pandas as pd
import pytest
import yaml
from PIL import Image

from ideogram_pipeline.sandbox.control import Change, Stats

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WAIT_S = 600
"""For all batches, on two slow cores."""
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def program(name):
    """Return where a program of Debian's is, or skip the test with a word."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    if path := places[0] if places else shutil.which(name):
        return str(path)
    pytest.skip(f"{name} is not installed: apt-get install postgresql redis-server")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def listens(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def descendants(pid):
    """Return the processes below one, the nearest first."""
    below = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            below += [child, *descendants(child)]
    return below


class Processes:
    """Processes on loopback. Whatever is started here is stopped here, by its pid."""

    def __init__(self, folder):
        self.folder = folder
        self.running = []

    def start(self, *command, environment=None, port=None, **options):
        """Start a process and, where it listens on a port, wait until it does."""
        path = self.folder / f"{len(self.running):02}-{Path(command[0]).name}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                **options,
            )
        self.running.append(process)
        if port:
            self.wait(lambda: listens(port) or process.poll() is not None)
            assert process.poll() is None, path.read_text()[-3000:]
        return process

    def wait(self, true):
        """Wait until something is true and return it."""
        until = time.monotonic() + WAIT_S
        while not (answer := true()):
            assert time.monotonic() < until, self.logs()
            time.sleep(0.5)
        return answer

    def logs(self):
        return "\n".join(
            f"{log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log"))
        )

    def stop(self):
        """End the processes, what serves others after those that need it, and whatever they leave behind."""
        for process in reversed(self.running):
            below = descendants(process.pid) if process.poll() is None else []
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pid in below:
                kill(pid)


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Sandbox:
    """A sandbox in a process of its own, which counts what every machine pays."""

    def __init__(self, processes, folder, **settings):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
        processes.start(
            str(BIN / "ideogram-pipeline"),
            "sandbox",
            "--port",
            str(port),
            environment={
                **environment,
                "SANDBOX_DRAWING": "plain",
                **{f"SANDBOX_{name.upper()}": str(value) for name, value in settings.items()},
            },
            cwd=folder,
            port=port,
        )

    def stats(self):
        return Stats.model_validate(httpx2.get(f"{self.url}/sandbox/stats").json())

    def change(self, **settings):
        body = Change(**settings).model_dump(mode="json", exclude_unset=True)
        httpx2.post(f"{self.url}/sandbox/settings", json=body).raise_for_status()


class Cluster:
    """A table in batches, an S3 bucket, and one Dagster over Postgres with its daemon and code location."""

    def __init__(self, folder, s3, batches, rows):
        self.folder, self.batches, self.rows = folder, batches, rows
        self.bucket = s3.bucket()
        self.s3 = boto3.client("s3")
        self.home = folder / "home"
        self.home.mkdir()
        self.processes = Processes(folder)
        self.cleanups = [self.processes.stop]
        Image.new("RGB", (64, 64), "teal").save(folder / "ada.png")
        (folder / "references.csv").write_text("reference_id,uri\nada,ada.png\n")
        table = [
            f"{batch}-{number},{batch},scene {number} of {batch},ada"
            for batch in batches
            for number in range(rows)
        ]
        (folder / "prompts.csv").write_text("\n".join(["prompt_id,batch,prompt,reference_id", *table]) + "\n")

    def begin(self, **sandbox):
        """Start what machines share."""
        self.sandbox = Sandbox(self.processes, self.folder, **sandbox)
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("IDEOGRAM_", "FAL_"))
            },
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "DAGSTER_COMPUTE_LOG_BUCKET": self.bucket,
            "FAL_QUEUE_URL": self.sandbox.url,
            "IDEOGRAM_STORE": f"s3://{self.bucket}/store",
            "IDEOGRAM_PROMPTS": str(self.folder / "prompts.csv"),
            "IDEOGRAM_REFERENCES": str(self.folder / "references.csv"),
            **self._postgres(),
        }

    def _postgres(self):
        place = Path(tempfile.mkdtemp(prefix="ideogram-postgres-"))
        self.cleanups.append(lambda: shutil.rmtree(place))
        password = secrets.token_hex(8)
        (place / "password").write_text(password)
        as_user = {}
        if os.geteuid() == 0:  # Postgres refuses to be root
            postgres = pwd.getpwnam("postgres")
            as_user = {"user": postgres.pw_uid, "group": postgres.pw_gid, "extra_groups": []}
            for path in (place, place / "password"):
                os.chown(path, postgres.pw_uid, postgres.pw_gid)
        base = place / "base"
        making = [program("initdb"), "-D", str(base), "-U", "dagster", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run(
            [*making, f"--pwfile={place / 'password'}"], check=True, capture_output=True, cwd=place, **as_user
        )
        port = free_port()
        listening = ["-c", "listen_addresses=127.0.0.1", "-p", str(port), "-k", str(place), "-c", "fsync=off"]
        self.processes.start(
            program("postgres"),
            "-D",
            str(base),
            *listening,
            "-c",
            "max_connections=200",
            cwd=place,
            port=port,
            **as_user,
        )
        return {
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(port),
            "DAGSTER_PG_USERNAME": "dagster",
            "DAGSTER_PG_PASSWORD": password,
            "DAGSTER_PG_DB": "postgres",
        }

    def add_redis(self):
        port = free_port()
        self.processes.start(
            program("redis-server"),
            *("--bind", "127.0.0.1", "--port", str(port), "--save", ""),
            cwd=self.folder,
            port=port,
        )
        self.environment |= {
            "IDEOGRAM_EXECUTOR": "celery",
            "IDEOGRAM_CELERY_BROKER": f"redis://127.0.0.1:{port}/0",
            "IDEOGRAM_CELERY_BACKEND": f"redis://127.0.0.1:{port}/1",
        }

    def add_celery_worker(self, name, visibility_timeout):
        config = yaml.safe_load((ROOT / "deploy" / "celery.yaml").read_text())
        options = config["execution"]["config"]["config_source"]["broker_transport_options"]
        options |= {"visibility_timeout": visibility_timeout, "unacked_restore_interval": 2}
        path = self.folder / "celery.yaml"
        path.write_text(yaml.safe_dump(config))
        return self.start(
            "dagster-celery",
            "worker",
            "start",
            "-A",
            "dagster_celery.app",
            "-n",
            name,
            "-y",
            str(path),
            "--",
            "--concurrency",
            "1",
        )

    def start(self, command, *arguments, port=None):
        return self.processes.start(
            str(BIN / command), *arguments, environment=self.environment, cwd=self.folder, port=port
        )

    def configure(self, **changes):
        """Put the shipped instance into DAGSTER_HOME, with what a test can't wait for changed."""
        config = yaml.safe_load((ROOT / "deploy" / "dagster.yaml").read_text())
        for name, values in changes.items():
            config[name] = {**config.get(name, {}), **values}
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(config))
        self.instance = dg.DagsterInstance.from_config(str(self.home))

    def start_dagster(self):
        code = str(free_port())
        where = ("-h", "127.0.0.1", "-p", code)
        self.start("dagster", "api", "grpc", *where, "-m", "ideogram_pipeline.definitions", port=int(code))
        self.start("dagster-daemon", "run", "--grpc-host", "127.0.0.1", "--grpc-port", code)

    def wait(self, true):
        return self.processes.wait(true)

    def below(self, process):
        return descendants(process.pid)

    def unfinished(self):
        statuses = [status for status in dg.DagsterRunStatus if status not in FINISHED]
        return self.instance.get_runs(dg.RunsFilter(statuses=statuses))

    def is_with_fal(self, batch):
        """Say whether every row of a batch was submitted, and some are not settled."""
        steps = Counter(name.rpartition("-")[2] for name in self.names(f"ledger/batch={batch}/"))
        return steps["settled.json"] < steps["submitted.json"] == self.rows

    def metadata(self):
        """Return every row of the pictures' metadata."""
        names = [name for name in self.names("images/") if name.endswith("/metadata.parquet")]
        files = [self.s3.get_object(Bucket=self.bucket, Key=f"store/{name}")["Body"].read() for name in names]
        return pd.concat(pd.read_parquet(io.BytesIO(file)) for file in files)

    def names(self, prefix):
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"store/{prefix}"
        )
        return [found["Key"].removeprefix("store/") for page in pages for found in page.get("Contents", ())]

    def check_that_every_row_was_paid_once(self):
        """Rows, pictures, rows of the metadata, and submits that the sandbox accepted are as many."""
        count = len(self.batches) * self.rows
        stats = self.sandbox.stats()
        assert (stats.submits, stats.accepted, stats.duplicates) == (count, count, 0)
        metadata = self.metadata()
        pictures = [name for name in self.names("images/") if name.endswith(".png")]
        assert (metadata["prompt_id"].nunique(), len(metadata), len(pictures)) == (count, count, count)

    def stop(self):
        for cleanup in self.cleanups:
            cleanup()


@pytest.fixture(scope="session")
def s3_server(seaweedfs):
    """Claims are raced for here, so the server has to be a real one."""
    return seaweedfs


@pytest.fixture
def cluster(tmp_path, monkeypatch, s3):
    """Make a cluster of so many batches and rows; the sandbox has these settings."""
    for name in ("initdb", "postgres"):
        program(name)
    made = []

    def make(batches, rows, **sandbox):
        cluster = Cluster(tmp_path, s3, batches, rows)
        made.append(cluster)
        cluster.begin(**sandbox)
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        return cluster

    yield make
    for cluster in made:
        cluster.stop()
