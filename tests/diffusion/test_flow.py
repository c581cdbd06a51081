"""The probability flow: on Gaussians its evidence is known, draw by draw."""

import math

import pytest
import torch
from torch import nn

from ppl_models import draw_rows, fit
from ppl_models.diffusion.bound import variational_bound
from ppl_models.diffusion.denoising import denoising
from ppl_models.diffusion.flow import probability_flow
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.schedules import Cosine, LogLinear, alpha_sigma
from ppl_models.likelihoods import Categorical
from ppl_models.nn import TimeMLP

F64 = torch.float64


class Exact(nn.Module):
    """E[x | z_t] of rows from N(m, C), in the units inside of the model."""

    def __init__(self, mean, covariance):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", covariance)

    def forward(self, z, log_snr):
        alpha, sigma = (a[:, None, None] for a in alpha_sigma(log_snr))
        total = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=z.dtype)
        left = (z - alpha[:, 0] * self.mean)[..., None]
        solved = torch.linalg.solve(total, left)
        return self.mean + (alpha * self.covariance @ solved)[..., 0]


def gaussian(covariance, mean=None, **options):
    covariance = torch.as_tensor(covariance, dtype=F64)
    mean = torch.zeros(len(covariance), dtype=F64) if mean is None else mean
    options = {"schedule": LogLinear(10.0, -10.0)} | options
    model = Diffusion(len(mean), Exact(mean, covariance), target="x0", **options)
    density = torch.distributions.MultivariateNormal(mean, covariance)
    return model.double(), density


DIAGONAL = torch.diag(torch.tensor([0.4, 0.2, 1.7], dtype=F64))


@pytest.mark.parametrize("schedule", [LogLinear(5.0, -11.0), Cosine(5.0, -11.0)])
def test_flow_of_a_gaussian_is_its_evidence_at_every_draw(schedule):
    """The weight p(z_0) p(x | z_0) / q(z_0 | x); a diagonal Jacobian leaves no chance in it."""
    model, _ = gaussian(DIAGONAL, schedule=schedule)
    x = torch.randn(20, 3, dtype=F64) * DIAGONAL.diagonal().sqrt()
    torch.manual_seed(1)
    got = probability_flow(model, x, num_steps=600)
    torch.manual_seed(1)
    log_snr = model.log_snrs()[0]
    alpha, sigma = alpha_sigma(log_snr)
    z = model.noisy(x, log_snr)
    variance = alpha**2 * DIAGONAL.diagonal() + sigma**2
    weight = torch.distributions.Normal(0.0, variance.sqrt()).log_prob(z)
    weight = weight - torch.distributions.Normal(alpha * x, sigma).log_prob(z)
    weight = weight + torch.distributions.Normal(z / alpha, sigma / alpha).log_prob(x)
    torch.testing.assert_close(got.value, weight.sum(1), atol=5e-4, rtol=0)
    assert got.kind == "estimate"
    assert got.num_features is None
    assert math.isnan(got.monte_carlo_error)


def from_torch(draw, seed):
    torch.manual_seed(seed)
    return draw(torch.arange(2000))


def from_draw_rows(draw, seed):
    return draw_rows(draw, 2000, batch_size=2000, seed=seed)


@pytest.mark.parametrize("drawn", [from_torch, from_draw_rows])
def test_rows_and_their_evidence_may_have_the_same_seed(drawn):
    """Noise that the rows were made of, met again, would lower it by 12 errors."""
    model, density = gaussian(torch.eye(1) / 4, schedule=LogLinear(12.0, -8.0))
    x = drawn(lambda rows: torch.randn(len(rows), 1, dtype=F64) / 2, 0)
    got = probability_flow(model, x, num_steps=200, num_samples=2, seed=0)
    assert got.mean == pytest.approx(
        density.log_prob(x).mean().item(), abs=3 * got.monte_carlo_error
    )
    assert got.monte_carlo_error < 1e-4


