"""What materializations tell: numbers, tables, a picture; and what they never tell."""

import http.server
import random
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from ideogram_pipeline.assets.metadata import MAX_ROWS, preview, shown
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.generation import files
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.settings import Settings

pytestmark = pytest.mark.slow

KEY = "planted-id:planted-secret"
SIGNATURE = "planted-signature"


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def told(project, instance):
    """Run tables and one batch; return what each asset told, as plain values."""

    def run(**changed):
        metadata = {}
        definitions = build_definitions(project.model_copy(update=changed))
        for job, batch in (("refresh_tables", None), ("generate_batch", "one"), ("publish", None)):
            result = definitions.resolve_job_def(job).execute_in_process(
                instance=instance, partition_key=batch, raise_on_error=False
            )
            for event in result.get_asset_materialization_events():
                metadata[event.asset_key.to_user_string()] = event.materialization.metadata
        return metadata

    return run


def numbers(metadata):
    return {
        name: entry.value
        for name, entry in metadata.items()
        if isinstance(entry, dg.IntMetadataValue | dg.FloatMetadataValue)
    }


def rows(entry):
    return [record.data for record in entry.records]


def test_a_plan_tells_its_counts_its_cost_and_its_rejected_rows(told):
    plan = told()["generation_requests"]
    assert numbers(plan) == {
        "rows": 3,
        "dagster/partition_row_count": 3,
        "new": 2,
        "stale": 0,
        "reused": 0,
        "re_attached": 0,
        "settled": 0,
        "unknown": 0,
        "rejected": 1,
        "left_out": 0,
        "images": 2,
        "estimated_usd": pytest.approx(0.19),
        "estimated_usd_max": pytest.approx(0.19),
        "unpriced": 0,
    }
    (row,) = rows(plan["rejected_rows"])
    assert (row["prompt_id"], row["column"]) == ("a3", "reference_id")


def test_pictures_tell_counts_cost_seconds_and_bytes_as_numbers(told, project):
    told_of = told()
    pictures, plain = told_of["generated_images"], numbers(told_of["generated_images"])
    stored = list((Path(project.store) / "images" / "batch=one").glob("*.png"))
    assert plain["bytes"] == sum(file.stat().st_size for file in stored)
    assert plain["cost_usd"] == pytest.approx(0.19)
    assert (plain["images"], plain["dagster/partition_row_count"], plain["retries"]) == (2, 2, 0)
    assert 0 <= plain["inference_s_p50"] <= plain["inference_s_p95"]
    assert 0 < plain["submit_to_completion_s_p50"] <= plain["submit_to_completion_s_p95"]
    assert plain["rows_without_pictures"] == 1
    (row,) = rows(pictures["without_pictures"])
    assert (row["prompt_id"], row["state"], row["attempts"]) == ("a3", "rejected", 0)
    assert "nobody" in row["reason"]
    assert numbers(told_of["image_catalog"])["bytes"] == plain["bytes"]


def test_rows_without_pictures_are_counted_and_the_first_are_shown(told, project):
    prompts = "".join(f"c{number},one,a storm,nobody\n" for number in range(MAX_ROWS + 5))
    Path(project.prompts).write_text(f"prompt_id,batch,prompt,reference_id\nok,one,a lighthouse,\n{prompts}")
    with running_sandbox(SandboxSettings(latency_scale=0, faults=(Fault("policy_refusal"),))) as sandbox:
        told_of = told(fal_queue_url=sandbox.url)
    pictures = told_of["generated_images"]
    assert numbers(pictures)["rows_without_pictures"] == MAX_ROWS + 6
    shown_rows = rows(pictures["without_pictures"])
    assert [row["state"] for row in shown_rows] == ["refused"] + ["rejected"] * (MAX_ROWS - 1)
    assert len(rows(told_of["generation_requests"]["rejected_rows"])) == MAX_ROWS
    assert "inference_s_p50" not in pictures


