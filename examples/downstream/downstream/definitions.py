"""The pipeline, and two assets that use what it makes."""

import io

import dagster as dg
import pandas as pd
import pyarrow as pa
from PIL import Image

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.resources import StoreResource
from ideogram_pipeline.settings import Settings

BATCHES = dg.DynamicPartitionsDefinition(name="ideogram_batches")


@dg.asset(ins={"image_catalog": dg.AssetIn(metadata={"columns": ["endpoint", "cost_usd", "current"]})})
def cost_by_endpoint(image_catalog: pd.DataFrame) -> dg.MaterializeResult[None]:
    """What the current pictures cost, from the catalog of all batches."""
    current = image_catalog[image_catalog["current"]]
    costs = current.groupby("endpoint")["cost_usd"].sum()
    return dg.MaterializeResult(metadata={str(endpoint): float(cost) for endpoint, cost in costs.items()})


@dg.asset(partitions_def=BATCHES)
def brightness(generated_images: pa.Table, store: StoreResource) -> dg.MaterializeResult[None]:
    """How bright the pictures of one batch are. Rows come as a frame; the pictures are files in the store."""
    opened = store.open()
    levels = []
    for row in generated_images.to_pylist():
        content = opened.get(f"images/batch={row['batch']}/{row['file_name']}")
        with Image.open(io.BytesIO(content)) as picture:
            levels.append(picture.convert("L").resize((1, 1)).getpixel((0, 0)))
    return dg.MaterializeResult(metadata={"pictures": len(levels), "mean": sum(levels) / len(levels)})


@dg.definitions
def defs() -> dg.Definitions:
    """Load both."""
    own = dg.Definitions(assets=[cost_by_endpoint, brightness])
    return dg.Definitions.merge(build_definitions(Settings.from_environment()), own)
