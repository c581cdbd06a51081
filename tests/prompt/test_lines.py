"""Every object says what it is in a line: sizes, kinds and numbers, not whole tensors."""

import inspect
from pathlib import Path
from types import MethodType

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import guides
import ppl_models
from guides import AmortizedNormal, ExactPosterior
from ppl_models import (
    MADE,
    SVI,
    VAE,
    Evidence,
    FactorAnalysis,
    GaussianMixture,
    Graph,
    Transformed,
    Vocabulary,
    check,
    elbo,
    likelihoods,
    log_evidence,
    metrics,
    predictive_pvalues,
    priors,
    sandwich,
    weighted,
)
from ppl_models.datasets import karate
from ppl_models.likelihoods import Bernoulli, Normal, Ordered
from ppl_models.nn import ImageInput, MaskedPatches
from ppl_models.prompt.lines import shortened
from tests.support.every_objective import ALL, programs

ROOT = Path(__file__).parents[2]
MODULES = (ppl_models, guides, likelihoods, priors, metrics)
PUBLIC = {name: getattr(m, name) for m in MODULES for name in m.__all__}
CLASSES = {k: v for k, v in PUBLIC.items() if inspect.isclass(v)}
# Errors have Python's own; this hint is of what users write.
EXEMPT = {"ProcessError", "Likelihood"}


def home(kind):
    """The file that has the `__repr__` of a class; that of a dataclass is in none."""
    code = getattr(kind.__repr__, "__code__", None)
    return Path("nowhere" if code is None else code.co_filename)


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - EXEMPT))
def test_each_public_class_has_a_line_of_its_own(name):
    assert home(CLASSES[name]).is_relative_to(ROOT / "ppl_models")


@pytest.mark.parametrize("name", ALL)
def test_models_guides_and_objectives_fit_a_line(name):
    objective = ALL[name].make()
    theirs = (MethodType, ImageInput, MaskedPatches)  # Python's, and torch's tree of a network
    for said in (objective, *programs(objective)):
        if isinstance(said, theirs):
            continue
        assert len(repr(said).splitlines()) == 1
        assert len(repr(said)) < 180


@pytest.mark.parametrize("name", ALL)
def test_sizes_that_are_required_are_said(name):
    for program in programs(ALL[name].make()):
        if not isinstance(program, nn.Module) or type(program).__module__ == "torch.nn":
            continue
        for argument, parameter in inspect.signature(type(program)).parameters.items():
            if argument.startswith("num_") and parameter.default is inspect.Parameter.empty:
                assert f"{argument}={getattr(program, argument)}" in repr(program)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Bernoulli(), "Bernoulli()"),
        (Normal(own_scale=True), "Normal(own_scale=True)"),
        (Ordered([1, 2, 4]), "Ordered(levels=[1, 2, 4], 2 parameters)"),
        (MADE(4), "MADE(num_features=4, likelihood=Bernoulli(), 2,308 parameters)"),
        (
            GaussianMixture(2, 3, "diag", min_scale=0.5),
            "GaussianMixture(num_features=2, num_components=3, covariance='diag', min_scale=0.5, "
            "14 free parameters)",
        ),
        (ExactPosterior(FactorAnalysis(5, 2)), "ExactPosterior(model=FactorAnalysis)"),
        (
            VAE(4, 2, Normal(), prior=priors.MixturePrior(2, 3), decoder=nn.Linear(2, 4)),
            "VAE(num_features=4, num_latents=2, likelihood=Normal(1 parameter), decoder=Linear, "
            "prior=MixturePrior, 28 parameters)",
        ),
        (
            Transformed(torch.ones(20, 4), transform=torch.bernoulli),
            "Transformed(tensors=(tensor of (20, 4)), transform=bernoulli)",
        ),
        (Vocabulary(list(map(str, range(1234)))), "Vocabulary(words=list of 1,234)"),
        (
            Graph(30, torch.ones(7, 2), list(range(30))),
            "Graph(num_nodes=30, edges=tensor of (7, 2), names=list of 30)",
        ),
    ],
)
def test_what_is_said(made, said):
    assert repr(made) == said


