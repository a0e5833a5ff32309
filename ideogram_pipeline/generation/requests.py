"""A generation request: one call to fal, with its identity and its price, before anything was sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ideogram_pipeline.ideogram.endpoints import ENDPOINTS, EndpointName
from ideogram_pipeline.tables.references import upright_path

FINGERPRINT_VERSION = 1
"""Part of every fingerprint; changes only if what is hashed changes, which would make every picture new."""


class PictureUse(BaseModel):
    """A picture that a request refers to."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(description="The endpoint's field it goes to, such as `reference_image_urls`.")
    reference_id: str = Field(description="The row of the references table.")
    uri: str = Field(description="Where the table says the picture is.")
    sha256: str = Field(description="Hex digest of the picture's bytes.")
    path: str = Field(description="The copy of those bytes in the store.")
    by_address: bool = Field(
        default=False,
        description="Whether fal fetches it from `uri` instead of being given the store's copy.",
    )
    perceptual_hash: str | None = Field(
        default=None, description="What it looks like, as `likeness` has it, where that is known."
    )
    sent_sha256: str | None = Field(
        default=None,
        description="Hex digest of the upright copy that is sent in its place, where EXIF turns the picture.",
    )

    @property
    def token(self) -> str:
        """What stands for the picture in the arguments until it is sent."""
        return f"sha256:{self.sha256}"

    @property
    def sent(self) -> tuple[str, str]:
        """What is sent: the digest of its bytes, and where in the store they lie."""
        if self.sent_sha256 is None:
            return self.sha256, self.path
        return self.sent_sha256, upright_path(self.path, self.sent_sha256)


class GenerationRequest(BaseModel):
    """One call to fal: 1 to 8 pictures of one row of the prompts table."""

    model_config = ConfigDict(frozen=True)

    prompt_id: str = Field(description="The row of the prompts table.")
    batch: str = Field(description="The row's partition.")
    row_number: int = Field(description="Where the row stands in the table.")
    endpoint: EndpointName = Field(description="Short name of the endpoint.")
    arguments: dict[str, JsonValue] = Field(
        description="The body that will be sent, with every default spelled out and `sha256:…` for each picture's URL."
    )
    pictures: tuple[PictureUse, ...] = Field(default=(), description="The pictures the arguments refer to.")
    fingerprint: str = Field(description="The request's identity: see `fingerprint`.")
    take: int = Field(default=0, description="How often a person asked for the same row again.")
    replaces: str | None = Field(default=None, description="Fingerprint of the take before this one.")
    price_usd: Decimal | None = Field(
        description="List price of the whole request, or None if it isn't known."
    )
    advice: tuple[str, ...] = Field(default=(), description="What the result may surprise with.")
    extra: str = Field(default="{}", description="The table's other columns, as a JSON object.")

    @property
    def endpoint_id(self) -> str:
        """fal's name of the endpoint."""
        return ENDPOINTS[self.endpoint].id

    @property
    def num_images(self) -> int:
        """How many pictures are asked for."""
        return int(str(self.arguments["num_images"]))

    @property
    def seed(self) -> int:
        """The seed asked for."""
        return int(str(self.arguments["seed"]))

    @property
    def ids(self) -> dict[str, str]:
        """What logs and spans say of it."""
        return {
            "batch": self.batch,
            "prompt_id": self.prompt_id,
            "fingerprint": self.fingerprint,
            "endpoint": self.endpoint,
        }

    def takes(self) -> Iterator[GenerationRequest]:
        """Yield this request, which is the row's take 0, and then its takes 1, 2, 3 ... without end.

        A take asks for the same with another seed, also where the table pins one: the same seed would bring the same
        picture.
        """
        assert self.take == 0
        newest = self
        while True:
            yield newest
            take = newest.take + 1
            arguments = {**self.arguments, "seed": take_seed(self.seed, take)}
            identity = fingerprint(self.prompt_id, self.endpoint_id, arguments, take)
            changes = {"arguments": arguments, "take": take, "fingerprint": identity}
            newest = self.model_copy(update={**changes, "replaces": newest.fingerprint})


def fingerprint(prompt_id: str, endpoint_id: str, arguments: Mapping[str, JsonValue], take: int = 0) -> str:
    """Return the identity of a request: a hex SHA-256 of prompt id, endpoint, every argument and, past 0, the take.

    Pictures stand in the arguments as digests of their bytes, so a changed picture is another request and a moved
    file is not. The batch and the table's other columns don't count.
    """
    identity = {
        "v": FINGERPRINT_VERSION,
        "prompt_id": prompt_id,
        "endpoint": endpoint_id,
        "arguments": arguments,
        **({"take": take} if take else {}),
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def derived_seed(prompt_id: str) -> int:
    """Return the seed of a row that names none: 31 bits that only its prompt id decides.

    A row keeps its seed when its prompt is edited, so that the pictures can be compared.
    """
    return _seed(f"seed:{prompt_id}")


def take_seed(seed: int, take: int) -> int:
    """Return the seed of a later take (1, 2, ...) of a row whose own seed, pinned or derived, is `seed`: 31 bits."""
    return _seed(f"seed:{seed}:take:{take}")


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF
