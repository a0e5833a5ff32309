"""What files say of themselves, and whether that can be relied on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline import marks, pictures
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.marks import Marks, has_credentials

_ENDINGS = frozenset({".jpeg", ".jpg", ".png", ".webp"})


class Verified(BaseModel):
    """What one file was found to be."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="The file.")
    problem: str = Field(description="Why it is no whole picture; empty for one that is.")
    sha256: str = Field(description="Hex digest of its bytes.")
    marks: Marks | None = Field(description="What it says of itself.")
    has_credentials: bool = Field(
        description="Whether it brings Content Credentials (C2PA), which are not validated here."
    )

    @property
    def is_marked(self) -> bool:
        """Whether it is whole and says where it comes from."""
        return not self.problem and (self.marks is not None or self.has_credentials)


def verified(paths: Iterable[str]) -> Iterator[Verified]:
    """Look at files, and at every picture below folders, in the order of their names.

    Raises:
        ConfigurationError: there is no such file, or it can't be read.
    """
    for path in paths:
        for file in _files(Path(path)):
            try:
                content = file.read_bytes()
            except OSError as error:
                raise ConfigurationError(f"{str(file)!r} can't be read: {error.strerror}.") from None
            yield _verified(str(file), content)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS and file.is_file())


def _verified(path: str, content: bytes) -> Verified:
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
        has_credentials=has_credentials(content),
    )
