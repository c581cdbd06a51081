"""The variational bound: closed forms of Gaussians, and the error that it states."""

from itertools import pairwise

import pytest
import torch

from ppl_models import log_evidence
from ppl_models.diffusion.bound import variational_bound
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.schedules import Cosine, alpha_sigma
from tests.support.diffusion import F64, GaussianDenoiser, every_kind, rows, small


def gaussian(num_steps, variances=(0.4, 0.2, 0.1)):
    variances = torch.tensor(variances, dtype=F64)
    model = Diffusion(3, GaussianDenoiser(variances), Cosine(10, -10), "x0", num_steps).double()
    return model, variances


def exact_bound(model, variances, num_steps):
    """The bound averaged over the rows too, in closed form: all is Gaussian."""
    log_snr = model.log_snrs(num_steps)
    (alpha, sigma), noise = alpha_sigma(log_snr), (-log_snr[0]).exp()
    left = (
        variances * sigma[1:, None] ** 2 / (alpha[1:, None] ** 2 * variances + sigma[1:, None] ** 2)
    )
    steps = (log_snr[:-1].exp() - log_snr[1:].exp()) @ left / 2  # (D,)
    prior = (alpha[-1] ** 2 * variances + sigma[-1] ** 2 - 1) / 2 - sigma[-1].log()
    reading = -(2 * torch.pi * noise).log() / 2 - 0.5
    return (reading - prior - steps).sum()


@pytest.mark.parametrize("num_steps", [3, 1000])
def test_bound_on_a_gaussian_is_its_closed_form(num_steps):
    model, variances = gaussian(num_steps)
    with torch.no_grad():
        x = torch.randn(4000, 3, dtype=F64) * variances.sqrt()
        got = variational_bound(model, x, num_samples=20, seed=1)
        expected = exact_bound(model, variances, num_steps).item()
    assert abs(got.mean - expected) < 4 * (got.standard_error + got.monte_carlo_error)


def test_bound_rises_with_the_steps_to_the_evidence():
    """In shape as in table 2 of Variational Diffusion Models: first fast, then slowly."""
    model, variances = gaussian(10)
    with torch.no_grad():
        bounds = [exact_bound(model, variances, steps).item() for steps in (10, 100, 1000, 10_000)]
    entropy = -(0.5 * (2 * torch.pi * torch.e * variances).log()).sum().item()
    gains = [b - a for a, b in pairwise(bounds)]
    assert gains[0] > 5 * gains[1] > 25 * gains[2] > 0
    assert bounds[-1] < entropy
    assert bounds[-1] == pytest.approx(entropy, abs=0.1)


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")
def test_step_of_the_bound_is_jensens_not_the_evidence():
    """log_evidence of the program weights its draws, and lies between the bound and the truth."""
    model, variances = gaussian(3)
    x = torch.randn(60, 3, dtype=F64) * variances.sqrt()
    truth = torch.distributions.Normal(0.0, variances.sqrt()).log_prob(x).sum(1).mean().item()
    weighted = log_evidence(model, model.noising, x, num_samples=400, seed=0)
    bound = variational_bound(model, x, num_samples=400, seed=0)
    assert weighted.kind == bound.kind == "lower bound"
    assert bound.mean < weighted.mean < truth + 3 * weighted.monte_carlo_error
    one = log_evidence(model, model.noising, x.repeat(400, 1), num_samples=1, seed=0)
    assert one.mean == pytest.approx(bound.mean, abs=5 * one.value.std().item() / 24_000**0.5)


@every_kind
def test_variational_bound_is_the_mean_of_the_bound(kind):
    model, x = small(num_steps=5, **kind), rows(8, 2, kind)
    with torch.no_grad():
        draws = model.bound(x.repeat(2000, 1)).view(2000, 8)
        error = draws.var(0).sum().sqrt().item() / 2000**0.5 / 8
    every = variational_bound(model, x, num_samples=1000, seed=0)
    assert "lower bound (1000 draws, Monte Carlo error" in str(every)
    tolerance = 5 * (error + every.monte_carlo_error)
    assert every.mean == pytest.approx(draws.mean().item(), abs=tolerance)
    few = [variational_bound(model, x, num_samples=2, seed=seed) for seed in range(100)]
    means = torch.tensor([got.mean for got in few])  # rare draws are far below the others
    tolerance = 5 * (error + means.std().item() / 10)
    assert means.mean().item() == pytest.approx(draws.mean().item(), abs=tolerance)
    assert every.monte_carlo_error < min(got.monte_carlo_error for got in few) / 2
    assert every.num_features == (2 if kind.get("likelihood") else None)
    again = variational_bound(model, x, num_samples=1000, batch_size=500, seed=0)
    assert again.mean == pytest.approx(every.mean, abs=5 * every.monte_carlo_error)


def test_monte_carlo_error_of_the_bound_is_that_of_seeds():
    model, x = small(num_steps=50), torch.randn(20, 2, dtype=F64)
    bounds = [variational_bound(model, x, num_samples=10, seed=seed) for seed in range(40)]
    spread = torch.tensor([b.mean for b in bounds]).std().item()
    stated = sum(b.monte_carlo_error for b in bounds) / len(bounds)
    assert 0.75 * spread < stated < 1.6 * spread


class Terms:
    """In the place of a diffusion model: terms of the bound whose variance is known."""

    def __init__(self, monkeypatch, model, reading, step):
        for name, function in {
            "reconstruction": lambda x, y: reading * torch.randn(len(x), dtype=F64),
            "prior_divergence": lambda x: torch.zeros(len(x), dtype=F64),
            "step_divergence": lambda x, t, y, steps: step * torch.randn(len(x), dtype=F64),
        }.items():
            monkeypatch.setattr(model, name, function)


@pytest.mark.parametrize(("reading", "step"), [(0.0, 1.0), (1.0, 0.0), (2.0, 0.3)])
@pytest.mark.parametrize(("draws", "batch_size"), [(2, 40_000), (10, 40_000), (30, 80_000)])
def test_monte_carlo_variance_of_the_bound_is_that_of_its_terms(
    monkeypatch, reading, step, draws, batch_size
):
    """Of independent terms: S (T / S)^2 s^2 of the steps, r^2 / C of C = 4 + S // 10 readings."""
    model, x = small(num_steps=50), torch.zeros(20_000, 2, dtype=F64)
    Terms(monkeypatch, model, reading, step)
    found = variational_bound(model, x, num_samples=draws, batch_size=batch_size, seed=0)
    expected = 50**2 / draws * step**2 + reading**2 / (4 + draws // 10)
    assert found.row_variance.mean().item() == pytest.approx(expected, rel=0.05)
    assert found.value.var().item() == pytest.approx(expected, rel=0.05)
    assert found.monte_carlo_error == pytest.approx((expected / 20_000) ** 0.5, rel=0.03)
