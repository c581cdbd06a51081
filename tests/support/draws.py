"""Rows, a program and densities for tests of draws."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

from ppl_models import data_plate

ROWS = 20


def values(data, group, name):
    return torch.from_numpy(data[group][name].values[0])


def log_joint(model, latents, *data):
    """The joint density of one draw, enumerated sites summed out, by Pyro's own estimator."""
    given = poutine.condition(model, data=latents)
    estimator = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    with torch.no_grad():
        return -estimator.loss(given, lambda *_, **__: None, *data)


def counts(x=None, size=None):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def counts_guide(x=None, size=None):
    pyro.sample("rate", dist.Gamma(2.0 + x.sum(), 1.0 + len(x)))


X = torch.linspace(-2, 2, 3 * ROWS, dtype=torch.float64).reshape(ROWS, 3).sin()
Y = X.sum(1) + torch.linspace(-1, 1, ROWS, dtype=torch.float64).cos()
COUNTS = torch.arange(ROWS).double() % 5
