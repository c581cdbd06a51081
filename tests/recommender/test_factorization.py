"""Matrix factorisation with normal ratings: closed forms first, then coordinate ascent."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from guides import FactorizationNormal
from ppl_models import (
    LinearRegression,
    MatrixFactorization,
    elbo,
    fit,
    fit_em,
    from_pyro_svi,
    log_evidence,
)
from ppl_models.likelihoods import Multinomial
from ppl_models.recommender.factorization import lower
from tests.support.ratings import model, ratings

pytestmark = pytest.mark.filterwarnings("ignore:fit_em. still rising")
KINDS = pytest.mark.parametrize("covariance", ["full", "diag"])


def ascended(covariance="full", **options):
    guide = FactorizationNormal(model(), covariance)
    options = {"max_steps": 60, "tolerance": 0.0, "seed": 0, "progress": False} | options
    return guide, fit_em(guide, ratings(), **options)


# Items known: each user is a Bayesian linear regression


def test_users_are_linear_regressions_where_items_are_known():
    x, y = ratings()
    made, items = model(), torch.randn(9, 3).double()
    with torch.no_grad():
        scales = made.user_root.diagonal().exp()
        made.user_root.copy_(scales.log().diag())  # of independent numbers, as a regression has
    posterior = made.user_posterior(items, x, y)
    evidence = made.user_evidence(items, x, y).detach()
    noise = 1e-3 + made.likelihood.log_scale.exp().detach()
    peer = LinearRegression(2, noise, scales[1:].detach(), scales[0].detach())
    for user in range(12):
        own = x[:, 0] == user
        given, rest = items[x[own, 1]], y[own] - 3.0 - items[x[own, 1], 0]
        if not own.any():
            assert evidence[user] == pytest.approx(0, abs=1e-12)
            continue
        known = peer.posterior(given[:, 1:], rest)  # of the weights, and the bias last
        mean, covariance = known.mean.roll(1), known.covariance_matrix.roll((1, 1), (0, 1))
        torch.testing.assert_close(posterior.mean[user], mean, atol=1e-8, rtol=0)
        torch.testing.assert_close(posterior.covariance_matrix[user], covariance, atol=1e-8, rtol=0)
        expected = peer.marginal(given[:, 1:]).log_prob(rest)
        torch.testing.assert_close(evidence[user], expected, atol=1e-8, rtol=0)


def test_evidence_of_a_user_has_the_correlations_of_the_prior():
    x, y = ratings()
    made, items = model(), torch.randn(9, 3).double()
    tril, own = lower(made.user_root), x[:, 0] == 3
    design = torch.cat([torch.ones(int(own.sum()), 1).double(), items[x[own, 1], 1:]], 1)
    noise = 1e-3 + made.likelihood.log_scale.exp()
    covariance = design @ tril @ tril.T @ design.T + noise**2 * torch.eye(len(design)).double()
    law = MultivariateNormal(3.0 + items[x[own, 1], 0], covariance)
    torch.testing.assert_close(made.user_evidence(items, x, y)[3], law.log_prob(y[own]))


# The bound


@KINDS
def test_the_bound_of_a_step_is_that_of_the_program(covariance):
    guide, _ = ascended(covariance, max_steps=3)
    data = ratings()
    with torch.no_grad():
        bound = guide.em_step(*data)
    guide, _ = ascended(covariance, max_steps=3)
    torch.manual_seed(0)
    draws = torch.stack([elbo(guide.model, guide).loss(*data).detach() for _ in range(300)])
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() + bound) < 4 * error
    assert error < 0.05


@KINDS
def test_steps_never_lower_the_bound_and_end_where_its_gradient_is_zero(covariance):
    guide, run = ascended(covariance, max_steps=800)
    losses = torch.tensor(run.history["loss"])
    assert (losses.diff() <= 1e-12).all()
    free = dict(guide.named_parameters())
    base = -losses[-1].item()
    # Along any direction the bound is flat to first order: as much is lost either way.
    for name in ("users.loc", "items.loc", "users.root", "items.root"):
        direction = torch.randn_like(free[name])
        if covariance == "full" and name.endswith("root"):
            direction = direction.tril()
        values = [_moved(guide, free[name], 1e-3 * sign * direction) for sign in (1, -1)]
        assert all(value <= base + 1e-9 for value in values)
        assert values[0] - values[1] == pytest.approx(0, abs=1e-5 * direction.norm().item())


def _moved(guide, parameter, step):
    """The bound where a parameter is moved, everything else as it was."""
    state = {key: value.clone() for key, value in guide.state_dict().items()}
    with torch.no_grad():
        parameter.add_(step)
        value = guide.em_step(*ratings()).item()
    guide.load_state_dict(state)
    return value


@KINDS
@pytest.mark.parametrize("name", ["offset", "user_root", "item_root", "likelihood.log_scale"])
def test_parameters_of_the_model_are_the_best_for_what_is_believed(covariance, name):
    """After a step, and long before the end."""
    guide, _ = ascended(covariance, max_steps=3)
    with torch.no_grad():
        guide.em_step(*ratings())
        parameter = dict(guide.model.named_parameters())[name]
        direction = torch.randn_like(parameter)
        direction = direction.tril() if direction.ndim == 2 else direction
        up, down = (_moved(guide, parameter, 1e-4 * sign * direction) for sign in (1, -1))
        at = _moved(guide, parameter, 0.0)
    assert max(up, down) < at
    assert up - down == pytest.approx(0, abs=1e-7)


def test_full_covariances_have_the_higher_bound():
    full, diag = (ascended(kind)[1].history["loss"][-1] for kind in ("full", "diag"))
    assert full < diag


def test_float32_ends_where_float64_does():
    x, y = ratings()
    guide = FactorizationNormal(model().float())
    run = fit_em(guide, (x, y.float()), max_steps=30, tolerance=0.0, seed=0, progress=False)
    expected = ascended(max_steps=30)[1].history["loss"][-1]
    assert run.history["loss"][-1] == pytest.approx(expected, abs=1e-3)


def test_a_fit_goes_on_from_where_coordinate_ascent_ended():
    guide, run = ascended()
    before = -run.history["loss"][-1]
    fit(elbo(guide.model, guide), ratings(), epochs=20, batch_size=16, lr=1e-4, progress=False)
    with torch.no_grad():
        assert guide.em_step(*ratings()) == pytest.approx(before, abs=0.02)


@pytest.mark.filterwarnings("ignore:log_evidence. 500 draws")  # of so many latents at once
def test_log_evidence_of_the_whole_data_is_no_less_than_the_bound():
    guide, run = ascended()
    evidence = log_evidence(guide.model, guide, *ratings(), num_samples=1, seed=0)
    assert evidence.kind == "lower bound"
    many = log_evidence(guide.model, guide, *ratings(), num_samples=500, seed=0)
    assert many.mean > -run.history["loss"][-1]


# New users


def test_new_users_are_folded_in_by_one_step():
    guide, _ = ascended()
    later = guide.for_new_users(2)
    x = torch.tensor([[0, 0], [0, 3], [1, 4], [1, 5], [1, 8]])
    y = torch.tensor([3.0, 4.0, 1.0, 2.0, 5.0]).double()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    run = fit_em(later, (x, y), progress=False)
    assert run.steps == 3  # the second changes nothing, the third sees it
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert torch.equal(later.items.loc, guide.items.loc)
    # Were the items certain, this is the closed form.
    with torch.no_grad():
        later.items.root.fill_(-30.0)
        later.items.root.mul_(torch.eye(3))
        fit_em(later, (x, y), progress=False)
    known = later.model.user_posterior(later.items.loc.detach(), x, y)
    torch.testing.assert_close(later.users.loc.detach(), known.mean)


def test_new_users_are_folded_in_by_fit_too():
    guide, _ = ascended()
    later = guide.for_new_users(1)
    x, y = torch.tensor([[0, 0], [0, 3]]), torch.tensor([3.0, 4.0]).double()
    fit(elbo(later.model, later), (x, y), epochs=2, lr=0.01, progress=False)
    assert torch.equal(later.items.loc, guide.items.loc)
    assert later.users.loc.abs().max() > 0


# ArviZ


def test_draws_have_names_of_dimensions():
    guide, _ = ascended()
    found = from_pyro_svi(guide.model, guide, *ratings(), num_samples=5)
    assert found["posterior"]["users"].dims == ("chain", "draw", "user", "of_user")
    assert found["posterior"]["items"].shape == (1, 5, 9, 3)
    assert found["log_likelihood"]["y"].shape == (1, 5, len(ratings()[1]))


# What is refused


def cases():
    x, y = ratings()
    unknown_user, unknown_item = x.clone(), x.clone()
    unknown_user[0, 0], unknown_item[0, 1] = 12, -1
    twice = torch.cat([x, x[:1]]), torch.cat([y, y[:1]])
    return {
        "users from 0 to 11, got 1 unknown, such as 12": (unknown_user, y),
        "items from 0 to 8, got 1 unknown, such as -1": (unknown_item, y),
        "1 pairs twice or more": twice,
        "with shape .B, 2.": (torch.cat([x, x], 1), y),
        "as whole numbers": (x.double(), y),
        "floating-point ratings": (x, y.long()),
    }


@pytest.mark.parametrize("message", cases())
def test_bad_ratings_are_refused_before_the_first_step(message):
    guide = FactorizationNormal(model())
    data, before = cases()[message], guide.users.loc.clone()
    for run in (
        lambda: fit(elbo(guide.model, guide), data, epochs=1, batch_size=8, progress=False),
        lambda: fit_em(guide, data, progress=False),
        lambda: log_evidence(guide.model, guide, *data, num_samples=2),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            run()
    assert torch.equal(guide.users.loc, before)


def test_one_rating_for_each_pair():
    x, y = ratings()
    with pytest.raises(ValueError, match=r"ratings that differ, got \d+ of 3"):
        fit_em(FactorizationNormal(model()), (x, torch.full_like(y, 3.0)), progress=False)
    with pytest.raises(ValueError, match="the same number of rows"):
        fit_em(FactorizationNormal(model()), (x, y[:-1]), progress=False)
    with pytest.raises(ValueError, match=r"with shape \(3,\), got \(3, 1\)"):
        model()(x[:3], y[:3, None])


def test_what_is_no_likelihood_is_refused():
    with pytest.raises(TypeError, match="likelihood: expected an object"):
        MatrixFactorization(2, 2, 1, likelihood="normal")
    with pytest.raises(TypeError, match=r"whose features are independent, .* got SharedTotal"):
        model(Multinomial())(ratings()[0])
    with pytest.raises(ValueError, match="num_factors: expected a positive whole number"):
        MatrixFactorization(2, 2, 0)
    with pytest.raises(ValueError, match="covariance: expected 'full' or 'diag'"):
        FactorizationNormal(model(), "low-rank")
