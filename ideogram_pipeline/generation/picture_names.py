"""What the files of pictures are called: made here, and read here.

    images/batch=<batch>/<prompt id>-<first digits of the fingerprint>-<number>.<ending>

Hugging Face `datasets` takes some words in a file's name for the split of a data set (SPLIT_KEYWORDS in its
`data_files.py`: `steam-train-01` is of `train`), and drops all files that are of none, `metadata.parquet` too. It knows
the words in lower case alone, so that in a name they get a capital letter. Names that a ledger has stay as they are.
"""

from __future__ import annotations

import re

from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.pictures import EXTENSIONS, PictureKind

PREFIX = 8
"""So many digits of a fingerprint stand in a picture's name."""

ENDED = rf"-(?P<short>[0-9a-f]{{{PREFIX}}})-\d+"
"""A pattern: how the name of a picture, of its thumbnail or of its signature ends, before the first dot."""
_NAME = re.compile(rf"(?P<prompt_id>[^\W_].*){ENDED}\.(?:{'|'.join(EXTENSIONS.values())})")

_BESIDE = r"-._ 0-9"
_SPLIT_WORD = re.compile(
    rf"(?<![^{_BESIDE}])(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?=[{_BESIDE}])"
)


def picture_path(request: GenerationRequest, index: int, kind: PictureKind) -> str:
    """Return where in the store a picture of a request is written, `index` counted from 0."""
    name = f"{in_names(request.prompt_id)}-{request.fingerprint[:PREFIX]}-{index}.{EXTENSIONS[kind]}"
    return f"images/batch={request.batch}/{name}"


def in_names(prompt_id: str) -> str:
    """Return a prompt's id as the names of its pictures begin: as it is, but for the split words of `datasets`."""
    return _SPLIT_WORD.sub(lambda word: word[0].capitalize(), f"{prompt_id}-").removesuffix("-")


def parsed(name: str) -> re.Match[str] | None:
    """Take a picture's file name apart into `prompt_id`, as `in_names` has it, and `short`; None where it is none."""
    return _NAME.fullmatch(name)
