"""Draws of many at a time: the densities, shapes and laws of draws one by one."""

import math
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

from guides import FactorNormal, MeanFieldMixture, MixturePosterior
from ppl_models import (
    BayesianFactorAnalysis,
    BayesianGaussianMixture,
    LinearRegression,
    SoftmaxRegression,
    data_plate,
    from_pyro_mcmc,
    from_pyro_svi,
    log_evidence,
)
from ppl_models.infer.compiled import side_by_side
from ppl_models.infer.evidence.joint import sampling
from tests.support.draws import COUNTS, ROWS, X, Y, counts, counts_guide, log_joint, values

pytestmark = pytest.mark.usefixtures("float64")


def log_guide(guide, latents, *data):
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(guide, data=latents)).get_trace(*data)
        return trace.log_prob_sum().item()


def regression(x, y=None, size=None):
    """Written for one draw: a product of matrices, in which a dimension of draws would break."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.Exponential(1.0))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights, scale), obs=y)


def regression_guide(x, y=None, size=None):
    pyro.sample("weights", dist.Normal(torch.arange(3.0), 0.3).to_event(1))
    pyro.sample("scale", dist.LogNormal(0.0, 0.2))


def schools(x, y=None, size=None):
    center = pyro.sample("center", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with data_plate(x, size):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(center + spread * offset, 1.0 + x[:, 0] ** 2), obs=y)


def schools_guide(x, y=None, size=None):
    pyro.sample("center", dist.StudentT(5.0, 0.0, 1.0))
    pyro.sample("spread", dist.InverseGamma(2.0, 1.0))
    with data_plate(x, size):
        loc = pyro.param("loc", torch.linspace(-1, 1, ROWS), event_dim=0)
        pyro.sample("offset", dist.Normal(loc, 0.5))


@pyro.infer.config_enumerate
def clusters(x=None, size=None):
    """Indexed by the component, in which a dimension of draws would be taken for another."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def clusters_guide(x=None, size=None):
    pyro.sample("weights", dist.Dirichlet(torch.tensor([5.0, 2.0, 3.0])))
    with pyro.plate("components", 3):
        pyro.sample("loc", dist.Normal(torch.tensor([-3.0, 0.0, 3.0]), 0.5))


def sums(x=None, size=None):
    """Sums, means and stacks over all that there is, which draws must not become a part of."""
    a = pyro.sample("a", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    b = pyro.sample("b", dist.Beta(2.0, 3.0))
    centered = a - a.mean() - a.mean(0)
    loc = torch.stack([centered.sum(), a.max(), b, a[0] @ a[1]]).cumsum(0)[-1]
    scale = (1 + a.std()) * (1 + b.reshape(-1).softmax(0).sum())
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, scale), obs=x)


def sums_guide(x=None, size=None):
    pyro.sample("a", dist.Laplace(torch.ones(2, 3), 1.0).to_event(2))
    pyro.sample("b", dist.Beta(3.0, 1.5))


