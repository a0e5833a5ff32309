"""What the definitions of one pipeline have in common: its names, its partitions, its owners, where its things lie.

Two pipelines live in one code location as long as their prefixes differ.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from ideogram_pipeline.settings import Settings

_DAGSTERS = ("context", "config")
"""Parameters that are no resources."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One pipeline. Everything that Dagster must tell apart is named by it."""

    prefix: str
    """Goes before every name; empty for the only, or the main, pipeline of a code location."""
    owners: tuple[str, ...]
    """Who answers for its assets: e-mail addresses and `team:…`."""
    store: str
    """Folder or URL of its store."""
    has_reviews: bool
    """Whether people's reviews are one of its tables."""

    @classmethod
    def of(cls, settings: Settings) -> "Pipeline":
        """Return the pipeline that the settings describe."""
        return cls(settings.key_prefix, settings.owners, settings.store, settings.reviews is not None)

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of an asset: `prompts`, or `<prefix>/prompts`."""
        return dg.AssetKey([self.prefix, asset] if self.prefix else [asset])

    def name(self, name: str) -> str:
        """Return the name of what has no key: a job, group, pool, resource or set of partitions."""
        return f"{self.prefix}_{name}" if self.prefix else name

    @property
    def tables(self) -> tuple[str, ...]:
        """The assets that are read from what people write."""
        return ("prompts", "references", *(("reviews",) if self.has_reviews else ()))

    @property
    def batches(self) -> dg.DynamicPartitionsDefinition:
        """The batches of the prompts table. A run works one of them; a row is not a partition."""
        return dg.DynamicPartitionsDefinition(name=self.name("ideogram_batches"))

    def with_own_resources(self, function: Function) -> Function:
        """Have the resources that an asset or check asks for as `store` be this pipeline's `<prefix>_store`.

        Dagster finds a resource by the name of the parameter, and refuses two of a name in one code location.
        """
        if not self.prefix:
            return function
        signature = inspect.signature(function)
        own = {name: self.name(name) for name in signature.parameters if name not in _DAGSTERS}
        asked = {name: parameter for parameter, name in own.items()}

        @wraps(function)
        def renamed(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **{asked.get(name, name): value for name, value in kwargs.items()})

        @wraps(function)
        def yielding(*args: Any, **kwargs: Any) -> Any:
            yield from renamed(*args, **kwargs)

        parameters = [
            parameter.replace(name=own.get(name, name)) for name, parameter in signature.parameters.items()
        ]
        # Dagster asks whether it is a generator function, which several checks in one step are
        wrapper = yielding if inspect.isgeneratorfunction(function) else renamed
        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # PEP 362
        return wrapper  # type: ignore[return-value]  # the same function but for its parameters' names

    def uri(self, folder: str) -> str:
        """Return where a folder of the store is, before the store was ever opened."""
        if "://" in self.store:
            return f"{self.store.rstrip('/')}/{folder}"
        return Path(self.store).expanduser().resolve().joinpath(folder).as_uri()
