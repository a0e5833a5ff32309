"""A code location with the pipeline and assets downstream of it."""
