"""The tree of errors, as drawn."""

import re

from ideogram_pipeline import fal
from ideogram_pipeline.fal import errors


def family(kind):
    return {kind.__name__} | {name for child in kind.__subclasses__() for name in family(child)}


def test_the_tree_in_the_docstring_shows_every_error_under_its_parent():
    drawn = re.findall(r"^([│ ]*)[├└]── (\w+)", errors.__doc__, re.M)
    parents = {0: "FalError"}
    for indent, name in drawn:
        depth = len(indent) // 4
        parents[depth + 1] = name
        assert getattr(errors, name).__mro__[1].__name__ == parents[depth]
    assert {name for _, name in drawn} | {"FalError"} == family(fal.FalError)


def test_every_error_is_exported():
    assert family(fal.FalError) <= set(fal.__all__)


def test_an_error_says_what_happened_and_what_to_do_next():
    error = fal.Unauthorized(message="fal answered 401.")
    assert (
        str(error)
        == "fal answered 401. Check FAL_KEY: it reads <key id>:<key secret>, from fal.ai/dashboard/keys."
    )
    assert isinstance(error, fal.AccessRefused)
