"""The asset checks, a module for each moment: before anything is paid, on the pictures that came, on the catalog.

A moment is one step of a run and reads everything once, whatever the number of its checks.
"""

import warnings

import dagster as dg

from ideogram_pipeline.checks import before_paying, on_catalog, on_pictures
from ideogram_pipeline.pipeline import Pipeline

MOMENTS = (before_paying, on_pictures, on_catalog)
"""The modules that define checks, in the order of the graph."""


def define(pipeline: Pipeline) -> list[dg.AssetChecksDefinition]:
    """Return the checks of a pipeline's assets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # partitioned checks are new in Dagster 1.13
        return [moment.define(pipeline) for moment in MOMENTS]
