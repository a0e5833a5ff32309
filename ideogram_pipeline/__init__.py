"""Tables of prompts and reference pictures in, pictures with lineage out; every picture is paid for once."""

__version__ = "0.1.0"
