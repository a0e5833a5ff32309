"""What is to be drawn: an input's parameters, resolved for one picture.

What belongs here: from a parsed input and its pictures to a ``Scene``, which ``draw`` turns into pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ideogram_pipeline.ideogram.endpoints import (
    Characterful,
    CharacterStyled,
    Endpoint,
    EndpointName,
    IdeogramInput,
    Presettable,
    Prompted,
    Remixed,
    RenderingSpeed,
    Sized,
    V3Styled,
)
from ideogram_pipeline.ideogram.sizes import Size, output_size
from ideogram_pipeline.sandbox.canvas import Color
from ideogram_pipeline.sandbox.pictures import Picture

PALETTES: dict[str, tuple[Color, ...]] = {
    "EMBER": ((94, 20, 20), (191, 55, 32), (240, 128, 48), (252, 200, 120)),
    "FRESH": ((38, 120, 110), (110, 190, 150), (205, 230, 170), (250, 246, 220)),
    "JUNGLE": ((20, 54, 38), (44, 104, 62), (120, 150, 62), (226, 200, 110)),
    "MAGIC": ((46, 26, 96), (112, 58, 176), (214, 94, 190), (250, 190, 220)),
    "MELON": ((36, 92, 70), (120, 186, 110), (246, 130, 116), (255, 214, 190)),
    "MOSAIC": ((24, 78, 140), (222, 74, 62), (244, 186, 66), (240, 236, 222)),
    "PASTEL": ((150, 176, 214), (214, 184, 224), (250, 208, 208), (254, 240, 214)),
    "ULTRAMARINE": ((16, 24, 92), (36, 66, 190), (92, 140, 236), (206, 224, 252)),
}
"""Our own reading of Ideogram's palette names: the first colour is the darkest."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures an input refers to, as far as its endpoint uses them."""

    reference: Picture | None
    """Who is in the picture."""
    reference_mask: Picture | None
    """Where in the reference."""
    style: Picture | None
    """How it should look."""
    source: Picture | None
    """What it starts from."""
    mask: Picture | None
    """Which part of the source is repainted."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture to draw."""

    endpoint: EndpointName
    """Decides the composition."""
    size: Size
    """Exact pixels."""
    art: str
    """Decides everything that is left to chance."""
    pictures: Pictures
    """What is put into it."""
    colors: tuple[Color, ...]
    """The palette asked for; empty when none was."""
    style: str
    """Rendering family, which changes the frame and the hues; ``AUTO`` when none was asked for."""
    strength: float
    """How much of the source stays in a remix, 0 to 1."""
    mask_repaints: Literal["black", "white"]
    """Colour of the mask's area to repaint."""
    caption: str
    """The prompt, or what is done without one."""
    negative_prompt: str
    """Shown small, after a minus sign."""
    speed: RenderingSpeed
    """Shown small."""
    seed: int
    """Shown small."""
    index: int
    """Which picture of the request, 0 being the first."""
    count: int
    """How many the request has."""
    tags: tuple[str, ...]
    """Other parameters, in words."""

    @property
    def source(self) -> Picture:
        """The source picture. Raises ValueError for an endpoint that has none."""
        if self.pictures.source is None:
            raise ValueError(f"{self.endpoint} starts from no picture.")
        return self.pictures.source


def compose(
    endpoint: Endpoint,
    request: IdeogramInput,
    pictures: Pictures,
    *,
    digest: str,
    seed: int,
    index: int,
    mask_repaints: Literal["black", "white"],
) -> Scene:
    """The scene an input asks for; ``digest`` names the input and decides what is left to chance."""
    source = Size(*pictures.source.size) if pictures.source else None
    size = output_size(request, source) or Size(1024, 1024)
    return Scene(
        endpoint=endpoint.name,
        size=size,
        art=f"{digest}/{index}",
        pictures=pictures,
        colors=_colors(request),
        style=_style(request) or "AUTO",
        strength=request.strength if isinstance(request, Remixed) else 1.0,
        mask_repaints=mask_repaints,
        caption=request.prompt if isinstance(request, Prompted) else f"Reframed to {size}",
        negative_prompt=request.negative_prompt if isinstance(request, Sized) else "",
        speed=request.rendering_speed,
        seed=seed,
        index=index,
        count=request.num_images,
        tags=tuple(_tags(request)),
    )


def _colors(request: IdeogramInput) -> tuple[Color, ...]:
    palette = request.color_palette
    if palette is None:
        return ()
    if palette.members:
        by_weight = sorted(palette.members, key=lambda member: member.color_weight or 0.5, reverse=True)
        return tuple((member.rgb.r, member.rgb.g, member.rgb.b) for member in by_weight)
    return PALETTES.get(palette.name or "", ())


def _style(request: IdeogramInput) -> str | None:
    return request.style if isinstance(request, CharacterStyled | V3Styled) else None


def _tags(request: IdeogramInput) -> Iterator[str]:
    if (style := _style(request)) and style != "AUTO":
        yield style.capitalize()
    if isinstance(request, Presettable) and request.style_preset:
        yield request.style_preset.replace("_", " ").capitalize()
    yield from (f"#{code}" for code in request.style_codes or ())
    if request.color_palette and request.color_palette.name:
        yield request.color_palette.name.capitalize()
    if request.image_urls:
        yield "style reference"
    if isinstance(request, Characterful) and len(request.reference_image_urls) > 1:
        yield f"1 of {len(request.reference_image_urls)} references"
    if isinstance(request, Remixed):
        yield f"strength {request.strength:g}"
    if isinstance(request, Prompted) and request.expand_prompt:
        yield "Magic prompt"
