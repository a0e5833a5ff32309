"""What fal and Ideogram ask of an input beyond its types, checked before it is paid for.

What belongs here: rules between fields and about the pictures. A ``Violation`` is refused before it costs
anything; an ``Advice`` may run, but the result may surprise. Pictures nobody has looked at are not judged.

===  =========  ========================================================================  =============
id   outcome    rule                                                                      said by
===  =========  ========================================================================  =============
R01  violation  style and style_codes exclude each other; AUTO counts as no style         fal
R02  violation  style_codes and image_urls exclude each other                             fal
R03  violation  a style code is 8 hexadecimal characters                                  fal
R04  violation  a palette has exactly one of name and members                             fal
R05  violation  a palette has 1 to 8 members                                              Ideogram
R05  advice     the members' weights descend                                              Ideogram
R06  violation  style references are JPEG, PNG or WebP, 10 MB together                    fal
R07  violation  at least one character reference; JPEG, PNG or WebP, 10 MB together       fal
R07  advice     only the first character reference is used                                fal
R08  violation  no reference mask without a reference; JPEG, PNG or WebP, 10 MB together  fal
R08  violation  a reference mask has its reference's pixels                               Ideogram
R08  advice     only the first reference mask is used                                     fal
R09  violation  mask and source have the same pixels                                      fal
R10  advice     which colour of a mask is repainted is uncertain                          they disagree
R11  advice     a custom size comes back as the nearest resolution                        Ideogram
R13  advice     a remix source is cropped to the wanted aspect ratio                      Ideogram
R14  advice     an edit comes back in the resolution nearest to its source                Ideogram
R17  advice     style references or codes beside a character may be refused               Ideogram
U01  violation  a seed is 0 to 2147483647                                                 Ideogram
U02  advice     a prompt has at most 10,000 characters                                    Ideogram
U03  advice     source and mask are JPEG, PNG or WebP of at most 10 MB each               Ideogram
P01  violation  a prompt has words                                                        this project
P02  advice     a mask has black and white                                                this project
===  =========  ========================================================================  =============

"fal" is the prose of fal's field descriptions and of its Ideogram Character page, "Ideogram" the OpenAPI
document and reference of Ideogram's own API, which fal calls.

The numbers without a row are kept elsewhere: R12, R18 and R19 by the types and ``wire`` in ``endpoints``, R15
and R16 by the descriptions of ``strength`` and ``expand_prompt``, R20 by ``prices``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ideogram_pipeline.ideogram.endpoints import (
    Characterful,
    CharacterStyled,
    ColorPalette,
    IdeogramInput,
    ImageSize,
    Masked,
    Prompted,
    Remixed,
    Sized,
    V3ReframeInput,
    V3Styled,
)
from ideogram_pipeline.ideogram.sizes import RESOLUTIONS, Size, expected_size, snap

RuleId = Literal[
    "R01",
    "R02",
    "R03",
    "R04",
    "R05",
    "R06",
    "R07",
    "R08",
    "R09",
    "R10",
    "R11",
    "R13",
    "R14",
    "R17",
    "U01",
    "U02",
    "U03",
    "P01",
    "P02",
]
"""R: a rule of fal's or Ideogram's for an input, U: a limit Ideogram alone states, P: this project's own."""

MAX_TOTAL_BYTES = 10_000_000
"""Limit of each group of references. fal says 10 MB; the smaller reading of a megabyte is the safe one."""

_MAX_PROMPT_CHARACTERS = 10_000
_MAX_SEED = 2_147_483_647
_MAX_PALETTE_MEMBERS = 8
_KINDS = ("jpeg", "png", "webp")
_STYLE_CODE = re.compile(r"[0-9a-fA-F]{8}")


MaskLook = Literal["black and white", "white", "black", "transparent"]
"""How a picture reads as a mask: in both colours, in one, or by what is transparent in it."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What is known of a picture an input refers to."""

    kind: str
    """What its bytes are, in lower case: ``jpeg``, ``png``, ``webp`` or another format's name."""
    bytes: int
    """Length of the file."""
    width: int
    """Pixels across."""
    height: int
    """Pixels down."""
    is_turned: bool = False
    """Whether its file says how it is to be turned: ``width`` and ``height`` are those of the picture upright."""
    as_mask: MaskLook | None = None
    """How it would read as a mask, where somebody has looked."""

    @property
    def size(self) -> Size:
        """The pixels as a ``Size``."""
        return Size(self.width, self.height)


Known = tuple[PictureFacts | None, ...]
"""Facts in the order of the field's URLs; None stands for a picture nobody has looked at."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of one input, by the part they play."""

    references: Known = ()
    """Of ``reference_image_urls``."""
    reference_masks: Known = ()
    """Of ``reference_mask_urls``."""
    style_references: Known = ()
    """Of ``image_urls``."""
    image: PictureFacts | None = None
    """Of ``image_url``."""
    mask: PictureFacts | None = None
    """Of ``mask_url``."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A reason not to send an input."""

    rule: RuleId
    """Which rule of the table above."""
    field: str
    """The field to change."""
    message: str
    """What is wrong."""
    fix: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.field}: {self.message} {self.fix} ({self.rule})"


