"""Poisson factorisation: a closed form first, then coordinate ascent."""

import math

import pytest
import torch
from torch.distributions import Gamma

from guides import FactorisationGamma
from ppl_models import PoissonFactorization, elbo, fit, fit_em, log_evidence
from tests.support.ratings import ratings

pytestmark = pytest.mark.filterwarnings("ignore:fit_em. still rising")


def counts():
    x, y = ratings()
    return x, y.clamp(min=0).round()


def ascended(num_factors=2, **options):
    torch.manual_seed(0)
    guide = FactorisationGamma(PoissonFactorization(12, 9, num_factors).double())
    options = {"max_steps": 50, "tolerance": 0.0, "seed": 0, "progress": False} | options
    return guide, fit_em(guide, counts(), **options)


def test_users_are_conjugate_where_items_are_known_and_there_is_one_factor():
    x, y = counts()
    model = PoissonFactorization(12, 9, 1, shape=0.7).double()
    value = torch.rand(9, 1).double() + 0.5
    certain = torch.full_like(value, 1e10)
    users = torch.ones(12, 1).double(), torch.ones(12, 1).double()
    with torch.no_grad():
        _, found, items = model.ascend(users, (certain, certain / value), x, y, True)
        bound, *_ = model.ascend(found, items, x, y, True)
    evidence = 0.0
    for user in range(12):
        own = x[:, 0] == user
        count, exposure = y[own].sum(), value[x[own, 1], 0].sum()
        assert found.concentration[user, 0].item() == pytest.approx(0.7 + count.item(), abs=1e-8)
        assert found.rate[user, 0].item() == pytest.approx(0.7 + exposure.item(), abs=1e-8)
        posterior = Gamma(0.7 + count, 0.7 + exposure)
        at = torch.tensor(1.3).double()  # p(y) = p(y | t) p(t) / p(t | y), of any t
        likelihood = torch.distributions.Poisson(at * value[x[own, 1], 0]).log_prob(y[own]).sum()
        evidence += likelihood + Gamma(at * 0 + 0.7, 0.7).log_prob(at) - posterior.log_prob(at)
    # The bound is that evidence, less what was lost on items that are almost certain.
    prior = Gamma(torch.tensor(0.7).double(), torch.tensor(1.0).double())
    lost = torch.distributions.kl_divergence(Gamma(*items), prior).sum()
    assert (bound * len(y) + lost).item() == pytest.approx(evidence.item(), abs=1e-4)


def test_the_bound_of_a_step_is_below_that_of_the_program():
    """Counts that are not divided among factors have the higher bound."""
    guide, run = ascended()
    data = counts()
    with torch.no_grad():
        draws = torch.stack([elbo(guide.model, guide).loss(*data) for _ in range(300)])
    error = draws.std() / math.sqrt(len(draws))
    assert draws.mean() < run.history["loss"][-1] + 3 * error
    guide, run = ascended(num_factors=1)  # where there is nothing to divide
    with torch.no_grad():
        draws = torch.stack([elbo(guide.model, guide).loss(*data) for _ in range(300)])
    assert abs(draws.mean() - run.history["loss"][-1]) < 4 * draws.std() / math.sqrt(len(draws))


def test_steps_never_lower_the_bound():
    losses = torch.tensor(ascended(max_steps=300)[1].history["loss"])
    assert (losses.diff() <= 1e-12).all()


def test_rates_that_were_planted_are_found():
    generator = torch.Generator().manual_seed(0)
    users = torch.zeros(60, 2).double()
    users[:30, 0], users[30:, 1] = 1, 1  # two kinds of users
    items = torch.zeros(40, 2).double()
    items[:20, 0], items[20:, 1] = 5, 5  # and of items
    x = torch.cartesian_prod(torch.arange(60), torch.arange(40))
    rates = (users[x[:, 0]] * items[x[:, 1]]).sum(1)
    y = torch.poisson(rates, generator=generator)
    guide = FactorisationGamma(PoissonFactorization(60, 40, 2).double())
    fit_em(guide, (x, y), seed=0, max_steps=100, tolerance=1e-7, progress=False)
    theta, beta = (a / b for a, b in (guide.users.get(), guide.items.get()))
    found = (theta[x[:, 0]] * beta[x[:, 1]]).sum(1).detach()
    assert (found - rates).abs().mean() < 0.4  # of 5 and 0


def test_new_users_are_folded_in():
    guide, _ = ascended()
    later = guide.for_new_users(1)
    x, y = torch.tensor([[0, 0], [0, 3]]), torch.tensor([3.0, 4.0]).double()
    fit_em(later, (x, y), progress=False)
    assert torch.equal(later.items.log_rate, guide.items.log_rate)
    assert (later.users.log_concentration != 0).all()
    fit(elbo(later.model, later), (x, y), epochs=2, lr=0.01, progress=False)


def test_log_evidence_of_counts():
    guide, _ = ascended()
    assert log_evidence(guide.model, guide, *counts(), num_samples=3).kind == "lower bound"


def test_bad_counts_are_refused_before_the_first_step():
    x, y = counts()
    guide = FactorisationGamma(PoissonFactorization(12, 9, 2).double())
    with pytest.raises(ValueError, match="expected counts, whole numbers of 0 or more"):
        fit(elbo(guide.model, guide), (x, y + 0.5), epochs=1, progress=False)
    with pytest.raises(ValueError, match="expected counts, whole numbers of 0 or more"):
        fit_em(guide, (x, y + 0.5), progress=False)
    with pytest.raises(ValueError, match="pairs twice or more"):
        fit_em(guide, (torch.cat([x, x]), torch.cat([y, y])), progress=False)
    with pytest.raises(ValueError, match="users from 0 to 4"):
        fit_em(FactorisationGamma(PoissonFactorization(5, 9, 2)), (x, y), progress=False)
