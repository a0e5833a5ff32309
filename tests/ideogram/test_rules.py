"""Every rule with an input that breaks it and a near one that keeps it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.ideogram import (
    ENDPOINTS,
    MAX_TOTAL_BYTES,
    Advice,
    IdeogramInput,
    PictureFacts,
    Pictures,
    RuleId,
    Violation,
    check,
    rules,
)

LIMITS: dict[str, Any] = json.loads(Path(__file__).with_name("endpoints.json").read_text())["limits"]

FACE, SOURCE, MASK = (
    "https://example.org/face.png",
    "https://example.org/source.png",
    "https://example.org/mask.png",
)
SCENE = {"prompt": "a lighthouse"}
CHARACTER = SCENE | {"reference_image_urls": [FACE]}
REMIX = SCENE | {"image_url": SOURCE}
EDIT = REMIX | {"mask_url": MASK}
RED = {"rgb": {"r": 255}}
UNKNOWN = Pictures()


def picture(
    kind: str = "png",
    bytes: int = 1000,
    width: int = 1024,
    height: int = 1024,
    *,
    is_turned: bool = False,
    as_mask: rules.MaskLook | None = None,
) -> PictureFacts:
    return PictureFacts(kind, bytes, width, height, is_turned, as_mask)


def palette(count: int) -> dict[str, Any]:
    return SCENE | {"color_palette": {"members": [RED] * count}}


def weights(*values: float | None) -> dict[str, Any]:
    return SCENE | {"color_palette": {"members": [RED | {"color_weight": value} for value in values]}}


@dataclass(frozen=True)
class Case:
    """A rule, an input that breaks it and one that keeps it."""

    rule: RuleId
    outcome: type[Violation] | type[Advice]
    field: str
    endpoint: str
    bad: dict[str, Any]
    good: dict[str, Any]
    bad_pictures: Pictures = UNKNOWN
    good_pictures: Pictures = UNKNOWN

    def __str__(self) -> str:
        return f"{self.rule}-{self.outcome.__name__.lower()}-{self.endpoint}-{self.field}"


CODES = {"style_codes": ["AAFF5733"]}
FULL = picture(bytes=MAX_TOTAL_BYTES)
OVERFULL = (picture(bytes=MAX_TOTAL_BYTES), None, picture(bytes=1))
CASES = [
    Case("R01", Violation, "style", "character", CHARACTER | CODES | {"style": "FICTION"}, CHARACTER | CODES),
    Case(
        "R01",
        Violation,
        "style",
        "v3",
        SCENE | CODES | {"style": "DESIGN"},
        SCENE | CODES | {"style": "AUTO"},
    ),
    Case(
        "R02",
        Violation,
        "style_codes",
        "v3",
        SCENE | CODES | {"image_urls": [FACE]},
        SCENE | CODES | {"image_urls": []},
    ),
    Case(
        "R03",
        Violation,
        "style_codes",
        "v3",
        SCENE | {"style_codes": ["AAFF5733", "#AFF5733"]},
        SCENE | CODES,
    ),
    Case("R03", Violation, "style_codes", "v3", SCENE | {"style_codes": ["AAFF5733\n"]}, SCENE | CODES),
    Case(
        "R04",
        Violation,
        "color_palette",
        "v3",
        SCENE | {"color_palette": {}},
        SCENE | {"color_palette": {"name": "EMBER"}},
    ),
    Case(
        "R04",
        Violation,
        "color_palette",
        "v3",
        SCENE | {"color_palette": {"name": "EMBER", "members": [RED]}},
        SCENE | {"color_palette": {"members": [RED]}},
    ),
    Case("R05", Violation, "color_palette", "v3", palette(0), palette(LIMITS["palette_members"]["min"])),
    Case("R05", Violation, "color_palette", "v3", palette(9), palette(LIMITS["palette_members"]["max"])),
    Case("R05", Advice, "color_palette", "v3", weights(0.2, 0.9), weights(0.9, None, 0.5, 0.5, 0.2)),
    Case(
        "R06",
        Violation,
        "image_urls",
        "v3",
        SCENE | {"image_urls": [FACE] * 3},
        SCENE | {"image_urls": [FACE]},
        Pictures(style_references=OVERFULL),
        Pictures(style_references=(FULL,)),
    ),
    Case(
        "R06",
        Violation,
        "image_urls",
        "v3",
        SCENE | {"image_urls": [FACE]},
        SCENE | {"image_urls": [FACE]},
        Pictures(style_references=(picture("gif"),)),
        Pictures(style_references=(picture("webp"),)),
    ),
    Case(
        "R07", Violation, "reference_image_urls", "character", SCENE | {"reference_image_urls": []}, CHARACTER
    ),
    Case(
        "R07",
        Violation,
        "reference_image_urls",
        "character",
        SCENE | {"reference_image_urls": [FACE] * 3},
        CHARACTER,
        Pictures(references=OVERFULL),
        Pictures(references=(FULL,)),
    ),
    Case(
        "R07",
        Violation,
        "reference_image_urls",
        "character",
        CHARACTER,
        CHARACTER,
        Pictures(references=(picture("tiff"),)),
        Pictures(references=(picture("jpeg"),)),
    ),
    Case(
        "R07",
        Advice,
        "reference_image_urls",
        "character",
        SCENE | {"reference_image_urls": [FACE] * 2},
        CHARACTER,
    ),
    Case(
        "R08",
        Violation,
        "reference_mask_urls",
        "character",
        SCENE | {"reference_image_urls": [], "reference_mask_urls": [MASK]},
        CHARACTER | {"reference_mask_urls": [MASK]},
    ),
    Case(
        "R08",
        Violation,
        "reference_mask_urls",
        "character",
        CHARACTER | {"reference_mask_urls": [MASK]},
        CHARACTER | {"reference_mask_urls": [MASK]},
        Pictures(references=(picture(),), reference_masks=(picture(width=1023),)),
        Pictures(references=(picture(),), reference_masks=(picture(),)),
    ),
    Case(
        "R08",
        Violation,
        "reference_mask_urls",
        "character",
        CHARACTER | {"reference_mask_urls": [MASK]},
        CHARACTER | {"reference_mask_urls": [MASK]},
        Pictures(reference_masks=(picture(bytes=MAX_TOTAL_BYTES + 1),)),
        Pictures(reference_masks=(FULL,)),
    ),
    Case(
        "R08",
        Advice,
        "reference_mask_urls",
        "character",
        SCENE | {"reference_image_urls": [FACE] * 2, "reference_mask_urls": [MASK] * 2},
        SCENE | {"reference_image_urls": [FACE] * 2, "reference_mask_urls": [MASK]},
    ),
    *(
        Case(
            "R09",
            Violation,
            "mask_url",
            endpoint,
            body,
            body,
            Pictures(image=picture(), mask=picture(height=1025)),
            Pictures(image=picture(), mask=picture()),
        )
        for endpoint, body in (("v3/edit", EDIT), ("character/edit", EDIT | CHARACTER))
    ),
    Case(
        "R11",
        Advice,
        "image_size",
        "v3",
        SCENE | {"image_size": {"width": 1920, "height": 1080}},
        SCENE | {"image_size": {"width": 1312, "height": 736}},
    ),
    Case(
        "R11",
        Advice,
        "image_size",
        "v3/reframe",
        {"image_url": SOURCE, "image_size": {}},
        {"image_url": SOURCE, "image_size": "square"},
    ),
    *(
        Case(
            "R13",
            Advice,
            "image_size",
            endpoint,
            body,
            body | {"image_size": "landscape_16_9"},
            Pictures(image=picture(width=1920, height=1080)),
            Pictures(image=picture(width=1920, height=1080)),
        )
        for endpoint, body in (("v3/remix", REMIX), ("character/remix", REMIX | CHARACTER))
    ),
    *(
        Case(
            "P02",
            Advice,
            "mask_url",
            "v3/edit",
            EDIT,
            EDIT,
            Pictures(image=picture(), mask=picture(as_mask=look)),
            Pictures(image=picture(), mask=picture(as_mask="black and white")),
        )
        for look in ("white", "black", "transparent")
    ),
    Case(
        "P02",
        Advice,
        "reference_mask_urls",
        "character",
        CHARACTER | {"reference_mask_urls": [MASK]},
        CHARACTER | {"reference_mask_urls": [MASK]},
        Pictures(references=(picture(),), reference_masks=(picture(as_mask="black"),)),
        Pictures(references=(picture(),), reference_masks=(picture(as_mask="black and white"),)),
    ),
    Case(
        "R14",
        Advice,
        "image_url",
        "v3/edit",
        EDIT,
        EDIT,
        Pictures(image=picture(width=1000, height=1000)),
        Pictures(image=picture(width=1312, height=736)),
    ),
    Case("R17", Advice, "style_codes", "character", CHARACTER | CODES, CHARACTER),
    Case(
        "R17",
        Advice,
        "image_urls",
        "character/edit",
        EDIT | CHARACTER | {"image_urls": [FACE]},
        EDIT | CHARACTER,
    ),
    Case("U01", Violation, "seed", "v3", SCENE | {"seed": -1}, SCENE | {"seed": LIMITS["seed"]["min"]}),
    Case("U01", Violation, "seed", "v3", SCENE | {"seed": 2**31}, SCENE | {"seed": LIMITS["seed"]["max"]}),
    Case("U02", Advice, "prompt", "v3", {"prompt": "x" * 10_001}, {"prompt": "x" * LIMITS["prompt_chars"]}),
    Case(
        "U03",
        Advice,
        "image_url",
        "v3/remix",
        REMIX,
        REMIX,
        Pictures(image=picture(bytes=MAX_TOTAL_BYTES + 1)),
        Pictures(image=FULL),
    ),
    Case(
        "U03",
        Advice,
        "mask_url",
        "v3/edit",
        EDIT,
        EDIT,
        Pictures(mask=picture("bmp")),
        Pictures(mask=picture()),
    ),
    Case("P01", Violation, "prompt", "v3", {"prompt": " \n"}, SCENE),
]


def parse(endpoint: str, body: dict[str, Any]) -> IdeogramInput:
    return ENDPOINTS[endpoint].input_model.model_validate(body)


def found(endpoint: str, body: dict[str, Any], pictures: Pictures) -> set[tuple[type, str, str]]:
    return {
        (type(finding), finding.rule, finding.field) for finding in check(parse(endpoint, body), pictures)
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_broken_rule_is_found(case: Case) -> None:
    assert (case.outcome, case.rule, case.field) in found(case.endpoint, case.bad, case.bad_pictures)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kept_rule_is_not_found(case: Case) -> None:
    assert (case.outcome, case.rule, case.field) not in found(case.endpoint, case.good, case.good_pictures)


@pytest.mark.parametrize(("endpoint", "body"), [("v3/edit", EDIT), ("character/edit", EDIT | CHARACTER)])
def test_an_edit_is_always_advised_that_mask_colours_are_uncertain(
    endpoint: str, body: dict[str, Any]
) -> None:
    assert (Advice, "R10", "mask_url") in found(endpoint, body, Pictures())


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("character", CHARACTER),
        ("character/remix", CHARACTER | REMIX),
        ("v3", SCENE),
        ("v3/remix", REMIX),
        ("v3/reframe", {"image_url": SOURCE, "image_size": "square_hd"}),
        ("v3/replace-background", REMIX),
    ],
)
def test_a_plain_input_without_a_mask_has_no_findings(endpoint: str, body: dict[str, Any]) -> None:
    square = picture()
    assert check(parse(endpoint, body), Pictures(references=(square,), image=square)) == []


@pytest.mark.parametrize(
    ("mask", "source", "says"),
    [
        (picture(width=800, height=600), picture(width=400, height=300), "Scale the mask to 400x300."),
        (
            picture(width=400, height=300),
            picture(width=300, height=400, is_turned=True),
            "the source is 300x400 upright, as its EXIF says and as it is sent. Turn the mask as the source is turned",
        ),
        (
            picture(width=1000, height=300),
            picture(width=400, height=300),
            "Scaling would distort it: paint or export the mask anew over the source, at 400x300.",
        ),
    ],
    ids=["of the same shape", "on its side", "of another shape"],
)
def test_a_mask_of_another_size_is_told_what_mends_it(mask, source, says):
    first, *_ = check(parse("v3/edit", EDIT), Pictures(image=source, mask=mask))
    assert says in str(first)


def test_the_documented_table_is_what_the_cases_cover() -> None:
    documented = set(re.findall(r"^([RUP]\d\d)  (violation|advice) ", rules.__doc__ or "", re.MULTILINE))
    covered = {(case.rule, case.outcome.__name__.lower()) for case in CASES}
    # R10 advises on every edit, so no input keeps it and its test stands apart.
    assert documented == covered | {("R10", "advice")}
    assert {rule for rule, _ in documented} == set(get_args(RuleId))


def test_the_limit_of_references_is_the_published_one() -> None:
    assert LIMITS["references_total_mb"] * 10**6 == MAX_TOTAL_BYTES


@pytest.mark.parametrize(
    ("body", "pictures", "size"),
    [
        (SCENE | {"image_size": {"width": 1920, "height": 1080}}, Pictures(), "expect 1312x736"),
        (SCENE | {"image_size": {"width": 600}}, Pictures(), "does not render 600x512"),
    ],
)
def test_advice_on_a_custom_size_names_the_pixels(
    body: dict[str, Any], pictures: Pictures, size: str
) -> None:
    (advice,) = check(parse("v3", body), pictures)
    assert size in advice.message


def test_advice_on_a_remix_names_the_size_that_keeps_the_edges() -> None:
    wide = Pictures(image=picture(width=1920, height=1080))
    (advice,) = check(parse("v3/remix", REMIX), wide)
    assert "set image_size to width 1312, height 736" in advice.message
    followed = REMIX | {"image_size": {"width": 1312, "height": 736}}
    assert check(parse("v3/remix", followed), wide) == []


def test_a_violation_reads_as_field_problem_fix_and_rule() -> None:
    (violation,) = check(parse("v3", SCENE | {"seed": -1}))
    assert (
        str(violation) == "seed: The seed -1 is out of range. Choose one from 0 to 2147483647, or none. (U01)"
    )


def test_an_advice_reads_as_field_message_and_rule() -> None:
    (advice,) = check(parse("v3", weights(0.1, 0.2)))
    assert str(advice) == (
        "color_palette: Ideogram expects descending weights. Put the heaviest colour first. (R05)"
    )


@given(st.lists(st.none() | st.integers(0, 2 * MAX_TOTAL_BYTES), max_size=4))
def test_only_the_bytes_that_are_known_count(sizes: list[int | None]) -> None:
    known = tuple(None if size is None else picture(bytes=size) for size in sizes)
    body = SCENE | {"image_urls": [FACE] * len(sizes)}
    too_large = sum(size or 0 for size in sizes) > MAX_TOTAL_BYTES
    assert (found("v3", body, Pictures(style_references=known)) != set()) == too_large
