"""The eight Ideogram V3 endpoints on fal, as types.

What belongs here: which fields an endpoint has, their types, defaults, enums and ranges exactly as fal's
OpenAPI documents declare them (``https://fal.ai/api/openapi/queue/openapi.json?endpoint_id=<id>``, as of
2026-09-25), and ``wire``, which turns a parsed input into the JSON body to send. What fal says only in prose
is in ``rules``.

Fields that several endpoints share are written once, in the parts below; an input model is a list of its
parts, and ``isinstance(request, Remixed)`` asks whether a request has what that part brings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

RenderingSpeed = Literal["TURBO", "BALANCED", "QUALITY"]
"""Speed and quality tier; it also sets the price."""

CharacterStyle = Literal["AUTO", "REALISTIC", "FICTION"]
"""Rendering families of the character endpoints."""

V3Style = Literal["AUTO", "GENERAL", "REALISTIC", "DESIGN"]
"""Rendering families of the endpoints without a character."""

ImageSizePreset = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]
"""Names fal gives to output sizes; ``sizes`` knows the pixels."""

PaletteName = Literal["EMBER", "FRESH", "JUNGLE", "MAGIC", "MELON", "MOSAIC", "PASTEL", "ULTRAMARINE"]
"""Named colour palettes."""

StylePreset = Literal[
    "80S_ILLUSTRATION",
    "90S_NOSTALGIA",
    "ABSTRACT_ORGANIC",
    "ANALOG_NOSTALGIA",
    "ART_BRUT",
    "ART_DECO",
    "ART_POSTER",
    "AURA",
    "AVANT_GARDE",
    "BAUHAUS",
    "BLUEPRINT",
    "BLURRY_MOTION",
    "BRIGHT_ART",
    "C4D_CARTOON",
    "CHILDRENS_BOOK",
    "COLLAGE",
    "COLORING_BOOK_I",
    "COLORING_BOOK_II",
    "CUBISM",
    "DARK_AURA",
    "DOODLE",
    "DOUBLE_EXPOSURE",
    "DRAMATIC_CINEMA",
    "EDITORIAL",
    "EMOTIONAL_MINIMAL",
    "ETHEREAL_PARTY",
    "EXPIRED_FILM",
    "FLAT_ART",
    "FLAT_VECTOR",
    "FOREST_REVERIE",
    "GEO_MINIMALIST",
    "GLASS_PRISM",
    "GOLDEN_HOUR",
    "GRAFFITI_I",
    "GRAFFITI_II",
    "HALFTONE_PRINT",
    "HIGH_CONTRAST",
    "HIPPIE_ERA",
    "ICONIC",
    "JAPANDI_FUSION",
    "JAZZY",
    "LONG_EXPOSURE",
    "MAGAZINE_EDITORIAL",
    "MINIMAL_ILLUSTRATION",
    "MIXED_MEDIA",
    "MONOCHROME",
    "NIGHTLIFE",
    "OIL_PAINTING",
    "OLD_CARTOONS",
    "PAINT_GESTURE",
    "POP_ART",
    "RETRO_ETCHING",
    "RIVIERA_POP",
    "SPOTLIGHT_80S",
    "STYLIZED_RED",
    "SURREAL_COLLAGE",
    "TRAVEL_POSTER",
    "VINTAGE_GEO",
    "VINTAGE_POSTER",
    "WATERCOLOR",
    "WEIRD",
    "WOODBLOCK_PRINT",
]
"""The 62 named looks."""


class _Strict(BaseModel):
    """Immutable, and a field the endpoint lacks is an error: fal lets surplus fields pass in its schemas (R19).

    Null in a field that has a default means the default, so that requests which ask for the same are equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RGBColor(_Strict):
    """One colour; a missing channel is 0."""

    r: int = Field(default=0, ge=0, le=255, description="Red, 0 to 255.")
    g: int = Field(default=0, ge=0, le=255, description="Green, 0 to 255.")
    b: int = Field(default=0, ge=0, le=255, description="Blue, 0 to 255.")


class ColorPaletteMember(_Strict):
    """One colour of a palette and its share."""

    rgb: RGBColor = Field(
        description="The colour, as channels: fal's prose says hexadecimal, its schema does not."
    )
    color_weight: float | None = Field(default=0.5, ge=0.05, le=1, description="Share of the colour.")

    @field_validator("color_weight")
    @classmethod
    def _null_is_the_default(cls, weight: float | None) -> float:
        return 0.5 if weight is None else weight