def test_solver_is_of_second_order():
    model, _ = gaussian(DIAGONAL, schedule=LogLinear(8.0, -8.0))
    x = torch.randn(20, 3, dtype=F64)
    truth, *rest = (
        probability_flow(model, x, num_steps=n, seed=1).value for n in (800, 40, 80, 160)
    )
    errors = [(value - truth).norm().item() for value in rest]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_units_of_the_data_count():
    """loc and scale: rows of N(5, 9) are N(0, 1) inside."""
    model, _ = gaussian(torch.eye(2), schedule=LogLinear(12.0, -12.0), loc=5.0, scale=3.0)
    x = 5 + 3 * torch.randn(400, 2, dtype=F64)
    truth = torch.distributions.Normal(5.0, 3.0).log_prob(x).sum(1)
    got = probability_flow(model, x, num_steps=60, num_samples=4, seed=1)
    assert got.mean == pytest.approx(truth.mean().item(), abs=4 * got.monte_carlo_error + 1e-3)
    assert got.monte_carlo_error < 0.05


@pytest.mark.slow
def test_probes_are_right_on_average_where_features_depend_on_one_another():
    covariance = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 0.5]], dtype=F64)
    mean = torch.tensor([1.0, -1.0, 0.5], dtype=F64)
    model, density = gaussian(covariance, mean, schedule=LogLinear(12.0, -14.0))
    x = density.sample((150,))
    got = probability_flow(model, x, num_steps=60, num_samples=12, seed=1)
    truth = density.log_prob(x).mean().item()
    assert got.mean == pytest.approx(truth, abs=4 * got.monte_carlo_error)
    assert 0 < got.monte_carlo_error < 0.03
    means = [probability_flow(model, x, num_steps=60, seed=s).mean for s in range(8)]
    spread = torch.tensor(means).std().item() / 12**0.5
    assert 0.5 * spread < got.monte_carlo_error < 2 * spread


def test_levels_are_dequantised():
    """Uniform levels, denoised exactly: minus log2 of their number is the evidence."""

    class Silent(nn.Module):
        def forward(self, z, log_snr):
            return z.new_zeros(len(z), 5 * 2)

    model = Diffusion(2, Silent(), LogLinear(10.0, -10.0), "levels", 2, Categorical(5)).double()
    x = torch.randint(5, (100, 2)).to(F64) / 4
    got = probability_flow(model, x, num_steps=200, num_samples=4, seed=1)
    assert got.bits_per_dim == pytest.approx(math.log2(5), abs=4 * got.monte_carlo_error + 0.01)
    assert "estimate (4 draws, Monte Carlo error" in str(got)
    assert "bits/dim" in str(got)


@pytest.mark.slow
def test_flow_of_a_fitted_model_lies_above_its_bound():
    """And near the truth. Labels and batches count."""
    torch.manual_seed(0)
    y = torch.arange(600) % 2
    x = (2.0 * y - 1)[:, None] + 0.5 * torch.randn(600, 2)
    network = TimeMLP(2, 2, (64, 64), num_classes=2)
    model = Diffusion(2, network, LogLinear(6.0, -6.0), num_steps=30)
    fit(denoising(model), (x, y), steps=400, lr=5e-3, seed=0, progress=False)
    truth = torch.distributions.Normal(2.0 * y[:, None] - 1, 0.5).log_prob(x).sum(1).mean().item()
    bound = variational_bound(model, x, y, seed=1)
    known = probability_flow(model, x, y, num_samples=4, seed=1)
    unknown = probability_flow(model, x, num_samples=4, seed=1)
    assert bound.mean < known.mean < truth + 0.1
    assert known.mean > truth - 0.3
    assert unknown.mean < known.mean - 0.3
    parts = probability_flow(model, x, y, num_samples=4, batch_size=250, seed=1)
    assert parts.mean == pytest.approx(known.mean, abs=5 * known.monte_carlo_error)


def test_what_does_not_fit_is_refused():
    model, x = Diffusion(3), torch.zeros(10, 3)
    with pytest.raises(TypeError, match="expected a diffusion model, got Linear"):
        probability_flow(nn.Linear(3, 3), x)
    with pytest.raises(ValueError, match="expected rows, got none"):
        probability_flow(model)
    with pytest.raises(ValueError, match="3 features"):
        probability_flow(model, torch.zeros(10, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        probability_flow(model, torch.full((10, 3), torch.nan))
    with pytest.raises(ValueError, match="TimeMLP takes none"):
        probability_flow(model, x, torch.zeros(10, dtype=torch.long))
    with pytest.raises(ValueError, match="outside the support"):
        probability_flow(Diffusion(3, likelihood=Categorical(5)), x + 0.3)
    for name in ("num_steps", "num_samples", "batch_size"):
        with pytest.raises(ValueError, match=name):
            probability_flow(model, x, **{name: 0})
