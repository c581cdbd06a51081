r"""Identities of variational inference, as executable notes.

1. Evidence: log p(x) = ELBO + KL(q(z) || p(z | x)), for any q.
2. KL between Gaussians has a closed form.
3. Joint divergence: KL(p_data(x) q(z | x) || p(z) p(x | z)) is KL(p_data || p), the term of maximum
   likelihood, and E_data KL(q(z | x) || p(z | x)), that of the posterior.
4. Gradients: draws that are moved and draws that are weighed have one mean, and two variances.
5. Maximum likelihood is the least divergence from the data.

Exact in float64: sums over discrete values, closed forms, and for polynomials under a Gaussian
quadrature. Where a test draws, it allows for the error that it computes.

Shapes: `B` rows, `D` features, `K` latents, `J` values of x, `Q` nodes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from guides import ExactPosterior
from ppl_models import FactorAnalysis, ProbabilisticPCA, data_plate, elbo
from tests.support.oracles import (
    LOCS,
    WEIGHTS,
    grey_digits,
    linear_gaussian,
    mixture,
    mixture_evidence,
)

exact = {"atol": 1e-11, "rtol": 0}


def as_guide(q: dist.TorchDistribution, site: str = "z", **infer: str) -> Callable:
    """A guide that gives each row of the data a q of its own."""

    def guide(x, size=None):
        with data_plate(x, size):
            return pyro.sample(site, q, infer=infer)

    return guide


def covariances(*shape: int) -> Tensor:
    """Random ones, of shape (*, K, K)."""
    root = torch.randn(*shape, 2 * shape[-1], dtype=torch.float64)
    return root @ root.mT / shape[-1]


def gaussians(*shape: int) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(torch.randn(shape).double(), covariances(*shape))


def table(*shape: int) -> Tensor:
    """Probabilities along the last dimension."""
    return dist.Dirichlet(torch.ones(shape, dtype=torch.float64)).sample()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of tables, along the last dimension."""
    return (p * (p / q).log()).sum(-1)


# --- 1. log p(x) = ELBO + KL(q || posterior) ---------------------------------------------------


def closed_elbo(model: FactorAnalysis, x: Tensor, q: dist.MultivariateNormal) -> Tensor:
    """E_q log p(x | z) + E_q log p(z) + H(q), each in closed form; (B,)."""
    scale, spread = model.log_scale.exp(), q.covariance_matrix  # S, (B, K, K)
    whitened = model.loadings / scale[:, None]  # Psi^(-1/2) W, (D, K)
    at_mean = dist.Normal(model.loc + q.mean @ model.loadings.T, scale).log_prob(x).sum(-1)
    likelihood = at_mean - (whitened.T @ whitened * spread).sum((-2, -1)) / 2
    trace = spread.diagonal(dim1=-2, dim2=-1).sum(-1)
    prior = dist.Normal(0.0, 1.0).log_prob(q.mean).sum(-1) - trace / 2
    return likelihood + prior + q.entropy()


def test_evidence_is_elbo_plus_divergence_for_any_gaussian():
    model, x = linear_gaussian(rows=7)
    q, posterior = gaussians(7, 2), model.posterior(x)
    bound, gap = closed_elbo(model, x, q), kl_divergence(q, posterior)
    torch.testing.assert_close(bound + gap, model.evidence().log_prob(x), **exact)
    assert (gap > 0.01).all()
    assert not torch.allclose(gap, kl_divergence(posterior, q), rtol=0.01)  # the order matters


def test_every_draw_of_the_elbo_misses_the_evidence_by_a_log_ratio():
    """log p(x, z) - log q(z) = log p(x) - log q(z) / p(z | x), whatever z."""
    model, x = linear_gaussian(rows=7)
    q = gaussians(7, 2)
    for seed in range(3):
        pyro.set_rng_seed(seed)
        z = q.sample()
        ratio = q.log_prob(z) - model.posterior(x).log_prob(z)
        expected = (model.evidence().log_prob(x) - ratio).mean()
        for estimator in (None, Trace_ELBO()):
            pyro.set_rng_seed(seed)
            objective = elbo(model, as_guide(q), estimator)
            objective.prepare(x, size=70)
            pyro.set_rng_seed(seed)
            torch.testing.assert_close(objective.loss(x, size=70), -expected, **exact)


