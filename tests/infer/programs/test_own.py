"""A fitted module, called by anyone in any way, answers with what it learned."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from ppl_models import data_plate, elbo, fit, load, log_evidence, save

MANY, FEW = torch.full((40,), 30.0), torch.tensor([3.0, 2.0, 4.0, 3.0])


def counts(x=None, size=None):
    """The posterior of the rate is Gamma(2 + sum x, 1 + n)."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


class Attributes(PyroModule):
    """A guide with its parameters as attributes."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.scale = PyroParam(torch.tensor(0.1), constraint=constraints.positive)

    def forward(self, x=None, size=None):
        return {"rate": pyro.sample("rate", dist.LogNormal(self.loc, self.scale))}


class Statements(nn.Module):
    """A guide that keeps nothing itself."""

    def forward(self, x=None, size=None):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
        return {"rate": pyro.sample("rate", dist.LogNormal(loc, scale))}


class Layer(PyroModule):
    """A guide with its parameters in a plain module within."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 2)

    def forward(self, x=None, size=None):
        loc, scale = self.net(torch.ones(1))
        return {"rate": pyro.sample("rate", dist.LogNormal(loc, (scale - 3).exp()))}


class Around(nn.Module):
    """A plain module around an autoguide."""

    def __init__(self):
        super().__init__()
        self.inner = AutoNormal(counts, init_scale=0.1)

    def forward(self, x=None, size=None):
        return self.inner(x, size=size)


def listed():
    guide = AutoGuideList(counts)
    guide.append(AutoNormal(counts, init_scale=0.1))
    return guide


GUIDES = {
    "AutoNormal": lambda: AutoNormal(counts, init_scale=0.1),
    "AutoDiagonalNormal": lambda: AutoDiagonalNormal(counts, init_scale=0.1),
    "AutoDelta": lambda: AutoDelta(counts),
    "AutoGuideList": listed,
    "attributes": Attributes,
    "statements": Statements,
    "a layer": Layer,
    "around": Around,
}


def fitted(make, x):
    guide = make()
    fit(elbo(counts, guide), x, steps=600, lr=0.05, seed=0, progress=False)
    return guide


def posterior_mean(x):
    return (2 + x.sum().item()) / (1 + len(x))


def answers(guide, x):
    """The mean of the rate, asked for in several ways."""
    yield torch.stack([guide(x)["rate"] for _ in range(200)]).mean().item()
    trace = lambda: poutine.trace(guide).get_trace(x).nodes["rate"]["value"]  # noqa: E731
    yield torch.stack([trace() for _ in range(200)]).mean().item()
    drawn = Predictive(counts, guide=guide, num_samples=200)(x)["rate"]
    yield drawn.mean().item()
    if hasattr(guide, "median"):
        yield guide.median(x)["rate"].item()
    if hasattr(guide, "quantiles"):
        yield guide.quantiles([0.5], x)["rate"][0].item()


def check(guide, x):
    for answer in answers(guide, x):
        assert answer == pytest.approx(posterior_mean(x), rel=0.15)


@pytest.mark.parametrize("name", GUIDES)
def test_two_of_a_class_answer_each_with_its_own(name):
    many, few = fitted(GUIDES[name], MANY), fitted(GUIDES[name], FEW)
    for _ in range(2):
        check(many, MANY)
        check(few, FEW)
    assert not list(pyro.get_param_store().keys())
    fresh = GUIDES[name]()
    with torch.no_grad():
        fresh(MANY)  # in Pyro's store, by name
    check(many, MANY)
    check(few, FEW)


@pytest.mark.parametrize("name", GUIDES)
def test_copies_and_pickles(name):
    guide = fitted(GUIDES[name], MANY)
    check(copy.deepcopy(guide), MANY)
    again = pickle.loads(pickle.dumps(guide))
    check(again, MANY)
    check(guide, MANY)
    # Of its own: what the one learns from now on, the other does not.
    other = copy.deepcopy(guide) if name != "around" else fitted(GUIDES[name], MANY)
    for parameter in other.parameters():
        parameter.data.zero_()
    check(guide, MANY)


