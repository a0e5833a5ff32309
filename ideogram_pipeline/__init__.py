"""Tables of prompts and reference pictures in, pictures with lineage out; every picture is paid for once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ideogram_pipeline.component import GenerationComponent

__version__ = "0.1.0"
__all__ = ["GenerationComponent", "__version__"]


def __getattr__(name: str) -> type[GenerationComponent]:
    """Import the component when somebody asks for it: the rest of the package does without Dagster."""
    if name == "GenerationComponent":
        from ideogram_pipeline.component import GenerationComponent

        return GenerationComponent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name the component too, so that Dagster finds it when it lists the components of a package."""
    return sorted({*globals(), *__all__})
