"""Whether a run has come to its end, and whether its restarts came to the same one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal

from ppl_models import GaussianMixture, Run, convergence, data_plate, elbo, fit_em, rhat
from tests.support.runs import quiet

X = torch.randn(30, generator=torch.Generator().manual_seed(0)) + 2


def model(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m + v[0] * 0, 1.0), obs=x)


def placed(loc, scale=1.0, site="m"):
    """A guide with one site elsewhere."""

    def guide(x, size=None):
        m = (loc, scale) if site == "m" else (0.0, 1.0)
        pyro.sample("m", dist.Normal(*m))
        v = torch.tensor([0.0, 0.0 if site == "m" else loc])
        pyro.sample("v", dist.Normal(v, 1.0).to_event(1))

    return guide


def test_of_a_run_its_history_and_its_losses():
    losses = [1.0 / n for n in range(1, 60)]
    run = Run({"loss": losses, "validation": [2.0] * 59})
    assert convergence(run) == convergence(run.history) == convergence(losses)
    assert not convergence(run).converged
    assert convergence(run, "validation").converged


def test_of_steps_of_em():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).double()
    run = fit_em(GaussianMixture(2, 1).double(), x, max_steps=40, tolerance=0)
    assert len(run.history["loss"]) < 20 or convergence(run).converged


@pytest.mark.parametrize("given", ["loss", 3, None])
def test_of_nothing_else(given):
    with pytest.raises(TypeError, match=r"expected a run, its history or its losses, got"):
        convergence(given)


def test_of_no_other_name():
    with pytest.raises(ValueError, match=r"name: .* which has 'loss', got 'validation'"):
        convergence(Run({"loss": [1.0] * 30}), "validation")


def test_restarts_that_agree():
    found = rhat([(model, placed(0.5)) for _ in range(4)], X, seed=0)
    assert found.agree
    assert found.largest < 1.02
    assert found.value["v"].shape == (2,)
    assert str(found).startswith("4 restarts agree: R-hat up to 1.0")


@pytest.mark.parametrize(
    ("others", "worst"),
    [
        ([placed(0.0), placed(0.0), placed(2.0)], "m"),
        ([placed(0.0), placed(0.0), placed(0.0, 3.0)], "m"),  # another spread
        ([placed(0.0, site="v"), placed(0.0, site="v"), placed(2.0, site="v")], "v"),
    ],
)
def test_restarts_that_do_not_agree(others, worst):
    found = rhat([(model, placed(0.0)), *[(model, guide) for guide in others]], X, seed=0)
    assert not found.agree
    assert str(found).startswith("4 restarts do not agree")
    assert f"threshold 1.1); {worst} " in str(found)


def test_it_is_that_of_arviz():
    az = pytest.importorskip("arviz")
    import numpy as np
    import xarray

    from ppl_models import from_pyro_svi

    guides = [placed(0.0), placed(0.7)]
    found = rhat([(model, guide) for guide in guides], X, num_samples=200, seed=3)
    draws = [
        from_pyro_svi(model, guide, X, num_samples=200, seed=3 + n)["posterior"]["m"].values[0]
        for n, guide in enumerate(guides)
    ]
    there = az.rhat(xarray.Dataset({"m": (("chain", "draw"), np.stack(draws))}))["m"].item()
    assert found.value["m"].item() == pytest.approx(there, rel=1e-6)


def test_a_fit_that_was_stopped_too_early_shows():
    def fits(epochs):
        found = []
        for seed in range(3):
            objective = elbo(model, lambda_guide(seed))
            quiet(objective, X, epochs=epochs, lr=0.05, seed=seed)
            found.append((model, objective.guide))
        return rhat(found, X, seed=0)

    def lambda_guide(seed):
        return AutoNormal(
            model, init_loc_fn=lambda site: torch.full(site["fn"].shape(), 1.0 * seed)
        )

    assert not fits(5).agree
    assert fits(500).agree


def test_points_agree_where_they_are_the_same():
    def pair(value):
        guide = AutoDelta(model, init_loc_fn=lambda site: torch.full(site["fn"].shape(), value))
        return model, guide

    same = rhat([pair(1.0), pair(1.0)], X)
    assert same.largest == 1.0
    assert rhat([pair(1.0), pair(1.1)], X).largest == float("inf")


def without_latents(x=None, size=None):
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0), obs=x)


def other(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def for_other(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(0.0, 1.0))


ONE = placed(0.0)


@pytest.mark.parametrize(
    ("fits", "error", "message"),
    [
        ((model, ONE), TypeError, r"expected a list of pairs"),
        ([ONE, ONE], TypeError, r"expected a list of pairs"),
        ([(model, ONE)], ValueError, r"expected two restarts or more, got 1"),
        ([(model, ONE), (model, ONE)], ValueError, r"got one guide several times"),
        ([(model, ONE), (other, for_other)], ValueError, r"the same latents in each restart"),
        (
            [(without_latents, None), (lambda x, size=None: without_latents(x, size), None)],
            ValueError,
            r"expected latents that a guide draws",
        ),
    ],
)
def test_no_other_fits(fits, error, message):
    with pytest.raises(error, match=message):
        rhat(fits, X)


def test_too_few_draws():
    with pytest.raises(ValueError, match=r"num_samples: expected a whole number, 4 or more"):
        rhat([(model, placed(0.0)), (model, placed(0.0))], X, num_samples=3)
