"""Draws what the parameters say, so that a parameter that got lost on the way shows.

What belongs here: one composition for each kind of endpoint. A generated picture sets its reference in a frame before
a backdrop in the palette; a remix lets its source show through by its strength; a reframe keeps its source whole; a
new background keeps the middle of its source; an edit changes nothing outside its mask.
"""

import random
from collections.abc import Callable, Mapping
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter, ImageOps

from ideogram_pipeline.ideogram.sizes import Size
from ideogram_pipeline.sandbox import canvas
from ideogram_pipeline.sandbox.canvas import Box, Color
from ideogram_pipeline.sandbox.pictures import Picture
from ideogram_pipeline.sandbox.scene import PALETTES, Scene

MARK = "SANDBOX"
"""Written across every picture."""
SOFTWARE = "ideogram_pipeline sandbox"
"""The ``Software`` note of every picture."""

_INK: Color = (18, 20, 28)
_PAPER: Color = (250, 249, 246)
_MUTED: Color = (186, 190, 202)
_RIBBON: Color = (226, 62, 72)
_STYLE_PALETTES: Mapping[str, tuple[str, ...]] = {
    "REALISTIC": ("JUNGLE", "EMBER", "FRESH"),
    "FICTION": ("MAGIC", "MELON", "ULTRAMARINE"),
    "DESIGN": ("MOSAIC", "EMBER", "ULTRAMARINE"),
}


def draw(scene: Scene) -> bytes:
    """The scene as a PNG: the same bytes for an equal scene."""
    image = _COMPOSITIONS[scene.endpoint](scene)
    return canvas.png(image, {"Software": SOFTWARE, "Description": scene.caption})


def repeat(scene: Scene) -> bytes:
    """The reference at the scene's size as a PNG, drawn once; only its notes are the scene's own.

    It takes no time, and is as long and as hard to decode as a photo of that size.
    """
    shown = scene.pictures.reference or scene.pictures.source
    notes = {"Software": SOFTWARE, "Description": scene.caption, "Scene": scene.art}
    return canvas.annotated(_repeated(shown, scene.size), notes)


@lru_cache(maxsize=8)
def _repeated(picture: Picture | None, size: Size) -> bytes:
    image = _covering(picture, size) if picture else Image.effect_noise(size, 32).convert("RGB")
    image = image.copy()
    _ribbon(image)
    return canvas.png(image, {})


def _generated(scene: Scene) -> Image.Image:
    palette = _palette(scene)
    image = _backdrop(scene, palette)
    panel = _panel(scene)
    if reference := scene.pictures.reference:
        _portrait(image, scene, reference, (0, 0, image.width, panel[1]), palette)
    _caption(image, scene, panel, palette)
    _ribbon(image)
    return image