@dataclass(frozen=True, slots=True)
class Advice:
    """Something the result of an input may surprise with."""

    rule: RuleId
    """Which rule of the table above."""
    field: str
    """The field it is about."""
    message: str
    """What to expect, and how to avoid it."""

    def __str__(self) -> str:
        return f"{self.field}: {self.message} ({self.rule})"


Finding = Violation | Advice
"""What a check finds."""


def check(request: IdeogramInput, pictures: Pictures = Pictures()) -> list[Finding]:
    """Everything there is to say about an input, in the order of its checks; empty when all is well."""
    return [
        *_prompt(request),
        *_seed(request),
        *_style(request),
        *_palette(request.color_palette),
        *_group("R06", "image_urls", pictures.style_references),
        *_character(request, pictures),
        *_size(request),
        *_source(request, pictures),
    ]


def _prompt(request: IdeogramInput) -> Iterator[Finding]:
    if not isinstance(request, Prompted):
        return
    if not request.prompt.strip():
        yield Violation("P01", "prompt", "The prompt is empty.", "Say what to paint.")
    if len(request.prompt) > _MAX_PROMPT_CHARACTERS:
        yield Advice(
            "U02",
            "prompt",
            f"The prompt has {len(request.prompt)} characters; Ideogram's limit is {_MAX_PROMPT_CHARACTERS}. "
            "Shorten it.",
        )


def _seed(request: IdeogramInput) -> Iterator[Finding]:
    if request.seed is not None and not 0 <= request.seed <= _MAX_SEED:
        yield Violation(
            "U01",
            "seed",
            f"The seed {request.seed} is out of range.",
            f"Choose one from 0 to {_MAX_SEED}, or none.",
        )


def _style(request: IdeogramInput) -> Iterator[Finding]:
    codes = request.style_codes or ()
    if codes and isinstance(request, CharacterStyled | V3Styled) and request.style not in (None, "AUTO"):
        yield Violation(
            "R01",
            "style",
            f"The style {request.style} contradicts the style codes.",
            "Leave out either style or style_codes.",
        )
    if codes and request.image_urls:
        yield Violation(
            "R02",
            "style_codes",
            "Style codes and style references (image_urls) exclude each other.",
            "Leave out one of the two.",
        )
    for code in codes:
        if not _STYLE_CODE.fullmatch(code):
            yield Violation(
                "R03",
                "style_codes",
                f"{code!r} is not a style code.",
                "A style code is 8 hexadecimal characters, for example AAFF5733.",
            )


def _palette(palette: ColorPalette | None) -> Iterator[Finding]:
    if palette is None:
        return
    if (palette.name is None) == (palette.members is None):
        had = "neither a name nor members" if palette.name is None else "both a name and members"
        yield Violation("R04", "color_palette", f"The palette has {had}.", "Give exactly one of them.")
    if palette.members is None:
        return
    if not 1 <= len(palette.members) <= _MAX_PALETTE_MEMBERS:
        yield Violation(
            "R05",
            "color_palette",
            f"The palette has {len(palette.members)} members.",
            f"Give 1 to {_MAX_PALETTE_MEMBERS} colours.",
        )
    weights = [member.color_weight for member in palette.members if member.color_weight is not None]
    if weights != sorted(weights, reverse=True):
        yield Advice(
            "R05", "color_palette", "Ideogram expects descending weights. Put the heaviest colour first."
        )


def _group(rule: RuleId, field: str, pictures: Known) -> Iterator[Finding]:
    """Kinds and total bytes of one group of references."""
    known = [picture for picture in pictures if picture is not None]
    for picture in known:
        if picture.kind not in _KINDS:
            yield Violation(rule, field, f"A picture is {picture.kind}.", "Convert it to JPEG, PNG or WebP.")
    total = sum(picture.bytes for picture in known)
    if total > MAX_TOTAL_BYTES:
        yield Violation(
            rule,
            field,
            f"The pictures have {total} bytes together, more than {MAX_TOTAL_BYTES} (10 MB).",
            "Scale or compress them.",
        )


