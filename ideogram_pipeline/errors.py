"""The errors that end a command or a run with one clear line. Errors of a single row are outcomes, not exceptions."""


class PipelineError(Exception):
    """Something the person who started the run can mend. The message says what happened and what to do next."""


class ConfigurationError(PipelineError):
    """A setting is missing, malformed or contradicts another."""


class TableError(PipelineError):
    """A table of prompts or references can't be used as a whole: missing, unreadable, ambiguous ids."""


class StoreError(PipelineError):
    """The store can't be opened, read or written."""


class DamagedFile(StoreError):
    """A file of rows can't be read: it was cut short, or something else was written over it."""
