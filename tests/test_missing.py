"""Densities of rows of which some entries are missing."""

import pytest
import torch

from ppl_models.likelihoods import Bernoulli, Categorical, LogisticMixture, Normal
from ppl_models.missing import MarginalMultivariateNormal, MarginalNormal, Observed
from tests.support.oracles import with_holes


@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), Normal(), Normal(own_scale=True), Categorical(3), LogisticMixture(3, 2)],
)
def test_the_density_is_that_of_the_pixels_that_are_there(likelihood):
    outputs = torch.randn(4, 6 * likelihood.num_outputs, dtype=torch.float64, requires_grad=True)
    full = likelihood(outputs)
    x = full.sample()
    observed = Observed(full.base_dist).to_event(1)
    torch.testing.assert_close(observed.log_prob(x), full.log_prob(x))
    seen = with_holes(x)
    expected = torch.where(seen.isnan(), 0.0, full.base_dist.log_prob(x)).sum(1)
    got = observed.log_prob(seen)
    torch.testing.assert_close(got, expected)
    (gradient,) = torch.autograd.grad(got.sum(), outputs, retain_graph=True)
    (by_hand,) = torch.autograd.grad(expected.sum(), outputs)
    torch.testing.assert_close(gradient, by_hand)
    assert gradient.isfinite().all()
    assert observed.support.check(seen).all()
    assert not observed.support.check(x + 0.3).all() or isinstance(likelihood, Normal)
    assert observed.expand((7, 4)).sample().shape == (7, 4, 6)
    torch.testing.assert_close(observed.mean, full.mean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_gradients_of_masked_densities_are_finite(dtype):
    loc = torch.zeros(3, dtype=dtype, requires_grad=True)
    scale = torch.ones(3, dtype=dtype, requires_grad=True)
    row = torch.tensor([1.0, torch.nan, 2.0], dtype=dtype)
    MarginalNormal(loc, scale).log_prob(row).sum().backward()
    torch.testing.assert_close(loc.grad, torch.tensor([1.0, 0.0, 2.0], dtype=dtype))
    torch.testing.assert_close(scale.grad, torch.tensor([0.0, 0.0, 3.0], dtype=dtype))
    loc.grad = None
    MarginalMultivariateNormal(loc, torch.eye(3, dtype=dtype)).log_prob(row).backward()
    torch.testing.assert_close(loc.grad, torch.tensor([1.0, 0.0, 2.0], dtype=dtype))
