"""Guides that are points have no density: no bound comes from them, and no silent posterior."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, elbo, fit, from_pyro_svi, iwae, log_evidence

X = torch.tensor([2.1, 3.3, 2.7, 4.0, 3.1, 2.2])
SAID = r"site '{}' is a point, or a function of others"


def model(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m + w[0], 1.0), obs=x)


def normal(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def weights():
    return pyro.sample("w", dist.Dirichlet(torch.tensor([2.0, 2.0, 2.0])))


def partly(x=None, size=None):
    pyro.sample("m", dist.Delta(torch.tensor(2.5)))
    weights()


def unweighed(x=None, size=None):
    """Moves, by a draw that no site tells of."""
    pyro.sample("m", dist.Delta(2.5 + 0.4 * torch.randn(())))
    weights()


def narrow(x=None, size=None):
    pyro.sample("m", dist.Normal(2.5, 1e-9))
    weights()


def copied(x=None, size=None):
    """One auxiliary number behind three."""
    both = pyro.sample("both", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("m", dist.Delta(2.5 + 0.4 * both))
    pyro.sample("w", dist.Delta(torch.stack([both, 2 * both, -both]).softmax(0), event_dim=1))


def in_parts(rest):
    guide = AutoGuideList(model)
    guide.append(AutoMultivariateNormal(poutine.block(model, expose=["m"])))
    guide.append(rest(poutine.block(model, expose=["w"])))
    return guide


def made(guide):
    guide(X)
    return guide


POINTS = {
    "AutoDelta": ("m", lambda: made(AutoDelta(model))),
    "AutoDelta in a list": ("w", lambda: made(in_parts(AutoDelta))),
    "Laplace": ("m", lambda: made(AutoLaplaceApproximation(model))),
    "Laplace in a list": ("w", lambda: made(in_parts(AutoLaplaceApproximation))),
    "narrow": ("w", lambda: made(AutoNormal(model, init_scale=1e-9))),
    "structured": (
        "w",
        lambda: made(AutoStructured(model, conditionals={"m": "normal", "w": "delta"})),
    ),
    "one of two": ("m", lambda: partly),
    "unweighed": ("m", lambda: unweighed),
    "narrow by hand": ("m", lambda: narrow),
    "copied": ("m", lambda: copied),
}

SPREAD = (AutoNormal, AutoMultivariateNormal, AutoDiagonalNormal, AutoIAFNormal, AutoGaussian)


@pytest.mark.parametrize("name", POINTS)
def test_points_are_no_bound(name):
    site, make = POINTS[name]
    with pytest.raises(ValueError, match=SAID.format(site)):
        log_evidence(model, make(), X, num_samples=5)


@pytest.mark.parametrize("name", POINTS)
def test_points_are_no_silent_posterior(name):
    site, make = POINTS[name]
    guide = make()
    if name.startswith("Laplace"):  # it was not meant to be one
        with pytest.raises(ValueError, match=r"try guide = guide\.laplace_approximation"):
            from_pyro_svi(model, guide, X, num_samples=5)
        return
    with pytest.warns(UserWarning, match=SAID.format(site)):
        from_pyro_svi(model, guide, X, num_samples=5)


def test_one_of_two_points_has_no_spread():
    """An outcome that chooses it is no number that a density could be of."""

    def chosen(x=None, size=None):
        first = pyro.sample("first", dist.Bernoulli(0.4), infer={"is_auxiliary": True})
        pyro.sample("m", dist.Delta(2.5 + 0.4 * first))
        weights()

    said = SAID.format("m")
    with pytest.raises(ValueError, match=said):
        log_evidence(model, chosen, X, num_samples=5)
    with pytest.warns(UserWarning, match="are not told"), pytest.warns(UserWarning, match=said):
        from_pyro_svi(model, chosen, X, num_samples=5)


def test_the_laplace_approximation_is_the_evidence_where_it_is_exact():
    guide = AutoLaplaceApproximation(normal)
    fit(elbo(normal, guide), X, epochs=400, lr=0.05, seed=0)
    with pytest.raises(ValueError, match=r"laplace_approximation\(\*data\) after the fit"):
        log_evidence(normal, guide, X)
    covariance = torch.eye(6) + 9.0
    truth = dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(X).item()
    evidence = log_evidence(normal, guide.laplace_approximation(X), X, num_samples=2000, seed=0)
    assert evidence.value.item() == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize("kind", SPREAD)
def test_guides_that_spread_are_taken(kind):
    guide = made(kind(model))
    assert math.isfinite(log_evidence(model, guide, X, num_samples=4, seed=0).mean)
    from_pyro_svi(model, guide, X, num_samples=3)


def test_a_density_of_the_guide_s_own_is_taken():
    """A flow by hand: what it draws is no site, but its density is told."""

    def guide(x=None, size=None):
        precision = 1 / 9 + len(X)
        noise = torch.randn(())
        log_density = dist.Normal(0.0, 1.0).log_prob(noise) + math.log(precision) / 2
        m = X.sum() / precision + noise / precision**0.5
        pyro.sample("m", dist.Delta(m, log_density=log_density))

    truth = dist.MultivariateNormal(torch.zeros(6), torch.eye(6) + 9.0).log_prob(X).item()
    evidence = log_evidence(normal, guide, X, num_samples=6)
    assert evidence.value.item() == pytest.approx(truth, abs=1e-4)


def test_iwae_refuses_them_too():
    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Delta(pyro.param("point", torch.zeros(2)), event_dim=1))

    with pytest.raises(ValueError, match=SAID.format("z")):
        iwae(VAE(4, 2), guide, 3).loss(torch.ones(5, 4))


def test_a_guide_that_observes_is_refused():
    """Its term would cancel the likelihood: the evidence would be that of nothing."""

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1), obs=x)

    for call in (log_evidence, from_pyro_svi):
        with pytest.raises(ValueError, match="'x' are observed, and would count against"):
            call(VAE(4, 2), guide, torch.ones(5, 4), num_samples=3)
    inside = AutoGuideList(model)
    inside.append(AutoNormalMessenger(model))
    with pytest.raises(ValueError, match=r"'x' are observed.*AutoNormalMessenger in an"):
        fit(elbo(model, inside), X, epochs=1)


def test_looking_for_points_draws_nothing():
    vae, guide, x = VAE(4, 2), AmortizedNormal(4, 2), torch.ones(5, 4)
    torch.manual_seed(0)
    first = log_evidence(vae, guide, x, num_samples=5, seed=1).value
    assert torch.equal(first, log_evidence(vae, guide, x, num_samples=5, seed=1).value)
