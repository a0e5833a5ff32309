"""Runs and steps as Kubernetes Jobs: what deletes or kills one costs nothing, and every row is paid for once."""

import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

JOBS = "/apis/batch/v1/namespaces/pictures/jobs"
LAUNCHER = {
    "module": "dagster_k8s",
    "class": "K8sRunLauncher",
    "config": {
        "service_account_name": "dagster",
        "job_image": "ideogram-pipeline",
        "dagster_home": {"env": "DAGSTER_HOME"},
        "instance_config_map": "dagster-instance",
        "job_namespace": "pictures",
        "load_incluster_config": False,
    },
}


class KubernetesApi:
    """As much of a Kubernetes API server as Dagster asks for Jobs, on loopback.

    A Job is a process: creating one starts it, deleting one ends it with SIGTERM.
    """

    def __init__(self, folder):
        self.folder = folder
        self.environment = dict(os.environ)
        """What every container has; the Job's own variables are added."""
        self.jobs = {}
        self._bodies = {}
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                api._create(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer(201, {})

            def do_GET(self):
                name = self.path.partition("?")[0].removeprefix(f"{JOBS}/").removesuffix("/status")
                if self.path.startswith("/api/v1/"):  # pods and their events, for a message
                    self._answer(200, {"kind": "List", "metadata": {}, "items": []})
                elif name in api.jobs:
                    self._answer(200, api._status(name))
                else:
                    self._answer(404, {"kind": "Status", "code": 404, "reason": "NotFound"})

            def do_DELETE(self):
                name = self.path.partition("?")[0].removeprefix(f"{JOBS}/")
                api.delete(name)
                self._answer(200, {"kind": "Status", "status": "Success"})

            def _answer(self, status, body):
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                    "clusters": [
                        {
                            "name": "here",
                            "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"},
                        }
                    ],
                    "users": [{"name": "me", "user": {}}],
                }
            )
        )

    def delete(self, name):
        """Delete a Job as `kubectl delete job` does: its process has to go, and may take its time."""
        self.jobs[name].terminate()

    def steps(self, run_id):
        """Return the names of the Jobs of a run's steps, and which step each is."""
        labels = {name: body["metadata"]["labels"] for name, body in self._bodies.items()}
        return {
            name: found["dagster/op"]
            for name, found in labels.items()
            if found["dagster/run-id"] == run_id and "dagster/op" in found
        }

    def stop(self):
        """End the processes and the server."""
        for process in self.jobs.values():
            process.kill()
            process.wait()
        self._server.shutdown()
        self._server.server_close()

    def _create(self, body):
        name = body["metadata"]["name"]
        (container,) = body["spec"]["template"]["spec"]["containers"]
        own = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
        with (self.folder / f"{name}.log").open("wb") as log:
            self._bodies[name] = body
            self.jobs[name] = subprocess.Popen(
                container["args"],
                env={**self.environment, **own},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _status(self, name):
        ended = self.jobs[name].poll()
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": "pictures"},
            "status": {
                "active": int(ended is None),
                "succeeded": int(ended == 0),
                "failed": int(ended not in (None, 0)),
            },
        }


@pytest.fixture
def kubernetes(tmp_path):
    api = KubernetesApi(tmp_path)
    yield api
    api.stop()


def test_steps_that_are_deleted_or_killed_are_run_again_and_take_up_what_was_submitted(cluster, kubernetes):
    cluster = cluster(["deleted", "killed"], rows=6, latency_scale=20, concurrency=2)
    cluster.environment |= {"IDEOGRAM_EXECUTOR": "k8s", "IDEOGRAM_AUTOMATION": "sensor"}
    kubernetes.environment = cluster.environment
    config = {**LAUNCHER["config"], "kubeconfig_file": str(kubernetes.kubeconfig)}
    cluster.configure(
        run_launcher={**LAUNCHER, "config": config}, run_monitoring={"poll_interval_seconds": 5}
    )
    cluster.start_dagster()
    cluster.wait(lambda: all(map(cluster.is_with_fal, cluster.batches)))
    runs = {run.tags["dagster/partition"]: run.run_id for run in generating(cluster)}
    steps = {batch: paying_steps(kubernetes, run_id) for batch, run_id in runs.items()}

    kubernetes.jobs[steps["killed"][0]].kill()
    kubernetes.delete(steps["deleted"][0])
    kubernetes.jobs[steps["deleted"][0]].wait()
    assert cluster.sandbox.stats().cancels == 0
    cluster.sandbox.change(latency_scale=0)
    repeated = cluster.wait(lambda: generating(cluster, of=runs["deleted"]))
    cluster.wait(lambda: not cluster.unfinished())

    ended = {run.run_id: run.status for run in generating(cluster)}
    # what is told to go lets go, and Dagster makes another run of its run ...
    assert ended[runs["deleted"]] is dg.DagsterRunStatus.FAILURE
    assert ended[repeated[0].run_id] is dg.DagsterRunStatus.SUCCESS
    assert len(paying_steps(kubernetes, repeated[0].run_id)) == 1
    # ... and what is killed is run again in the same run
    assert ended[runs["killed"]] is dg.DagsterRunStatus.SUCCESS
    assert len(paying_steps(kubernetes, runs["killed"])) == 2
    cluster.check_that_every_row_was_paid_once()


def generating(cluster, of=None):
    """Return the runs that generate a batch: all, or those that were made of one."""
    found = cluster.instance.get_runs(dg.RunsFilter(job_name="generate_batch"))
    return [run for run in found if of in (None, run.parent_run_id)]


def paying_steps(kubernetes, run_id):
    """Return the names of the Jobs in which a run paid."""
    return [name for name, step in kubernetes.steps(run_id).items() if step == "generated_images"]
