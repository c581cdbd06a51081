"""Conjugate priors: joint densities by the chain rule, by integration, and by draws."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import betaln, gammaln

from tests.support.mixtures import both_priors, build, every_kind, one_hot


def marginal(x: np.ndarray, model, where: slice) -> float:
    """log p(x) of rows of one component, by the chain rule: each row is Student's t.

    As in Bayesian Data Analysis, chapter 3.6.
    """
    x, loc = x[:, where], model.loc[where].numpy()
    kappa, nu = model.strength.item(), model.df.item()
    size = x.shape[1]
    psi = 0.75**2 * (nu - size - 1) * np.eye(size)
    total = 0.0
    for row in x:
        df = nu - size + 1
        law = stats.multivariate_t(loc, psi * (kappa + 1) / (kappa * df), df)
        total += law.logpdf(row)
        shift = row - loc
        psi = psi + kappa / (kappa + 1) * np.outer(shift, shift)
        loc, kappa, nu = (kappa * loc + row) / (kappa + 1), kappa + 1, nu + 1
    return total


def log_weights_of(model, z: np.ndarray) -> float:
    """log p(z) with the weights integrated out."""
    components = model.num_components
    count = np.bincount(z, minlength=components)
    if model.stick_breaking:
        later = count.sum() - count.cumsum()
        pairs = zip(count[:-1], later[:-1], strict=True)
        return sum(betaln(1 + n, 1.5 + m) - betaln(1, 1.5) for n, m in pairs)
    a = np.full(components, 1.5)
    ratio = gammaln(a + count).sum() - gammaln(a).sum()
    return ratio + gammaln(a.sum()) - gammaln(a.sum() + len(z))


@both_priors
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_joint_of_rows_and_components_by_the_chain_rule(covariance, weights):
    model = build(3, covariance, weights, concentration=1.5, prior_strength=0.5)
    x = torch.randn(8, 2).double()
    z = np.array([0, 2, 2, 0, 0, 2, 0, 2])  # component 1 is empty
    expected = log_weights_of(model, z)
    for k in (0, 2):
        blocks = [slice(0, 2)] if covariance == "full" else [slice(0, 1), slice(1, 2)]
        expected += sum(marginal(x[z == k].numpy(), model, where) for where in blocks)
    got = model.prior.log_joint(x, one_hot(z, 3)).item()
    assert got == pytest.approx(expected, abs=1e-10)


def test_spherical_joint_by_integration():
    """Over the one variance, with the center integrated out by hand."""
    model = build(1, "spherical", prior_strength=0.5, prior_df=4.0)
    x = torch.randn(5, 2).double()
    grid = torch.linspace(-8, 8, 20_001).double().exp()  # variances
    shape, rate = torch.tensor([2.0, 0.5 * 0.75**2 * 2]).double()  # a logarithm in float32: 1e-7
    prior = dist.InverseGamma(shape, rate).log_prob(grid) + grid.log()
    # Each feature is normal with covariance sigma^2 (I + 1 1^T / kappa).
    covariance = torch.eye(5).double() + 2.0
    total = prior
    for d in range(2):
        shift = x[:, d] - model.loc[d]
        square = shift @ torch.linalg.solve(covariance, shift)
        total = total - 0.5 * (5 * (2 * math.pi * grid).log() + covariance.logdet() + square / grid)
    expected = torch.trapezoid((total - total.max()).exp(), grid.log()).log() + total.max()
    got = model.prior.log_joint(x, torch.ones(5, 1).double())
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=0)


@both_priors
@every_kind
def test_expectations_of_the_ascent_are_those_of_draws(covariance, weights):
    model, x = build(3, covariance, weights, prior_df=8.0), torch.randn(6, 2).double()
    posterior = model.prior.given(x, torch.rand(6, 3).double().softmax(1))
    with pyro.plate("draws", 20_000, dim=-2):
        weights_, locs, root = model.sample_shared(posterior)
    if covariance != "full":
        root = root.expand_as(locs).diag_embed()
    rows = torch.distributions.MultivariateNormal(locs, scale_tril=root)
    joint = weights_.log().squeeze(1) + rows.log_prob(x[:, None, None])  # (N, S, K)
    error = joint.std(1) / 20_000**0.5
    assert ((joint.mean(1) - posterior.expected_log_joint(x)) / error).abs().max() < 4.5


@both_priors
@every_kind
@pytest.mark.parametrize("components", [1, 3])
def test_the_density_of_a_new_row_is_a_ratio_of_joints(components, covariance, weights):
    """In any of the components."""
    model = build(components, covariance, weights, prior_strength=0.5)
    x, z = torch.randn(8, 2).double(), torch.arange(8) ** 2 % components  # one is empty
    new = torch.tensor([[0.3, -2.0], [4.0, 1.0]]).double()
    before = model.prior.log_joint(x, one_hot(z, components))
    posterior = model.prior.given(x, one_hot(z, components))
    for row, found in zip(new, posterior.predictive().log_prob(new), strict=True):
        rows = torch.cat([x, row[None]])
        places = [torch.cat([z, torch.tensor([k])]) for k in range(components)]
        after = [model.prior.log_joint(rows, one_hot(place, components)) for place in places]
        torch.testing.assert_close(found, torch.stack(after).logsumexp(0) - before)
    assert posterior.expected_weights().sum().item() == pytest.approx(1)


@both_priors
@every_kind
def test_weights_count_rows_so_many_times(covariance, weights):
    model, times = build(3, covariance, weights), torch.tensor([1, 3, 2, 2, 1])
    x, shares = torch.randn(5, 2).double(), torch.rand(5, 3).double().softmax(1)
    posterior = model.prior.given(x, times[:, None] * shares)
    found = posterior.log_ratio(model.prior, x, shares, times.double())
    repeated = x.repeat_interleave(times, 0), shares.repeat_interleave(times, 0)
    torch.testing.assert_close(found, model.prior.log_joint(*repeated))
