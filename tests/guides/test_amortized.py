"""Amortised guides of every family: densities, gradients of draws, and what they refuse."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from guides import (
    AmortizedFlow,
    AmortizedLowRankNormal,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
)
from ppl_models import elbo, iwae, khat, log_evidence
from tests.support.oracles import linear_gaussian

DOUBLE = torch.float64
D, K = 5, 2
EVERY = [
    AmortizedNormal,
    AmortizedMultivariateNormal,
    AmortizedLowRankNormal,
    AmortizedMixture,
    AmortizedFlow,
]
GAUSSIAN = [AmortizedMultivariateNormal, AmortizedLowRankNormal]


def made(kind, **settings):
    torch.manual_seed(0)
    return kind(D, K, **settings).double()


def exact_outputs(kind, posterior):
    """The outputs with which a Gaussian family is a given posterior."""
    tril = posterior.scale_tril
    if kind is AmortizedMultivariateNormal:
        scale = tril.diagonal(dim1=-2, dim2=-1)
        return torch.cat([posterior.loc, scale.log(), (tril / scale[..., None])[..., 1, :1]], -1)
    covariance = posterior.covariance_matrix  # of two latents: one direction does
    root = covariance[..., 0, 1].abs().sqrt()
    factor = torch.stack([root, root * covariance[..., 0, 1].sign()], -1)
    scale = (covariance.diagonal(dim1=-2, dim2=-1) - factor.square()).sqrt()
    return torch.cat([posterior.loc, scale.log(), factor], -1)


def exact_guide(kind, model):
    """A guide whose linear encoder gives the exact posterior, whose mean is linear in the row."""
    rows = torch.cat([torch.zeros(1, D, dtype=DOUBLE), torch.eye(D, dtype=DOUBLE)])
    with torch.no_grad():
        outputs = exact_outputs(kind, model.posterior(rows))
        guide = made(kind, encoder=nn.Linear(D, outputs.shape[1]))
        guide.encoder.bias.copy_(outputs[0])
        guide.encoder.weight.copy_((outputs[1:] - outputs[0]).T)
    return guide


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_the_posterior_of_a_linear_gaussian_model_is_one_of_them(kind):
    model, x = linear_gaussian(rows=7)
    guide = exact_guide(kind, model)
    exact = model.evidence().log_prob(x)
    for objective in (elbo(model, guide), iwae(model, guide, 3)):
        torch.testing.assert_close(objective.loss(x, size=70), -exact.mean())


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_then_every_weight_is_the_evidence(kind):
    model, x = linear_gaussian(rows=7)
    guide = exact_guide(kind, model)
    assert khat(model, guide, x, num_samples=50).value.tolist() == [0.0] * 7
    found = log_evidence(model, guide, x, num_samples=50, method="importance")
    torch.testing.assert_close(found.value, model.evidence().log_prob(x).detach())


def sigma_points(number):
    """Points with the mean and the covariance, and no third moments, of standard normal numbers."""
    return math.sqrt(number) * torch.cat([torch.eye(number), -torch.eye(number)]).to(DOUBLE)


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_the_gradient_of_the_bound_is_that_of_its_closed_form(kind, monkeypatch):
    """Log-densities are quadratic in the noise, so that sigma points give their means."""
    model, x = linear_gaussian(rows=3)
    guide = made(kind)
    number = K + getattr(guide, "rank", 0)
    points = sigma_points(number)
    noise = iter([p for point in points for p in point.split([number - K, K]) if len(p)])

    def given(shape, dtype, device):
        return next(noise).expand(shape)

    for name in ("multivariate_normal", "lowrank_multivariate_normal"):
        monkeypatch.setattr(f"torch.distributions.{name}._standard_normal", given)
    q, posterior = guide.posterior(x), model.posterior(x)
    exact = dist.MultivariateNormal(q.mean, covariance_matrix=q.covariance_matrix)
    closed = torch.distributions.kl_divergence(exact, posterior) - model.evidence().log_prob(x)
    expected = torch.autograd.grad(closed.mean(), list(guide.parameters()))

    objective = elbo(model, guide, Trace_ELBO(num_particles=len(points), max_plate_nesting=1))
    objective._knows_masks = True  # that look would use up the noise
    loss = objective.loss(x)
    found = torch.autograd.grad(loss, list(guide.parameters()))
    torch.testing.assert_close(loss, closed.mean())
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", EVERY)
def test_its_density_integrates_to_one_and_is_that_of_its_draws(kind):
    guide = made(kind)
    q = guide.posterior(torch.randn(3, D, dtype=DOUBLE))
    assert (q.batch_shape, q.event_shape) == ((3,), (K,))
    z = q.rsample()
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))  # a flow keeps the first
    axis = torch.linspace(-7, 7, 101, dtype=DOUBLE)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, K)
    mass = q.log_prob(grid.expand(-1, 3, K)).exp().sum(0) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(
        mass, torch.ones(3, dtype=DOUBLE), atol=5e-3, rtol=0
    )  # splines have kinks


def test_a_low_rank_covariance_is_that_of_its_parts():
    guide = made(AmortizedLowRankNormal, rank=1)
    outputs = torch.randn(4, guide.num_outputs, dtype=DOUBLE)
    q = guide.family(outputs)
    diagonal, factor = outputs[:, K : 2 * K].exp().square(), outputs[:, 2 * K :]
    expected = torch.diag_embed(diagonal) + factor[:, :, None] * factor[:, None, :]
    torch.testing.assert_close(q.covariance_matrix, expected)


def test_a_mixture_has_the_density_of_its_sum():
    guide = made(AmortizedMixture, num_components=3)
    x, z = torch.randn(4, D, dtype=DOUBLE), torch.randn(4, K, dtype=DOUBLE)
    logits, locs, log_scales = guide.encoder(x).split([3, 3 * K, 3 * K], 1)
    locs = locs.view(4, 3, K) + guide.starts
    parts = dist.Normal(locs, log_scales.view(4, 3, K).exp()).log_prob(z[:, None]).sum(-1)
    expected = (logits.log_softmax(-1) + parts).logsumexp(-1)
    torch.testing.assert_close(guide.posterior(x).log_prob(z), expected)


def test_slopes_of_distribution_functions_are_those_of_autograd():
    q = AmortizedMixture(D, 4, 3).double().posterior(torch.randn(1, D, dtype=DOUBLE))
    z = q.sample()
    jacobian = torch.autograd.functional.jacobian(lambda z: q._distribution_functions(z)[0], z)
    torch.testing.assert_close(q._slopes(z)[0], jacobian[:, 0])


def test_draws_of_a_mixture_have_the_gradient_of_its_means(monkeypatch):
    """By sums over a grid: of the draws' own gradients, and of the density's."""
    guide = AmortizedMixture(D, K, 3).double()
    outputs = (0.5 * torch.randn(1, guide.num_outputs, dtype=DOUBLE)).requires_grad_()
    q = guide.family(outputs)
    axis = torch.linspace(-12, 12, 481, dtype=DOUBLE)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, K)
    density = q.log_prob(grid).exp() * (axis[1] - axis[0]) ** 2

    def function(z):
        return z[..., 0].square() * z[..., 1] + z[..., 0].sin()

    (expected,) = torch.autograd.grad((density * function(grid)).sum(), outputs, retain_graph=True)
    monkeypatch.setattr(type(q), "sample", lambda self, shape=(): grid)
    (found,) = torch.autograd.grad((density.detach() * function(q.rsample())).sum(), outputs)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_flow_without_its_network_is_the_diagonal_normal():
    x = torch.randn(4, D, dtype=DOUBLE)
    plain, flow = made(AmortizedNormal), made(AmortizedFlow, num_context=3)
    for parameter in flow.flow.parameters():
        parameter.data.zero_()
    outputs = plain.encoder(x)
    q = flow.family(torch.cat([outputs, torch.randn(4, 3, dtype=DOUBLE)], 1))
    z = torch.randn(4, K, dtype=DOUBLE)
    torch.testing.assert_close(q.log_prob(z), plain.posterior(x).log_prob(z))


def test_a_flow_reaches_as_far_as_its_mean_says():
    """Splines end at 5, the posterior of a row need not."""
    guide = made(AmortizedFlow, num_context=3)
    outputs = torch.zeros(1, guide.num_outputs, dtype=DOUBLE)
    outputs[:, :K], outputs[:, K : 2 * K] = 40.0, -2.0
    z = guide.family(outputs).sample((1000,))
    assert (z - 40.0).abs().max() < 1.0


@pytest.mark.parametrize("kind", EVERY[1:])
def test_an_encoder_with_other_outputs_is_refused(kind):
    name, number = kind.__name__, kind(D, K).num_outputs
    guide = kind(D, K, encoder=nn.Linear(D, number + 1))
    message = rf"{name}: expected its encoder to give {number} .*got \(3, {number + 1}\)"
    with pytest.raises(ValueError, match=message):
        guide(torch.zeros(3, D))
    with pytest.raises(ValueError, match=rf"{name}: expected rows of 5 features"):
        kind(D, K)(torch.zeros(3, D + 1))


def test_sizes_that_are_none():
    with pytest.raises(ValueError, match="num_latents: expected a positive whole number, got 0"):
        AmortizedMultivariateNormal(D, 0)
    with pytest.raises(ValueError, match="rank: expected a positive whole number, got 0"):
        AmortizedLowRankNormal(D, K, rank=0)
    with pytest.raises(ValueError, match="num_components: expected a whole number, 2 or more"):
        AmortizedMixture(D, K, num_components=1)
    with pytest.raises(ValueError, match="num_context: expected a positive whole number, got 0"):
        AmortizedFlow(D, K, num_context=0)


def test_the_import_of_zuko_leaves_checks_as_they_were():
    AmortizedFlow(D, K)
    assert torch.distributions.Distribution._validate_args
