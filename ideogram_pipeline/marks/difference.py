"""What was put into a file, so that the same file can be made once more from the one without it.

A signature is another one each time. So what signing put into a picture is kept: a few kilobytes, in one piece, because
containers are added to in one place. The first twelve bytes stand for themselves: RIFF has its length there.
"""

from __future__ import annotations

from collections.abc import Callable

_HEAD = 12
_NUMBER = 8


def difference(before: bytes, after: bytes) -> bytes:
    """Return what turns one file into another."""
    limit = min(len(before), len(after)) - _HEAD
    start = _most(limit, lambda a, b: before[_HEAD + a : _HEAD + b] == after[_HEAD + a : _HEAD + b])
    ends = len(before), len(after)
    end = _most(
        limit - start, lambda a, b: before[ends[0] - b : ends[0] - a] == after[ends[1] - b : ends[1] - a]
    )
    numbers = (start.to_bytes(_NUMBER, "big"), end.to_bytes(_NUMBER, "big"))
    return b"".join([*numbers, after[:_HEAD], after[_HEAD + start : len(after) - end]])


def applied(before: bytes, difference: bytes) -> bytes:
    """Return the file that `difference` was made with, from the one it was made for."""
    start, end = (int.from_bytes(difference[at : at + _NUMBER], "big") for at in (0, _NUMBER))
    head = difference[2 * _NUMBER : 2 * _NUMBER + _HEAD]
    own = difference[2 * _NUMBER + _HEAD :]
    return b"".join([head, before[_HEAD : _HEAD + start], own, before[len(before) - end :]])


def removed(after: bytes, difference: bytes) -> bytes:
    """Return the file that `difference` was made for, from the one it was made with."""
    start, end = (int.from_bytes(difference[at : at + _NUMBER], "big") for at in (0, _NUMBER))
    before = b"".join([after[: _HEAD + start], after[len(after) - end :]])
    if before.startswith(b"RIFF"):
        return b"".join([before[:4], (len(before) - 8).to_bytes(4, "little"), before[8:]])
    return before


def _most(limit: int, alike: Callable[[int, int], bool]) -> int:
    """Return how many bytes, at most `limit`, are alike; `alike` says it of those between two numbers."""
    low, high = 0, max(limit, 0)
    while low < high:
        middle = (low + high + 1) // 2
        if alike(low, middle):
            low = middle
        else:
            high = middle - 1
    return low
