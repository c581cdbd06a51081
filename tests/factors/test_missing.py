"""Missing entries: factor models are exact on what was observed."""

import math

import pytest
import torch
from pyro import poutine
from sklearn.datasets import load_breast_cancer
from torch.utils.data import DataLoader, TensorDataset

from guides import ExactPosterior
from ppl_models import (
    FactorAnalysis,
    ProbabilisticPCA,
    elbo,
    fit,
    fit_em,
    from_pyro_svi,
    log_evidence,
)
from ppl_models.missing import MarginalLowRankMultivariateNormal
from tests.support.oracles import same, state, with_holes

KINDS = [FactorAnalysis, ProbabilisticPCA]
NAN = math.nan


def scattered(kind=FactorAnalysis, features=6, factors=2):
    """A model in float64 that is not symmetric in anything."""
    model = kind(features, factors, missing="marginalise").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return model


def rows(model, count=40):
    """Rows of the model with holes; of the first nothing was observed, of the second all."""
    x = model(size=count).detach()
    holes = with_holes(x)
    holes[0], holes[1] = NAN, x[1]
    return holes


def covariance(model):
    return model.loadings @ model.loadings.T + model._noise().diag()


def by_hand(model, x):
    """The evidence of each row from a block of the dense covariance: slow, and plainly right."""
    values = []
    for row in x:
        o = ~row.isnan()
        density = torch.distributions.MultivariateNormal(model.loc[o], covariance(model)[o][:, o])
        values.append(density.log_prob(row[o]) if o.any() else model.loc.sum() * 0)
    return torch.stack(values)


# --- the numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_of_what_was_observed(kind):
    model = scattered(kind)
    x = rows(model, 200)
    expected = by_hand(model, x)
    torch.testing.assert_close(model.evidence().log_prob(x), expected, atol=1e-10, rtol=0)
    assert model.evidence().log_prob(x[:1]).abs() < 1e-12
    evidence = log_evidence(model, None, x)
    assert evidence.kind == "exact"
    assert evidence.mean == pytest.approx(expected.mean().item(), abs=1e-10)