def test_data_sets_say_their_sizes():
    pytest.importorskip("networkx")
    assert repr(karate()) == "Network(graph=Graph, y=tensor of (34,))"


def test_objectives_name_their_programs():
    objective = elbo(VAE(4, 2), AmortizedNormal(4, 2))
    assert repr(objective) == "EvidenceLowerBound(model=VAE, guide=AmortizedNormal)"
    assert repr(weighted({objective: 2.0})) == f"Weighted(2 {objective!r})"
    guide = AutoNormal(model := VAE(4, 2))
    svi = SVI(model, guide, pyro.optim.Adam({}), pyro.infer.Trace_ELBO())
    assert repr(svi) == "SVI(model=VAE, guide=AutoNormal, loss=Trace_ELBO)"


def test_the_tree_of_layers_is_still_to_be_had():
    tree = nn.Module.__repr__(VAE(4, 2))
    assert "(decoder): MLP(" in tree
    assert "(prior): StandardNormal(num_latents=2)" in tree


def test_a_model_that_inherits_says_what_it_keeps():
    class Half(VAE):
        def __init__(self, num_features, half, unkept=None):
            super().__init__(num_features, half // 2)
            self.half = half

    assert repr(Half(4, 6)).startswith("Half(num_features=4, half=6, ")


def test_tensors_that_are_the_default_are_left_out():
    model = ppl_models.LinearRegression(num_features=3, bias_scale=10.0)
    assert repr(model) == "LinearRegression(num_features=3)"
    model = ppl_models.LinearRegression(num_features=3, weights_scale=0.1)
    assert "weights_scale=[0.1, 0.1, 0.1]" in repr(model)


def test_values_are_shortened():
    assert shortened(torch.tensor(0.5)) == "0.5"
    assert shortened(torch.ones(2, 3)) == "tensor of (2, 3)"
    assert shortened(torch.ones(3, device="meta")) == "tensor of (3,)"
    assert shortened("x" * 100) == "str"
    assert shortened(nn.ReLU) == "ReLU"
    assert shortened(lambda x: x) == "<lambda>"
    assert shortened(VAE(4, 2).mean) == "mean"


VALUE = torch.tensor([-1.0, -2.0, -3.0, -2.0])


@pytest.mark.parametrize(
    ("value", "rows", "draws", "said"),
    [
        (VALUE, 4, 0, "-2.000 ± 0.408 nats per row, exact, 4 rows"),
        (VALUE, 4, 500, "-2.000 ± 0.408 nats per row, lower bound, 4 rows, 500 draws"),
        (VALUE[:1], 1, 0, "-1.000 nats of one row, exact"),
        (VALUE[:1], 4, 500, "-1.000 nats of all 4 rows (-0.250 per row), lower bound, 500 draws"),
    ],
)
def test_an_evidence_says_number_and_kind(value, rows, draws, said):
    kind = "lower bound" if draws else "exact"
    found = Evidence(value, kind, rows, draws, None, torch.zeros(len(value)))
    assert repr(found) == f"Evidence({said})"
    assert str(found).startswith(f"log evidence {said.partition(',')[0]}, {kind}")


def test_an_evidence_that_few_draws_carry_says_so():
    found = Evidence(VALUE, "lower bound", 4, 500, None, torch.full((4,), 0.9))
    assert repr(found).endswith(", 500 draws, unreliable)")


def test_results_are_a_line_each():
    model, x = FactorAnalysis(4, 2), torch.randn(20, 4)
    guide = ExactPosterior(model)
    found = [
        check(model, guide, x),
        sandwich(model, guide, x, num_steps=2, num_chains=2),
        predictive_pvalues(model, guide, x, num_simulations=50),
        log_evidence(model, None, x),
    ]
    for result in found:
        assert repr(result).startswith(f"{type(result).__name__}(")
        assert len(repr(result)) < 140
        assert repr(result).count("(") == repr(result).count(")")
    assert repr(found[0]) == "Check(nothing wrong was found)"


def test_subclasses_with_arguments_and_names_of_their_own():
    class Own(VAE):
        def __init__(self, weights=np.zeros(3)):
            super().__init__(4, 2)
            self.weights = weights

        def num_parameters(self):
            return 3

    assert repr(Own(np.ones(3))).startswith("Own(")
