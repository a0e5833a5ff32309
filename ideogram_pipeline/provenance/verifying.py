"""What files say of themselves, and whether that can be relied on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline import marks, pictures
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.marks import Marks, Origin, credentials
from ideogram_pipeline.marks.credentials import Credentials

_ENDINGS = frozenset({".jpeg", ".jpg", ".png", ".webp"})


class Verified(BaseModel):
    """What one file was found to be."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="The file.")
    problem: str = Field(description="Why it is no whole picture; empty for one that is.")
    sha256: str = Field(description="Hex digest of its bytes.")
    marks: Marks | None = Field(description="What it says of itself, if it carries our marks.")
    origin: Origin | None = Field(
        description="What it says of how it came to be, in IPTC's terms, which other programs write and read too."
    )
    has_credentials: bool = Field(description="Whether it brings Content Credentials (C2PA).")
    credentials: Credentials | None = Field(
        description="What they say and whether that holds; nothing where c2pa-python isn't installed."
    )

    @property
    def is_sound(self) -> bool:
        """Whether it is whole, says where it comes from, and was not changed since it was signed, if it was."""
        return (
            not self.problem
            and (self.origin is not None or self.has_credentials)
            and (self.credentials is None or self.credentials.state != "invalid")
        )


def verified(paths: Iterable[str], anchors: str | None = None) -> Iterator[Verified]:
    """Look at files, and at every picture below folders, in the order of their names.

    `anchors` is a file of certificates (PEM): Content Credentials count as trusted that lead to one of them.

    Raises:
        ConfigurationError: there is no such file, or it can't be read; or there are anchors and no c2pa-python.
    """
    trusted = ""
    if anchors:
        credentials.check_installed()
        trusted = _bytes(Path(anchors)).decode(errors="replace")
    for path in paths:
        for file in _files(Path(path)):
            yield _verified(str(file), _bytes(file), trusted)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{str(file)!r} can't be read: {error.strerror}.") from None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        # What other programs keep beside pictures, such as the resource forks of macOS (`._a.png`), is hidden.
        if file.suffix.lower() in _ENDINGS
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    )


def _verified(path: str, content: bytes, anchors: str) -> Verified:
    try:
        pictures.inspect(content)
        problem = ""
    except pictures.BadPicture as bad:
        problem = str(bad)
    return Verified(
        path=path,
        problem=problem,
        sha256=hashlib.sha256(content).hexdigest(),
        marks=marks.read(content),
        origin=marks.origin(content),
        has_credentials=marks.has_credentials(content),
        credentials=credentials.read(content, anchors=anchors) if credentials.is_installed() else None,
    )
