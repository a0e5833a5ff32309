"""A code location with two pipelines, each described by a `defs.yaml`."""
