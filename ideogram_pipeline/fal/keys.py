"""The fal key: the only secret here, and the only place where its text can be had."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ideogram_pipeline.fal.errors import InvalidCall


class FalKey:
    """A fal API key, `<key id>:<key secret>`. It shows at most the key id's first four characters."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Take the key as fal shows it. Raises `InvalidCall` for one that can't stand in a header."""
        value = value.strip()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise InvalidCall(
                message="The fal key is empty or holds characters no key has.",
                guidance="Set FAL_KEY to <key id>:<key secret>, from fal.ai/dashboard/keys.",
            )
        self._value = value

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> FalKey:
        """The key in FAL_KEY, else in FAL_KEY_ID and FAL_KEY_SECRET. Raises `InvalidCall` where there is none."""
        pair = (environment.get("FAL_KEY_ID"), environment.get("FAL_KEY_SECRET"))
        return cls(environment.get("FAL_KEY") or (":".join(map(str, pair)) if all(pair) else ""))

    def __repr__(self) -> str:
        key_id, colon, _ = self._value.partition(":")
        return f"FalKey({key_id[:4] if colon else ''}…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FalKey) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def header(self) -> str:
        """The value of the Authorization header."""
        return f"Key {self._value}"

    def redact(self, body: bytes) -> bytes:
        """The body with the key, and its secret half alone, blacked out."""
        value = self._value.encode()
        secret = value.partition(b":")[2]
        body = body.replace(value, b"[fal key]")
        return body.replace(secret, b"[fal key]") if secret else body
