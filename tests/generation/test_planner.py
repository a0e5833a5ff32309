"""The planner: any row is a request that can be sent, or a problem with a column; and a request keeps its identity."""

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.generation.choice import Choice, Decisions
from ideogram_pipeline.generation.ledger import Entry, Ledger, Released, Reserved, Settled, Submitted
from ideogram_pipeline.generation.planner import Plan, References, plan_batch, plan_row
from ideogram_pipeline.generation.requests import GenerationRequest, fingerprint
from ideogram_pipeline.generation.rows import PlannedRow
from ideogram_pipeline.ideogram import ENDPOINTS, wire
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.parquet import Rows
from ideogram_pipeline.tables.reader import RawRow
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection, RowProblem, parse_row

COLUMNS = {field.alias or name for name, field in PromptRow.model_fields.items()}
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def reference(name: str, *, sha256: str | None = None, **facts: Any) -> Reference:
    known = {
        "uri": f"{name}.png",
        "kind": "png",
        "width": 1024,
        "height": 1024,
        "bytes": 1000,
        "row_number": 2,
    }
    return Reference(
        reference_id=name, sha256=sha256 or name.encode().hex().ljust(64, "0"), **(known | facts)
    )


REFERENCES = References.of(
    usable=[
        reference("face"),
        reference("other-face"),
        reference("mask"),
        reference("small", width=64, height=64),
        reference("heavy", bytes=11_000_000),
    ],
    rejected=[Rejection(file="r.csv", row_number=9, row_id="broken", column="uri", reason="it is empty")],
)


def row(number: int = 2, /, **cells: Any) -> PromptRow:
    return parse_row(PromptRow, RawRow(number, {"prompt_id": "a", "prompt": "a lighthouse"} | cells))


def planned(references: References = REFERENCES, /, **cells: Any) -> GenerationRequest:
    return plan_row(row(**cells), references)


def problem(**cells: Any) -> RowProblem:
    with pytest.raises(RowProblem) as caught:
        planned(**cells)
    return caught.value


NAMES = st.sampled_from(["face", "other-face", "mask", "small", "heavy", "broken", "nobody"])
WORDS = st.text(max_size=8)
ANY_CELLS: Mapping[str, st.SearchStrategy[Any]] = {
    "prompt": WORDS,
    "endpoint": st.sampled_from([*ENDPOINTS, "fal-ai/ideogram/v3", "V3/Remix"]) | WORDS,
    "reference_id": NAMES | st.just("face|other-face"),
    "reference_mask_id": NAMES,
    "image_id": NAMES,
    "mask_id": NAMES,
    "style_reference_ids": NAMES | st.just("face|mask"),
    "negative_prompt": WORDS,
    "rendering_speed": st.sampled_from(["TURBO", "quality"]) | WORDS,
    "style": st.sampled_from(["AUTO", "REALISTIC", "fiction", "DESIGN"]) | WORDS,
    "style_preset": st.sampled_from(["BAUHAUS", "oil_painting"]) | WORDS,
    "style_codes": st.sampled_from(["AAFF5733", "aaff5733|00112233"]) | WORDS,
    "color_palette": st.from_regex(r"\A#[0-9a-f]{6}:[0-9.]{1,5}\Z") | WORDS,
    "image_size": st.from_regex(r"\A\d{1,6}x\d{1,6}\Z") | WORDS,
    "num_images": st.integers(-1, 9),
    "strength": st.floats(allow_nan=False, allow_infinity=False),
    "expand_prompt": st.booleans(),
    "sync_mode": st.booleans(),
    "seed": st.integers(-1, 2**31),
}
ANY_ROWS = st.sets(st.sampled_from(sorted(ANY_CELLS)), max_size=4).flatmap(
    lambda columns: st.fixed_dictionaries({column: ANY_CELLS[column] for column in sorted(columns)})
)
"""Rows with a few cells that may be right or wrong."""