def test_the_mean_over_draws_is_the_closed_form():
    """Of a quadratic function the mean over 2K points is the expectation under a Gaussian."""
    model, x = linear_gaussian(rows=7)
    q = gaussians(7, 2)
    offsets = q.scale_tril.mT * 2**0.5  # sqrt(K) times each column of the root, (B, K, K)
    points = torch.cat([q.mean[:, None] + offsets, q.mean[:, None] - offsets], 1)  # (B, 2K, K)
    joints = [-elbo(pyro.condition(model, {"z": z})).loss(x) for z in points.unbind(1)]
    expected = torch.stack(joints).mean() + q.entropy().mean()
    torch.testing.assert_close(closed_elbo(model, x, q).mean(), expected, **exact)


def test_evidence_is_elbo_plus_divergence_for_any_categorical():
    x = torch.randn(9, dtype=torch.float64) * 3
    posterior = dist.Categorical(logits=WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(x[:, None]))
    for probs in (table(9, 3), posterior.probs, torch.ones(9, 3).double()):
        q = dist.Categorical(probs)
        bound = -elbo(mixture, as_guide(q, "component", enumerate="parallel")).loss(x, size=90)
        gap = kl_divergence(q, posterior).mean()
        torch.testing.assert_close(bound + gap, mixture_evidence(x).mean(), **exact)
        assert gap >= -1e-15


# --- 2. KL between Gaussians --------------------------------------------------------------------


def gaussian_divergence(p: dist.MultivariateNormal, q: dist.MultivariateNormal) -> Tensor:
    r"""(tr(B^-1 A) + (b - a)^T B^-1 (b - a) - K + log |B| / |A|) / 2."""
    a, b, inverse = p.covariance_matrix, q.covariance_matrix, q.covariance_matrix.inverse()
    delta = q.mean - p.mean
    quadratic = (inverse @ a).trace() + delta @ inverse @ delta
    return (quadratic - len(delta) + b.logdet() - a.logdet()) / 2


@pytest.mark.parametrize("size", [1, 2, 10])
def test_divergence_of_gaussians(size):
    p, q = gaussians(size), gaussians(size)
    closed = gaussian_divergence(p, q)
    torch.testing.assert_close(kl_divergence(p, q), closed, atol=1e-9, rtol=0)
    assert gaussian_divergence(p, p).abs() < 1e-10

    offsets = p.scale_tril.T * size**0.5
    z = p.mean + torch.cat([offsets, -offsets])  # 2K points give the expectation of a quadratic
    torch.testing.assert_close((p.log_prob(z) - q.log_prob(z)).mean(), closed, atol=1e-9, rtol=0)

    z = p.sample((20_000,))
    ratio = p.log_prob(z) - q.log_prob(z)
    assert abs(ratio.mean() - closed) < 4 * ratio.std() / 20_000**0.5


# --- 3. one divergence between joint distributions ------------------------------------------------


def test_joint_divergence_of_tables():
    """The elbo of a Pyro program gives it, but for the entropy of the data."""
    counts = torch.tensor([5, 1, 3, 2])
    data, guide = counts / counts.sum().double(), table(4, 3)  # (J,), and q(z | x), (J, K)
    prior, likelihood = table(3), table(3, 4)  # (K,), (K, J)
    joint = (prior[:, None] * likelihood).T  # p(x, z), (J, K)
    evidence = joint.sum(1)

    whole = divergence((data[:, None] * guide).flatten(), joint.flatten())
    fit = divergence(data, evidence)
    inference = data @ divergence(guide, joint / evidence[:, None])
    torch.testing.assert_close(whole, fit + inference, **exact)

    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Categorical(prior))
            return pyro.sample("x", dist.Categorical(likelihood[z]), obs=x)

    x = torch.arange(4).repeat_interleave(counts)
    q = as_guide(dist.Categorical(guide[x]), enumerate="parallel")
    loss = elbo(model, q).loss(x)
    torch.testing.assert_close(loss - dist.Categorical(data).entropy(), whole, **exact)


