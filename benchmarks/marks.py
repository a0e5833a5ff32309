"""What marking and signing a picture takes: beside c2pa-python alone, in one run, for each container.

A picture of 1024x1024 pixels is marked (XMP), marked and signed (a development certificate, one reference as
ingredient), and validated. Times are milliseconds of one thread; the last column is what as many threads as cores sign
together.
"""

import argparse
import hashlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import c2pa
from PIL import Image

from ideogram_pipeline import marks
from ideogram_pipeline.generation.marking import marked, signed
from ideogram_pipeline.marks import credentials
from ideogram_pipeline.marks.credentials import Reference, Signer, write_development_certificate

REFERENCE = (Path(__file__).parent.parent / "data" / "astronaut.png").read_bytes()
MARKS = marks.Marks(
    source_type=marks.ALGORITHM,
    system="a benchmark",
    system_version="1",
    prompt_sha256="0" * 64,
    prompt_id="row-1",
    fingerprint="0" * 64,
    request_id="0",
    seed=1,
    image_index=0,
    backend="sandbox",
)


def picture(kind: str) -> bytes:
    """Return a photograph of 1024x1024 pixels."""
    with Image.open(io.BytesIO(REFERENCE)) as image:
        sink = io.BytesIO()
        image.convert("RGB").resize((1024, 1024)).save(sink, kind)
        return sink.getvalue()


def alone(content: bytes, kind: str, signer: c2pa.Signer, context: c2pa.Context) -> None:
    """Sign as c2pa-python's own example does."""
    manifest = {"claim_generator_info": [{"name": "benchmark", "version": "1"}], "assertions": []}
    manifest["assertions"] = [{"label": "c2pa.actions.v2", "data": {"actions": [{
        "action": "c2pa.created", "digitalSourceType": marks.ALGORITHM}]}}]  # fmt: skip
    builder = c2pa.Builder.from_json(manifest, context)
    builder.add_ingredient(
        {"title": "reference", "relationship": "inputTo"}, "image/png", io.BytesIO(REFERENCE)
    )
    builder.sign(signer, f"image/{kind.lower()}", io.BytesIO(content), io.BytesIO())


def milliseconds(times: int, *works: Callable[[], object]) -> list[float]:
    """Return the median time of each, called in turns."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(times):
        for work, known in zip(works, taken, strict=True):
            begun = time.perf_counter()
            work()
            known.append(time.perf_counter() - begun)
    return [statistics.median(known) * 1000 for known in taken]


def main() -> None:
    """Print a line for each container."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--times", type=int, default=50, help="calls of each kind")
    times = arguments.parse_args().times
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        _, chain, key = write_development_certificate(Path(folder))
        signer = Signer.load(str(chain), str(key))
        bare = c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(b"es256", chain.read_bytes(), key.read_bytes(), None)
        )
    context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
    references = [Reference(hashlib.sha256(REFERENCE).hexdigest(), REFERENCE)]
    print("| picture | bytes | marked, ms | c2pa-python alone, ms | marked and signed, ms | ratio | validated, ms "
          f"| signed a second, {cores} threads |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for kind in ("PNG", "JPEG", "WEBP"):
        content = picture(kind)

        def sign(content: bytes = content) -> bytes:
            return signed(content, MARKS, signer, lambda: references).content

        whole = sign()
        marking, peer, ours, validating = milliseconds(
            times,
            partial(marked, content, MARKS),
            partial(alone, content, kind, bare, context),
            sign,
            partial(credentials.read, whole),
        )
        begun = time.perf_counter()
        with ThreadPoolExecutor(cores) as threads:
            list(threads.map(lambda _: sign(), range(times)))
        together = times / (time.perf_counter() - begun)
        print(f"| {kind} | {len(content):,} | {marking:.2f} | {peer:.1f} | {ours:.1f} | {ours / peer:.2f} "
              f"| {validating:.1f} | {together:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