ONE_FACE = st.sampled_from(["face", "other-face"])
FACES = ONE_FACE | st.just("face|other-face")
OF_ALL: Mapping[str, st.SearchStrategy[Any]] = {
    "prompt": st.sampled_from(["a lighthouse", "ein Leuchtturm, größer"]),
    "rendering_speed": st.sampled_from(["TURBO", "BALANCED", "quality"]),
    "color_palette": st.sampled_from(["EMBER", "melon", "#FF0000:0.5|#00ff00:0.3", "#123456"]),
    "num_images": st.integers(1, 8),
    "seed": st.integers(0, 2**31 - 1),
    "sync_mode": st.booleans(),
}
PROMPTED: Mapping[str, st.SearchStrategy[Any]] = {"expand_prompt": st.booleans()}
SIZED: Mapping[str, st.SearchStrategy[Any]] = {
    "image_size": st.sampled_from(["square_hd", "SQUARE", "1280x720", "640 X 640"]),
    "negative_prompt": st.sampled_from(["blur", "text"]),
    "style": st.sampled_from(["AUTO", "realistic"]),
}
PRESET: Mapping[str, st.SearchStrategy[Any]] = {"style_preset": st.sampled_from(["BAUHAUS", "oil_painting"])}
CODED: Mapping[str, st.SearchStrategy[Any]] = {
    "style_codes": st.sampled_from(["AAFF5733", "00112233|AAFF5733"])
}
STRENGTH: Mapping[str, st.SearchStrategy[Any]] = {"strength": st.floats(0.01, 1)}


def sendable(
    needed: Mapping[str, st.SearchStrategy[Any]], *optional: Mapping[str, st.SearchStrategy[Any]]
) -> Any:
    columns = {name: cells for part in (OF_ALL, *optional) for name, cells in part.items()}
    return st.fixed_dictionaries(dict(needed), optional=columns)


def on(endpoint: str, **pictures: st.SearchStrategy[str]) -> Mapping[str, st.SearchStrategy[Any]]:
    return {"endpoint": st.just(endpoint), **pictures}


SENDABLE_ROWS = st.one_of(
    sendable({}, PROMPTED, SIZED, PRESET),
    sendable({}, PROMPTED, CODED),
    sendable({"reference_id": FACES}, PROMPTED, SIZED, {"reference_mask_id": st.just("mask")}),
    sendable(on("character/edit", reference_id=FACES, image_id=ONE_FACE, mask_id=st.just("mask")), PROMPTED),
    sendable(on("character/remix", reference_id=FACES, image_id=ONE_FACE), PROMPTED, SIZED, STRENGTH),
    sendable(on("v3/edit", image_id=ONE_FACE, mask_id=st.just("mask")), PROMPTED, PRESET),
    sendable(on("v3/remix", image_id=ONE_FACE), PROMPTED, SIZED, STRENGTH),
    sendable(on("v3/reframe", image_id=ONE_FACE, image_size=SIZED["image_size"]), PRESET),
    sendable(on("v3/replace-background", image_id=ONE_FACE), PROMPTED, CODED),
)
"""Rows for every endpoint that nothing is wrong with."""


UNSENDABLE_ROWS = st.sampled_from([{"endpoint": "nowhere"}, {"reference_id": "broken"}, {"num_images": 9}])
TABLE_ROWS = SENDABLE_ROWS | UNSENDABLE_ROWS


@given(cells=ANY_ROWS)
def test_any_row_is_a_request_or_names_the_column_at_fault(cells):
    try:
        plan_row(row(**cells), REFERENCES)
    except RowProblem as caught:
        found = caught
    else:
        return
    assert found.column in COLUMNS
    assert found.reason


@given(cells=SENDABLE_ROWS)
def test_a_row_that_nothing_is_wrong_with_becomes_what_its_endpoint_takes(cells):
    request = planned(**cells)
    model = ENDPOINTS[request.endpoint].input_model.model_validate(request.arguments)
    assert wire(model) == request.arguments
    assert {"seed", "num_images", "rendering_speed"} <= request.arguments.keys()


@given(cells=SENDABLE_ROWS)
def test_a_request_survives_json_with_its_fingerprint(cells):
    request = planned(**cells)
    again = GenerationRequest.model_validate_json(request.model_dump_json())
    assert again == request
    assert fingerprint(again.prompt_id, again.endpoint_id, again.arguments) == request.fingerprint


@given(one=SENDABLE_ROWS, other=SENDABLE_ROWS)
def test_two_requests_share_a_fingerprint_only_if_the_same_is_sent(one, other):
    first, second = planned(**one), planned(**other)
    same = (first.endpoint, first.arguments) == (second.endpoint, second.arguments)
    assert (first.fingerprint == second.fingerprint) == same