class ColorPalette(_Strict):
    """Colours to steer towards: a named palette or a list of colours (exactly one of them, rule R04)."""

    name: PaletteName | None = Field(default=None, description="A named palette.")
    members: tuple[ColorPaletteMember, ...] | None = Field(default=None, description="Explicit colours.")


class ImageSize(_Strict):
    """A size in pixels. fal accepts these bounds; Ideogram renders only the resolutions in ``sizes``."""

    width: int = Field(default=512, gt=0, le=14142, description="Pixels across.")
    height: int = Field(default=512, gt=0, le=14142, description="Pixels down.")


class IdeogramInput(_Strict):
    """What every endpoint takes. Pictures are http(s) URLs or base64 data URIs."""

    image_urls: tuple[str, ...] | None = Field(
        default=None, description="Style references: pictures whose look is imitated, not who is in them."
    )
    rendering_speed: RenderingSpeed = Field(
        default="BALANCED", description="Speed tier, which sets the price."
    )
    color_palette: ColorPalette | None = Field(default=None, description="Colours to steer towards.")
    style_codes: tuple[str, ...] | None = Field(
        default=None, description="Style codes of 8 hexadecimal characters each."
    )
    num_images: int = Field(
        default=1, ge=1, le=8, description="Pictures per request; the price multiplies by it."
    )
    seed: int | None = Field(
        default=None, description="Random seed of the whole request; fal declares no bounds."
    )
    sync_mode: bool = Field(
        default=False, description="Answer with data URIs and keep the result out of fal's request history."
    )


class Prompted(_Strict):
    """The part of every endpoint that is told in words what to paint: all but reframe."""

    prompt: str = Field(
        description="What to paint: the scene, the masked region, the remix or the new background."
    )
    expand_prompt: bool = Field(
        default=True,
        description=(
            "Let Ideogram rewrite the prompt first. The answer does not tell the rewritten prompt, so "
            "switch it off where batches must be repeatable (rule R16)."
        ),
    )


class Characterful(_Strict):
    """The part of the endpoints that keep a character recognisable."""

    reference_image_urls: tuple[str, ...] = Field(
        description="Pictures of the character; fal uses only the first."
    )
    reference_mask_urls: tuple[str, ...] = Field(
        default_factory=tuple,
        description="Masks of where the character is in its reference; fal uses only the first.",
    )


class CharacterStyled(_Strict):
    """The part of the character endpoints that choose a rendering family."""

    style: CharacterStyle = Field(
        default="AUTO", description="Rendering family; not beside style codes (rule R01)."
    )


class V3Styled(_Strict):
    """The part of the V3 endpoints that choose a rendering family."""

    style: V3Style | None = Field(
        default=None, description="Rendering family; not beside style codes (rule R01)."
    )


class Presettable(_Strict):
    """The part of the endpoints that offer the named looks."""

    style_preset: StylePreset | None = Field(default=None, description="A named look.")


class Sized(_Strict):
    """The part of the endpoints that compose a whole picture in a size of choice."""

    image_size: ImageSize | ImageSizePreset | None = Field(
        default="square_hd", description="Size of the result: a preset's name, or width and height."
    )
    negative_prompt: str = Field(default="", description="What to leave out; the prompt wins over it.")

    @field_validator("image_size")
    @classmethod
    def _null_is_the_default(
        cls, image_size: ImageSize | ImageSizePreset | None
    ) -> ImageSize | ImageSizePreset:
        return "square_hd" if image_size is None else image_size


class Sourced(_Strict):
    """The part of the endpoints that start from a picture."""

    image_url: str = Field(description="The source picture.")


class Masked(Sourced):
    """The part of the endpoints that repaint a region of the source."""

    mask_url: str = Field(
        description="Mask of the region to repaint, in the source's pixel size; polarity uncertain (R10)."
    )


class Remixed(Sourced):
    """The part of the endpoints that blend the source with the prompt."""

    strength: float = Field(
        default=0.8,
        ge=0.01,
        le=1,
        description=(
            "How much of the source stays. Higher keeps more: "
            "the opposite of the usual denoise strength (rule R15)."
        ),
    )


