"""Estimators without reads from the device: Pyro's loss and gradient."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppl_models import data_plate, elbo
from ppl_models.infer.objectives.estimators import DirectELBO


def discrete_guide(x: Tensor, size: int | None = None) -> None:
    logits = pyro.param("logits", torch.tensor([0.3, -0.2], dtype=torch.float64))
    with data_plate(x, size):
        pyro.sample("z", dist.Bernoulli(logits=logits * x.mean(1, keepdim=True)).to_event(1))


def discrete_model(x: Tensor, size: int | None = None) -> None:
    loc = pyro.param("loc", torch.tensor([1.0, -1.0], dtype=torch.float64))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones_like(loc)).to_event(1))
        pyro.sample("x", dist.Normal(z * loc, 1.0).to_event(1), obs=x)


def mixed_model(x: Tensor, size: int | None = None) -> None:
    """A shared latent with the score function, one of each row with the path derivative."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(z.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(z * w[..., None], 1.0).to_event(1), obs=x)


def mixed_guide(x: Tensor, size: int | None = None) -> None:
    q = pyro.param("q", torch.tensor([0.3, -0.2], dtype=torch.float64))
    pyro.sample("loc", NonreparameterizedNormal(q, 0.5 + 0 * q).to_event(1))
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(q * x, q.exp()).to_event(1))
        pyro.sample("w", NonreparameterizedNormal(x.sum(-1) * q[0], (q[1] + 1).exp()))


@pytest.mark.parametrize(
    ("model", "guide"),
    [(discrete_model, discrete_guide), (mixed_model, mixed_guide), (mixed_model, None)],
)
@pytest.mark.parametrize("particles", [1, 3])
def test_the_direct_estimator_equals_pyros(model, guide, particles):
    x = torch.randn(7, 2, dtype=torch.float64)
    guide = AutoNormal(model) if guide is None else guide
    results = []
    guide(x, size=21)  # lazy parameters
    for estimator in (DirectELBO, Trace_ELBO):
        pyro.set_rng_seed(3)
        total = estimator(num_particles=particles).differentiable_loss(model, guide, x, size=21)
        params = [p.unconstrained() for p in pyro.get_param_store().values()]
        results.append((total, torch.autograd.grad(total, params)))
    (loss, gradients), (expected, expected_gradients) = results
    assert len(gradients) > 0
    assert any(g.norm() > 0 for g in gradients)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-13)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-13)


def test_the_default_estimator_is_the_direct_one():
    x = torch.randn(7, 2, dtype=torch.float64)
    objective = elbo(discrete_model, discrete_guide)
    objective.prepare(x, size=7)
    pyro.set_rng_seed(3)
    loss = objective.loss(x, size=21)
    pyro.set_rng_seed(3)
    total = Trace_ELBO().differentiable_loss(discrete_model, discrete_guide, x, size=21)
    torch.testing.assert_close(loss, total / 21, atol=1e-12, rtol=0)