CHARACTER = {"reference_id": "face", "style": "FICTION", "seed": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_id": "b"},
        {"prompt": "a lighthouse."},
        {"endpoint": "character/remix", "image_id": "face"},
        {"reference_id": "other-face"},
        {"reference_id": "face|other-face"},
        {"reference_mask_id": "mask"},
        {"style_reference_ids": "mask"},
        {"negative_prompt": "blur"},
        {"rendering_speed": "TURBO"},
        {"style": "REALISTIC"},
        {"color_palette": "EMBER"},
        {"image_size": "square"},
        {"num_images": 2},
        {"expand_prompt": True},
        {"sync_mode": True},
        {"seed": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_sent_is_part_of_the_fingerprint(change):
    assert planned(**CHARACTER | change).fingerprint != planned(**CHARACTER).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"batch": "another"},
        {"campaign": "spring"},
        {"endpoint": "character"},
        {"endpoint": "fal-ai/ideogram/character"},
        {"rendering_speed": "balanced"},
        {"image_size": "square_hd"},
        {"num_images": 1},
        {"expand_prompt": False},
        {"style": "fiction"},
        {"prompt": "  a lighthouse "},
    ],
    ids=str,
)
def test_what_is_not_sent_or_is_the_default_is_no_part_of_the_fingerprint(change):
    assert planned(**CHARACTER | change).fingerprint == planned(**CHARACTER).fingerprint


def test_the_place_in_the_table_is_no_part_of_the_fingerprint():
    assert plan_row(row(2), REFERENCES).fingerprint == plan_row(row(700), REFERENCES).fingerprint


def test_a_changed_picture_is_another_request_and_a_moved_file_is_not():
    before = planned(**CHARACTER).fingerprint
    moved = References.of([reference("face", uri="elsewhere/face.png", notes="moved")], [])
    painted = References.of([reference("face", sha256="f" * 64)], [])
    assert planned(moved, **CHARACTER).fingerprint == before
    assert planned(painted, **CHARACTER).fingerprint != before


def test_changing_one_reference_makes_exactly_its_rows_new():
    rows = [
        row(2, prompt_id="a", reference_id="face"),
        row(3, prompt_id="b", reference_id="other-face"),
        row(4, prompt_id="c", style_reference_ids="face"),
        row(5, prompt_id="d"),
    ]
    changed = References(REFERENCES.usable | {"face": reference("face", sha256="f" * 64)}, {})
    before, after = plan(rows), plan(rows, changed)
    stale = [
        new.prompt_id
        for old, new in zip(before.rows, after.rows, strict=True)
        if old.fingerprint != new.fingerprint
    ]
    assert stale == ["a", "c"]


def plan(rows: list[PromptRow], references: References = REFERENCES) -> Plan:
    return plan_batch("default", rows, [], references, {})