class CharacterInput(IdeogramInput, Prompted, Characterful, CharacterStyled, Sized):
    """A new picture of the referenced character."""


class CharacterEditInput(IdeogramInput, Prompted, Characterful, Masked):
    """The referenced character painted into the masked region of a picture."""


class CharacterRemixInput(IdeogramInput, Prompted, Characterful, CharacterStyled, Sized, Remixed):
    """A picture remixed by a prompt, with the referenced character in it."""


class V3Input(IdeogramInput, Prompted, V3Styled, Presettable, Sized):
    """A new picture from words."""


class V3EditInput(IdeogramInput, Prompted, Presettable, Masked):
    """A picture with its masked region repainted."""


class V3RemixInput(IdeogramInput, Prompted, V3Styled, Sized, Remixed):
    """A picture remixed by a prompt."""


class V3ReframeInput(IdeogramInput, V3Styled, Presettable, Sourced):
    """A picture extended to another frame."""

    image_size: ImageSize | ImageSizePreset = Field(
        description="The new frame: a preset's name, or width and height."
    )


class V3ReplaceBackgroundInput(IdeogramInput, Prompted, V3Styled, Presettable, Sourced):
    """A picture whose subject is found and kept while the prompt paints what is behind it."""


MAX_SEED = 2**63 - 1
"""No larger number is taken for a seed: the metadata's columns hold 64 bits. Ideogram's own seeds have 31."""


@dataclass(frozen=True, slots=True)
class Output:
    """What is needed of the answer of all eight endpoints.

    They give `seed` and `images` (`url`, beside it `content_type`, `file_name`, `file_size`); no seed per picture, no
    rewritten prompt, no safety flag. A picture that is paid for is not lost to a field that is missing, odd or new.
    """

    images: tuple[str, ...]
    """Where to download each picture, in fal's order, at least one; a data URI in sync mode."""
    seed: int | None
    """The seed of the whole request; None where it is none."""

    @classmethod
    def read(cls, payload: Mapping[str, JsonValue]) -> Self | None:
        """Read an answer; None where it doesn't tell where its pictures are."""
        files = payload.get("images")
        urls = (
            [one.get("url") if isinstance(one, dict) else None for one in files]
            if isinstance(files, list)
            else []
        )
        images = tuple(url for url in urls if isinstance(url, str) and url)
        if not images or len(images) < len(urls):
            return None
        seed = payload.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
            return cls(images, None)
        return cls(images, seed)


EndpointName = Literal[
    "character",
    "character/edit",
    "character/remix",
    "v3",
    "v3/edit",
    "v3/remix",
    "v3/reframe",
    "v3/replace-background",
]
"""The short names used in tables."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint: how tables call it and what it takes."""

    name: EndpointName
    """The short name, for example ``character/edit``."""
    input_model: type[IdeogramInput]
    """The model its inputs are parsed with."""

    @property
    def id(self) -> str:
        """fal's name of the endpoint, for example ``fal-ai/ideogram/character/edit``."""
        return f"fal-ai/ideogram/{self.name}"


ENDPOINTS: Mapping[str, Endpoint] = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint("character", CharacterInput),
        Endpoint("character/edit", CharacterEditInput),
        Endpoint("character/remix", CharacterRemixInput),
        Endpoint("v3", V3Input),
        Endpoint("v3/edit", V3EditInput),
        Endpoint("v3/remix", V3RemixInput),
        Endpoint("v3/reframe", V3ReframeInput),
        Endpoint("v3/replace-background", V3ReplaceBackgroundInput),
    )
}
"""The endpoints by their short names."""

ENDPOINTS_BY_ID: Mapping[str, Endpoint] = {endpoint.id: endpoint for endpoint in ENDPOINTS.values()}
"""The endpoints by fal's names."""


def wire(request: IdeogramInput) -> dict[str, JsonValue]:
    """The JSON body to send: defaults spelled out, so that a body says all that was decided.

    What is None or an empty optional list is left out, because most fields refuse null (rule R18). ``style``
    is left out beside style codes, because even its default would contradict them (rule R01).
    """
    body: dict[str, JsonValue] = request.model_dump(mode="json", exclude_none=True)
    for name in ("image_urls", "style_codes", "reference_mask_urls"):
        if not body.get(name):
            body.pop(name, None)
    if "style_codes" in body:
        body.pop("style", None)
    return body
