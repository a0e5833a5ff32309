"""The request that made a picture, in the forms in which it can be made again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import JsonValue

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.fal import FalHosts
from ideogram_pipeline.generation.ledger import Entry, Ledger
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.provenance.lineage import Lineage, trace
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.inputs import PICTURE_COLUMNS
from ideogram_pipeline.texts import json_shown

Form = Literal["row", "curl", "python", "javascript"]


def request_of(store: Store, key: str) -> GenerationRequest:
    """Return the request that a key leads to: a picture's, a submit's, or the newest take of a prompt.

    Raises:
        UnknownKey: nothing is called so.
        ConfigurationError: the key leads to more than one request, such as a run's, or to one that can't be read.
    """
    lineage = trace(store, key)
    if lineage.likeness is not None:
        alike = ", ".join(identity for _, identity in lineage.roots[:5])
        raise ConfigurationError(
            f"{key!r} only looks like {alike}, which is likely and not certain. Name the picture that you mean."
        )
    fingerprints = _requests(lineage)
    if not fingerprints or (len(fingerprints) > 1 and lineage.roots[0][0] != "prompt"):
        raise ConfigurationError(
            f"{key!r} doesn't lead to one request: name a picture, a prompt id, a fingerprint or a request id."
        )
    batches = {edge.to_id: edge.batch for edge in lineage.edges if edge.kind == "asks"}
    ledgers = {batch: Ledger(store, batch).entries for batch in set(batches.values())}
    known = [ledgers[batches[one]].get(one, Entry()) for one in fingerprints]
    found = [entry.last.reserved.request for entry in known if entry.attempts]
    if not found:
        told = next((entry.damage for entry in known if entry.damage), "it is in no ledger any more.")
        raise ConfigurationError(f"The request that {key!r} leads to can't be read: {told}")
    return max(found, key=lambda request: request.take)


def _requests(lineage: Lineage) -> list[str]:
    """Return the fingerprints of the requests next to what the key names; a prompt has one for each of its takes."""
    near = set(lineage.roots)
    near |= {(edge.from_kind, edge.from_id) for edge in lineage.edges if ("image", edge.to_id) in near}
    requests = {identity for kind, identity in near if kind == "request"}
    requests |= {
        edge.from_id for edge in lineage.edges if ("submit", edge.to_id) in near and edge.kind == "sent_as"
    }
    requests |= {edge.to_id for edge in lineage.edges if ("prompt", edge.from_id) in near}
    return sorted(requests)


def written(request: GenerationRequest, form: Form, store: Store) -> str:
    """Return a request as a row of the prompts table, a `curl` call, or a snippet for fal's clients.

    Pictures that lie on the web are named by their URL; of others the store's copy is to be uploaded first. No form
    holds a key: they take it from `FAL_KEY`.
    """
    match form:
        case "row":
            return _row(request)
        case "curl":
            return _curl(request, store)
        case "python":
            return _python(request, store)
        case "javascript":
            return _javascript(request, store)


def _row(request: GenerationRequest) -> str:
    cells = {"prompt_id": request.prompt_id, "batch": request.batch, "endpoint": request.endpoint}
    cells |= {name: str(value) for name, value in json.loads(request.extra).items()}
    for name, value in request.arguments.items():
        if name not in PICTURE_COLUMNS:
            cells[name] = _cell(value)
    for field, column in PICTURE_COLUMNS.items():
        ids = [use.reference_id for use in request.pictures if use.field == field]
        if ids:
            cells[column] = "|".join(ids)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(cells), lineterminator="\n")
    writer.writeheader()
    writer.writerow(cells)
    return table.getvalue().rstrip("\n")


def _cell(value: JsonValue) -> str:
    """Return a value as people write it into a table."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "|".join(str(member) for member in value)
    if isinstance(value, dict):
        return _size_or_palette(value)
    return str(value)


def _size_or_palette(value: Mapping[str, JsonValue]) -> str:
    if "width" in value:
        return f"{value['width']}x{value['height']}"
    members = value.get("members")
    if not isinstance(members, list):
        return str(value.get("name", ""))
    written = []
    for member in members:
        assert isinstance(member, dict)
        rgb = member["rgb"]
        assert isinstance(rgb, dict)
        color = "#" + "".join(f"{int(str(rgb[part])):02X}" for part in ("r", "g", "b"))
        weight = member.get("color_weight")
        written.append(color if weight is None else f"{color}:{weight}")
    return "|".join(written)


def _with_urls(request: GenerationRequest, url: Mapping[str, str]) -> dict[str, JsonValue]:
    def put(value: JsonValue) -> JsonValue:
        if isinstance(value, list):
            return [put(member) for member in value]
        return url.get(value, value) if isinstance(value, str) else value

    return {name: put(value) for name, value in request.arguments.items()}


def _curl(request: GenerationRequest, store: Store) -> str:
    urls = {
        use.token: use.uri if use.by_address else f"URL of {store.where(use.sent[1])}"
        for use in request.pictures
    }
    arguments = json.dumps(_with_urls(request, urls), ensure_ascii=False, indent=2)
    body = json_shown(arguments).replace("'", "'\\''")
    return (
        f"curl --request POST {FalHosts().queue}/{request.endpoint_id} \\\n"
        '  --header "Authorization: Key $FAL_KEY" --header "Content-Type: application/json" \\\n'
        f"  --data '{body}'"
    )


def _python(request: GenerationRequest, store: Store) -> str:
    return "\n".join(
        [
            "import fal_client",
            "",
            "result = fal_client.subscribe(",
            f"    {request.endpoint_id!r},",
            f"    arguments={_code(request, store, repr, 'fal_client.upload_file({})')},",
            "    with_logs=True,",
            ")",
            "print(result)",
        ]
    )


def _javascript(request: GenerationRequest, store: Store) -> str:
    upload = "await fal.storage.upload(new Blob([await readFile({})]))"
    return "\n".join(
        [
            'import { readFile } from "node:fs/promises";',
            'import { fal } from "@fal-ai/client";',
            "",
            f"const result = await fal.subscribe({json.dumps(request.endpoint_id)}, {{",
            f"  input: {_code(request, store, json.dumps, upload)},",
            "  logs: true,",
            "});",
            "console.log(result.data);",
        ]
    )


def _code(request: GenerationRequest, store: Store, literal: Callable[[JsonValue], str], upload: str) -> str:
    """Return the arguments as code, with a call that uploads in the place of each picture not passed by address."""
    code = literal(request.arguments)
    for use in request.pictures:
        call = literal(use.uri) if use.by_address else upload.format(literal(store.where(use.sent[1])))
        code = code.replace(literal(use.token), call)
    return code
