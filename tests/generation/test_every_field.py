"""Every field of every endpoint, from a cell of the prompts table to the wire and back as a verified picture."""

import asyncio
import json
from dataclasses import dataclass

import pytest
from PIL import Image, ImageDraw

from ideogram_pipeline.fal import FalClient, FalHosts, no_waiting
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.engine import Engine
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.outcomes import Generated
from ideogram_pipeline.generation.planner import Plan, References, plan_batch
from ideogram_pipeline.generation.records import image_rows
from ideogram_pipeline.ideogram import ENDPOINTS, output_size
from ideogram_pipeline.ideogram.sizes import Size
from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.inputs import PICTURE_COLUMNS
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.references import read_references

SOURCE_SIZE = (160, 120)
CELLS = {
    "prompt": "a lighthouse",
    "reference_id": "ada",
    "reference_mask_id": "ada-mask",
    "style_reference_ids": "look|scene",
    "image_id": "scene",
    "mask_id": "scene-mask",
    "rendering_speed": "quality",
    "color_palette": "#B470B3:0.5|#0A0B0C:0.25",
    "style_codes": "AAFF5733|10C8E0B2",
    "style": "realistic",
    "style_preset": "watercolor",
    "expand_prompt": "yes",
    "num_images": "2",
    "seed": "77",
    "sync_mode": "true",
    "image_size": "1280x800",
    "negative_prompt": "text",
    "strength": "0.35",
}
WIRE = {
    "prompt": "a lighthouse",
    "reference_image_urls": ["ada"],
    "reference_mask_urls": ["ada-mask"],
    "image_urls": ["look", "scene"],
    "image_url": "scene",
    "mask_url": "scene-mask",
    "rendering_speed": "QUALITY",
    "color_palette": {
        "members": [
            {"rgb": {"r": 0xB4, "g": 0x70, "b": 0xB3}, "color_weight": 0.5},
            {"rgb": {"r": 0x0A, "g": 0x0B, "b": 0x0C}, "color_weight": 0.25},
        ]
    },
    "style_codes": ["AAFF5733", "10C8E0B2"],
    "style": "REALISTIC",
    "style_preset": "WATERCOLOR",
    "expand_prompt": True,
    "num_images": 2,
    "seed": 77,
    "sync_mode": True,
    "image_size": {"width": 1280, "height": 800},
    "negative_prompt": "text",
    "strength": 0.35,
}
EXCLUDED = {"codes": ("style", "image_urls"), "looks": ("style_codes",)}
"""Style codes exclude a style and style references, so each endpoint takes two rows to set everything."""


class Silent:
    def ended(self, outcome, spent_usd):
        pass


def fields_of(endpoint, variant):
    return [field for field in ENDPOINTS[endpoint].input_model.model_fields if field not in EXCLUDED[variant]]


def rows():
    """Two rows for each endpoint, which together set all it has."""
    for endpoint in ENDPOINTS:
        for variant in EXCLUDED:
            columns = [PICTURE_COLUMNS.get(field, field) for field in fields_of(endpoint, variant)]
            name = f"{endpoint.replace('/', '-')}-{variant}"
            yield {"prompt_id": name, "endpoint": endpoint, **{column: CELLS[column] for column in columns}}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every-field")
    colours = {"ada": "teal", "look": "orange", "scene": "navy"}
    for name, colour in colours.items():
        Image.new("RGB", SOURCE_SIZE, colour).save(folder / f"{name}.png")
    for name, corner in {"ada-mask": 10, "scene-mask": 40}.items():
        mask = Image.new("L", SOURCE_SIZE, 255)
        ImageDraw.Draw(mask).rectangle((corner, corner, 90, 90), fill=0)
        mask.save(folder / f"{name}.png")
    ids = [*colours, "ada-mask", "scene-mask"]
    (folder / "references.csv").write_text(
        "\n".join(["reference_id,uri", *(f"{name},{name}.png" for name in ids)])
    )
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
    return folder


