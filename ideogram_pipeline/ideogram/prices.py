"""What a picture costs, as fal publishes it.

What belongs here: the published list price per picture, where it stands and when it was read. fal's pages say
"your request will cost"; that this is per picture follows from fal's description of ``num_images`` and from
Ideogram's own list, which has the same figures per output picture. Only fal's billing knows what was charged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from ideogram_pipeline.ideogram.endpoints import ENDPOINTS, RenderingSpeed


@dataclass(frozen=True, slots=True)
class ListPrice:
    """The published price of one endpoint."""

    usd_per_image: Mapping[RenderingSpeed, Decimal]
    """US dollars for one picture, by speed."""
    source: str
    """Address of the page that states it."""
    read_on: date
    """The day it was read."""


_READ_ON = date(2026, 11, 22)
_CHARACTER: Mapping[RenderingSpeed, Decimal] = {
    "TURBO": Decimal("0.10"),
    "BALANCED": Decimal("0.15"),
    "QUALITY": Decimal("0.20"),
}
_V3: Mapping[RenderingSpeed, Decimal] = {
    "TURBO": Decimal("0.03"),
    "BALANCED": Decimal("0.06"),
    "QUALITY": Decimal("0.09"),
}

PRICES: Mapping[str, ListPrice] = {
    name: ListPrice(
        usd_per_image=_CHARACTER if name.startswith("character") else _V3,
        source=f"https://fal.ai/models/{endpoint.id}/llms.txt",
        read_on=_READ_ON,
    )
    for name, endpoint in ENDPOINTS.items()
}
"""List prices by the endpoint's short name."""


def price(endpoint: str, speed: RenderingSpeed, num_images: int = 1) -> Decimal | None:
    """US dollars for one request to the endpoint with this short name; None when the price is not known.

    Raises ValueError for fewer than one picture, because a price of 0 would read as free.
    """
    if num_images < 1:
        raise ValueError(f"A request has at least 1 picture, not {num_images}; ask for the price of 1 to 8.")
    listed = PRICES.get(endpoint)
    per_image = listed.usd_per_image.get(speed) if listed else None
    return None if per_image is None else per_image * num_images
