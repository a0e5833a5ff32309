"""The price list against fal's published prices."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.ideogram import ENDPOINTS, PRICES, RenderingSpeed, price

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("endpoints.json").read_text())
SPEEDS: tuple[RenderingSpeed, ...] = get_args(RenderingSpeed)


def test_the_list_is_the_published_one() -> None:
    assert {name: dict(listed.usd_per_image) for name, listed in PRICES.items()} == {
        name: {speed: Decimal(usd) for speed, usd in by_speed.items()}
        for name, by_speed in PUBLISHED["prices_usd_per_image"].items()
    }


def test_every_price_says_where_and_when_it_was_read() -> None:
    for name, listed in PRICES.items():
        assert listed.source == f"https://fal.ai/models/fal-ai/ideogram/{name}/llms.txt"
        assert listed.read_on == date(2026, 11, 22)


@given(st.sampled_from(list(ENDPOINTS)), st.sampled_from(SPEEDS), st.integers(1, 8))
def test_the_price_multiplies_by_the_pictures(name: str, speed: RenderingSpeed, num_images: int) -> None:
    one = price(name, speed)
    assert one is not None
    assert one > 0
    assert price(name, speed, num_images) == one * num_images


def test_an_unknown_price_is_none_and_not_zero() -> None:
    assert price("v4", "TURBO") is None
    assert price("v3", cast(RenderingSpeed, "FLASH")) is None


def test_no_pictures_have_no_price() -> None:
    with pytest.raises(ValueError, match="at least 1 picture, not 0"):
        price("v3", "TURBO", 0)
