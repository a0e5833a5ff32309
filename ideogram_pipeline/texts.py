"""What others wrote, as people see it: cells of tables, fal's reasons, names of files, values of variables.

A terminal obeys escape sequences, a log takes a line break for its next line, and a bidirectional override turns around
what follows it. So whatever is printed, logged or shown in Dagster goes through `shown`. What is kept (Parquet, ledger,
JSON) stays as it was written, and JSON on a terminal has the same characters as its own escapes.
"""

from __future__ import annotations

import re

MOST = 1_000
"""Characters of a text that are shown; of a longer one the middle is left out."""
_HEAD, _TAIL = 600, 300

_ACCESS = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#@'\"]+@")
_QUERY = re.compile(r"(?P<address>\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?#'\"<>]+)[?#][^\s'\"<>]+")
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters, line separators, bidirectional overrides and isolates, invisible spaces, halves of characters.
The joiners of Hindi, Persian and emoji, and the plain marks of direction, are none of them."""

_MARKDOWN = re.compile(r"[\\`*_{}\[\]()<>#!|~&@]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def shown(text: object) -> str:
    """Return a text in one line that nothing obeys: without control characters, without what opens a URL, not too long.

    A character that something would obey stands as its escape, such as `\\n` or `\\x1b`.
    """
    return escaped(without_access(cut(str(text))))


def cut(text: str) -> str:
    """Return a text of at most about `MOST` characters, with its beginning and its end."""
    if len(text) <= MOST:
        return text
    # A URL that was cut could no longer be told from other words: what may be the half of one is left out.
    beginning = re.sub(r"\S*://\S*$", "", text[:_HEAD])
    end = re.split(r"\s", text[-_TAIL:], maxsplit=1)[1:]
    return f"{beginning} … ({len(text):,} characters) … {''.join(end)}".rstrip()


def without_access(text: str) -> str:
    """Return a text without the parts of its URLs that may grant access: user, password and query."""
    return _QUERY.sub(r"\g<address>?…", _ACCESS.sub(r"\g<scheme>…@", text))


def escaped(text: str) -> str:
    """Return a text with an escape in the place of every character that a terminal or a reader of lines would obey."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    """Return a text that Markdown shows as it is: it makes no link, picture, heading or markup of it."""
    return _MARKDOWN.sub(r"\\\g<0>", text)


def json_shown(json: str) -> str:
    """Return the same JSON with such characters as JSON's own escapes: it means what it meant."""
    return _OBEYED.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", json)


def lines_shown(text: str) -> str:
    """Return a text of several lines, such as a table or code, with an escape for every other such character."""
    return "\n".join(map(escaped, text.split("\n")))


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: `1 row`, `2 rows`; `nouns` where the plural doesn't just end in s."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"