def _character(request: IdeogramInput, pictures: Pictures) -> Iterator[Finding]:
    if not isinstance(request, Characterful):
        return
    references, masks = len(request.reference_image_urls), len(request.reference_mask_urls)
    if references == 0:
        yield Violation(
            "R07",
            "reference_image_urls",
            "There is no character reference.",
            "Give one picture of the character.",
        )
    if references > 1:
        yield Advice(
            "R07",
            "reference_image_urls",
            f"fal uses only the first of the {references} references. Put the best one first.",
        )
    yield from _group("R07", "reference_image_urls", pictures.references)

    if masks > references:
        yield Violation(
            "R08",
            "reference_mask_urls",
            f"There are {masks} reference masks for {references} references.",
            "Give each mask its reference, or leave it out.",
        )
    if masks > 1:
        yield Advice("R08", "reference_mask_urls", f"fal uses only the first of the {masks} reference masks.")
    yield from _group("R08", "reference_mask_urls", pictures.reference_masks)
    if pictures.references and pictures.reference_masks:
        yield from _same_pixels(
            "R08", "reference_mask_urls", pictures.reference_masks[0], pictures.references[0], "its reference"
        )
        yield from _two_colours("reference_mask_urls", pictures.reference_masks[0])

    if request.style_codes or request.image_urls:
        yield Advice(
            "R17",
            "style_codes" if request.style_codes else "image_urls",
            "Ideogram takes style codes and style references beside a character from some accounts only, and "
            "only with the style AUTO; whether from fal's is unknown. Try one request before a batch.",
        )


def _size(request: IdeogramInput) -> Iterator[Finding]:
    if not isinstance(request, Sized | V3ReframeInput) or not isinstance(request.image_size, ImageSize):
        return
    wanted = Size(request.image_size.width, request.image_size.height)
    if wanted not in RESOLUTIONS:
        yield Advice(
            "R11",
            "image_size",
            f"Ideogram does not render {wanted}; expect {snap(*wanted)}, the nearest it does.",
        )


def _source(request: IdeogramInput, pictures: Pictures) -> Iterator[Finding]:
    for field, picture in (("image_url", pictures.image), ("mask_url", pictures.mask)):
        if picture and (picture.kind not in _KINDS or picture.bytes > MAX_TOTAL_BYTES):
            yield Advice(
                "U03",
                field,
                f"The picture is {picture.kind} of {picture.bytes} bytes; Ideogram is sure to take only JPEG, "
                f"PNG and WebP up to {MAX_TOTAL_BYTES} bytes (10 MB). Convert or compress it.",
            )
    if isinstance(request, Masked):
        yield from _edit(pictures)
    if isinstance(request, Remixed) and isinstance(request, Sized) and pictures.image:
        yield from _crop(pictures.image.size, expected_size(request.image_size))


def _edit(pictures: Pictures) -> Iterator[Finding]:
    yield from _same_pixels("R09", "mask_url", pictures.mask, pictures.image, "the source")
    yield from _two_colours("mask_url", pictures.mask)
    yield Advice(
        "R10",
        "mask_url",
        "Ideogram repaints where a mask is black, fal does not say, and public code for fal paints white. "
        "Try one request before a batch.",
    )
    if pictures.image and pictures.image.size not in RESOLUTIONS:
        source = pictures.image.size
        yield Advice(
            "R14",
            "image_url",
            f"Ideogram does not render the source's {source}; expect {snap(*source)}, the nearest it does.",
        )


def _crop(source: Size, target: Size) -> Iterator[Finding]:
    """Nothing when no resolution is nearer to the source's shape than the target is."""
    nearest = snap(*source)
    if nearest != target:
        yield Advice(
            "R13",
            "image_size",
            f"The source's {source} is cropped to the shape of {target} first. To keep its edges, set "
            f"image_size to width {nearest.width}, height {nearest.height}.",
        )


def _same_pixels(
    rule: RuleId, field: str, mask: PictureFacts | None, picture: PictureFacts | None, whose: str
) -> Iterator[Finding]:
    if mask is None or picture is None or mask.size == picture.size:
        return
    turned = " upright, as its EXIF says and as it is sent" if picture.is_turned else ""
    if mask.width * picture.height == mask.height * picture.width:
        fix = f"Scale the mask to {picture.size}."
    elif mask.size == Size(picture.height, picture.width):
        fix = f"Turn the mask as {whose} is turned, so that both show the same, at {picture.size}."
    else:
        fix = f"Scaling would distort it: paint or export the mask anew over {whose}, at {picture.size}."
    yield Violation(rule, field, f"The mask is {mask.size}, but {whose} is {picture.size}{turned}.", fix)


def _two_colours(field: str, mask: PictureFacts | None) -> Iterator[Finding]:
    """Black and white are how a mask speaks, whichever of them is repainted."""
    match mask and mask.as_mask:
        case "white" | "black" as colour:
            yield Advice(
                "P02",
                field,
                f"The mask is all {colour}: it marks everything or nothing. Paint the region in black and the rest in "
                "white, or the other way round, before you pay for it.",
            )
        case "transparent":
            yield Advice(
                "P02",
                field,
                "The mask marks by transparency: without it, it is another mask, and nobody says that fal looks at it. "
                "Save it in black and white, with no transparency, before you pay for it.",
            )
