"""What a picture is to say of itself, from what the ledger knows of its request, and the file that says it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ideogram_pipeline.generation.ledger import Reserved
from ideogram_pipeline.marks import (
    ALGORITHM,
    TRAINED_ALGORITHM,
    VERSION,
    CannotMark,
    Marks,
    credentials,
    has_credentials,
    read,
    written,
)
from ideogram_pipeline.marks.credentials import CannotSign, Reference, Signer
from ideogram_pipeline.marks.difference import applied, difference, removed
from ideogram_pipeline.pictures import BadPicture, Picture, verify


@dataclass(frozen=True, slots=True)
class Marking:
    """How a run marks its pictures."""

    with_prompt: bool = False
    """Whether they tell their prompt, beside its digest."""
    signer: Signer | None = None
    """Who signs them, if anybody does."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A picture as it is stored."""

    content: bytes
    """The file."""
    is_changed: bool = False
    """Whether it is another file than the one fal sent."""
    unmarked_because: str = ""
    """Why the marks could not be put into it; empty where they were, or were not to be."""
    tells_prompt: bool = False
    """Whether the marks were to tell the prompt."""
    marks_version: int = VERSION
    """Version of the marks that were to be put into it."""
    manifest_id: str | None = None
    """Identity of its Content Credentials, where it was signed."""
    signature: bytes | None = None
    """What signing put into it, which can't be made the same again."""
    stamped_at: datetime | None = None
    """When it was signed, as a time-stamping authority says."""
    unstamped_because: str = ""
    """Why it has no time stamp; empty where it has one, or was not to have one."""


MakeMarked = Callable[[bytes], Marked]
"""Puts marks into what fal sent."""


def marks_of(
    reserved: Reserved,
    request_id: str,
    seed: int | None,
    index: int,
    *,
    with_prompt: bool,
    version: int = VERSION,
) -> Marks:
    """Return the marks of one picture of a request; the seed is the one fal says it used, if it says.

    They depend on nothing else, so that a picture that is fetched again becomes the same file.
    """
    request, is_drawn = reserved.request, reserved.backend == "sandbox"
    prompt = request.arguments.get("prompt")
    text = prompt if isinstance(prompt, str) and prompt else None
    return Marks(
        source_type=ALGORITHM if is_drawn else TRAINED_ALGORITHM,
        system="ideogram_pipeline sandbox: a drawing, not a model's picture"
        if is_drawn
        else "Ideogram by fal.ai",
        system_version=f"{reserved.code_version}, for {request.endpoint_id}"
        if is_drawn
        else f"V3, {request.endpoint_id}",
        prompt=text if with_prompt else None,
        prompt_sha256=hashlib.sha256(text.encode()).hexdigest() if text else None,
        prompt_id=request.prompt_id,
        fingerprint=request.fingerprint,
        request_id=request_id,
        seed=request.seed if seed is None else seed,
        image_index=index,
        backend=reserved.backend,
        version=version,
    )


def marked(received: bytes, marks: Marks) -> Marked:
    """Return the picture with marks in it; as it is, and why, where they can't be put into it."""
    try:
        content = written(received, marks)
    except CannotMark as problem:
        return Marked(received, unmarked_because=str(problem), marks_version=marks.version)
    return Marked(
        content, is_changed=True, tells_prompt=marks.prompt is not None, marks_version=marks.version
    )


def signed(
    received: bytes, marks: Marks, signer: Signer, references: Callable[[], Sequence[Reference]]
) -> Marked:
    """Return the picture with marks and Content Credentials in it, which name what it was made with.

    Credentials of a reference that nobody can read are left out. A picture that brings such ones, or anything else for
    which it can't be signed though others can, is not lost: it is left unsigned.

    Raises:
        CannotSign: nothing can be signed for now.
    """
    (before, unmarked_because), known = _to_sign(received, marks), references()
    by_digest = [Reference(one.sha256, None) for one in known]
    try:
        try:
            made = signer.signed(before, marks, received=received, references=known)
        except CannotSign:
            made = signer.signed(before, marks, received=received, references=by_digest)
    except CannotSign as problem:
        if has_credentials(received):
            return Marked(
                received,
                marks_version=marks.version,
                unmarked_because=f"the credentials that it brings can't be read: {problem}",
            )
        signer.check()
        return replace(marked(received, marks), unmarked_because=f"it can't be signed: {problem}")
    return Marked(
        made.content,
        is_changed=True,
        unmarked_because=unmarked_because,
        tells_prompt=marks.prompt is not None,
        marks_version=marks.version,
        manifest_id=made.manifest_id,
        signature=difference(before, made.content),
        stamped_at=made.stamped_at,
        unstamped_because=made.unstamped_because,
    )


def signed_then(received: bytes, marks: Marks, manifest_id: str, signature: bytes) -> Marked:
    """Return the picture as it was marked and signed before."""
    content = applied(_to_sign(received, marks)[0], signature)
    return Marked(
        content,
        is_changed=True,
        tells_prompt=marks.prompt is not None,
        marks_version=marks.version,
        manifest_id=manifest_id,
    )


def as_stored(there: bytes, received: Picture, made: Marked) -> Marked | None:
    """Return what lies in the store where what was received was to be written as `made`, if it is the same, whole.

    Another run may have marked or signed it otherwise. None for what is damaged, and for another picture: one of
    another request or of another size, and one without marks that isn't what fal sent.
    """
    try:
        found, _ = verify(there, thumbnail_side=None)
    except BadPicture:
        return None
    if (found.kind, found.width, found.height) != (received.kind, received.width, received.height):
        return None
    said, ours = read(there), read(made.content)
    if said is None and not (made.manifest_id and has_credentials(there)):
        is_received = found.sha256 == received.sha256
        return Marked(there, unmarked_because=made.unmarked_because) if is_received else None
    if said and ours and (said.fingerprint, said.image_index) != (ours.fingerprint, ours.image_index):
        return None
    is_signed = has_credentials(there) and credentials.is_installed()
    credential = credentials.read(there) if is_signed else None
    if credential is None:
        return Marked(
            there,
            is_changed=True,
            tells_prompt=said.prompt is not None if said else made.tells_prompt,
            marks_version=said.version if said else made.marks_version,
        )
    tells_prompt, version = made.tells_prompt, made.marks_version  # of what the difference is to
    unsigned = removed(made.content, made.signature) if made.signature else made.content
    # A picture that this run left alone, for the credentials it brings, was signed over by the other run.
    if said and not made.is_changed:
        unsigned = _to_sign(made.content, said)[0]
        tells_prompt, version = said.prompt is not None, said.version
    otherwise = "another run has signed it without one" if made.stamped_at else ""
    return Marked(
        there,
        is_changed=True,
        unmarked_because=made.unmarked_because,
        tells_prompt=tells_prompt,
        marks_version=version,
        manifest_id=credential.manifest_id,
        signature=difference(unsigned, there),
        stamped_at=credential.stamped_at,
        unstamped_because="" if credential.stamped_at else made.unstamped_because or otherwise,
    )


def signature_path(image_path: str) -> str:
    """Return where in the store it lies what signing put into a picture."""
    batch, name = image_path.removeprefix("images/").split("/", 1)
    return f"credentials/{batch}/{name.rsplit('.', 1)[0]}.signature"


def _to_sign(received: bytes, marks: Marks) -> tuple[bytes, str]:
    """Return the picture with marks in it, or as it is and why: the credentials say the same."""
    try:
        return written(received, marks, to_be_signed=True), ""
    except CannotMark as problem:
        return received, str(problem)
