"""One digest of many lines, which are never held as one text."""

import hashlib
from collections.abc import Iterable


def of_lines(lines: Iterable[str]) -> str:
    """Return the hex SHA-256 of lines with newlines between them."""
    whole = hashlib.sha256()
    between = b""
    for line in lines:
        whole.update(between + line.encode())
        between = b"\n"
    return whole.hexdigest()
