"""What the room as a whole promises."""

import subprocess
import sys

from ideogram_pipeline import ideogram

IMPORTED = "import sys, ideogram_pipeline.ideogram; print(*{name.partition('.')[0] for name in sys.modules})"


def test_importing_it_loads_nothing_heavy() -> None:
    answer = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.split())
    assert "pydantic" in loaded
    assert loaded.isdisjoint({"dagster", "httpx2", "aiohttp", "PIL", "pandas", "pyarrow", "obstore", "boto3"})


def test_every_promised_name_exists() -> None:
    assert [name for name in ideogram.__all__ if not hasattr(ideogram, name)] == []
    assert len(set(ideogram.__all__)) == len(ideogram.__all__)
