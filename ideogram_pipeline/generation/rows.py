"""The rows of the files that a batch leaves: its plan, its pictures, its outcomes, the catalog.

Every field is a column, and its description the column's. Dagster shows them before anything is run, so nothing heavy
is imported here.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from ideogram_pipeline.generation.requests import GenerationRequest

Decision = Literal["new", "stale", "reused", "re-attached", "settled", "unknown", "rejected", "left out"]
"""What a run will do with a row, in this order: pay for it, pay for it again because it asks for something else than
before, take it from the store, fetch what is already paid for, leave a refusal or failure as it is, look for its lost
answer, nothing because it can't be sent, or nothing because a person left it out of this run."""
OutcomeState = Literal["generated", "rejected", "refused", "failed", "unknown", "not_reached"]


LEFT_OUT = "left out: "
"""Begins the reason of a row that a person left out of a run."""


class PlannedRow(BaseModel):
    """What a run will do with one row of the prompts table, and why."""

    model_config = ConfigDict(frozen=True)

    prompt_id: str = Field(description="The row of the prompts table.")
    batch: str = Field(
        default="", description="Partition of the prompts table; empty in a file of an earlier version."
    )
    row_number: int = Field(description="Where the row stands in the table.")
    decision: Decision = Field(
        description="new, stale, reused, re-attached, settled, unknown, rejected or left out."
    )
    reason: str = Field(description="Why, in one line.")
    column: str = Field(default="", description="The column at fault, for a rejected row.")
    endpoint: str | None = Field(default=None, description="Short name of the endpoint.")
    fingerprint: str | None = Field(default=None, description="The request's identity.")
    images: int = Field(default=0, description="Pictures asked for.")
    price_usd: float | None = Field(default=None, description="List price of the request in US dollars.")
    request_json: str | None = Field(default=None, description="The whole request; empty for a rejected row.")

    @property
    def request(self) -> GenerationRequest | None:
        """The request to send, or None for a rejected row."""
        from ideogram_pipeline.generation.requests import GenerationRequest

        return GenerationRequest.model_validate_json(self.request_json) if self.request_json else None


class ImageRow(BaseModel):
    """One picture file and everything about how it came to be. Times are UTC."""

    model_config = ConfigDict(frozen=True)

    file_name: str = Field(
        description="The picture, relative to the folder of this file (Hugging Face ImageFolder)."
    )
    prompt_id: str = Field(description="Row of the prompts table.")
    batch: str = Field(description="Partition of the prompts table.")
    image_index: int = Field(description="Position among the request's pictures, from 0.")
    take: int = Field(
        default=0, description="How often a person had asked for another picture of the same row, 0 at first."
    )
    current: bool = Field(
        description="False once the row was edited and asks for another picture, or a newer take was made."
    )
    endpoint: str = Field(description="Short name of the endpoint, such as `character`.")
    prompt: str | None = Field(description="As sent.")
    negative_prompt: str | None = Field(description="As sent.")
    reference_ids: tuple[str, ...] = Field(description="Character references, as in the references table.")
    reference_sha256s: tuple[str, ...] = Field(description="Hex digests of their bytes.")
    reference_mask_ids: tuple[str, ...] = Field(description="Masks of the character references.")
    reference_mask_sha256s: tuple[str, ...] = Field(description="Hex digests of their bytes.")
    style_reference_ids: tuple[str, ...] = Field(description="Style references.")
    style_reference_sha256s: tuple[str, ...] = Field(description="Hex digests of their bytes.")
    image_id: str | None = Field(description="Source picture of an edit, remix, reframe or new background.")
    image_sha256: str | None = Field(description="Hex digest of its bytes.")
    mask_id: str | None = Field(description="Mask of an edit.")
    mask_sha256: str | None = Field(description="Hex digest of its bytes.")
    sent_sha256s: str = Field(
        default="{}",
        description="Pictures that EXIF turns were sent as upright copies: the digests of these by the digests above, "
        "a JSON object; `{}` where there were none.",
    )
    rendering_speed: str | None = Field(description="As sent: TURBO, BALANCED or QUALITY.")
    style: str | None = Field(description="As sent.")
    style_preset: str | None = Field(description="As sent.")
    style_codes: tuple[str, ...] = Field(description="As sent.")
    color_palette: str | None = Field(description="As sent, as JSON.")
    image_size: str | None = Field(description="As sent: a preset's name or width x height.")
    num_images: int = Field(description="Pictures asked for in the request.")
    strength: float | None = Field(description="As sent, 0.01 to 1.")
    expand_prompt: bool | None = Field(description="As sent.")
    sync_mode: bool | None = Field(description="As sent.")
    seed: int = Field(description="Seed asked for.")
    seed_returned: int | None = Field(description="Seed that fal says it used, one per request.")
    request_json: str = Field(description="The body sent, with `sha256:…` in place of each picture's URL.")
    fingerprint: str = Field(
        description="Identity of the request: SHA-256 of prompt id, endpoint and arguments."
    )
    request_id: str | None = Field(description="fal's id of the request.")
    width: int = Field(description="Pixels, measured.")
    height: int = Field(description="Pixels, measured.")
    format: str = Field(description="`png`, `jpeg` or `webp`, from the bytes.")
    bytes: int = Field(description="Length of the file.")
    sha256: str = Field(description="Hex digest of the file.")
    sha256_received: str = Field(
        description="Hex digest of what fal sent: the same picture before marks were put into the file."
    )
    manifest_id: str | None = Field(
        default=None,
        description="Identity of the Content Credentials (C2PA) that it was signed with; empty where it was not.",
    )
    stamped_at: datetime | None = Field(
        default=None,
        description="When it was signed, as a time-stamping authority says; empty without a time stamp.",
    )
    unstamped_because: str | None = Field(
        default=None,
        description="Why it has no time stamp though it should have one; empty where it has one.",
    )
    unmarked_because: str | None = Field(
        default=None,
        description="Why the file lacks marks or a signature that it should have; empty where it has them.",
    )
    perceptual_hash: str | None = Field(
        default=None,
        description="What it looks like: 64-bit difference hash, 16 hex digits; empty for a PNG without a thumbnail.",
    )
    nearest_image: str | None = Field(
        default=None,
        description="The picture of this batch, older takes too, that looks most like it, by its file_name.",
    )
    nearest_distance: int | None = Field(
        default=None,
        description="In how many of 64 bits the two hashes differ. Up to 4, one is likely the other again; unlike "
        "pictures differ in about 32. It says nothing of who or what is shown.",
    )
    reference_distance: int | None = Field(
        default=None,
        description="The same for the picture and that one of its character and style references which looks most "
        "like it.",
    )
    face_distance: float | None = Field(
        default=None,
        description="With IDEOGRAM_FACES: how far the faces of the picture and of its nearest character reference "
        "are apart, by dlib's model; up to 0.6 is near. Empty where either shows none. A measure for "
        "reviewing, no claim of who is shown.",
    )
    submitted_at: datetime | None = Field(description="When fal's answer to the submit had arrived.")
    started_at: datetime | None = Field(
        description="completed_at less inference_s: fal doesn't tell the start."
    )
    completed_at: datetime = Field(description="When this project saw the request completed.")
    inference_s: float | None = Field(
        description="Seconds of work, from fal's metrics; empty where fal delivered the end, which doesn't say it."
    )
    cost_usd: float | None = Field(
        description="US dollars for this picture: the request's cost over its pictures."
    )
    cost_source: str = Field(description="billing_event, billable_units_header, price_list or unknown.")
    attempts: int = Field(description="Submits that may have reached fal, over all runs.")
    backend: str = Field(description="`fal`, or `sandbox` for pictures that the local stand-in drew.")
    dagster_run_id: str = Field(description="The Dagster run that paid for it.")
    code_version: str = Field(description="Version of ideogram_pipeline that made it.")
    extra: str = Field(description="The prompts table's other columns, as a JSON object.")


