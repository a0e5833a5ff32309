"""Buckets: what is kept of many batches lies in a bounded number of files, each batch in one of them for ever.

One file for everything would be written whole for every batch, and a file for each batch makes many small ones, which
are slow to read. A bucket is written anew when one of its batches changes, by one write that replaces it: whoever reads
all of them meanwhile finds every row once. Which bucket a batch is in follows from its name alone, so nobody has to
remember it, and no two writers can disagree.
"""

from __future__ import annotations

import hashlib

BUCKETS = 256
"""At a million rows a bucket holds about 4,000: little to write, and not too many files to read."""


def bucket(batch: str) -> str:
    """Return the name of a batch's bucket: two hexadecimal digits."""
    return f"{int.from_bytes(hashlib.sha256(batch.encode()).digest()[:4]) % BUCKETS:02x}"
