"""One store for everything the project keeps: whole writes, create-if-absent, Parquet in and out."""

from ideogram_pipeline.storage.store import Store, StoredObject

__all__ = ["Store", "StoredObject"]