@given(table=st.lists(TABLE_ROWS, min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter_to_the_plan(table, order: random.Random):
    rows = numbered(table)
    shuffled = rows.copy()
    order.shuffle(shuffled)
    assert plan(shuffled) == plan(rows)


@given(table=st.lists(TABLE_ROWS, max_size=4), more=st.lists(TABLE_ROWS, max_size=3))
def test_adding_rows_changes_nothing_for_the_others(table, more):
    rows = numbered([*table, *more])
    assert list(plan(rows).rows)[: len(table)] == list(plan(rows[: len(table)]).rows)


def numbered(table: list[Mapping[str, Any]]) -> list[PromptRow]:
    return [row(place, **{**cells, "prompt_id": f"row-{place}"}) for place, cells in enumerate(table, 2)]


def test_the_endpoint_follows_from_the_reference_where_the_row_names_none():
    assert planned().endpoint == "v3"
    assert planned(reference_id="face").endpoint == "character"


def test_the_prompt_is_not_rewritten_and_the_seed_is_set_unless_asked():
    assert planned().arguments["expand_prompt"] is False
    assert planned(expand_prompt="true").arguments["expand_prompt"] is True
    assert planned().seed == planned(prompt="edited").seed != planned(prompt_id="b").seed
    assert planned(seed=42).seed == 42


def test_pictures_stand_in_the_arguments_as_their_digests():
    request = planned(endpoint="character/edit", reference_id="face", image_id="other-face", mask_id="mask")
    digests = {use.field: use.token for use in request.pictures}
    assert request.arguments["reference_image_urls"] == [digests["reference_image_urls"]]
    assert request.arguments["image_url"] == digests["image_url"]
    assert request.arguments["mask_url"] == digests["mask_url"]
    assert digests["mask_url"] == f"sha256:{REFERENCES.usable['mask'].sha256}"


def test_a_palette_of_colours_is_sent_as_channels_with_weights():
    palette = planned(color_palette="#FF8000:0.5|00ff00:0.3").arguments["color_palette"]
    assert palette == {
        "members": [
            {"rgb": {"r": 255, "g": 128, "b": 0}, "color_weight": 0.5},
            {"rgb": {"r": 0, "g": 255, "b": 0}, "color_weight": 0.3},
        ]
    }


def test_a_size_in_pixels_is_sent_as_width_and_height():
    assert planned(image_size="1280x720").arguments["image_size"] == {"width": 1280, "height": 720}


@pytest.mark.parametrize(
    ("cells", "column", "reason"),
    [
        ({"endpoint": "v4"}, "endpoint", "choose one of character, "),
        ({"reference_id": "nobody"}, "reference_id", "there is no reference 'nobody'"),
        ({"reference_id": "broken"}, "reference_id", "r.csv, row 9, column uri: it is empty"),
        ({"reference_id": "heavy"}, "reference_id", "rule R07"),
        ({"endpoint": "character"}, "reference_id", "the endpoint character needs it"),
        ({"endpoint": "v3/edit", "image_id": "face"}, "mask_id", "the endpoint v3/edit needs it"),
        (
            {"endpoint": "v3/edit", "image_id": "face", "mask_id": "small"},
            "mask_id",
            "Scale the mask to 1024x1024",
        ),
        ({"reference_id": "face", "style_preset": "BAUHAUS"}, "style_preset", "leave the cell empty"),
        ({"image_id": "face"}, "image_id", "the endpoint v3 has no image_id"),
        ({"rendering_speed": "FAST"}, "rendering_speed", "(found 'FAST')"),
        ({"num_images": 9}, "num_images", "less than or equal to 8"),
        ({"seed": -1}, "seed", "rule U01"),
        ({"color_palette": "#12"}, "color_palette", "'#12' is no colour"),
        ({"color_palette": "GREEN"}, "color_palette", "(found 'GREEN')"),
        ({"image_size": "poster"}, "image_size", "no size"),
        ({"style_codes": "XYZ"}, "style_codes", "8 hexadecimal characters"),
        (
            {"prompt": "\u200b", "endpoint": "v3/reframe", "image_id": "face"},
            "image_size",
            "the endpoint v3/reframe needs it",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_row_that_cannot_be_sent_says_what_to_change(cells, column, reason):
    found = problem(**cells)
    assert found.column == column
    assert reason in found.reason


def test_an_empty_prompt_is_a_rejection():
    with pytest.raises(RowProblem, match="Say what to paint"):
        plan_row(parse_row(PromptRow, RawRow(2, {"prompt_id": "a"})), REFERENCES)


def test_all_problems_of_a_row_come_at_once():
    found = problem(
        prompt="",
        endpoint="character/edit",
        reference_id="nobody|broken",
        image_id="face",
        image_size="square",
        num_images=9,
        seed=-1,
        rendering_speed="FAST",
    )
    assert [one.column for one in found.problems] == [
        "reference_id",
        "reference_id",
        "mask_id",
        "image_size",
        "rendering_speed",
        "num_images",
        "prompt",
        "seed",
    ]
    assert found.reason.startswith(
        "there is no reference 'nobody' in the references table; reference_id: the refer"
    )
    assert (
        "; image_size: the endpoint character/edit has no image_size; leave the cell empty; " in found.reason
    )


def test_rules_and_missing_references_are_said_together():
    found = problem(prompt="", reference_id="nobody", seed=-1, style_codes="zz")
    assert [one.column for one in found.problems] == ["reference_id", "prompt", "seed", "style_codes"]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("9:16", "portrait_16_9"),
        ("16:9", "landscape_16_9"),
        ("3:4", "portrait_4_3"),
        ("4:3", "landscape_4_3"),
        ("1:1", "square_hd"),
        (" 16 : 9 ", "landscape_16_9"),
        ("09:16", "portrait_16_9"),
        ("16:09:00", "landscape_16_9"),
        (time(16, 9), "landscape_16_9"),
        (time(4, 5), {"width": 896, "height": 1120}),
        ("4:5", {"width": 896, "height": 1120}),
        ("16:10", {"width": 1280, "height": 800}),
        ("16x9", {"width": 16, "height": 9}),
    ],
)
def test_an_aspect_ratio_is_asked_for_by_fals_name_or_its_resolution(written, sent):
    assert planned(image_size=written).arguments["image_size"] == sent


def test_an_aspect_ratio_asks_for_what_its_preset_asks_for_and_is_not_paid_again():
    assert planned(image_size="9:16").fingerprint == planned(image_size="portrait_16_9").fingerprint


@pytest.mark.parametrize("written", ["21:9", "0:0", "16:9:30", "2:3:4"])
def test_another_aspect_ratio_is_a_rejection_that_lists_the_fifteen(written):
    found = problem(image_size=written)
    assert found.column == "image_size"
    assert "4:5" in found.reason or "such as 16:9" in found.reason


def test_a_size_of_endless_digits_is_a_rejection():
    assert problem(image_size=f"{'9' * 5000}x1").column == "image_size"


def entry(state: str, request: GenerationRequest | None = None, at: datetime = NOON) -> Entry:
    """What the ledger holds of a request (`planned()` if none is given) once it was brought to a state."""
    request = request or planned()

    async def write() -> Entry:
        ledger = Ledger(Store.open("memory://"), "default")
        reserved = Reserved(
            request=request,
            sent_sha256="0",
            attempt=1,
            owner="run-1",
            reserved_at=at,
            backend="fal",
            code_version="1",
        )
        await ledger.reserve(reserved)
        if state == "released":
            await ledger.release(request.fingerprint, Released(released_at=NOON, reason="refused"))
        elif state != "reserved":
            submitted = Submitted(
                request_id="1", status_url="", response_url="", cancel_url="", submitted_at=NOON
            )
            await ledger.submitted(request.fingerprint, submitted)
        if state in ("generated", "refused", "failed", "retryable"):
            settled = Settled(
                state="failed" if state == "retryable" else state,
                reason=f"it was {state}",
                retryable=state == "retryable",
                completed_at=NOON,
                cost_usd=None,
                cost_source="unknown",
            )
            await ledger.settle(request.fingerprint, settled)
        return ledger.entries[request.fingerprint]

    return asyncio.run(write())


@pytest.mark.parametrize(
    ("state", "decision"),
    [
        ("reserved", "unknown"),
        ("released", "new"),
        ("submitted", "re-attached"),
        ("retryable", "new"),
        ("generated", "reused"),
        ("refused", "settled"),
        ("failed", "settled"),
    ],
)
def test_the_plan_pays_only_for_what_was_not_paid(state, decision):
    entries = {planned().fingerprint: entry(state)}
    [found] = plan_batch("default", [row()], [], REFERENCES, entries).rows
    assert found.decision == decision


def entries(*known: Entry) -> dict[str, Entry]:
    return {one.last.reserved.request.fingerprint: one for one in known}


def decided(
    known: Mapping[str, Entry], references: References = REFERENCES, /, **cells: Any
) -> tuple[str, str]:
    [found] = plan_batch("default", [row(**cells)], [], references, known).rows
    return found.decision, found.reason


PAINTED = References.of([reference("face", sha256="f" * 64), reference("other-face")], [])
EDIT = {"endpoint": "v3/edit", "image_id": "face", "mask_id": "mask"}


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"seed": 7}, {"seed": 9}, "seed 7 -> 9"),
        ({}, {"prompt": "a harbour"}, "prompt changed"),
        ({}, {"negative_prompt": "blur"}, "negative_prompt changed"),
        ({"color_palette": "EMBER"}, {"color_palette": "MELON"}, "color_palette changed"),
        ({"rendering_speed": "TURBO"}, {"rendering_speed": "QUALITY"}, "rendering_speed TURBO -> QUALITY"),
        ({}, {"style_preset": "BAUHAUS"}, "style_preset none -> BAUHAUS"),
        ({"style_codes": "AAFF5733"}, {"style_codes": "00112233"}, "style_codes AAFF5733 -> 00112233"),
        ({"image_size": "square"}, {"image_size": "1280x720"}, "image_size square -> 1280x720"),
        ({}, {"expand_prompt": True, "num_images": 2}, "expand_prompt false -> true, num_images 1 -> 2"),
        (CHARACTER, {"reference_id": "other-face"}, "reference_id face -> other-face"),
        (CHARACTER, {"reference_id": "face|other-face"}, "reference_id face -> face|other-face"),
        (CHARACTER, {"reference_mask_id": "mask"}, "reference_mask_id none -> mask"),
        ({}, EDIT, "endpoint v3 -> v3/edit"),
        ({}, EDIT | {"seed": 3}, f"endpoint v3 -> v3/edit, seed {planned().seed} -> 3"),
        (EDIT, EDIT | {"image_id": "other-face"}, "image_id face -> other-face"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_row_that_asks_for_something_else_than_before_is_stale_and_says_what(before, after, reason):
    known = entries(entry("generated", planned(**before)))
    assert decided(known, **before | after) == ("stale", reason)


def test_a_row_is_stale_because_of_the_reference_whose_bytes_changed():
    both = CHARACTER | {"reference_id": "other-face|face"}
    known = entries(entry("generated", planned(**both)))
    assert decided(known, PAINTED, **both) == ("stale", "reference face changed")
    twice = {"endpoint": "character/remix", "reference_id": "face", "image_id": "face"}
    known = entries(entry("generated", planned(**twice)))
    assert decided(known, PAINTED, **twice) == ("stale", "reference face changed")


def test_a_stale_row_is_compared_with_its_newest_pictures_or_else_with_its_newest_request():
    hour = timedelta(hours=1)
    first, second, third = (planned(seed=seed) for seed in (1, 2, 3))
    pictures = [entry("generated", second, NOON + hour), entry("generated", first, NOON)]
    failure = entry("failed", third, NOON + 2 * hour)
    assert decided(entries(*pictures, failure), seed=4) == ("stale", "seed 2 -> 4")
    refusal = entry("refused", first, NOON)
    assert decided(entries(failure, refusal), seed=4) == ("stale", "seed 3 -> 4")


def test_a_row_that_asks_again_for_what_it_asked_before_its_last_change_is_reused():
    known = entries(entry("generated", planned(seed=1)), entry("generated", planned(seed=2)))
    assert decided(known, seed=1)[0] == "reused"


def test_what_other_rows_asked_for_makes_no_row_stale():
    assert decided(entries(entry("generated")), prompt_id="b")[0] == "new"


def test_an_entry_that_only_its_fingerprint_tells_apart_says_so():
    assert decided({"0" * 64: entry("generated")}) == (
        "stale",
        "requests are told apart in another way than before",
    )


@given(before=SENDABLE_ROWS, after=SENDABLE_ROWS)
def test_a_row_is_reused_if_and_only_if_it_asks_for_the_same(before, after):
    known = entries(entry("generated", planned(**before)))
    decision, reason = decided(known, **after)
    assert decision == ("reused" if planned(**after).fingerprint in known else "stale")
    assert reason


def test_every_decision_says_why():
    assert decided({}) == ("new", "it was never asked for")
    assert decided(entries(entry("released")))[1].endswith(": refused")
    for state in ("submitted", "reserved"):
        assert "run-1" in decided(entries(entry(state)))[1]
    for state in ("refused", "failed"):
        assert decided(entries(entry(state)))[1] == f"it ended {state} and is not asked again: it was {state}"


def test_the_cost_is_a_range_where_rows_may_be_paid_already():
    rows = [
        row(place, prompt_id=name) for place, name in enumerate(["new", "edited", "sent", "lost", "done"], 2)
    ]
    asked = {one.prompt_id: planned(prompt_id=one.prompt_id) for one in rows}
    known = entries(
        entry("generated", planned(prompt_id="edited", seed=1)),
        entry("submitted", asked["sent"]),
        entry("reserved", asked["lost"]),
        entry("generated", asked["done"]),
    )
    made = plan_batch("default", rows, [], REFERENCES, known)
    assert [found.decision for found in made.rows] == ["new", "stale", "re-attached", "unknown", "reused"]
    assert (made.cost_usd, made.cost_usd_max, made.tally.unpriced) == (0.12, 0.24, 0)
    without = (found.model_copy(update={"price_usd": None}) for found in made.rows)
    unpriced = Plan("default", Rows.of(PlannedRow, without))
    assert (unpriced.cost_usd, unpriced.cost_usd_max, unpriced.tally.unpriced) == (0, 0, 4)


def test_a_plan_shows_every_row_in_the_order_of_the_table_with_its_price():
    rejection = Rejection(file="p.csv", row_number=3, row_id="bad/id", column="prompt_id", reason="no name")
    rows = [
        row(5, prompt_id="c", endpoint="nowhere"),
        row(4, prompt_id="b", reference_id="face", rendering_speed="QUALITY", num_images=3),
        row(2, prompt_id="a", rendering_speed="TURBO"),
    ]
    made = plan_batch("default", rows, [rejection], REFERENCES, {})
    assert [(found.prompt_id, found.decision, found.price_usd) for found in made.rows] == [
        ("a", "new", 0.03),
        ("bad/id", "rejected", None),
        ("b", "new", 0.6),
        ("c", "rejected", None),
    ]
    assert made.cost_usd == 0.63
    assert (made.count("new"), made.count("rejected"), made.tally.unpriced) == (2, 2, 0)


def test_a_planned_row_holds_its_whole_request():
    [found] = plan([row(reference_id="face", campaign="spring")]).rows
    assert found.request == planned(reference_id="face", campaign="spring")
    assert found.request.extra == '{"campaign": "spring"}'


def test_advice_does_not_stop_a_row():
    assert any("only the first" in advice for advice in planned(reference_id="face|other-face").advice)
    reframed = planned(endpoint="v3/reframe", image_id="face", image_size="square")
    assert "prompt: the endpoint has no prompt; it is not sent" in reframed.advice


STATES = ("new", "reserved", "released", "submitted", "retryable", "generated", "refused", "failed")
CHOICES = st.builds(
    Choice,
    regenerate=st.booleans(),
    only_failed=st.booleans(),
    limit=st.none() | st.integers(1, 4),
)


@pytest.fixture(scope="module")
def in_every_state() -> tuple[list[PromptRow], dict[str, dict[str, Entry]]]:
    """A row for each state, and what the ledger holds of it then."""
    rows = [row(number, prompt_id=state) for number, state in enumerate(STATES, 2)]
    entries = {}
    for one in rows[1:]:
        request = plan_row(one, REFERENCES)
        entries[one.prompt_id] = {request.fingerprint: entry(one.prompt_id, request)}
    return rows, entries


@given(choice=CHOICES, states=st.sets(st.sampled_from(STATES)), left_without=st.sets(st.sampled_from(STATES)))
def test_whatever_is_asked_for_every_row_has_a_decision_and_a_retry_decides_the_same(
    in_every_state, choice, states, left_without
):
    rows, by_state = in_every_state
    rows = [one for one in rows if one.prompt_id in states]
    entries = {
        fingerprint: known
        for state in states & set(by_state)
        for fingerprint, known in by_state[state].items()
    }
    decisions = Decisions(Store.open("memory://"), "default", "run-1")
    left = dict.fromkeys(left_without)

    def plan(known: dict[str, Entry]) -> Plan:
        return plan_batch(
            "default",
            rows,
            [],
            REFERENCES,
            known,
            choice=choice,
            left_without=left,
            decisions=decisions,
        )

    made = plan(entries)
    assert [found.prompt_id for found in made.rows] == [one.prompt_id for one in rows]
    to_pay = [found for found in made.rows if found.decision == "new"]
    assert choice.limit is None or len(to_pay) <= choice.limit
    for found in made.rows:
        request = found.request
        assert request is not None
        if request.take:
            assert choice.regenerate
            assert found.prompt_id in ("generated", "refused", "failed")
            assert not (choice.only_failed and found.prompt_id == "generated")
        if found.decision == "left out":
            assert choice.only_failed or choice.limit
    paid = {found.fingerprint: generated(found.request_json) for found in to_pay if found.request_json}
    retried = plan(entries | paid)
    assert [found for found in retried.rows if found.decision == "new"] == []
    assert {found.fingerprint for found in to_pay} <= {found.fingerprint for found in retried.rows}


@cache
def generated(request_json: str) -> Entry:
    return entry("generated", GenerationRequest.model_validate_json(request_json))