def test_joint_divergence_of_gaussians():
    """p_data(x) = N(m, C) and q(z | x) = N(A x + b, S): both sides in closed form."""
    model, _ = linear_gaussian(features=3)
    data, spread = gaussians(3), covariances(2)
    slope, shift = torch.randn(2, 3).double(), torch.randn(2).double()

    def joint(mean, xx, zx, zz):
        return dist.MultivariateNormal(
            torch.cat(mean), torch.cat([torch.cat([xx, zx.T], 1), torch.cat([zx, zz], 1)])
        )

    c, w, identity = data.covariance_matrix, model.loadings, torch.eye(2).double()
    marginal = dist.MultivariateNormal(model.loc, model.evidence().covariance_matrix)
    ours = joint([data.mean, slope @ data.mean + shift], c, slope @ c, slope @ c @ slope.T + spread)
    theirs = joint([model.loc, torch.zeros(2).double()], marginal.covariance_matrix, w.T, identity)
    whole = kl_divergence(ours, theirs)

    # The mean of the posterior is G (x - mu), its precision M.
    precision = identity + w.T @ (w / (2 * model.log_scale).exp()[:, None])
    gain = torch.linalg.solve(precision, w.T / (2 * model.log_scale).exp())  # G, (K, D)
    off = slope @ data.mean + shift - gain @ (data.mean - model.loc)
    wander = (slope - gain) @ c @ (slope - gain).T
    quadratic = (precision @ (spread + wander)).trace() + off @ precision @ off
    inference = (quadratic - 2 - precision.logdet() - spread.logdet()) / 2

    torch.testing.assert_close(whole, kl_divergence(data, marginal) + inference, **exact)
    assert inference > 0


def test_exact_inference_leaves_maximum_likelihood():
    """Where q is the posterior, the joint divergence is that of the data from the model."""
    model, x = linear_gaussian()
    gradients = []
    for loss in (elbo(model, ExactPosterior(model)).loss(x), -model.evidence().log_prob(x).mean()):
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **exact)


# --- 4. two estimators of one gradient ------------------------------------------------------------


class Case(NamedTuple):
    """A model of one latent, a row of it, and a q that is not the best."""

    model: FactorAnalysis
    x: Tensor  # (1, D)
    mean: Tensor
    scale: Tensor

    def estimates(self, q: Callable[[Tensor, Tensor], dist.Independent], number: int) -> Any:
        """Gradients of the ELBO by mean and scale, from one draw each; two of shape (number,).

        The row is repeated, and each copy has a q of its own: one backward pass gives all.
        """
        leaves = [v.expand(number, 1).clone().requires_grad_() for v in (self.mean, self.scale)]
        loss = elbo(self.model, as_guide(q(*leaves))).loss(self.x.expand(number, -1))
        return [g[:, 0] for g in torch.autograd.grad(-number * loss, leaves)]

    def exact_gradient(self) -> Any:
        mean, scale = (v.clone().requires_grad_() for v in (self.mean, self.scale))
        q = dist.MultivariateNormal(mean.reshape(1, 1), (scale**2).reshape(1, 1, 1))
        return torch.autograd.grad(closed_elbo(self.model, self.x, q).sum(), [mean, scale])

    def exact_deviations(self) -> dict[bool, float]:
        """Those of the estimates by the mean: of draws that are moved, and that are weighed.

        With z = mean + scale e the integrand is a + b e + c e^2. Draws that are moved give
        (b + (2 c - 1) e) / scale, and draws that are weighed (a + b e + c e^2) e / scale.
        """
        found = self.model.posterior(self.x)
        posterior = dist.Normal(found.mean, found.stddev)
        a = self.model.evidence().log_prob(self.x) + posterior.log_prob(self.mean)
        a = a + self.scale.log() + math.log(2 * math.pi) / 2
        b = -self.scale * (self.mean - posterior.mean) / posterior.variance
        c = (1 - self.scale**2 / posterior.variance) / 2
        weighed = a**2 + 2 * b**2 + 15 * c**2 + 6 * a * c  # E e^2, e^4, e^6 are 1, 3, 15
        return {
            True: ((1 - 2 * c) / self.scale).item(),
            False: (weighed.sqrt() / self.scale).item(),
        }


@pytest.fixture
def case() -> Case:
    model, x = linear_gaussian(rows=1, features=3, factors=1)
    return Case(
        model.requires_grad_(False), x, torch.tensor(0.3).double(), torch.tensor(0.6).double()
    )


