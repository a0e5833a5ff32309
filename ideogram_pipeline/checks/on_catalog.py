"""On the catalog: is it the sum of its batches, and are its pictures all of the backend that the store is for?"""

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import dagster as dg

from ideogram_pipeline.checks.findings import Verdict
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource
from ideogram_pipeline.texts import counted

if TYPE_CHECKING:
    from ideogram_pipeline.generation.rows import CatalogRow
    from ideogram_pipeline.provenance.traces import Trace
    from ideogram_pipeline.storage import Store

CHECKS = {
    "catalog_complete": "The catalog has every picture of every batch, as its batch has it, and no other. Run "
    "`publish` again.",
    "erased_stays_erased": "Nothing in the store tells of a picture that was erased, or of one that came from it. "
    "Restored backups bring them back: `ideogram-pipeline erase` with the digest takes them away again.",
    "one_backend": "All pictures are of the backend that the store is for: what the sandbox drew never stands among "
    "fal's, nor the reverse. Find out how the rows came here, and keep each backend's pictures in a store of its own.",
}
"""The checks and what they mean."""


def define(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    """Return the checks on a pipeline's catalog."""
    asset = pipeline.key("image_catalog")

    @dg.multi_asset_check(
        name=pipeline.name("checks_on_catalog"),
        specs=[dg.AssetCheckSpec(name, asset=asset, description=meaning) for name, meaning in CHECKS.items()],
    )
    @pipeline.with_own_resources
    def checks_on_catalog(store: StoreResource) -> Iterator[dg.AssetCheckResult]:
        for verdict in verdicts(store.open(), store.backend):
            yield verdict.of(asset)
        yield erased(store.open()).of(asset)

    return checks_on_catalog


def erased(store: "Store") -> Verdict:
    """Look for what was erased in every folder of the store that it may come back in."""
    from ideogram_pipeline.provenance.erasing import remains
    from ideogram_pipeline.tables.erased import tombstones

    stones = tombstones(store)
    sources = {fingerprint[:8]: stone.sha256 for stone in stones for fingerprint in stone.fingerprints}

    def why(trace: "Trace") -> str:
        if trace.rows:
            return f"{counted(trace.rows, 'row tells', 'rows tell')} of it"
        if trace.path.startswith(("references/", "gallery/references/")):
            return "it is a copy of what was erased"
        found = (sources[word] for word in re.findall(r"[0-9a-f]{8}", trace.path) if word in sources)
        return f"it came from {next(found, 'what was erased')}"

    return Verdict(
        "erased_stays_erased",
        sorted((trace.path, why(trace)) for trace in remains(store)),
        "Run `ideogram-pipeline erase --reference` with the digest again: it takes away what came back.",
        dg.AssetCheckSeverity.ERROR,
        {"erased": len(stones)},
    )


class _Seen(NamedTuple):
    """What of a row has to be kept to compare it."""

    digest: bytes
    backend: str

    @classmethod
    def of(cls, row: "CatalogRow") -> "_Seen":
        return cls(hashlib.sha256(row.model_dump_json().encode()).digest(), row.backend)


def verdicts(store: "Store", backend: str) -> tuple[Verdict, Verdict]:
    """Compare the catalog with its batches, and its rows with the store's backend.

    What the last refresh read anew is compared row by row, and so is every file that is not as a refresh left it. The
    others are those that were compared before: their marks in the store say so.
    """
    from ideogram_pipeline.generation import catalog

    state = catalog.State.of(store, catalog.read_index(store))
    outdated = set(state.outdated)
    differing = [(path, "belongs to no batch that was run") for path in state.strays]
    strangers: list[tuple[str, str]] = []
    compared = images = 0
    for file, sources in state.sources.items():
        known = state.index.files.get(file)
        of_others = (
            [batch for batch, found in known.batches.items() if set(found.backends) - {backend}]
            if known
            else []
        )
        looked_at = set(sources) if file in outdated else {*of_others, *state.index.refreshed} & set(sources)
        images += sum(found.images for found in known.batches.values()) if known else 0
        if not looked_at:
            continue
        there: dict[str, _Seen] = {}
        rows = 0
        if file in state.there:
            for row in catalog.read(store, file, None if file in outdated else looked_at):
                there[row.path] = _Seen.of(row)
                rows += 1
        if len(there) < rows:
            differing.append((file, "has rows twice"))
        strangers += [
            (path, f"is of the backend {seen.backend}")
            for path, seen in there.items()
            if seen.backend != backend
        ]
        for batch in looked_at:
            for row in catalog.batch_rows(store, batch, asked_for=sources[batch].asked_for):
                compared += 1
                seen = there.pop(row.path, None)
                if seen is None:
                    differing.append((row.path, "is missing from the catalog"))
                    if row.backend != backend:
                        strangers.append((row.path, f"is of the backend {row.backend}"))
                elif seen != _Seen.of(row):
                    differing.append((row.path, "is not as its batch has it"))
        differing += [(path, "is in no batch") for path in there]
    complete = Verdict(
        "catalog_complete",
        sorted(differing),
        "Run `publish` again.",
        dg.AssetCheckSeverity.ERROR,
        {
            "pictures": images,
            "batches": sum(len(sources) for sources in state.sources.values()),
            "compared": compared,
        },
    )
    one_backend = Verdict(
        "one_backend",
        sorted(strangers),
        f"This store is for pictures of the backend {backend}. Find out how the others came here, and move them out.",
        dg.AssetCheckSeverity.ERROR,
        {"pictures": images},
    )
    return complete, one_backend
