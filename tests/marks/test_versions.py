"""Every version of the marks is written for ever as it was: money hangs on it, since a picture whose bytes are not
those of the ledger can't be fetched again.

`version_1.json` holds small pictures, and what the program of that version made of each: a digest, or why it did not.
"""

import base64
import hashlib
import json
from pathlib import Path

import pytest

from ideogram_pipeline import marks

VERSION_1 = json.loads((Path(__file__).parent / "version_1.json").read_text())
MARKS = marks.Marks(**VERSION_1["marks"])
WORDS = {
    "with prompt": MARKS,
    "without": MARKS.model_copy(update={"prompt": None}),
    "long": MARKS.model_copy(update={"prompt": "x" * 70_000}),
    "odd": MARKS.model_copy(
        update={
            "prompt": "\0\x0b <&>\"' é\r\n\t 🐈",
            "prompt_id": "a/b",
            "seed": 0,
            "backend": "sandbox",
            "prompt_sha256": None,
        }
    ),
}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("name", VERSION_1["files"])
def test_marks_of_version_1_are_written_byte_for_byte_as_they_were(name, words):
    golden = VERSION_1["files"][name]
    said = WORDS[words].model_copy(update={"version": 1})
    try:
        made = hashlib.sha256(marks.written(base64.b64decode(golden["content"]), said)).hexdigest()
    except marks.CannotMark as problem:
        made = str(problem)
    assert made == golden["sha256"][words]


def test_a_picture_that_was_marked_by_version_1_is_still_read():
    assert marks.read(base64.b64decode(VERSION_1["png"])) == MARKS.model_copy(update={"version": 1})