NodeKind = Literal["reference", "prompt", "request", "run", "submit", "image"]
EdgeKind = Literal["asks", "uses", "later_take", "sent_as", "sent_by", "made"]


class EdgeRow(BaseModel):
    """One step of how pictures came to be, from what was first to what came of it. Times are UTC.

    A `reference` is identified by the SHA-256 of its bytes, a `prompt` by its id, a `request` by its fingerprint, a
    `run` by Dagster's id, a `submit` by fal's request id (or fingerprint and attempt, where no answer told one), an
    `image` by its path in the store.
    """

    model_config = ConfigDict(frozen=True)

    batch: str = Field(description="Partition of the prompts table.")
    kind: EdgeKind = Field(
        description="asks: prompt, request. uses: reference, request. later_take: request, the next take of its row. "
        "sent_as: request, submit. sent_by: run, submit. made: submit, image."
    )
    from_kind: NodeKind = Field(description="What was first.")
    from_id: str = Field(description="Its identity.")
    to_kind: NodeKind = Field(description="What came of it.")
    to_id: str = Field(description="Its identity.")
    at: datetime | None = Field(description="When this happened, as far as it is known.")
    reference_id: str | None = Field(
        default=None, description="For uses: the row of the references table it was."
    )
    field: str | None = Field(default=None, description="For uses: fal's parameter, such as `image_url`.")
    sent_sha256: str | None = Field(
        default=None, description="For uses: hex digest of the upright copy that was sent, where one was."
    )
    sha256: str | None = Field(default=None, description="For made: hex digest of the file.")
    sha256_received: str | None = Field(default=None, description="For made: hex digest of what fal sent.")


class OutcomeRow(BaseModel):
    """How one row of the prompts table ended."""

    model_config = ConfigDict(frozen=True)

    prompt_id: str = Field(description="Row of the prompts table.")
    batch: str = Field(
        default="", description="Partition of the prompts table; empty in a file of an earlier version."
    )
    state: OutcomeState = Field(description="generated, rejected, refused, failed, unknown or not_reached.")
    reason: str = Field(description="Why, and what to do next; empty for generated rows.")
    due: bool = Field(
        default=True,
        description="Whether this run was to bring its pictures: nobody left it out, and no other run is making them.",
    )
    fingerprint: str | None = Field(description="Identity of the request; empty for rejected rows.")
    request_id: str | None = Field(description="fal's id of the newest request.")
    cost_usd: float | None = Field(description="US dollars over all attempts; empty if any is not known.")
    cost_source: str = Field(
        description="billing_event, billable_units_header, price_list or unknown: the weakest over all attempts."
    )
    attempts: int = Field(description="Submits that may have reached fal, over all runs.")
    images: int = Field(description="Pictures in the store.")
    endpoint: str | None = Field(description="Short name of the endpoint.")
    row_number: int = Field(description="Where the row stands in the table.")
    column: str = Field(description="The column at fault, for rejected rows.")
    advice: tuple[str, ...] = Field(description="What the result may surprise with.")


class CatalogRow(ImageRow):
    """One picture, found from the store's root."""

    path: str = Field(description="The picture, relative to the store's root.")
