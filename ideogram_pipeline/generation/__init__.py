"""How a row becomes a paid picture exactly once. Nothing here knows Dagster."""