@dataclass
class Results:
    """What a run of all rows left."""

    plan: Plan
    outcomes: list
    bodies: dict
    """The bodies that arrived, by prompt id, with reference ids in place of URLs."""
    surplus: dict
    images: list


@pytest.fixture(scope="module")
def results(tables):
    store = Store.open(str(tables / "store"))
    prompts = read_prompts(str(tables / "prompts.jsonl"))
    references = read_references(str(tables / "references.csv"), store).references
    plan = plan_batch("default", prompts.rows, prompts.rejections, References.of(references, ()), {})
    ledger = Ledger(store, "default")
    facts = RunFacts("run", "sandbox", "test")
    budget = Budget(store, run_id="run", per_run_usd=None, per_day_usd=None, allow_unknown=False)

    async def run(url):
        async with FalClient("key:secret", FalHosts.at(url)) as fal:
            engine = Engine(
                fal,
                store,
                ledger,
                run=facts,
                max_in_flight=4,
                marking=Marking(),
                thumbnails=True,
                max_wait_s=3600.0,
                inline_bytes=0,
                budget=budget,
                observer=Silent(),
            )
            return await engine.run([row.request for row in plan.rows])

    with running_sandbox(SandboxSettings(latency_scale=0)) as sandbox, no_waiting():
        outcomes = asyncio.run(run(sandbox.url))
        recorded, surplus = sandbox.requests(), sandbox.stats().surplus_fields
    ids = {
        json.loads(store.get(f"uploads/{entry.sha256}.json"))["url"]: entry.reference_id
        for entry in references
    }
    submitted = {
        entry.last.submitted.request_id: entry.last.reserved.request for entry in ledger.entries.values()
    }
    bodies = {submitted[body.request_id].prompt_id: dict(body.arguments) for body in recorded}
    for body in bodies.values():
        for field in PICTURE_COLUMNS:
            if field in body:
                value = body[field]
                body[field] = [ids[url] for url in value] if isinstance(value, list) else ids[value]
    return Results(plan, outcomes, bodies, surplus, list(image_rows(plan, ledger.entries)))


def test_no_row_is_rejected(results):
    assert [(row.prompt_id, row.reason) for row in results.plan.rows if row.decision != "new"] == []


@pytest.mark.parametrize("variant", EXCLUDED)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_field_arrives_under_fals_name_and_type_and_no_other_does(results, endpoint, variant):
    name = f"{endpoint.replace('/', '-')}-{variant}"
    assert results.bodies[name] == {field: WIRE[field] for field in fields_of(endpoint, variant)}


def test_nothing_is_sent_that_an_endpoint_does_not_have(results):
    assert results.surplus == {}


def test_every_row_ends_with_its_pictures_in_the_size_to_expect(results):
    assert all(isinstance(outcome, Generated) for outcome in results.outcomes)
    assert len(results.images) == 2 * len(results.outcomes)
    requests = {row.fingerprint: row.request for row in results.plan.rows}
    for image in results.images:
        request = requests[image.fingerprint]
        model = ENDPOINTS[request.endpoint].input_model.model_validate(request.arguments)
        assert (image.width, image.height) == output_size(model, Size(*SOURCE_SIZE)), image.prompt_id


@pytest.mark.parametrize(
    ("column", "sent"),
    [
        ("rendering_speed", "QUALITY"),
        ("image_size", "1280x800"),
        ("num_images", 2),
        ("strength", 0.35),
        ("expand_prompt", True),
        ("sync_mode", True),
        ("seed", 77),
        ("seed_returned", 77),
        ("style_codes", ("AAFF5733", "10C8E0B2")),
        ("image_id", "scene"),
        ("mask_id", "scene-mask"),
        ("reference_mask_ids", ("ada-mask",)),
    ],
)
def test_the_metadata_says_what_was_sent(results, column, sent):
    values = {getattr(image, column) for image in results.images if getattr(image, column) not in (None, ())}
    assert values == {sent}