def test_the_preview_of_the_worst_pictures_is_a_data_uri_below_64_kb(work_batch, store):
    work_batch([{"prompt_id": f"p{number}", "prompt": "noise"} for number in range(12)])
    pictures = files.read_images(store, "drop")
    for number, picture in enumerate(pictures):
        noise = Image.frombytes("RGB", (320, 320), random.Random(number).randbytes(320 * 320 * 3))
        path = Path(store.url) / "images" / "batch=drop" / picture.file_name
        noise.save(path, "PNG")
    markdown = preview(store, pictures, thumbnails=True).value
    assert markdown.startswith("![the first pictures](data:image/webp;base64,")
    assert 30_000 < len(markdown) <= 64_000
    assert "IDEOGRAM_THUMBNAILS" in preview(store, pictures, thumbnails=False).value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("see https://a.example/b.png?X-Amz-Signature=1&b=2 now", "see https://a.example/b.png?… now"),
        ("'https://me:secret@a.example/b.png'", "'https://…@a.example/b.png'"),
        ("s3://bucket/a.png#key", "s3://bucket/a.png?…"),
        ("is that so? yes: https://a.example/b", "is that so? yes: https://a.example/b"),
    ],
)
def test_what_may_grant_access_is_left_out_of_urls(text, says):
    assert shown(text) == says


@pytest.fixture
def bucket(tmp_path, picture, monkeypatch):
    """A web server with a certificate of its own that has `/ada.png` and refuses everything else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "localhost.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    content = picture(size=(640, 640))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path.startswith("/ada.png")
            self.send_response(200 if found else 403)
            self.end_headers()
            self.wfile.write(content if found else b"")

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_key_and_no_signed_url_is_told_anywhere(project, bucket, monkeypatch, tmp_path):
    """A reference that is there, one that is refused, and a row for each, with a key that has to be given."""
    query = f"X-Amz-Signature={SIGNATURE}"
    (tmp_path / "references.csv").write_text(
        f"reference_id,uri\nada,{bucket}/ada.png?{query}\ngone,{bucket}/gone.png?{query}\n"
    )
    (tmp_path / "prompts.csv").write_text(
        "prompt_id,batch,prompt,reference_id\na1,one,a harbour,ada\na2,one,a lighthouse,gone\na3,one,a market,\n"
    )
    monkeypatch.setenv("FAL_KEY", KEY)
    sandboxed = SandboxSettings(latency_scale=0, key=KEY)
    with (
        dg.DagsterInstance.local_temp(
            str(tmp_path / "home"), overrides={"telemetry": {"enabled": False}}
        ) as instance,
        running_sandbox(sandboxed) as sandbox,
    ):
        settings = Settings.from_environment(
            **project.model_dump(include={"store", "prompts", "references"}),
            backend="fal",
            fal_queue_url=sandbox.url,
            fal_rest_url=sandbox.url,
            fal_api_url=sandbox.url,
            max_failed_fraction=1,
            private_hosts="localhost",
        )
        definitions = build_definitions(settings)
        for job, batch in (("refresh_tables", None), ("generate_batch", "one"), ("publish", None)):
            definitions.resolve_job_def(job).execute_in_process(instance=instance, partition_key=batch)
        everything = "\n".join(
            record.to_json() for run in instance.get_runs() for record in instance.all_logs(run.run_id)
        )
        assert sandbox.stats().submits > 0
    assert f"{bucket}/gone.png" in everything
    assert SIGNATURE not in everything
    assert "planted-secret" not in everything
    for file in (tmp_path / "home").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert SIGNATURE.encode() not in content, file
            assert b"planted-secret" not in content, file


def test_what_was_asked_of_the_store_is_told_and_is_less_where_all_is_there(told):
    first, second = (numbers(told()["generated_images"]) for _ in range(2))
    assert first["store_requests_per_image"] == first["store_requests"] / 2
    assert 0 < second["store_requests"] < first["store_requests"]
