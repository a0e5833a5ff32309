"""What all histories share."""

import pytest
import stamina.instrumentation


@pytest.fixture(autouse=True)
def _silence():
    """Have nothing written of the thousands of calls that are made again."""
    stamina.instrumentation.set_on_retry_hooks(())
    yield
    stamina.instrumentation.set_on_retry_hooks(None)
