"""The typed rows of the two tables, and the rejection of a row that can't be one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar
from unicodedata import category, normalize

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from ideogram_pipeline.pictures import MaskLook
from ideogram_pipeline.tables.cells import BadCell
from ideogram_pipeline.tables.columns import counting, needed_by
from ideogram_pipeline.tables.reader import RawRow

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

DEFAULT_BATCH = "default"
REJECTED_BATCH = "_rejected"
"""Where rows are shown whose own batch can't name a folder. No row can claim it: names don't start with `_`."""

Role = Literal["character", "style", "image", "mask"]

MAX_NAME_BYTES = 100
"""File systems count a file name's bytes, at most 255, and a picture's name holds more than the prompt id."""

_NAME = re.compile(r"[^\W_][\w.-]*")
_MARKS = ("Mn", "Mc")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")


def is_name(text: str) -> bool:
    """Say whether a text can name a file, a folder and a partition on every system: letters, digits, `_`, `.`, `-`.

    The marks that many scripts write their vowels and accents with are part of their letters.
    """
    letters = "".join(letter for letter in text if category(letter) not in _MARKS)
    return (
        _NAME.fullmatch(letters) is not None
        and text[0] == letters[0]
        and ".." not in text
        and not text.endswith(".")
        and len(text.encode()) <= MAX_NAME_BYTES
    )


def _composed(text: str) -> str:
    """Return the one spelling of a name that has marks: `e` and an accent are `é`, and one file wherever files lie."""
    return normalize("NFC", text) if any(category(letter) in _MARKS for letter in text) else text


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(
            f"names are letters, digits, '_', '-' and '.', start with a letter or digit, have no '..' "
            f"and no '.' at the end, and at most {MAX_NAME_BYTES} bytes"
        )
    return text


def as_text(cell: Any) -> Any:
    """Take numbers for text: a column of ids 1, 2, 3 comes out of Excel as numbers."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return cell.strip() if isinstance(cell, str) else str(cell) if isinstance(cell, int | float) else cell


def as_id(cell: Any) -> Any:
    """Take a cell for an id: text, with its marks composed."""
    text = as_text(cell)
    return _composed(text) if isinstance(text, str) else text


def as_name(cell: Any) -> Any:
    """Take a cell for the name of a batch or reference: an id, and a whole number is one however it is written.

    pandas writes a column of numbers with a gap as `20261.0` into CSV. A prompt's own id stays as it is written: it
    decides what is paid for.
    """
    text = as_id(cell)
    return _WHOLE.sub(r"\1", text) if isinstance(text, str) and _WHOLE.fullmatch(text) else text


def _flag(cell: Any) -> Any:
    """Take 0.0 and 1.0, as pandas writes a column of true and false with a gap, for 0 and 1."""
    whole = _WHOLE.fullmatch(cell.strip()) if isinstance(cell, str) else None
    return whole[1] if whole else cell


def _members(cell: Any) -> Any:
    """Take `a|b` apart; a list is taken as it is."""
    if isinstance(cell, str):
        return tuple(part.strip() for part in cell.split("|") if part.strip())
    return cell if isinstance(cell, list | tuple) else (cell,)


def _time(cell: Any) -> Any:
    return datetime.fromisoformat(cell.strip()) if isinstance(cell, str) else cell


def _utc(at: datetime) -> datetime:
    """Take a time without a zone for UTC, and one of another zone to UTC, so that all can be compared."""
    try:
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("in UTC it is beyond the calendar, which goes from the year 1 to 9999") from None


Text = Annotated[str, BeforeValidator(as_text)]
Id = Annotated[str, BeforeValidator(as_id), AfterValidator(_name)]
Name = Annotated[str, BeforeValidator(as_name), AfterValidator(_name)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_members)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_members)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A whole number that a Parquet column can hold."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bad_cells(cls, cell: Any) -> Any:
        if isinstance(cell, BadCell):
            raise ValueError(cell.reason)
        return cell


Row = TypeVar("Row", bound=_Row)