def in_place(x=None, size=None):
    """Values written into a tensor that was made empty."""
    free = pyro.sample("free", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    effects = torch.zeros(3)
    effects[1:] = free
    table = x.new_empty(3) if x is not None else torch.empty(3)
    for n in range(3):
        table[n] = effects[n] * 2
    with data_plate(x, size) as rows:
        return pyro.sample("x", dist.Normal(table[rows % 3], 1.0), obs=x)


def in_place_guide(x=None, size=None):
    pyro.sample("free", dist.MultivariateNormal(torch.ones(2), 0.3 * torch.eye(2)).to_event(0))


def per_row(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def per_row_guide(x=None, size=None):
    with data_plate(x, size):
        loc = pyro.param("loc", torch.linspace(-1, 1, ROWS), event_dim=0)
        pyro.sample("z", dist.Normal(loc, 0.5))


PROGRAMS = {
    "counts": (counts, counts_guide, COUNTS),
    "regression": (regression, regression_guide, X, Y),
    "schools": (schools, schools_guide, X, Y),
    "clusters": (clusters, clusters_guide, 3 * Y),
    "sums": (sums, sums_guide, Y),
    "in place": (in_place, in_place_guide, Y),
    "guide with parameters of rows": (per_row, per_row_guide, Y),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("num_samples", [ROWS + 1, 60])  # with as many at a time as rows, and not
def test_densities_are_those_of_each_draw(name, num_samples, batches):
    model, guide, *data = PROGRAMS[name]
    found = from_pyro_svi(model, guide, *data, num_samples=num_samples, seed=1)
    assert batches == [num_samples - 1]  # the first is by itself, to see how large it is
    names = set(poutine.trace(guide).get_trace(*data).stochastic_nodes) - {"data", "components"}
    for s in range(num_samples):
        latents = {n: values(found, "posterior", n)[s] for n in names}
        log_p = values(found, "sample_stats", "log_p")[s].item()
        log_q = values(found, "sample_stats", "log_q")[s].item()
        assert log_p == pytest.approx(log_joint(model, latents, *data), abs=1e-10, rel=1e-12)
        assert log_q == pytest.approx(log_guide(guide, latents, *data), abs=1e-10, rel=1e-12)
        if name == "clusters":  # its likelihood sums over the components
            logits = latents["weights"].log() + dist.Normal(latents["loc"], 1.0).log_prob(
                data[0][:, None]
            )
            expected = logits.logsumexp(1)
        else:
            given = poutine.condition(model, data=latents)
            trace = poutine.trace(given).get_trace(*data)
            trace.compute_log_prob()
            expected = trace.nodes["y" if len(data) == 2 else "x"]["log_prob"].detach()
        got = values(found, "log_likelihood", "y" if len(data) == 2 else "x")[s]
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")  # far from it
@pytest.mark.parametrize("name", PROGRAMS)
def test_evidence_is_the_mean_of_these_weights(name, batches):
    model, guide, *data = PROGRAMS[name]

    def look(draws):
        sites = {n: s["value"] for n, s in draws.guide.nodes.items() if s["type"] == "sample"}
        drawn = {n: value[None] for n, value in sites.items() if n not in ("data", "components")}
        return {"log_weight": draws.log_p - draws.log_q, **drawn}

    with sampling(model, guide, tuple(data), 1) as joint:
        parts = [results for _, results in joint.evaluate(look, 50, 4096)]
    found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    evidence = log_evidence(model, guide, *data, num_samples=50, seed=1)
    assert batches == [49, 49]
    expected = found["log_weight"].logsumexp(0) - math.log(50)
    torch.testing.assert_close(evidence.value, expected, atol=1e-10, rtol=1e-12)
    weights = found.pop("log_weight")
    for s in range(50):
        latents = {key: value[s] for key, value in found.items()}
        if name == "guide with parameters of rows":
            z, loc = latents["z"], torch.linspace(-1, 1, ROWS)
            weight = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(Y)
            weight -= dist.Normal(loc, 0.5).log_prob(z)  # (N,)
        else:
            log_q = log_guide(guide, latents, *data)
            weight = torch.tensor([log_joint(model, latents, *data) - log_q])
        torch.testing.assert_close(weights[s], weight, atol=1e-10, rtol=1e-12)


def test_the_evidence_of_conjugate_models(batches):
    total, rows = COUNTS.sum().item(), len(COUNTS)
    exact = math.lgamma(2 + total) - (2 + total) * math.log(1 + rows)
    exact -= torch.lgamma(1 + COUNTS).sum().item()
    evidence = log_evidence(counts, counts_guide, COUNTS, num_samples=100)
    assert evidence.value.item() == pytest.approx(exact, abs=1e-10)

    model = LinearRegression(3, noise=0.7)
    posterior = model.posterior(X, Y)

    def guide(x, y=None, size=None):
        both = pyro.sample("both", posterior, infer={"is_auxiliary": True})
        pyro.sample("weights", dist.Delta(both[:3], event_dim=1))
        pyro.sample("bias", dist.Delta(both[3]))

    evidence = log_evidence(model, guide, X, Y, num_samples=100)
    expected = model.marginal(X).log_prob(Y).item()
    assert evidence.value.item() == pytest.approx(expected, abs=1e-9)
    assert evidence.monte_carlo_error < 1e-6
    assert batches == [99, 99]


def structure(data):
    return {
        group: {name: (array.dims, array.shape, array.dtype) for name, array in data[group].items()}
        for group in (*GROUPS, "constant_data")
        if group in (data.children if hasattr(data, "children") else data.groups())
    }


GROUPS = ("posterior", "posterior_predictive", "log_likelihood", "prior", "prior_predictive")


GROUPS += ("observed_data", "sample_stats")


def fitted(model, *data, hide=()):
    guide = AutoNormal(poutine.block(model, hide=list(hide)))
    guide(*data)
    return model, guide, *data


LIBRARY = {
    "mixture, mean field": lambda x: (
        (model := BayesianGaussianMixture(3, 4)),
        MeanFieldMixture(model, x),
        x,
    ),
    "mixture, diagonal": lambda x: (
        (model := BayesianGaussianMixture(3, 4, "diag", weights="stick-breaking")),
        MeanFieldMixture(model, x),
        x,
    ),
    "factor analysis": lambda x: (
        (model := BayesianFactorAnalysis(3, 2)),
        FactorNormal(model.initial_values(x)),
        x,
    ),
    "linear regression": lambda x: fitted(LinearRegression(3), x, Y),
    "softmax regression": lambda x: fitted(SoftmaxRegression(3, 4), x, torch.arange(ROWS) % 4),
    "multivariate": lambda x: (
        regression,
        (guide := AutoMultivariateNormal(regression), guide(x, Y))[0],
        x,
        Y,
    ),
    **{name: (lambda x, name=name: PROGRAMS[name]) for name in PROGRAMS},
}


@pytest.mark.parametrize("name", LIBRARY)
def test_all_groups_are_as_draw_by_draw(name, batches):
    """Names, dimensions, shapes and types; and the means, as far as chance allows."""
    program = LIBRARY[name](X)
    options = {"num_samples": 80}
    together = from_pyro_svi(*program, **options, seed=1)
    assert batches == [79]
    with mock.patch.object(side_by_side, "_together", return_value=None):
        alone = from_pyro_svi(*program, **options, seed=2)
    assert structure(together) == structure(alone)
    assert set(GROUPS) <= set(structure(together))
    for group in GROUPS:
        for variable in together[group].data_vars:
            if group == "observed_data":
                np.testing.assert_array_equal(together[group][variable], alone[group][variable])
                continue
            a, b = (values(d, group, variable).reshape(80, -1)[:, :3] for d in (together, alone))
            if a.is_floating_point():  # medians and spreads do not mind heavy tails
                low, high = torch.cat([a, b]).quantile(torch.tensor([0.25, 0.75]).to(a), 0)
                gap, most = (a.median(0).values - b.median(0).values).abs(), 0.9 * (high - low)
            else:
                a, b = a.double(), b.double()
                gap, most = (a.mean(0) - b.mean(0)).abs(), 0.8 * torch.cat([a, b]).std(0)
            assert (gap <= most + 1e-9).all(), (group, variable)


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")  # far from it
def test_a_blocked_draw_inside_of_a_guide(batches):
    """Random numbers that no site shows are repeated too."""
    x = torch.cat([X, X + 6])
    model = BayesianGaussianMixture(3, 4)
    guide = MixturePosterior(model, x)
    assert math.isfinite(log_evidence(model, guide, x, num_samples=40, seed=0).mean)
    assert batches == [39]


LAWS = {
    "normal": dist.Normal(1.0, 2.0),
    "uniform": dist.Uniform(-1.0, 3.0),
    "exponential": dist.Exponential(2.0),
    "gamma": dist.Gamma(2.0, 3.0),
    "inverse_gamma": dist.InverseGamma(5.0, 3.0),
    "beta": dist.Beta(2.0, 3.0),
    "student": dist.StudentT(8.0, 1.0, 2.0),
    "laplace": dist.Laplace(1.0, 2.0),
    "log_normal": dist.LogNormal(0.0, 0.5),
    "half_normal": dist.HalfNormal(2.0),
    "gumbel": dist.Gumbel(0.0, 1.0),
    "weibull": dist.Weibull(2.0, 1.5),
    "chi": dist.Chi2(3.0),
    "poisson": dist.Poisson(2.5),
    "bernoulli": dist.Bernoulli(0.3),
    "binomial": dist.Binomial(7, 0.3),
    "geometric": dist.Geometric(0.4),
    "negative_binomial": dist.NegativeBinomial(4.0, 0.3),
    "gamma_poisson": dist.GammaPoisson(3.0, 2.0),
}


def laws(x=None, size=None):
    for name, law in LAWS.items():
        pyro.sample(name, law)
    pyro.sample("dirichlet", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    pyro.sample("half_cauchy", dist.HalfCauchy(2.0))
    pyro.sample("cholesky", dist.LKJCholesky(3, 2.0))
    covariance = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    pyro.sample("multivariate", dist.MultivariateNormal(torch.ones(2), covariance))
    pyro.sample("categorical", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))


def many(x=None, size=None):
    laws()
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def test_priors_have_their_laws(batches):
    number = 4000
    data = from_pyro_svi(many, laws, Y[:2], num_samples=number, seed=3)
    assert batches[0] == number - 1
    for group in ("prior", "posterior"):
        for name, law in LAWS.items():
            got = values(data, group, name).double()
            error = law.stddev / math.sqrt(number)
            assert abs(got.mean() - law.mean) < 4.5 * error, name
            assert got.std() == pytest.approx(law.stddev.item(), rel=0.25), name
            # One draw knows nothing of the one before.
            before, after = got[:-1] - got.mean(), got[1:] - got.mean()
            assert abs((before * after).mean() / got.var()) < 4.5 / math.sqrt(number), name
        weights = values(data, group, "dirichlet")
        expected = torch.tensor([1 / 6, 2 / 6, 3 / 6])
        torch.testing.assert_close(weights.mean(0), expected, atol=0.015, rtol=0)
        assert values(data, group, "half_cauchy").median().item() == pytest.approx(2.0, rel=0.1)
        covariance = values(data, group, "multivariate").T.cov()
        expected = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        torch.testing.assert_close(covariance, expected, atol=0.25, rtol=0)
        shares = values(data, group, "categorical").bincount(minlength=3) / number
        torch.testing.assert_close(
            shares.double(), torch.tensor([0.2, 0.5, 0.3]), atol=0.035, rtol=0
        )
    # No two draws are the same, but for numbers of 24 bits, of which one pair in two runs is.
    for name in ("normal", "gamma", "dirichlet", "half_cauchy"):
        assert len(values(data, "prior", name).reshape(number, -1)[:, 0].unique()) > number - 6


def test_components_are_drawn_given_each_draw(batches):
    x = torch.tensor([-1.0, 0.5, 2.0])

    def guide(x=None, size=None):
        pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 5.0, 3.0])))
        with pyro.plate("components", 3):
            pyro.sample("loc", dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), 1.0))

    data = from_pyro_svi(clusters, guide, x, num_samples=8000, seed=0)
    assert all(batches)
    weights, loc, z = (values(data, "posterior", name) for name in ("weights", "loc", "z"))
    logits = weights[:, None].log() + dist.Normal(loc[:, None], 1.0).log_prob(x[:, None])
    probabilities = logits.softmax(-1)  # (S, N, K)
    hit = nn.functional.one_hot(z, 3) - probabilities
    assert hit.mean(0).abs().max() < 4.5 * 0.5 / math.sqrt(8000)
    # Also where the draw of the others says so, and not only on average.
    assert (hit * (probabilities - probabilities.mean(0))).mean(0).abs().max() < 0.01


def test_mcmc_keeps_its_draws_in_order(batches):
    mcmc = MCMC(NUTS(regression), 50, 20, disable_progbar=True)
    mcmc.run(X, Y)
    data = from_pyro_mcmc(mcmc)
    assert batches == [49]
    for name, expected in mcmc.get_samples().items():
        assert torch.equal(values(data, "posterior", name), expected)
    for s in range(50):
        latents = {name: value[s] for name, value in mcmc.get_samples().items()}
        log_p = values(data, "sample_stats", "log_p")[s].item()
        assert log_p == pytest.approx(log_joint(regression, latents, X, Y), abs=1e-10, rel=1e-12)
    assert list(data["sample_stats"].data_vars) == ["log_p", "diverging"]


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")  # far from it
def test_a_seed_repeats_and_the_generator_stays():
    options = {"num_samples": 50, "seed": 4}
    state = torch.get_rng_state()
    first, second = (log_evidence(*PROGRAMS["sums"], **options).value for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    other = log_evidence(*PROGRAMS["sums"], num_samples=50, seed=5).value
    assert not torch.equal(first, other)