def test_evidence_is_an_integral_over_the_missing_entries_and_over_the_factor():
    """By quadrature: neither integral knows of Gaussian algebra."""
    model = scattered(features=3, factors=1)
    x = torch.tensor([[0.3, NAN, -1.2]]).double()
    got = model.evidence().log_prob(x).item()

    nodes = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    filled = x.repeat(len(nodes), 1)
    filled[:, 1] = nodes
    step = (nodes[1] - nodes[0]).log()
    over_x = model.evidence().log_prob(filled).logsumexp(0) + step
    assert got == pytest.approx(over_x.item(), abs=1e-10)

    mean = model.loc + nodes[:, None] * model.loadings[:, 0]
    given = torch.distributions.Normal(mean, model.log_scale.exp()).log_prob(x.nan_to_num())
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(nodes)
    over_z = (given[:, [0, 2]].sum(1) + prior).logsumexp(0) + step
    assert got == pytest.approx(over_z.item(), abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_by_bayes_rule(kind):
    """log p(z | x) = log p(x, z) - log p(x), for any z; the joint is that of the program."""
    model = scattered(kind)
    x, z = rows(model), torch.randn(40, 2).double()
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    expected = joint - by_hand(model, x)
    torch.testing.assert_close(model.posterior(x).log_prob(z), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_of_nothing_is_the_prior_and_of_all_the_usual_one(kind):
    model = scattered(kind)
    x = rows(model)
    posterior = model.posterior(x[:2])
    torch.testing.assert_close(posterior.mean[0], torch.zeros(2).double())
    torch.testing.assert_close(posterior.covariance_matrix[0], torch.eye(2).double())
    model.missing = "error"
    usual = model.posterior(x[1:2])
    torch.testing.assert_close(posterior.mean[1], usual.mean[0])
    torch.testing.assert_close(posterior.covariance_matrix[1], usual.covariance_matrix[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [40, 400])
def test_exact_posterior_closes_the_gap(kind, size):
    model = scattered(kind)
    x = rows(model)
    loss = elbo(model, ExactPosterior(model)).loss(x, size=size)
    torch.testing.assert_close(loss, -by_hand(model, x).mean(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_what_was_observed(kind):
    model = scattered(kind)
    x = rows(model)
    expected = torch.autograd.grad(by_hand(model, x).mean(), [*model.parameters()])
    got = torch.autograd.grad(model.evidence().log_prob(x).mean(), [*model.parameters()])
    of_loss = torch.autograd.grad(
        -elbo(model, ExactPosterior(model)).loss(x), [*model.parameters()]
    )
    for a, b, c in zip(expected, got, of_loss, strict=True):
        torch.testing.assert_close(b, a, atol=1e-10, rtol=0)
        torch.testing.assert_close(c, a, atol=1e-8, rtol=0)


def test_without_holes_the_evidence_is_the_usual_one():
    model = scattered()
    x = model(size=9).detach()
    density = model.evidence()
    assert isinstance(density, MarginalLowRankMultivariateNormal)
    torch.testing.assert_close(density.log_prob(x), by_hand(model, x))
    torch.testing.assert_close(density.expand([9]).log_prob(x), by_hand(model, x))


def test_the_density_of_rows_of_any_shape_and_in_parts(monkeypatch):
    model = scattered()
    x = rows(model)
    expected = by_hand(model, x)
    density = model.evidence()
    shaped = density.log_prob(x.reshape(5, 8, 6))
    torch.testing.assert_close(shaped, expected.reshape(5, 8))
    torch.testing.assert_close(density.log_prob(x[0]), expected[0])
    monkeypatch.setattr("ppl_models.missing.MAX_NUMBERS", 40)
    torch.testing.assert_close(density.log_prob(x), expected)


def test_tiny_noise_costs_no_digits():
    """Two features and two factors: the dense covariance is far from singular."""
    model = scattered()
    with torch.no_grad():
        model.log_scale[:2] = math.log(1e-5)
    x = model(size=40).detach()
    x[:, 2:] = NAN
    got, expected = model.evidence().log_prob(x), by_hand(model, x)
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=0)


# --- imputations ----------------------------------------------------------------------------


def conditional(model, row):
    """The mean and covariance of the missing entries of a row, from dense blocks."""
    m, sigma = row.isnan(), covariance(model).detach()
    o = ~m
    gain = sigma[m][:, o] @ torch.linalg.inv(sigma[o][:, o])
    mean = model.loc.detach()[m] + gain @ (row[o] - model.loc.detach()[o])
    return mean, sigma[m][:, m] - gain @ sigma[o][:, m]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_imputation_is_the_conditional_mean(kind):
    model = scattered(kind)
    x = rows(model)
    filled = model.impute(x)
    observed = ~x.isnan()
    assert torch.equal(filled[observed], x[observed])
    torch.testing.assert_close(filled[0], model.loc.detach())
    for row, full in zip(x, filled, strict=True):
        if row.isnan().any() and not row.isnan().all():
            torch.testing.assert_close(full[row.isnan()], conditional(model, row)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_moments_of_the_conditional(kind):
    model = scattered(kind)
    x = rows(model)
    row = next(row for row in x if row.isnan().sum() == 3)
    draws = model.impute(row[None], num_samples=100_000)
    assert draws.shape == (100_000, 1, 6)
    assert (draws[:, 0, ~row.isnan()] == row[~row.isnan()]).all()
    mean, spread = conditional(model, row)
    got = draws[:, 0, row.isnan()]
    error = spread.diagonal().sqrt().max() / math.sqrt(100_000)
    torch.testing.assert_close(got.mean(0), mean, atol=5 * error, rtol=0)
    error = spread.abs().max() * math.sqrt(2 / 100_000)
    torch.testing.assert_close(torch.cov(got.T), spread, atol=5 * error, rtol=0)


def test_complete_rows_are_left_alone():
    x = torch.randn(4, 6)
    assert torch.equal(FactorAnalysis(6, 2).impute(x), x)
    assert torch.equal(FactorAnalysis(6, 2).impute(x, num_samples=3), x.expand(3, 4, 6))


# --- expectation maximisation ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_em_never_lowers_the_evidence_from_any_start(kind, seed):
    torch.manual_seed(seed)
    x, model = rows(scattered(kind)), scattered(kind)
    values = []
    for step in range(60):
        if step % 20 == 0:
            values.append(by_hand(model, x).mean())
            assert model.em_step(x).item() == pytest.approx(values[-1].item(), abs=1e-10)
        else:
            values.append(model.em_step(x))
    assert torch.stack(values).diff().min() > -1e-10
    assert values[-1] > values[0] + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_em_ends_where_the_gradient_is_zero(kind):
    truth = scattered(kind, 8)
    x = rows(truth, 300)
    model = kind(8, 2, missing="marginalise").double()
    run = fit_em(model, x, tolerance=1e-13, max_steps=3000)
    assert -run.history["loss"][-1] >= by_hand(truth, x).mean()
    by_hand(model, x).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-5, name


def test_expanded_parameters_are_moved_back():
    """From a start that is far away; without their covariance it takes 390 steps."""
    x = rows(scattered(features=8), 300)
    model = scattered(features=8)
    with torch.no_grad():
        model.loadings.mul_(30.0)
        model.loc.add_(model.loadings[:, 0])
    run = fit_em(model, x, initialise=False, tolerance=1e-6)
    assert run.steps < 250


@pytest.mark.parametrize("kind", KINDS)
def test_em_without_holes_reaches_the_maximum_likelihood(kind):
    x = scattered(kind, 8)(size=300).detach()
    best = kind(8, 2).double().maximum_likelihood(x)
    model = kind(8, 2, missing="marginalise").double()
    fit_em(model, x, tolerance=1e-12, max_steps=3000)
    got, expected = (m.evidence().log_prob(x).mean().item() for m in (model, best))
    assert got == pytest.approx(expected, abs=1e-8)


@pytest.mark.slow
def test_gradient_and_em_reach_the_same_optimum():
    x = rows(scattered(features=8), 200)
    by_gradient, by_em = (FactorAnalysis(8, 2, missing="marginalise").double() for _ in range(2))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR
    objective = elbo(by_gradient, ExactPosterior(by_gradient))
    fit(objective, x, epochs=400, lr=0.1, schedule=schedule, progress=False)
    fit_em(by_em, x, tolerance=1e-9)
    got, expected = (m.evidence().log_prob(x).mean().item() for m in (by_gradient, by_em))
    assert got == pytest.approx(expected, abs=1e-5)


def test_em_on_a_stream_and_in_parts(monkeypatch):
    x = rows(scattered(), 100)
    a, b, c = (FactorAnalysis(6, 2, missing="marginalise").double() for _ in range(3))
    whole = fit_em(a, x, tolerance=1e-5)
    stream = fit_em(b, DataLoader(TensorDataset(x), batch_size=32), tolerance=1e-5)
    monkeypatch.setattr("ppl_models.factors.em.MAX_NUMBERS", 50)
    parts = fit_em(c, x, tolerance=1e-5)
    for other in (stream, parts):
        assert other.history["loss"] == pytest.approx(whole.history["loss"], abs=1e-9)


def test_rows_of_which_nothing_was_observed_change_nothing():
    x = rows(scattered())
    more = torch.cat([x, torch.full((40, 6), NAN)])
    a, b = (FactorAnalysis(6, 2, missing="marginalise").double() for _ in range(2))
    a.initialise(x)
    b.initialise(more)
    for _ in range(3):
        torch.testing.assert_close(b.em_step(more), a.em_step(x) / 2)
    for name, parameter in a.named_parameters():
        torch.testing.assert_close(getattr(b, name), parameter)


def test_noise_stops_at_the_floor():
    """Features 1 and 3 are the same: no step takes their noise to zero."""
    x = scattered()(size=200).detach()
    x[:, 3] = 5 * x[:, 1]
    x = with_holes(x)
    model = FactorAnalysis(6, 2, missing="marginalise").double()
    model.initialise(x)
    values = torch.stack([model.em_step(x) for _ in range(200)])
    assert values.diff().min() > -1e-8
    share = model._noise() / (model._noise() + model.loadings.square().sum(1))
    assert share.min() > 0.9 * model.noise_floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_breast_cancer_with_a_third_removed(dtype):
    x = torch.from_numpy(load_breast_cancer().data)
    x = ((x - x.mean(0)) / x.std(0)).to(dtype)
    holes = with_holes(x)
    model = FactorAnalysis(30, 5, missing="marginalise").to(dtype)
    fit_em(model, holes, tolerance=1e-3)
    gone = holes.isnan()
    error = (model.impute(holes) - x)[gone].square().mean().sqrt()
    column = (holes.nanmean(0) - x)[gone].square().mean().sqrt()
    assert error < 0.55 * column


def test_draws_for_arviz():
    model = scattered()
    x = rows(model, 5)
    data = from_pyro_svi(model, ExactPosterior(model), x, num_samples=2000)
    mean = torch.from_numpy(data["posterior"]["z"].values[0]).mean(0)
    torch.testing.assert_close(mean, model.posterior(x).mean.detach(), atol=0.12, rtol=0)


# --- bad input ------------------------------------------------------------------------------


def spoiled(value=NAN):
    x = torch.randn(10, 6)
    x[3, 1] = value
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "method", ["maximum_likelihood", "initialise", "em_step", "posterior", "impute"]
)
def test_by_default_holes_are_an_error(kind, method):
    model = kind(6, 2)
    before = state(model)
    message = f"{kind.__name__}: .*1 of 10 rows hold NaN.*missing='marginalise'"
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(spoiled())
    assert same(before, state(model))
    with pytest.raises(ValueError, match="missing='marginalise'"):
        fit_em(model, spoiled())


@pytest.mark.parametrize("method", ["maximum_likelihood", "initialise", "em_step", "impute"])
def test_infinity_is_not_missing(method):
    model = FactorAnalysis(6, 2, missing="marginalise")
    with pytest.raises(ValueError, match="1 of 10 rows hold NaN or infinity"):
        getattr(model, method)(spoiled(math.inf))


def test_maximum_likelihood_points_to_em():
    model = FactorAnalysis(6, 2, missing="marginalise")
    with pytest.raises(ValueError, match=r"got 1 missing entries.*Try fit_em"):
        model.maximum_likelihood(spoiled())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["initialise", "em_step"])
def test_a_feature_that_was_never_observed(kind, method):
    x = torch.randn(10, 6)
    x[:, 2] = NAN
    with pytest.raises(ValueError, match=r"feature\(s\) 2 are missing from all rows"):
        getattr(kind(6, 2, missing="marginalise"), method)(x)


@pytest.mark.parametrize("method", ["initialise", "em_step"])
def test_a_feature_whose_observed_entries_are_constant(method):
    x = torch.randn(10, 6)
    x[:, 2] = torch.where(torch.arange(10) < 5, NAN, 1.5)
    x[3, 2] = NAN
    model = FactorAnalysis(6, 2, missing="marginalise").double()
    with pytest.raises(ValueError, match=r"feature\(s\) 2 are constant"):
        getattr(model, method)(x)
    ProbabilisticPCA(6, 2, missing="marginalise").initialise(x)


def test_too_few_rows():
    model = FactorAnalysis(6, 2, missing="marginalise")
    x = torch.full((5, 6), NAN)
    x[0] = torch.randn(6)
    with pytest.raises(ValueError, match=r"at least two rows.*got 1"):
        model.initialise(x)
    with pytest.raises(ValueError, match="subspace of 2 dimensions"):
        model.initialise(torch.randn(3, 6))


def test_the_word_for_missing():
    with pytest.raises(ValueError, match="missing: expected 'error' or 'marginalise', got 'drop'"):
        FactorAnalysis(6, 2, missing="drop")


@pytest.mark.parametrize("num_samples", [0, -1, 2.5])
def test_the_number_of_imputations(num_samples):
    model = FactorAnalysis(6, 2, missing="marginalise")
    with pytest.raises(ValueError, match=f"num_samples.*got {num_samples}"):
        model.impute(spoiled(), num_samples=num_samples)