@pytest.mark.parametrize("name", GUIDES)
def test_two_that_are_loaded(name, tmp_path):
    """Their parameters are made by the call that the error text recommends."""
    for kind, x in (("many", MANY), ("few", FEW)):
        save(tmp_path / kind, guide=fitted(GUIDES[name], x))
    if name == "AutoNormal":
        with pytest.raises(ValueError, match=r"no parameters before its first call: try guide\("):
            load(tmp_path / "many", guide=GUIDES[name]())
    if name == "statements":
        return  # such a module has no parameters of its own before it runs in a fit
    many, few = GUIDES[name](), GUIDES[name]()
    many(MANY), few(FEW)
    load(tmp_path / "many", guide=many)
    load(tmp_path / "few", guide=few)
    check(many, MANY)
    check(few, FEW)


def test_two_that_were_called_before_they_are_fitted():
    """Pyro gives both the same parameters, by their names."""
    many, few = GUIDES["AutoNormal"](), GUIDES["AutoNormal"]()
    many(MANY), few(FEW)
    assert many.locs.rate_unconstrained is few.locs.rate_unconstrained
    for guide, x in ((many, MANY), (few, FEW)):
        fit(elbo(counts, guide), x, steps=600, lr=0.05, seed=0, progress=False)
    check(many, MANY)
    check(few, FEW)


def test_the_evidence_is_the_same_after_others_were_called():
    guide = fitted(GUIDES["AutoNormal"], MANY)
    before = log_evidence(counts, guide, MANY, num_samples=200, seed=0).mean
    check(fitted(GUIDES["AutoNormal"], FEW), FEW)
    GUIDES["AutoNormal"]()(FEW)
    guide(MANY)
    assert log_evidence(counts, guide, MANY, num_samples=200, seed=0).mean == before


def test_a_model_that_was_fitted():
    class Rate(PyroModule):
        def __init__(self):
            super().__init__()
            self.rate = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

        def forward(self, x=None, size=None):
            with data_plate(x, size):
                return pyro.sample("x", dist.Poisson(self.rate), obs=x)

    models = [Rate(), Rate()]
    for model, x in zip(models, (MANY, FEW), strict=True):
        fit(elbo(model), x, steps=600, lr=0.1, seed=0, progress=False)
    for model, x in zip(models, (MANY, FEW), strict=True):
        drawn = Predictive(model, num_samples=300)(size=len(x))["x"]
        assert drawn.mean().item() == pytest.approx(x.mean().item(), rel=0.1)


@pytest.mark.parametrize("name", ["attributes", "statements"])
def test_one_that_another_program_calls(name):
    inner, rates = fitted(GUIDES[name], MANY), []

    class Outer(nn.Module):
        def forward(self, x=None, size=None):
            with poutine.block():
                rates.append(inner(x)["rate"].item())
            pyro.sample("rate", dist.Gamma(2 + x.sum(), 1.0 + len(x)))

    log_evidence(counts, Outer(), FEW, num_samples=100, seed=0)
    assert torch.tensor(rates).mean().item() == pytest.approx(posterior_mean(MANY), rel=0.05)


def test_pyros_own_steps_go_on_with_a_fitted_guide():
    """Its parameters are then in no store, and yet move."""
    guide = fitted(GUIDES["AutoNormal"], FEW)
    svi = pyro.infer.SVI(counts, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(600):
        svi.step(MANY)
    check(guide, MANY)


def test_what_pyro_fitted_stays_in_its_store():
    guide = GUIDES["AutoNormal"]()
    svi = pyro.infer.SVI(counts, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    svi.step(MANY)
    names = list(pyro.get_param_store().keys())
    log_evidence(counts, guide, MANY, num_samples=5)
    svi.step(MANY)
    assert list(pyro.get_param_store().keys()) == names
    assert pyro.param("AutoNormal.locs.rate") is guide.locs.rate_unconstrained


def test_the_store_is_as_before_also_after_an_error():
    guide = fitted(GUIDES["AutoNormal"], MANY)
    theirs = pyro.param("AutoNormal.locs.rate", torch.tensor(5.0))

    class Stop(pyro.poutine.messenger.Messenger):
        def _pyro_sample(self, message):
            raise KeyError("on purpose")

    with pytest.raises(KeyError), Stop():
        guide(MANY)
    check(guide, MANY)
    assert pyro.param("AutoNormal.locs.rate") is theirs
    assert list(pyro.get_param_store().keys()) == ["AutoNormal.locs.rate"]
    assert theirs.item() == 5.0
