"""For the tests of whoever uses this client."""

from __future__ import annotations

from contextlib import AbstractContextManager

import stamina


def no_waiting() -> AbstractContextManager[None]:
    """A context in which repeats and polls don't wait; it is stamina's testing mode, for the whole process.

    with no_waiting():
        asyncio.run(main())
    """
    return stamina.set_testing(True, attempts=10, cap=True)
