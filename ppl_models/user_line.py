"""Warnings that name the line of the user, whichever way led from there to what warns."""

import functools
import inspect
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

# What may lie between a user's line and ours, besides ours.
BETWEEN = ("torch", "pyro", "sklearn", "tqdm", "contextlib", "functools")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the innermost line outside of this library and of those that it is called through.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("the noise is at its floor")
        >>> print(caught[0].message)
        the noise is at its floor
    """
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_passed_over()):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@functools.cache
def _passed_over() -> tuple[str, ...]:
    """How the names of files begin that are not the user's."""
    here = Path(__file__).parent
    ours = [f"{folder}{os.sep}" for folder in (here, here.with_name("guides"))]
    origins = [spec.origin for spec in map(find_spec, BETWEEN) if spec and spec.origin]
    return (*ours, *(origin.removesuffix("__init__.py") for origin in origins))