@pytest.mark.parametrize("moved", [True, False])
def test_both_estimators_have_the_exact_mean_and_variance(case, moved):
    """Without chance: the draws are the nodes of a quadrature."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(12))
    weights = weights / weights.sum()  # (Q,)

    class AtNodes(dist.Normal):
        has_rsample = moved

        def rsample(self, sample_shape=()):
            return self.loc + self.scale * nodes[:, None]

        def sample(self, sample_shape=()):
            return self.rsample().detach()

    found = case.estimates(lambda *q: AtNodes(*q).to_event(1), number=12)
    for gradients, expected in zip(found, case.exact_gradient(), strict=True):
        torch.testing.assert_close(weights @ gradients, expected, **exact)
    deviation = (weights @ (found[0] - weights @ found[0]) ** 2).sqrt().item()
    deviations = case.exact_deviations()
    assert deviation == pytest.approx(deviations[moved], abs=1e-9)
    assert deviations[False] > 2 * deviations[True]


@pytest.mark.parametrize("moved", [True, False])
def test_draws_have_the_exact_mean_and_variance(case, moved):
    kind = dist.Normal if moved else NonreparameterizedNormal
    found = case.estimates(lambda *q: kind(*q).to_event(1), number=20_000)
    for gradients, expected in zip(found, case.exact_gradient(), strict=True):
        assert abs(gradients.mean() - expected) < 4 * gradients.std() / 20_000**0.5
    assert found[0].std().item() == pytest.approx(case.exact_deviations()[moved], rel=0.05)


def test_at_the_posterior_the_elbo_is_the_same_for_every_draw_and_its_gradient_is_not(case):
    """Both gradients are zero on average only (Roeder et al., 2017, arXiv:1703.09194)."""
    posterior = case.model.posterior(case.x)
    best = case._replace(mean=posterior.mean[0, 0], scale=posterior.stddev[0, 0])
    losses = [elbo(case.model, as_guide(posterior)).loss(case.x) for _ in range(5)]
    expected = -case.model.evidence().log_prob(case.x).expand(5)
    torch.testing.assert_close(torch.stack(losses), expected, **exact)
    assert all(gradient.abs() < 1e-11 for gradient in best.exact_gradient())
    by_mean, _ = best.estimates(lambda *q: dist.Normal(*q).to_event(1), number=1000)
    assert by_mean.std().item() == pytest.approx(1 / best.scale.item(), rel=0.1)


# --- 5. maximum likelihood is the least divergence ------------------------------------------------


def test_likelihood_and_divergence_of_counts_have_one_optimum():
    """Poisson distributions: for every rate the two add up to minus the entropy of the data."""
    x = torch.tensor([0.0] * 109 + [1] * 65 + [2] * 22 + [3] * 3 + [4], dtype=torch.float64)
    data = torch.bincount(x.long()).double() / 200
    rates = torch.linspace(0.2, 1.5, 1301, dtype=torch.float64)
    fits = dist.Poisson(rates[:, None]).log_prob(x).mean(1)
    table = dist.Poisson(rates[:, None]).log_prob(torch.arange(5).double()).exp()
    divergences = divergence(data, table)
    entropy = dist.Categorical(data).entropy()
    torch.testing.assert_close(fits + divergences, -entropy.expand(1301), **exact)
    assert fits.argmax() == divergences.argmin()
    assert rates[fits.argmax()] == pytest.approx(x.mean().item(), abs=1e-9)


def test_likelihood_and_divergence_of_gaussians_have_one_optimum():
    """To a Gaussian model the data are their mean and covariance."""
    train, _ = grey_digits()
    x = train[:, 18:24]
    data = dist.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    best = ProbabilisticPCA(6, 2).double().maximum_likelihood(x)
    other = ProbabilisticPCA(6, 2).double()
    gaps = []
    for model in (best, other):
        p = dist.MultivariateNormal(model.loc, model.evidence().covariance_matrix)
        gaps.append(kl_divergence(data, p))
        fit = model.evidence().log_prob(x).mean()
        torch.testing.assert_close(fit, -data.entropy() - gaps[-1], **exact)
    assert gaps[0] < gaps[1]
    for gradient in torch.autograd.grad(gaps[0], list(best.parameters())):
        assert gradient.abs().max() < 1e-10


def test_the_closest_gaussian_to_a_mixture_has_its_moments():
    """KL(p || Gaussian) is least there; the other way round, a Gaussian sits on one mode."""
    x = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    p = mixture_evidence(x)
    mean, second = ((p.exp() * x**k).sum() * 1e-3 for k in (1, 2))
    leaves = [mean.clone().requires_grad_(), (second - mean**2).sqrt().requires_grad_()]
    forward = (p.exp() * (p - dist.Normal(*leaves).log_prob(x))).sum() * 1e-3
    for gradient in torch.autograd.grad(forward, leaves):
        assert gradient.abs() < 1e-9
    q = dist.Normal(*leaves).log_prob(x)
    backward = (q.exp() * (q - p)).sum() * 1e-3
    assert max(g.abs() for g in torch.autograd.grad(backward, leaves)) > 0.01