class PromptRow(_Row):
    """One row of the prompts table. Values that only some endpoints know are checked by the planner, not here."""

    prompt_id: Id = Field(description="Unique in the table; part of the picture's file name.")
    batch: Id = Field(default=DEFAULT_BATCH, description="The partition the row belongs to.")
    row_number: int = Field(description="Row number in the table, as a spreadsheet or editor shows it.")
    prompt: Text = Field(default="", description="What to draw.")
    endpoint: Text | None = Field(
        default=None, description="`character`, `v3/edit`, …; chosen from the references if empty."
    )
    reference_ids: Names = Field(
        default=(), alias="reference_id", description="The character's pictures; fal uses the first."
    )
    reference_mask_ids: Names = Field(
        default=(), alias="reference_mask_id", description="Masks that say where the character is."
    )
    image_id: Name | None = Field(default=None, description="The source picture to edit, remix or reframe.")
    mask_id: Name | None = Field(default=None, description="The mask of the region to repaint.")
    style_reference_ids: Names = Field(default=(), description="Pictures whose look is imitated.")
    negative_prompt: Text | None = Field(default=None, description="What to leave out.")
    rendering_speed: Text | None = Field(
        default=None, description="TURBO, BALANCED or QUALITY; sets the price."
    )
    style: Text | None = Field(default=None, description="Rendering family.")
    style_preset: Text | None = Field(default=None, description="One of Ideogram's 62 named looks.")
    style_codes: Texts = Field(default=(), description="Style codes of 8 hexadecimal digits.")
    color_palette: Text | None = Field(
        default=None, description="A preset name, or `#RRGGBB:0.5|#RRGGBB:0.3`."
    )
    image_size: Text | None = Field(
        default=None,
        description="A preset name, an aspect ratio such as `16:9`, or width x height such as `1280x720`.",
    )
    num_images: Whole | None = Field(
        default=None, description="Pictures asked for in one request; 1 if empty."
    )
    strength: float | None = Field(
        default=None, allow_inf_nan=False, description="How strongly a remix keeps its source, 0.01 to 1."
    )
    expand_prompt: Flag | None = Field(
        default=None, description="Let Ideogram rewrite the prompt, which can't be repeated; false if empty."
    )
    sync_mode: Flag | None = Field(
        default=None, description="Have the pictures sent inline, not as links; false if empty."
    )
    seed: Whole | None = Field(default=None, description="Random seed; derived from the prompt id if empty.")
    extra: str = Field(default="{}", description="The table's other columns, as a JSON object.")

    @property
    def named(self) -> tuple[str, ...]:
        """The ids of all references that the row names."""
        return (
            *self.reference_ids,
            *self.reference_mask_ids,
            *self.style_reference_ids,
            *filter(None, (self.image_id, self.mask_id)),
        )


class ReferenceRow(_Row):
    """One row of the references table, before its picture was opened."""

    reference_id: Name = Field(description="Unique in the table.")
    row_number: int = Field(description="Row number in the table, as a spreadsheet or editor shows it.")
    uri: Text = Field(description="Path relative to the table, `https://`, `s3://` or a data URI.")
    role: Role = Field(default="character", description="What the picture is for.")
    license: Text | None = Field(default=None, description="Terms under which the picture may be used.")
    notes: Text | None = Field(default=None, description="Anything people want to remember.")
    extra: str = Field(default="{}", description="The table's other columns, as a JSON object.")


class Reference(ReferenceRow):
    """A reference whose picture was opened and decoded; its bytes lie in the store under their digest."""

    sha256: str = Field(description="Hex digest of the picture's bytes.")
    kind: Literal["jpeg", "png", "webp"] = Field(description="What the bytes are, whatever the name says.")
    width: int = Field(description="Pixels across, upright.")
    height: int = Field(description="Pixels down, upright.")
    bytes: int = Field(description="Length of the file.")
    perceptual_hash: str | None = Field(
        default=None, description="64-bit difference hash of what it looks like, 16 hex digits."
    )
    sent_sha256: str | None = Field(
        default=None,
        description="Hex digest of the upright copy that is sent, where EXIF turns the picture; empty for others.",
    )
    sent_bytes: int | None = Field(default=None, description="Length of that copy.")
    as_mask: MaskLook | None = Field(
        default=None,
        description="How it would read as a mask: in both colours, in one, or by what is transparent in it.",
    )


