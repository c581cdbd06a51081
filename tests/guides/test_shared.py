"""Shared and local latents together: the exact posterior, and what is lost where none is given."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import AmortizedNormal, SharedAndLocal
from ppl_models import data_plate, elbo, fit, from_pyro_svi, log_evidence

DOUBLE = torch.float64
N = 12


def model(x=None, size=None):
    """Rows around a mean that they share."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(1, dtype=DOUBLE), 1.0).to_event(1))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def rows():
    return torch.randn(N, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) + 1


def evidence(x):
    covariance = 2 * torch.eye(N, dtype=DOUBLE) + 1
    return dist.MultivariateNormal(torch.zeros(N, dtype=DOUBLE), covariance).log_prob(x[:, 0])


def of_loc(x, size=None):
    """The posterior of the mean, by all rows."""
    precision = 1 + N / 2
    loc = rows().sum(0) / 2 / precision
    pyro.sample("loc", dist.Normal(loc, precision**-0.5).to_event(1))


def exact(given):
    encoder = nn.Linear(1 + len(given), 2).double()
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight[0] = 0.5  # of the row, and of the mean where that is given
        encoder.bias.copy_(torch.tensor([0.0, -math.log(2) / 2]))
    return SharedAndLocal(of_loc, AmortizedNormal(1 + len(given), 1, encoder), given)


def test_the_posterior_is_one_of_them():
    x = rows()
    guide = exact(["loc"])
    torch.testing.assert_close(elbo(model, guide).loss(x), -evidence(x) / N)
    found = log_evidence(model, guide, x, num_samples=20)
    torch.testing.assert_close(found.value, evidence(x).reshape(1))


def test_minibatches_keep_their_rows():
    x, guide = rows(), exact(["loc"])
    torch.manual_seed(0)
    parts = []
    for part in x.split(4):
        torch.manual_seed(0)  # the same mean in each
        parts.append(elbo(model, guide).loss(part, size=N))
    torch.testing.assert_close(torch.stack(parts).mean(), -evidence(x) / N)


def test_without_the_shared_latents_something_is_lost():
    x = rows()
    plain = SharedAndLocal(of_loc, AmortizedNormal(1, 1).double())
    with torch.no_grad():
        loss = torch.stack([elbo(model, plain).loss(x) for _ in range(20)]).mean()
    assert loss > -evidence(x) / N + 0.02


@pytest.mark.slow
def test_it_is_fitted_with_an_autoguide():
    x = rows()
    shared = AutoNormal(poutine.block(model, hide=["z"]), init_scale=0.3)
    guide = SharedAndLocal(shared, AmortizedNormal(2, 1, nn.Linear(2, 2)).double(), ["loc"])
    options = {"steps": 1500, "lr": 0.03, "schedule": to_zero, "seed": 0}
    fit(elbo(model, guide), x, **options)
    names = [name for name, _ in elbo(model, guide).named_parameters()]
    assert any("shared" in name for name in names)
    found = log_evidence(model, guide, x, num_samples=500, seed=0)
    assert found.value.item() == pytest.approx(evidence(x).item(), abs=0.05)
    posterior = from_pyro_svi(model, guide, x, num_samples=2000)["posterior"]
    assert float(posterior["loc"].std()) == pytest.approx((1 + N / 2) ** -0.5, rel=0.1)


def to_zero(optimizer, steps):
    return CosineAnnealingLR(optimizer, steps)


def test_what_is_no_guide_or_not_drawn():
    local = AmortizedNormal(2, 1)
    with pytest.raises(TypeError, match="expected local to be a guide"):
        SharedAndLocal(of_loc, AmortizedNormal)
    with pytest.raises(TypeError, match=r"a list of names, got 'loc'. Try \['loc'\]"):
        SharedAndLocal(of_loc, local, "loc")
    with pytest.raises(ValueError, match=r"to draw 'scale', got \['loc'\]"):
        SharedAndLocal(of_loc, local, ["scale"])(rows())
