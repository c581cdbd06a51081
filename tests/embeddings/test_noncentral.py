"""Distances of Gaussian points: SciPy's non-central chi-square, its integral, and draws of it."""

import math

import pytest
import torch
from scipy import stats

from ppl_models.embeddings.noncentral import NoncentralChi

DIMS = [1, 2, 3, 4, 10]


def chi(num_dims: int, offset: float, scale: float) -> NoncentralChi:
    return NoncentralChi(num_dims, *torch.tensor([offset, scale], dtype=torch.float64))


@pytest.mark.parametrize("num_dims", DIMS)
@pytest.mark.parametrize("offset", [1e-3, 0.5, 5.4, 5.6, 20.0, 1000.0])
def test_squared_distances_have_the_noncentral_chi_square_density(num_dims, offset):
    scale = 0.3
    nu = offset / scale
    r = torch.linspace(max(nu - 5, 1e-2), nu + 5, 33, dtype=torch.float64)
    density = chi(num_dims, offset, scale).log_prob(scale * r)
    # p(d) = p(d^2 / sigma^2) 2 d / sigma^2
    squared = torch.from_numpy(stats.ncx2.logpdf(r.numpy() ** 2, num_dims, nu**2))
    torch.testing.assert_close(density, squared + (2 * r / scale).log(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("num_dims", DIMS)
def test_of_no_offset_it_is_the_central_one(num_dims):
    d = torch.linspace(0.1, 6, 30, dtype=torch.float64)
    expected = torch.from_numpy(stats.chi.logpdf(d.numpy() / 2, num_dims)) - math.log(2)
    torch.testing.assert_close(chi(num_dims, 0.0, 2.0).log_prob(d), expected)


@pytest.mark.parametrize("num_dims", DIMS)
def test_it_integrates_to_one(num_dims):
    d = torch.linspace(1e-6, 40, 200_001, dtype=torch.float64)
    total = torch.trapezoid(chi(num_dims, 3.0, 2.0).log_prob(d).exp(), d)
    assert total.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_gaussian_points_are_that_far_apart(num_dims):
    """Points around centers, their distances, and the distribution function of SciPy."""
    centers = torch.randn(2, num_dims, dtype=torch.float64)
    points = centers + 0.7 * torch.randn(4000, 2, num_dims, dtype=torch.float64)
    apart = (points[:, 0] - points[:, 1]).norm(dim=1)
    offset, scale = (centers[0] - centers[1]).norm().item(), 0.7 * math.sqrt(2)
    cdf = stats.ncx2(num_dims, (offset / scale) ** 2).cdf
    drawn = chi(num_dims, offset, scale).sample((4000,))
    for distances in (apart, drawn):
        assert stats.kstest((distances / scale).numpy() ** 2, cdf).pvalue > 1e-3
    assert stats.kstest((drawn / (1.1 * scale)).numpy() ** 2, cdf).pvalue < 1e-3  # it can tell


def test_gradients_are_those_of_differences():
    offset = torch.tensor([0.01, 1.0, 2.9, 3.1, 50.0], dtype=torch.float64, requires_grad=True)
    scale = torch.full_like(offset, 0.5).requires_grad_()
    value = offset.detach() + 0.3
    torch.autograd.gradcheck(lambda o, s: NoncentralChi(3, o, s).log_prob(value), (offset, scale))
    draws = chi(3, 1.0, 0.5).expand((5,)).rsample()
    assert draws.shape == (5,)


def test_far_points_need_no_double_precision():
    density = NoncentralChi(2, torch.tensor(3000.0), torch.tensor(1.0))
    assert density.log_prob(torch.tensor(3000.0)).item() == pytest.approx(-0.918939, abs=1e-4)
