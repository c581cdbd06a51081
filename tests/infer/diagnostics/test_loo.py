"""Rows left out: against closed forms, with guides that are right and wrong."""

import math

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_models import data_plate, from_pyro_svi, log_evidence, loo

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(30, generator=GENERATOR, dtype=torch.float64)


def model(x=None, size=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 3.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide_of(scale=1.0, shift=0.0):
    """The posterior of all rows, made wider and moved by so many standard deviations."""

    def guide(x, size=None):
        precision = 1 / 9 + len(X)
        sd = precision**-0.5
        pyro.sample("mean", dist.Normal(X.sum() / precision + shift * sd, scale * sd))

    return guide


def exact(x):
    """The density of each row given all others."""
    precision = 1 / 9 + len(x) - 1
    loc = (x.sum() - x) / precision
    return dist.Normal(loc, (1 + 1 / precision) ** 0.5).log_prob(x)


@pytest.mark.parametrize(
    ("scale", "shift", "error"), [(1.0, 0.0, 0.01), (1.4, 0.0, 0.015), (1.0, 0.7, 0.02)]
)
def test_each_row_given_all_others(scale, shift, error):
    """Whatever the guide, as its draws are weighed: `az.loo` takes them for the posterior's."""
    found = loo(model, guide_of(scale, shift), X, num_samples=20000, seed=0)
    assert (found.value - exact(X)).abs().max() < error
    assert found.pareto_k.max() < 0.5
    assert found.kind == "estimate"
    assert "leave-one-out log density" in str(found)


def test_the_error_is_the_spread_of_repeats():
    found = [loo(model, guide_of(1.3), X[:10], num_samples=400, seed=seed) for seed in range(40)]
    spread = torch.stack([one.value for one in found]).std(0)
    errors = torch.stack([one.row_variance for one in found]).mean(0).sqrt()
    assert ((errors / spread).log().abs() < 0.5).all()


def test_it_is_that_of_arviz_where_the_guide_is_the_posterior():
    found = loo(model, guide_of(), X, num_samples=40_000, seed=0)
    data = from_pyro_svi(model, guide_of(), X, num_samples=40_000, seed=0)
    theirs = az.loo(data, pointwise=True)
    rows = getattr(theirs, "loo_i", None)
    rows = theirs.elpd_i if rows is None else rows
    # Its draws are others.
    torch.testing.assert_close(found.value, torch.from_numpy(rows.values), atol=0.01, rtol=0)


def test_it_is_that_of_arviz_for_approximate_posteriors():
    if not hasattr(az, "loo_approximate_posterior"):
        pytest.skip("ArviZ 0.x has none")
    found = loo(model, guide_of(1.4, 0.5), X, num_samples=4000, seed=0)
    data = from_pyro_svi(model, guide_of(1.4, 0.5), X, num_samples=4000, seed=0)
    log_p, log_q = (data["sample_stats"][name].values.flatten() for name in ("log_p", "log_q"))
    theirs = az.loo_approximate_posterior(data, log_p, log_q, pointwise=True)
    rows = torch.from_numpy(theirs.elpd_i.values)
    torch.testing.assert_close(found.value, rows, atol=0.02, rtol=0)


def test_a_row_that_decides_the_fit_is_named_by_its_k():
    x = torch.cat([X[:5], torch.tensor([40.0])])

    def of_x(x, size=None):
        precision = 1 / 9 + len(x)
        pyro.sample("mean", dist.Normal(x.sum() / precision, precision**-0.5))

    found = loo(model, of_x, x, seed=0)
    assert found.pareto_k.argmax() == 5
    assert found.pareto_k[5] > 0.7
    assert found.is_unreliable or "k above" in str(found)


def test_enumerated_latents_are_summed_out():
    """A mixture of two known components, with the share of each as the latent of all rows."""

    def mixture(x=None, size=None):
        share = pyro.sample("share", dist.Beta(*torch.ones(2, dtype=torch.float64)))
        with data_plate(x, size):
            k = pyro.sample("k", dist.Bernoulli(share), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(4 * k - 2, 1.0), obs=x)

    def guide(x, size=None):
        pyro.sample("share", dist.Beta(*torch.tensor([16.0, 18.0], dtype=torch.float64)))

    x = torch.where(X > 0, X + 2, X - 2)
    found = loo(mixture, guide, x, num_samples=20000, seed=0)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    parts = torch.stack([dist.Normal(m, 1.0).log_prob(x).exp() for m in (2.0, -2.0)])
    rows = (grid[:, None] * parts[0] + (1 - grid[:, None]) * parts[1]).log()
    left = rows.sum(1, keepdim=True) - rows
    expected = (left + rows).logsumexp(0) - left.logsumexp(0)
    assert (found.value - expected).abs().max() < 0.01


def test_latents_of_a_row_are_refused_with_the_reason():
    def local(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    with pytest.raises(ValueError, match=r"'z' belong to single rows.* Try log_evidence"):
        loo(local, guide, X)


def test_too_few_draws():
    with pytest.raises(ValueError, match="at least 25 draws"):
        loo(model, guide_of(), X, num_samples=20)


def test_the_sum_is_not_the_evidence():
    """That weighs the prior, too: rows are given fewer of the others, down to none."""
    found = loo(model, guide_of(), X, seed=0)
    evidence = log_evidence(model, guide_of(), X, seed=0)
    assert found.value.sum() > evidence.value.item()
    assert math.isfinite(found.standard_error)
