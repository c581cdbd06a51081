"""The names of the package `guides`, which comes with this one: loaded at first use.

`from guides import AmortizedNormal` is the same, where no other package has that name: there is one
on PyPI, and a script may lie beside a file of its own called `guides.py`.

Example:
    >>> from ppl_models.guides import AmortizedNormal
    >>> AmortizedNormal(num_features=64, num_latents=8).site
    'z'
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parents[1] / "guides"  # beside this package, wherever that is


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":  # what Python asks of any module
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_guides(), name)


def __dir__() -> list[str]:
    return list(_guides().__all__)


def _guides() -> ModuleType:
    """The package, unless it is another of that name."""
    try:
        found = import_module("guides")
    except ModuleNotFoundError as error:
        if error.name != "guides":
            raise
        got = "none"
    else:
        file = getattr(found, "__file__", None)  # None of a folder without __init__.py
        if file and Path(file).parent == FOLDER and hasattr(found, "AmortizedNormal"):
            return found
        got = f"another one of that name, {file or list(found.__path__)}"
    raise ImportError(
        f"ppl_models.guides: expected the package guides that comes with ppl_models, in {FOLDER}, "
        f"got {got}. Try renaming the other one, or pip uninstall guides, and installing "
        f"ppl_models again."
    )
