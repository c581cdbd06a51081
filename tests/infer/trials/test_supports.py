"""Guides that draw what their model has no density for, by the ends of the supports."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from ppl_models import data_plate, elbo
from ppl_models.infer.trials.supports import outside
from tests.support.runs import quiet

CASES = {
    "real for positive": (dist.Normal(3.0, 1.0), dist.Gamma(2.0, 1.0), True),
    "real for an interval": (dist.Normal(0.5, 0.1), dist.Beta(2.0, 1.0), True),
    "a wider interval": (dist.Uniform(-2.0, 2.0), dist.Uniform(-1.0, 1.0), True),
    "a vector for a simplex": (
        *(dist.Normal(torch.ones(3), 1.0).to_event(1), dist.Dirichlet(torch.ones(3))),
        True,
    ),
    "numbers for counts": (dist.LogNormal(0.0, 1.0), dist.Poisson(2.0), True),
    "counts for truth values": (dist.Poisson(1.0), dist.Bernoulli(0.5), True),
    "positive for real": (dist.LogNormal(0.0, 1.0), dist.Normal(0.0, 1.0), False),
    "positive": (dist.LogNormal(0.0, 1.0), dist.Gamma(2.0, 1.0), False),
    "a narrower interval": (dist.Uniform(-1.0, 1.0), dist.Uniform(-2.0, 2.0), False),
    "a simplex": (dist.Dirichlet(torch.ones(3)), dist.Dirichlet(torch.ones(3)), False),
    "a point": (dist.Delta(torch.tensor(-1.0)), dist.Gamma(2.0, 1.0), False),
    "truth values": (dist.Bernoulli(0.5), dist.Bernoulli(0.1), False),
    "a correlation": (dist.LKJCholesky(3, 1.0), dist.LKJCholesky(3, 2.0), False),
}


def texts(guide, model):
    traces = (
        poutine.trace(lambda fn=fn: pyro.sample("z", fn)).get_trace() for fn in (model, guide)
    )
    return list(outside(*traces))


@pytest.mark.parametrize("name", CASES)
def test_supports(name):
    guide, model, leaves = CASES[name]
    found = texts(guide, model)
    assert len(found) == leaves
    assert all("its site 'z' is a " in text for text in found)


def rates(x=None, size=None):
    rate = pyro.sample("rate", dist.Gamma(torch.tensor([2.0, 1.0]), 1.0).to_event(1))
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate.sum() * share), obs=x)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_stay_inside(kind):
    assert quiet(elbo(rates, kind), torch.ones(5), steps=3).steps == 3


def test_fit_warns_of_draws_outside_before_they_come():
    def guide(x, size=None):
        loc = pyro.param("loc", torch.tensor([5.0, 5.0]))
        pyro.sample("rate", dist.Normal(loc, 1e-3).to_event(1))
        pyro.sample("share", dist.Beta(1.0, 1.0))

    with pytest.warns(UserWarning, match=r"'rate' is a Normal .*Expected values in Greater.*Real"):
        quiet(elbo(rates, guide), torch.ones(5), steps=2)
