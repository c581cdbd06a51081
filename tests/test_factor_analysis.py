"""Linear Gaussian models: closed forms first."""

import pytest
import torch
from oracles import grey_digits, linear_gaussian
from sklearn.decomposition import PCA

from guides import ExactPosterior
from ppl_models import FactorAnalysis, ProbabilisticPCA, elbo


def dense_evidence(model, x):
    """The evidence with a dense covariance: slow, and plainly right."""
    scale = model.log_scale.exp().expand_as(model.loc)
    covariance = model.loadings @ model.loadings.T + scale.diag() ** 2
    return torch.distributions.MultivariateNormal(model.loc, covariance).log_prob(x)


@pytest.mark.parametrize("kind", [FactorAnalysis, ProbabilisticPCA])
def test_evidence_is_a_dense_gaussian(kind):
    model = kind(5, 2).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(model.evidence().log_prob(x), dense_evidence(model, x))


@pytest.mark.parametrize("kind", [FactorAnalysis, ProbabilisticPCA])
def test_posterior_by_bayes_rule(kind):
    """log p(z | x) = log p(x, z) - log p(x), for any z."""
    model = kind(5, 2).double()
    x, z = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    scale = model.log_scale.exp()
    joint = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + torch.distributions.Normal(
        model.loc + z @ model.loadings.T, scale
    ).log_prob(x).sum(1)
    expected = joint - dense_evidence(model, x)
    torch.testing.assert_close(model.posterior(x).log_prob(z), expected)


@pytest.mark.parametrize("kind", [FactorAnalysis, ProbabilisticPCA])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_exact_posterior_closes_the_gap(kind, rows):
    """For any draw and any minibatch, the ELBO is the log evidence."""
    model = kind(5, 2).double()
    x = torch.randn(rows, 5, dtype=torch.float64)
    loss = elbo(model, ExactPosterior(model)).loss(x, size=40)
    expected = -model.evidence().log_prob(x).mean()
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)


def test_samples_have_the_moments_of_the_evidence():
    model, _ = linear_gaussian()
    x = model(size=200_000).detach()
    expected = model.evidence().covariance_matrix.detach()
    torch.testing.assert_close(x.mean(0), model.loc.detach(), atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), expected, atol=0.06, rtol=0)


PPCA_TABLE = {  # nats per row: train, test
    2: (-0.015612, -0.122549),
    5: (9.084194, 7.582845),
    10: (17.587164, 15.994818),
    20: (27.492278, 24.930613),
}


@pytest.mark.parametrize("num_factors", PPCA_TABLE)
def test_ppca_on_digits_is_the_reference_table(num_factors):
    train, test = grey_digits()
    model = ProbabilisticPCA(64, num_factors).double().maximum_likelihood(train)
    got = [model.evidence().log_prob(x).mean().item() for x in (train, test)]
    assert got == pytest.approx(PPCA_TABLE[num_factors], abs=1e-6)


def test_ppca_spans_the_principal_subspace():
    train, _ = grey_digits()
    model = ProbabilisticPCA(64, 10).double().maximum_likelihood(train)
    basis = torch.from_numpy(PCA(10).fit(train.numpy()).components_)  # (K, D)
    outside = model.loadings - basis.T @ (basis @ model.loadings)
    assert outside.abs().max() < 1e-8


def test_gradient_is_zero_at_the_closed_form_optimum():
    train, _ = grey_digits()
    model = ProbabilisticPCA(64, 5).double().maximum_likelihood(train)
    loss = elbo(model, ExactPosterior(model)).loss(train)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-10, name


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(10, 6), "subspace"),
        (torch.zeros(1, 6), "at least two rows"),
        (torch.full((10, 6), float("nan")), "finite"),
        (torch.zeros(10, 4), "6 features"),
        (torch.zeros(10, 6, dtype=torch.uint8), "floating-point"),
    ],
)
def test_ppca_refuses(x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ProbabilisticPCA(6, 2).maximum_likelihood(x)


def test_ppca_needs_fewer_factors_than_features():
    with pytest.raises(ValueError, match="fewer factors"):
        ProbabilisticPCA(4, 4)