class Review(_Row):
    """What somebody thinks of a picture. A later review of the same picture counts before an earlier one."""

    image: Text = Field(description="The picture's path in the store: `images/batch=…/….png`.")
    row_number: int = Field(description="Row number in the table, as a spreadsheet or editor shows it.")
    sha256: Annotated[Text, Field(pattern="^[0-9a-f]{64}$")] = Field(
        description="Hex digest of the file that was looked at; another one at that path is not what was meant."
    )
    review: Literal["picked", "rejected"] = Field(description="The verdict.")
    note: Text = Field(default="", description="Why, or anything else.")
    reviewed_at: Annotated[datetime, BeforeValidator(_time), AfterValidator(_utc)] = Field(
        description="When, in UTC unless it says otherwise."
    )
    extra: str = Field(default="{}", description="The table's other columns, as a JSON object.")

    @property
    def batch(self) -> str:
        """The batch that the picture's path names; empty where it names none."""
        folder = self.image.split("/")[1:2]
        return folder[0].removeprefix("batch=") if folder else ""


class Rejection(_Row):
    """A row that can't be used, and what a person can do about it."""

    file: str = Field(description="The table the row stands in.")
    row_number: int = Field(description="Row number in the table, as a spreadsheet or editor shows it.")
    row_id: str = Field(description="The row's prompt_id or reference_id as written, or empty.")
    batch: str = Field(default="", description="The batch the row is shown in; empty for references.")
    column: str = Field(description="The column at fault, or empty where the whole row is.")
    reason: str = Field(description="What is wrong and how to mend it.")

    def __str__(self) -> str:
        """Return the rejection as one line."""
        place = f"{self.file}, row {self.row_number}" + (f", column {self.column}" if self.column else "")
        return f"{place}: {self.reason}"


class Problem(NamedTuple):
    """Something that is wrong with a row."""

    column: str
    """The column at fault; empty for the whole row."""
    reason: str
    """What is wrong and how to mend it."""


class RowProblem(Exception):
    """A record that is no row: everything that is wrong with it, at least one thing."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems
        """What is wrong, in the order in which it was found."""

    @property
    def column(self) -> str:
        """The first column at fault."""
        return self.problems[0].column

    @property
    def reason(self) -> str:
        """Why that one is at fault, then the others, each with its column."""
        first, *others = dict.fromkeys(self.problems)
        return "; ".join([first.reason, *(f"{one.column}: {one.reason}" for one in others)])


def parse_row(
    model: type[Row],
    raw: RawRow,
    extra_columns: Collection[str] = (),
    further: Callable[[Row], Iterable[Problem]] = lambda _: (),
) -> Row:
    """Turn a raw record into a typed row; columns the model doesn't know, and `extra_columns`, go to `extra`.

    `further` looks for what else is wrong with a row that can't be used, of whose cells the bad ones are left empty.

    Raises:
        RowProblem: the record can't be a row; names each column at fault and the reason.
    """
    if raw.malformed:
        raise RowProblem(Problem("", raw.malformed))
    columns = counting(model, extra_columns)
    known = {name: cell for name, cell in raw.cells.items() if name in columns}
    extra = {name: cell for name, cell in raw.cells.items() if name not in columns}
    as_json = json.dumps(extra, default=str, ensure_ascii=False, sort_keys=True)
    try:
        return model.model_validate({**known, "row_number": raw.number, "extra": as_json})
    except ValidationError as error:
        problems = problems_of(error)
    bad = {problem.column for problem in problems}
    stand_ins = {column: "any" for column in bad if column in needed_by(model)}
    rest = {name: cell for name, cell in known.items() if name not in bad} | stand_ins
    with suppress(ValidationError):  # where what is needed is no text
        others = further(model.model_validate({**rest, "row_number": raw.number}))
        problems += [problem for problem in others if problem.column not in bad]
    raise RowProblem(*problems)


def problems_of(error: ValidationError) -> list[Problem]:
    """Return what a validation error finds: of each column, or member of a list in it, the first thing."""
    found: dict[tuple[str, int | None], Problem] = {}
    for finding in error.errors(include_url=False):
        column, member = (*finding["loc"], None, None)[:2]
        place = str(column or ""), member if isinstance(member, int) else None
        found.setdefault(place, Problem(place[0], _reason(finding)))
    return list(found.values())


def _reason(finding: ErrorDetails) -> str:
    reason = str(finding["msg"]).removeprefix("Value error, ")
    if finding["type"] == "missing":
        return "it is empty; every row needs one"
    found = repr(finding["input"])
    shortened = found if len(found) <= 80 else f"{found[:79]}…"
    return f"{reason[:1].lower()}{reason[1:]} (found {shortened})"