def _remixed(scene: Scene) -> Image.Image:
    palette = _palette(scene)
    image = Image.blend(_backdrop(scene, palette), _covering(scene.source, scene.size), scene.strength)
    panel = _panel(scene)
    if reference := scene.pictures.reference:
        width, height = scene.size
        _portrait(image, scene, reference, (width // 2, height // 12, width, panel[1]), palette)
    _caption(image, scene, panel, palette)
    _ribbon(image)
    return image


def _reframed(scene: Scene) -> Image.Image:
    palette = _palette(scene)
    panel = _panel(scene)
    # the added canvas continues the source's colours, out of focus
    small = _covering(scene.source, Size(scene.size.width // 8, scene.size.height // 8))
    image = small.filter(ImageFilter.GaussianBlur(6)).resize(scene.size, Image.Resampling.BILINEAR)
    margin = _margin(scene.size)
    room = (image.width - 2 * margin, panel[1] - 2 * margin)
    whole = ImageOps.contain(scene.source.image, room, Image.Resampling.LANCZOS)
    left, top = (image.width - whole.width) // 2, margin + (room[1] - whole.height) // 2
    canvas.cast_shadow(image, (left, top, left + whole.width, top + whole.height), 8, margin // 2, 110)
    image.paste(whole, (left, top))
    _caption(image, scene, panel, palette)
    _ribbon(image)
    return image


def _new_background(scene: Scene) -> Image.Image:
    palette = _palette(scene)
    image = _backdrop(scene, palette)
    panel = _panel(scene)
    width, height = scene.size
    subject = Image.new("L", (width // 4, height // 4))
    ImageDraw.Draw(subject).ellipse((width // 28, height // 40, width * 6 // 28, height * 9 // 40), fill=255)
    subject = subject.filter(ImageFilter.GaussianBlur(width // 160)).resize(
        scene.size, Image.Resampling.BILINEAR
    )
    image.paste(_covering(scene.source, scene.size), (0, 0), subject)
    _caption(image, scene, panel, palette)
    _ribbon(image)
    return image


def _edited(scene: Scene) -> Image.Image:
    image = _covering(scene.source, scene.size)
    if scene.pictures.mask is None:
        return image
    mask = _covering(scene.pictures.mask, scene.size).convert("L")
    repainted = mask.point(lambda value: 255 if (value < 128) == (scene.mask_repaints == "black") else 0)
    region = repainted.getbbox()
    if region is None:
        return image
    palette = _palette(scene)
    layer = _backdrop(scene, palette)
    _watermark(layer)
    if reference := scene.pictures.reference:
        _portrait(layer, scene, reference, region, palette)
    _label(layer, scene, region)
    return Image.composite(layer, image, repainted)


_COMPOSITIONS: Mapping[str, Callable[[Scene], Image.Image]] = {
    "character": _generated,
    "character/edit": _edited,
    "character/remix": _remixed,
    "v3": _generated,
    "v3/edit": _edited,
    "v3/remix": _remixed,
    "v3/reframe": _reframed,
    "v3/replace-background": _new_background,
}


# the parts of a composition


def _chance(scene: Scene, part: str) -> random.Random:
    return random.Random(f"{scene.art}/{part}")  # noqa: S311 - repeatable on purpose


def _palette(scene: Scene) -> tuple[Color, ...]:
    """At least three colours, the first one for the ground."""
    colors = scene.colors
    if not colors and scene.pictures.style:
        colors = _dominant(scene.pictures.style)
    if not colors:
        names = _STYLE_PALETTES.get(scene.style, tuple(PALETTES))
        colors = PALETTES[_chance(scene, "palette").choice(names)]
    while len(colors) < 3:
        colors = (*colors, _mixed(colors[-1], _PAPER, 0.45))
    return colors


def _mixed(one: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _dominant(picture: Picture) -> tuple[Color, ...]:
    few = picture.image.resize((48, 48), Image.Resampling.BOX).quantize(5).convert("RGB")
    colors = [color for _, color in few.getcolors() or () if isinstance(color, tuple)]
    return tuple((red, green, blue) for red, green, blue in sorted(colors, key=sum))


def _margin(size: Size) -> int:
    return min(size) // 26


def _backdrop(scene: Scene, palette: tuple[Color, ...]) -> Image.Image:
    chance = _chance(scene, "backdrop")
    ground = palette[0]
    # colours run from side to side only: rows that repeat cost next to nothing to compress
    shades = Image.new("RGB", (3, 1))
    shades.putdata([_mixed(ground, _INK, 0.18), ground, _mixed(ground, palette[1], 0.35)])
    row = shades.resize((scene.size.width, 1), Image.Resampling.BICUBIC)
    image = row.resize(scene.size, Image.Resampling.NEAREST)
    chance.choice((_sunrise, _orbits, _petals))(image, palette, chance)
    return image


def _sunrise(image: Image.Image, palette: tuple[Color, ...], chance: random.Random) -> None:
    width, height = image.size
    span = max(width, height)
    sun = (round(width * chance.uniform(0.3, 0.7)), round(height * chance.uniform(0.28, 0.42)))
    canvas.fill_disc(image, sun, _even(span * 0.78), palette[-1], 60)
    canvas.fill_disc(image, sun, _even(span * 0.52), palette[-1])
    for layer in range(3):
        color = palette[1 + layer % (len(palette) - 1)] if layer < 2 else palette[0]
        x = round(width * chance.uniform(-0.1, 1.1))
        diameter = _even(span * chance.choice((1.0, 1.2, 1.4)))
        top = height * (0.52 + 0.14 * layer)
        canvas.fill_disc(image, (x, round(top + diameter / 2)), diameter, color)


def _orbits(image: Image.Image, palette: tuple[Color, ...], chance: random.Random) -> None:
    width, height = image.size
    span = max(width, height)
    center = (round(width * chance.uniform(0.35, 0.65)), round(height * 0.42))
    for step in range(4, 0, -1):
        color = palette[1 + step % (len(palette) - 1)]
        canvas.fill_disc(image, center, _even(span * 0.24 * step), color, 255 if step < 3 else 80)
    for step in range(6):
        x, y = round(width * chance.random()), round(height * chance.uniform(0.02, 0.8))
        color = palette[1 + step % (len(palette) - 1)]
        canvas.fill_disc(image, (x, y), _even(span * chance.uniform(0.03, 0.12)), color)


def _petals(image: Image.Image, palette: tuple[Color, ...], chance: random.Random) -> None:
    width, height = image.size
    span = max(width, height)
    for step in range(9):
        x, y = round(width * chance.random()), round(height * chance.uniform(0, 0.9))
        color = palette[1 + step % (len(palette) - 1)]
        solid = step % 3 == 0
        canvas.fill_disc(
            image, (x, y), _even(span * chance.choice((0.25, 0.36, 0.48, 0.6))), color, 255 if solid else 120
        )


def _even(length: float) -> int:
    """A length rounded to one of few, so that shapes can be kept."""
    return max(round(length / 32), 1) * 32


def _portrait(
    image: Image.Image, scene: Scene, reference: Picture, room: Box, palette: tuple[Color, ...]
) -> None:
    """Put the reference into a frame somewhere in the room: an arch, a print or a disc, by style."""
    chance = _chance(scene, "portrait")
    room_width, room_height = room[2] - room[0], room[3] - room[1]
    shape = 1.0 if scene.style == "FICTION" else 1.25
    width = _even(min(room_width * 0.66, room_height * 0.86 / shape) * chance.uniform(0.9, 1.0))
    height = round(width * shape)
    left = room[0] + round((room_width - width) * chance.choice((0.3, 0.5, 0.7)))
    top = room[1] + round((room_height - height) * chance.uniform(0.45, 0.6))
    border = max(width // 32, 2)
    outer = (width + 2 * border, height + 2 * border)
    match scene.style:
        case "REALISTIC":
            frame, cut = canvas.rounded(*outer, border), canvas.rounded(width, height, border // 2)
        case "FICTION":
            frame, cut = canvas.rounded(*outer, outer[0] // 2), canvas.rounded(width, height, width // 2)
        case _:
            frame, cut = canvas.arch(*outer), canvas.arch(width, height)
    corner = (left - border, top - border)
    radius = border if scene.style == "REALISTIC" else outer[0] // 2
    canvas.cast_shadow(image, (*corner, corner[0] + outer[0], corner[1] + outer[1]), radius, border * 2, 120)
    image.paste(_PAPER, corner, frame)
    portrait = _covering(reference, Size(width, height))
    if mask := scene.pictures.reference_mask:
        # outside its mask the reference is not the character
        inside = _covering(mask, Size(width, height)).convert("L")
        portrait = Image.composite(portrait, Image.new("RGB", portrait.size, palette[1]), inside)
    image.paste(portrait, (left, top), cut)


@lru_cache(maxsize=16)
def _covering(picture: Picture, size: Size) -> Image.Image:
    """The picture cropped and scaled to a size; what is cut off is cut off rather below than above, as of a face."""
    return ImageOps.fit(picture.image, size, Image.Resampling.LANCZOS, centering=(0.5, 0.3))


def _sizes(scene: Scene) -> tuple[int, int]:
    """Font sizes of the prompt and of everything else."""
    unit = min(max(scene.size.width / 900, 0.75), 1.0)
    return round(31 * unit), round(20 * unit)


def _headline(scene: Scene, width: int) -> tuple[str, ...]:
    return canvas.wrapped(scene.caption, _sizes(scene)[0], width, 3)


def _panel(scene: Scene) -> Box:
    """Where the caption stands."""
    large, small = _sizes(scene)
    width, height = scene.size
    margin = _margin(scene.size)
    lines = len(_headline(scene, width - 4 * margin))
    tall = round(1.4 * margin) + lines * canvas.line_height(large) + round(3.9 * small)
    if scene.negative_prompt:
        tall += canvas.line_height(small)
    return margin, height - margin - tall, width - margin, height - margin


def _caption(image: Image.Image, scene: Scene, panel: Box, palette: tuple[Color, ...]) -> None:
    large, small = _sizes(scene)
    margin = _margin(scene.size)
    canvas.fill_box(image, panel, margin // 2 + 6, _INK, 224)
    left, right = panel[0] + margin, panel[2] - margin
    y = canvas.write(
        image, (left, panel[1] + round(0.7 * margin)), _headline(scene, right - left), large, _PAPER
    )
    if scene.negative_prompt:
        without = canvas.shortened(f"without {scene.negative_prompt}", small, right - left)
        y = canvas.write(image, (left, y), (without,), small, _MUTED)
    row = (left, y + small // 2, right, y + small // 2 + round(1.6 * small))
    _chips(image, row, (scene.endpoint, scene.speed, *scene.tags), small, max(palette, key=sum))
    y = row[3] + small // 2
    facts = [f"seed {scene.seed}", str(scene.size)]
    if scene.count > 1:
        facts.append(f"{scene.index + 1} of {scene.count}")
    line = canvas.shortened("  \u00b7  ".join(facts), small, right - left)
    canvas.write(image, (left, y), (line,), small, _MUTED)
    for step, color in enumerate(reversed(scene.colors)):
        center = (right - small // 2 - step * (small + 8), y + round(0.62 * small))
        canvas.fill_disc(image, center, small, color)


def _chips(image: Image.Image, row: Box, labels: tuple[str, ...], size: int, accent: Color) -> None:
    """Write labels in a row, as many as fit; the first one in the accent's colour."""
    left, top, right, bottom = row
    for place, label in enumerate(labels):
        width = round(canvas.font(size).getlength(label)) + size
        if left + width > right:
            break
        ground, ink = (accent, _INK) if place == 0 else ((62, 66, 80), _PAPER)
        canvas.fill_box(image, (left, top, left + width, bottom), size, ground)
        canvas.write(image, (left + size // 2, top + round(0.18 * size)), (label,), size, ink)
        left += width + size // 2


def _ribbon(image: Image.Image) -> None:
    """Say across the corner that this is no picture of Ideogram's."""
    band = _band(round(min(image.size) / 1024 * 32))
    image.paste(band, (image.width - band.width, 0), band)


@lru_cache(maxsize=16)
def _band(size: int) -> Image.Image:
    square = size * 8
    text = round(canvas.font(size).getlength(MARK))
    flat = Image.new("RGBA", (square * 2, round(1.75 * size)), (*_RIBBON, 255))
    pen = ImageDraw.Draw(flat)
    for edge in (size // 8, flat.height - 1 - size // 8):
        pen.line((0, edge, flat.width, edge), fill=(255, 255, 255, 150), width=max(size // 20, 1))
    pen.text(((flat.width - text) // 2, size // 4), MARK, font=canvas.font(size), fill=(255, 255, 255))
    turned = flat.rotate(-45, Image.Resampling.BICUBIC, expand=True)
    center = turned.width // 2
    across = round(square * 0.62)  # from the corner, along both edges, to where the ribbon's middle crosses
    corner = Image.new("RGBA", (square, square))
    corner.paste(turned, (square - across // 2 - center, across // 2 - turned.height // 2))
    return corner


def _watermark(image: Image.Image) -> None:
    """Say it all over: of an edit only a region is seen."""
    image.paste(_PAPER, (0, 0), _tiling(image.size))


@lru_cache(maxsize=4)
def _tiling(size: tuple[int, int]) -> Image.Image:
    font_size = 26
    step = round(canvas.font(font_size).getlength(MARK)) + font_size
    span = max(size) * 2
    flat = Image.new("L", (span, span))
    pen = ImageDraw.Draw(flat)
    for row in range(span // (2 * font_size)):
        for x in range(-(row % 2) * step // 2, span, step):
            pen.text((x, row * 2 * font_size), MARK, font=canvas.font(font_size), fill=84)
    turned = flat.rotate(24, Image.Resampling.BICUBIC)
    left, top = (span - size[0]) // 2, (span - size[1]) // 2
    return turned.crop((left, top, left + size[0], top + size[1]))


def _label(image: Image.Image, scene: Scene, region: Box) -> None:
    """Write the caption into the region, where there is room for it."""
    size = _sizes(scene)[1]
    width = region[2] - region[0] - 2 * size
    if width < 6 * size:
        return
    lines = canvas.wrapped(scene.caption, size, width, 4)
    height = len(lines) * canvas.line_height(size)
    top = region[3] - height - 2 * size
    canvas.fill_box(image, (region[0], top, region[2], region[3]), size // 2, _INK, 200)
    canvas.write(image, (region[0] + size, top + size), lines, size, _PAPER)
