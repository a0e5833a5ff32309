"""Which known name somebody meant who wrote another one: of a column, or of a variable.

Names are compared word by word, without case and signs. Near is what differs in the order of its words, in singular and
plural, in a doubled letter, or in a letter or two of a word. A name that says something else is never near: one with
further words (`prompt_version`), with another number (`prompt_2`), or with a word that goes on after the known one
(`expanded_prompt`), begins with another letter (`preview`), or is short and has another letter in it (`speed`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

_FROM_TWO_EDITS = 9
"""A word with so many letters may have two wrong ones; one from `_FROM_ONE_EDIT` may have one."""
_FROM_ONE_EDIT = 3
_FROM_ALONE = 6
"""A name of one word may have a wrong letter from this length: short ones are too near to other words (bath, speed).
One that is only in another's place may be in a word that is a letter shorter."""
_FROM_JOINED = 10
"""So may one whose words are not told apart (refrenceid), from this length."""
_LEAST_ABBREVIATION = 3
_LONGEST = 60
"""No known name is nearly as long."""


def nearest(written: str, known: Collection[str]) -> str | None:
    """Return the known name that was probably meant; None where the name is known itself, or near to none."""
    if written in known or len(written) > _LONGEST:
        return None
    name = _Name.of(written)
    found = [(distance, one) for one in known if (distance := _distance(name, _Name.of(one))) is not None]
    return min(found)[1] if found else None


class _Name(NamedTuple):
    """A name, taken apart."""

    words: tuple[str, ...]
    """In lower case and in the singular."""
    ordered: tuple[str, ...]
    """The same by the alphabet."""
    joined: str
    """The same without anything between."""
    digits: str
    """Its digits."""

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, name: str) -> _Name:
        plain = unicodedata.normalize("NFKC", name)
        apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain).casefold()  # camelCase
        words = tuple(_singular(word) for word in re.split(r"[\W_]+", apart) if word)
        joined = "".join(words)
        return cls(words, tuple(sorted(words)), joined, re.sub(r"\D", "", joined))


def _singular(word: str) -> str:
    if re.search(r"(ch|sh|s|x)es$", word):
        return word.removesuffix("es")
    return word.removesuffix("s") if len(word) >= 3 else word


def _distance(written: _Name, known: _Name) -> int | None:
    """Return how far two names are apart, 0 at least; None where they are not near."""
    if written.digits != known.digits or not written.joined:
        return None
    if written.joined == known.joined or written.ordered == known.ordered:
        return 0
    if len(written.words) == len(known.words):
        return _of_words(written.words, known.words)
    # a sign between words is missing, or one too many
    if len(known.joined) < _FROM_JOINED or known.joined.startswith(written.joined):
        return None
    return _of_word(written.joined, known.joined, alone=False)


def _of_words(written: Sequence[str], known: Sequence[str]) -> int | None:
    alone = len(known) == 1
    distances = [_of_word(one, other, alone=alone) for one, other in zip(written, known, strict=True)]
    others = [distance for distance in distances if distance is not None]
    if len(others) == len(distances):
        return sum(others) if sum(others) <= 2 else None
    if len(others) < len(distances) - 1 or any(others) or alone:
        return None
    at = distances.index(None)
    is_abbreviation = len(written[at]) >= _LEAST_ABBREVIATION and known[at].startswith(written[at])
    return 2 if is_abbreviation else None


def _of_word(written: str, known: str, *, alone: bool) -> int | None:
    """Return the number of edits that make one word of another; None for too many, or where it is another word."""
    if written == known:
        return 0
    swapped = sorted(written) == sorted(known)
    if written[0] != known[0] and not (swapped and written[:2] == known[1::-1]):
        return None
    if written.startswith(known):  # it goes on: masked, licensee
        return None
    if _single(written) == _single(known):
        return 1
    least = _FROM_ALONE - (len(written) == len(known)) if alone else _FROM_ONE_EDIT
    allowed = (len(known) >= _FROM_TWO_EDITS) + (len(known) >= least) or int(swapped)
    if abs(len(written) - len(known)) > allowed:
        return None
    edits = _edits(written, known)
    return edits if edits <= allowed else None


def _single(word: str) -> str:
    """Return a word without doubled letters."""
    return re.sub(r"([^\W\d])\1+", r"\1", word)


def _edits(one: str, other: str) -> int:
    """Return how many letters have to be put in, left out, replaced, or swapped with the next (Damerau)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, above, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                least = min(least, above[j - 2] + 1)
            row.append(least)
    return row[-1]
