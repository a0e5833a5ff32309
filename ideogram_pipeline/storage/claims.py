"""The proof that a store keeps claims: what exists can't be created again, and what was written is seen at once.

Runs tell by claims that nobody else is paying for a row. Every store that is named in `store` offers them, but not
every server that speaks S3 does: some take the condition of a write for nothing, and overwrite without a word.
"""

from __future__ import annotations

import secrets

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.storage.store import Store

_FOLDER = "claims"


class ClaimsNotKept(StoreError):
    """The store lets two runs claim the same row."""


def prove_claims(store: Store) -> None:
    """Claim an object twice, with different contents; the second claim must fail, and the first be there.

    No race is needed: a server that doesn't know the condition of a write overwrites what lies there. Takes five
    requests, and leaves nothing behind.

    Raises:
        ClaimsNotKept: the store doesn't keep claims.
        StoreError: it can't be written, read, listed or deleted in.
    """
    path = f"{_FOLDER}/{secrets.token_hex(8)}"
    claimed = [store.create(path, content) for content in (b"first", b"second")]
    kept, listed = store.get(path), [found.path for found in store.objects(_FOLDER)]
    store.delete(path)
    server = f" at {store.endpoint}" if store.endpoint else ""
    if claimed != [True, False] or kept != b"first":
        raise ClaimsNotKept(
            f"The store {store.url!r}{server} does not refuse to create what exists, so that two runs at once would "
            "pay for the same row. It lacks conditional writes (`If-None-Match: *`), which Amazon S3, Google Cloud "
            "Storage, Azure, SeaweedFS and local folders have: set IDEOGRAM_STORE to one of these."
        )
    if path not in listed:
        raise ClaimsNotKept(
            f"The store {store.url!r}{server} does not list at once what was written, so that a run could miss what "
            "another has paid for. Set IDEOGRAM_STORE to a store whose listings are up to date."
        )
