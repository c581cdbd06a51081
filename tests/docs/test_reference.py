"""Every public name has a page of the reference, and an example that runs (as a doctest)."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "api"
NAMES = re.findall(
    r"^   ((?:ppl_models|guides)\.\S+)$",
    "\n".join(page.read_text() for page in sorted(PAGES.glob("*.md"))),
    re.MULTILINE,
)
ROOMS = ["likelihoods", "priors", "nn", "datasets", "metrics", "pictures", "sklearn"]
MODULES = ["ppl_models", "guides", *(f"ppl_models.{room}" for room in ROOMS)]


def named(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_no_name_has_two_pages() -> None:
    assert len(NAMES) > 200
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("module", MODULES)
def test_each_public_name_has_a_page(module: str) -> None:
    here = {id(named(path)) for path in NAMES}
    public = importlib.import_module(module).__all__
    assert [name for name in public if id(named(f"{module}.{name}")) not in here] == []


@pytest.mark.parametrize("path", NAMES)
def test_each_has_an_example(path: str) -> None:
    assert ">>> " in (inspect.getdoc(named(path)) or "")
