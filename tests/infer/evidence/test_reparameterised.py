"""What `poutine.reparam` makes of a latent is a function of others: no datum, and reported."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import (
    AutoReparam,
    ConjugateReparam,
    HaarReparam,
    LocScaleReparam,
    NeuTraReparam,
    SplitReparam,
    TransformReparam,
)
from torch import Tensor

from ppl_models import data_plate, elbo, fit, from_pyro_mcmc, from_pyro_svi, log_evidence

X = torch.tensor([1.2, 2.5, 0.3, 4.0, 2.2])


def model(x: Tensor | None = None, size: int | None = None) -> Tensor:
    m = pyro.sample("m", dist.Normal(1.0, 3.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 0.3))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(m, s))
        return pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def draw(program, guide, *data, **options):
    return from_pyro_svi(program, guide, *data, **{"num_samples": 40, "seed": 0} | options)


def groups_of(data) -> set[str]:
    return set(data.children) if hasattr(data, "children") else set(data.groups())


def values(data, group, name) -> np.ndarray:
    return data[group][name].values[0]


def neutra():
    guide = AutoMultivariateNormal(model)
    guide(X)
    return NeuTraReparam(guide).reparam(model)


CASES = {
    "loc_scale": (lambda: poutine.reparam(model, {"z": LocScaleReparam(0.0)}), {"z_decentered"}),
    "learnt": (lambda: poutine.reparam(model, {"m": LocScaleReparam()}), {"m_decentered"}),
    "transform": (lambda: poutine.reparam(model, {"s": TransformReparam()}), {"s_base"}),
    "auto": (
        lambda: poutine.reparam(model, config=AutoReparam()),
        {"m_decentered", "s_base_decentered", "s_base", "z_decentered"},
    ),
    "neutra": (neutra, {"m_shared_latent"}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_in_the_posterior_and_observed_nowhere(case):
    make, auxiliary = CASES[case]
    program = make()
    data = draw(program, AutoNormal(program), X)
    assert set(data["posterior"].data_vars) == {"m", "s", "z"} | auxiliary
    for group in ("posterior_predictive", "log_likelihood", "observed_data"):
        assert list(data[group].data_vars) == ["x"], group
    assert data["posterior"]["z"].dims == ("chain", "draw", "data")
    likelihood = dist.Normal(torch.from_numpy(values(data, "posterior", "z")), 0.5).log_prob(X)
    np.testing.assert_allclose(values(data, "log_likelihood", "x"), likelihood, rtol=1e-4)


def test_its_value_is_that_function_of_the_others():
    program = poutine.reparam(model, {"z": LocScaleReparam(0.0)})
    data = draw(program, AutoNormal(program), X)
    for group in ("posterior", "prior"):
        m, s, z, noise = (values(data, group, n) for n in ("m", "s", "z", "z_decentered"))
        np.testing.assert_allclose(z, m[:, None] + s[:, None] * noise, rtol=1e-4, atol=1e-5)


def test_draws_that_must_be_weighed_are_no_prior():
    """The base of a transport is drawn from its guide, not from the prior of the model."""
    program = neutra()
    assert not {"prior", "prior_predictive"} & groups_of(draw(program, AutoNormal(program), X))


def counts(x=None, size=None):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def test_a_conjugate_update():
    """Its draws are of the posterior, Gamma(2 + sum, 1 + N)."""
    x = torch.tensor([3.0, 1.0, 4.0, 1.0])

    def update(x=None, size=None):
        return dist.Gamma(1 + x.sum(), torch.tensor(float(len(x))))

    program = poutine.reparam(counts, {"rate": ConjugateReparam(update)})
    data = draw(program, None, x, num_samples=4000)
    exact = dist.Gamma(2 + x.sum(), torch.tensor(5.0))
    rate = values(data, "posterior", "rate")
    assert rate.mean() == pytest.approx(exact.mean.item(), rel=0.02)
    assert rate.std() == pytest.approx(exact.stddev.item(), rel=0.05)
    assert list(data["observed_data"].data_vars) == ["x"]
    assert list(data["log_likelihood"].data_vars) == ["x"]
    assert not {"prior", "prior_predictive"} & groups_of(data)


def test_event_dimensions_of_a_split_and_of_wavelets():
    def wide(x=None, size=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    for reparam, names in (
        (SplitReparam([1, 3], -1), {"w_split_0", "w_split_1"}),
        (HaarReparam(dim=-1), {"w_haar"}),
    ):
        program = poutine.reparam(wide, {"w": reparam})
        data = draw(program, AutoNormal(program), torch.randn(3, 4))
        assert set(data["posterior"].data_vars) == {"w"} | names
        assert data["posterior"]["w"].dims == ("chain", "draw", "w_dim_0")
        assert list(data["observed_data"].data_vars) == ["x"]


def test_mcmc():
    program = poutine.reparam(model, {"z": LocScaleReparam(0.0), "s": TransformReparam()})
    mcmc = MCMC(NUTS(program), 20, 20, disable_progbar=True)
    mcmc.run(X)
    data = from_pyro_mcmc(mcmc)
    m, s, z, noise = (values(data, "posterior", n) for n in ("m", "s", "z", "z_decentered"))
    np.testing.assert_allclose(z, m[:, None] + s[:, None] * noise, rtol=1e-4, atol=1e-5)
    assert list(data["observed_data"].data_vars) == ["x"]


def test_it_does_not_count_as_evidence():
    def latent_counts(observe):
        def program(x=None, size=None):
            with data_plate(x, size):
                pyro.sample("z", dist.Normal(0.0, 2.0))
                if observe:
                    pyro.sample("x", dist.Bernoulli(torch.tensor([0.3, 0.6])).to_event(1), obs=x)

        return poutine.reparam(program, {"z": LocScaleReparam(0.0)})

    def guide(x=None, size=None):
        with data_plate(x, size):
            pyro.sample("z_decentered", dist.Normal(0.0, 1.0))

    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="observes nothing"):
        log_evidence(latent_counts(False), guide, x)
    evidence = log_evidence(latent_counts(True), guide, x, num_samples=3)
    exact = dist.Bernoulli(torch.tensor([0.3, 0.6])).log_prob(x).sum(1)
    torch.testing.assert_close(evidence.value, exact.double(), rtol=1e-5, atol=0)
    assert evidence.num_features == 2  # not 3: bits per dimension count features


def test_a_site_that_observes_its_own_value_is_deterministic():
    """As `pyro.deterministic` would write it; a point that data must meet is another thing."""

    def program(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        twice = 2 * loc
        pyro.sample("twice", dist.Delta(twice), obs=twice)
        with data_plate(x, size):
            pyro.sample("spread", dist.Delta(twice), obs=twice)
            pyro.sample("density", dist.Delta(x, dist.Normal(loc, 1.0).log_prob(x)), obs=x)
            pyro.sample("met", dist.Delta(x.clone()), obs=x)

    data = draw(program, AutoNormal(program), X)
    assert set(data["posterior"].data_vars) == {"loc", "twice", "spread"}
    assert set(data["observed_data"].data_vars) == {"density", "met"}
    loc = torch.from_numpy(values(data, "posterior", "loc"))
    expected = dist.Normal(loc[:, None], 1.0).log_prob(X)
    np.testing.assert_allclose(values(data, "log_likelihood", "density"), expected, rtol=1e-5)


def test_a_fit_goes_on():
    program = poutine.reparam(model, {"z": LocScaleReparam()})
    loss = elbo(program, AutoNormal(program)).loss(X, size=len(X))
    assert loss.isfinite()


def test_data_in_another_variable_are_refused():
    """Their log-density would lack the Jacobian: -log s for each row here."""

    def program(x=None, size=None):
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(0.0, 3.0), obs=x)

    changed = poutine.reparam(program, {"x": LocScaleReparam(0.0)})
    with pytest.raises(ValueError, match=r"site 'x': poutine\.reparam changes its variable"):
        log_evidence(changed, None, X)
    with pytest.raises(ValueError, match=r"site 'x': poutine\.reparam changes its variable"):
        fit(elbo(changed), X, epochs=1)


def test_data_in_a_variable_of_the_same_volume_are_taken():
    """Wavelet coefficients of a row: a rotation."""

    def program(x=None, size=None):
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(torch.zeros(4), 3.0).to_event(1), obs=x)

    x = torch.randn(3, 4)
    rotated = poutine.reparam(program, {"x": HaarReparam(dim=-1)})
    exact = dist.Normal(0.0, 3.0).log_prob(x).sum(1)
    got = log_evidence(rotated, None, x)
    torch.testing.assert_close(got.value, exact.double(), rtol=1e-5, atol=0)


def of_counts(share):
    """Counts whose rate is drawn by an update with that share of the data: all, or too few."""

    def update(x=None, size=None):
        return dist.Gamma(1 + share * x.sum(), torch.tensor(share * len(x)))

    return poutine.reparam(counts, {"rate": ConjugateReparam(update)})


def of_each_count(share):
    def rows(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Gamma(torch.full_like(x, 2.0), 1.0))
            return pyro.sample("x", dist.Poisson(z), obs=x)

    def update(x=None, size=None):
        return dist.Gamma(1 + share * x, torch.full_like(x, share))

    return poutine.reparam(rows, {"z": ConjugateReparam(update)})


def unseen(share):
    """A normal with noise that no site tells of; without a share, with none."""

    def rows(x=None, size=None):
        with data_plate(x, size):
            noise = (1 - share) * torch.randn_like(x)
            return pyro.sample("x", dist.Normal(noise, 1.0), obs=x)

    return rows


def exact_counts(x):
    total, rows = x.sum(), len(x)
    value = torch.lgamma(2 + total) - (2 + total) * math.log(1 + rows) - torch.lgamma(1 + x).sum()
    return value.reshape(1)


def exact_each(x):
    return torch.lgamma(2 + x) - (2 + x) * math.log(2) - torch.lgamma(1 + x)


DRAWN = {  # the program, the share at which it is exact, another, and the evidence at both
    "shared": (of_counts, 0.5, exact_counts, exact_counts),
    "of rows": (of_each_count, 0.5, exact_each, exact_each),
    "no site": (
        unseen,
        0.0,
        lambda x: dist.Normal(0.0, 1.0).log_prob(x),
        lambda x: dist.Normal(0.0, 2**0.5).log_prob(x),
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_only_what_no_draw_changes_is_exact(name, float64):
    """The weight of a draw, prior / update times likelihood, has the evidence as its mean."""
    make, share, exact, other = DRAWN[name]
    x = torch.tensor([3.0, 1.0, 4.0, 1.0])
    evidence = log_evidence(make(1.0), None, x, num_samples=10)
    assert (evidence.kind, evidence.num_samples) == ("exact", 0)
    torch.testing.assert_close(evidence.value, exact(x))
    evidence = log_evidence(make(share), None, x, num_samples=20_000, seed=0)
    assert (evidence.kind, evidence.num_samples) == ("lower bound", 20_000)
    assert 0 < evidence.monte_carlo_error < 0.05
    torch.testing.assert_close(evidence.value, other(x), atol=0.1, rtol=0)
    with pytest.raises(ValueError, match="which draws what is no latent site of it"):
        log_evidence(make(share), None, x, method="exact")
