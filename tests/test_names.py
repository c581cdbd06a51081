"""What a prompt offers after a dot: public names, and all of them."""

import pydoc
import re
import subprocess
import sys
from importlib import import_module
from inspect import getdoc, isclass, isfunction, signature
from pathlib import Path

import pytest
from torch import nn

import guides
import ppl_models

ROOT = Path(__file__).parents[1]
SUBPACKAGES = {
    *("datasets", "guides", "likelihoods", "metrics", "nn", "pictures", "priors", "sklearn"),
}
MODULES = ["guides", *(f"ppl_models.{name}" for name in sorted(SUBPACKAGES))]


def test_the_package_offers_its_names_and_public_subpackages():
    assert set(dir(ppl_models)) == {*ppl_models.__all__, *SUBPACKAGES}


@pytest.mark.parametrize("name", MODULES)
def test_a_subpackage_offers_its_names(name):
    module = import_module(name)
    assert dir(module) == sorted(module.__all__)


@pytest.mark.parametrize("name", ["ppl_models", *MODULES])
def test_what_is_offered_is_there_and_of_this_project(name):
    module = import_module(name)
    found = {public: getattr(module, public) for public in dir(module)}
    named = {k: v.__module__ for k, v in found.items() if isclass(v) or isfunction(v)}
    ours = ("ppl_models", "guides", "typing")  # a hint may be Any
    assert {k for k, home in named.items() if home.partition(".")[0] not in ours} == set()


def test_subpackages_are_loaded_at_first_use():
    code = (
        "import sys, ppl_models\n"
        "assert not {'ppl_models.datasets', 'ppl_models.sklearn', 'guides'} & set(sys.modules)\n"
        "assert ppl_models.datasets.digits and ppl_models.sklearn.GaussianMixture\n"
        "assert ppl_models.guides.AmortizedNormal\n"
        "assert not hasattr(ppl_models, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_version_is_written_in_one_place():
    assert 'version = "' not in (ROOT / "pyproject.toml").read_text().partition("[project.opt")[0]
    assert f"\nversion: {ppl_models.__version__}\n" in (ROOT / "CITATION.cff").read_text()


MODELS = [
    kind
    for source in (ppl_models, guides, ppl_models.priors)
    for kind in (getattr(source, name) for name in source.__all__)
    if isclass(kind) and issubclass(kind, nn.Module)
]


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_help_leads_with_the_arguments_of_a_model_and_of_its_program(kind):
    """Torch's own text of `forward` says that it should be overridden."""
    said = pydoc.plain(pydoc.render_doc(kind))
    head = said.partition("Method resolution order")[0]
    arguments = list(signature(kind).parameters)
    assert re.search(rf" \|  {kind.__name__}\(\*?{arguments[0]}\b", head)
    assert all(re.search(rf"^ \|      .*\b{name}\b.*:", head, re.MULTILINE) for name in arguments)
    assert " object at 0x" not in head
    program = getdoc(kind.forward)
    assert "Should be overridden" not in program
    named = [name for name in signature(kind.forward).parameters if name not in ("self", "size")]
    about = program + getdoc(kind)
    assert all(f"`{name}`" in about or f"{name}: " in about for name in named)
