"""Yesterday's posterior as today's prior: closed forms, quadrature, and the guide's own density."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from torch import nn

from guides import FactorNormal
from ppl_models import (
    BayesianFactorAnalysis,
    BayesianGaussianMixture,
    LinearRegression,
    data_plate,
    elbo,
    fit,
    from_pyro_svi,
    log_evidence,
    posterior_as_prior,
    predict,
)
from ppl_models.infer.programs.own import make_own

pytestmark = pytest.mark.usefixtures("float64")

OLD = 25


@pytest.fixture
def regression():
    model = LinearRegression(3, noise=0.5)
    x = torch.randn(40, 3) + 1.0
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 + 0.5 * torch.randn(40)
    return model, x, y


def exact(model, x, y):
    """An autoguide that is the posterior of a regression."""
    guide, posterior = AutoMultivariateNormal(model), model.posterior(x, y)
    guide(x, y)
    make_own(guide)  # it shares by name with no other
    factor = posterior.scale_tril
    guide.loc.data = posterior.mean.clone()
    guide.scale = factor.diagonal().clone()
    guide.scale_tril = factor / factor.diagonal()[:, None]
    return guide


def log_p(program, values, *data):
    """The log-density of a program at some latents and data."""
    trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*data)
    return trace.log_prob_sum()


def poisson(x=None, size=None):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def gamma_guide(x):
    shape, rate = 2.0 + x.sum(), 1.0 + len(x)

    def guide(*_, size=None):
        pyro.sample("rate", dist.Gamma(shape, rate))

    return guide


def poisson_evidence(x):
    shape, rate, total = 2.0, 1.0, x.sum()
    return (
        shape * math.log(rate)
        - math.lgamma(shape)
        + torch.lgamma(shape + total)
        - (shape + total) * math.log(rate + len(x))
        - (x + 1).lgamma().sum()
    )


# Regression: everything is known.


def test_the_evidence_is_that_of_the_new_rows_given_the_old(regression):
    model, x, y = regression
    today = posterior_as_prior(model, exact(model, x[:OLD], y[:OLD]))
    data = (x[OLD:], y[OLD:])
    both = exact(model, x, y)
    evidence = log_evidence(today, both, *data, num_samples=50, method="importance", seed=0)
    whole, old = (model.marginal(x[:n]).log_prob(y[:n]) for n in (40, OLD))
    assert abs(evidence.value.item() - (whole - old).item()) < 1e-9
    assert evidence.monte_carlo_error < 1e-9
    assert evidence.effective_draws.item() > 49.999
    assert evidence.kind == "lower bound"
    assert abs(40 * evidence.mean - 40 * evidence.value.item() / 15) < 1e-9  # of 15 rows


def test_sequential_is_joint(regression):
    """The posterior of the new rows after the old ones is that of all: each weight is the same."""
    model, x, y = regression
    today = posterior_as_prior(model, exact(model, x[:OLD], y[:OLD]))
    joint = model.posterior(x, y)
    points = joint.sample((20,))
    differences = [
        log_p(today, {"weights": u[:3], "bias": u[3]}, x[OLD:], y[OLD:]) - joint.log_prob(u)
        for u in points
    ]
    torch.testing.assert_close(
        torch.stack(differences).var(), torch.tensor(0.0), atol=1e-18, rtol=0
    )


def test_in_three_parts_as_in_one(regression):
    model, x, y = regression
    values = []
    program, cuts = model, (0, 10, OLD, 40)
    for start, stop in itertools.pairwise(cuts):
        guide = exact(model, x[:stop], y[:stop])
        data = (x[start:stop], y[start:stop])
        values.append(log_evidence(program, guide, *data, num_samples=3, method="importance").value)
        program = posterior_as_prior(model, guide)
    total = torch.cat(values).sum()
    torch.testing.assert_close(total, model.marginal(x).log_prob(y), atol=1e-9, rtol=0)


def test_a_guide_written_out_is_as_good(regression):
    """Its sites depend on each other, and it is called with the rows of today."""
    model, x, y = regression
    posterior = model.posterior(x[:OLD], y[:OLD])
    mean, covariance = posterior.mean, posterior.covariance_matrix
    gain = torch.linalg.solve(covariance[:3, :3], covariance[:3, 3])
    spread = (covariance[3, 3] - gain @ covariance[:3, 3]).sqrt()

    def guide(x, y=None, size=None):
        w = pyro.sample("weights", dist.MultivariateNormal(mean[:3], covariance[:3, :3]))
        pyro.sample("bias", dist.Normal(mean[3] + (w - mean[:3]) @ gain, spread))

    both = exact(model, x, y)
    data = (x[OLD:], y[OLD:])
    values = [
        log_evidence(posterior_as_prior(model, prior), both, *data, num_samples=5).value
        for prior in (guide, exact(model, x[:OLD], y[:OLD]))
    ]
    torch.testing.assert_close(*values, atol=1e-9, rtol=0)


def test_it_goes_through_all_that_takes_programs(regression):
    model, x, y = regression
    yesterday = exact(model, x[:OLD], y[:OLD])
    before = {n: p.detach().clone() for n, p in yesterday.named_parameters()}
    today = posterior_as_prior(model, yesterday)
    data, truth = (x[OLD:], y[OLD:]), model.marginal(x).log_prob(y)
    truth = (truth - model.marginal(x[:OLD]).log_prob(y[:OLD])) / 15
    guide = AutoMultivariateNormal(today)
    run = fit(elbo(today, guide), data, steps=400, lr=0.03, batch_size=8, seed=0, progress=False)
    assert run.steps == 400
    assert abs(log_evidence(today, guide, *data, seed=0).mean - truth) < 0.01
    drawn = from_pyro_svi(today, guide, *data, num_samples=400, seed=0)
    expected = model.posterior(x, y)
    means = torch.tensor(drawn["posterior"]["weights"].mean(("chain", "draw")).values)
    assert ((means - expected.mean[:3]).abs() < 0.5 * expected.stddev[:3]).all()
    assert predict(today, guide, x[:3], num_samples=10)["predictions"]["y"].shape == (1, 10, 3)
    for name, parameter in yesterday.named_parameters():
        assert torch.equal(parameter, before[name])


def test_the_prior_is_of_the_guide_as_it_was(regression):
    model, x, y = regression
    guide = exact(model, x[:OLD], y[:OLD])
    today = posterior_as_prior(model, guide)
    values = {"weights": torch.zeros(3), "bias": torch.tensor(0.0)}
    before = log_p(today, values, x[OLD:], y[OLD:])
    fit(elbo(today, guide), (x[OLD:], y[OLD:]), steps=5, lr=0.1, progress=False)  # it goes on
    assert torch.equal(log_p(today, values, x[OLD:], y[OLD:]), before)


@pytest.mark.parametrize("by", ["parameter", "pyro.param"])
def test_a_module_is_kept_as_it_was(by):
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            if by == "parameter":
                self.loc = nn.Parameter(torch.tensor(1.0))

        def forward(self, x=None, size=None):
            loc = self.loc if by == "parameter" else pyro.param("m", torch.tensor(1.0))
            pyro.sample("rate", dist.LogNormal(loc, 0.3))

    x, guide, rate = torch.tensor([2.0, 3.0, 4.0]), Guide(), {"rate": torch.tensor(2.5)}
    fit(elbo(poisson, guide), x, steps=5, lr=0.05, progress=False)
    today = posterior_as_prior(poisson, guide)
    before = log_p(today, rate, x)
    expected = log_p(poisson, rate, x) - dist.Gamma(2.0, 1.0).log_prob(rate["rate"])
    q = poutine.trace(poutine.condition(guide, data=rate)).get_trace(x).log_prob_sum()
    torch.testing.assert_close(before, expected + q)
    fit(elbo(today, guide), x, steps=50, lr=0.05, progress=False)
    now = poutine.trace(poutine.condition(guide, data=rate)).get_trace(x).log_prob_sum()
    assert abs(now - q) > 1e-3
    assert torch.equal(log_p(today, rate, x), before)


def test_a_function_with_params_is_kept_as_it_was():
    def guide(x=None, size=None):
        loc, scale = pyro.param("loc", torch.tensor(0.3)), pyro.param("scale", torch.tensor(0.5))
        pyro.sample("rate", dist.LogNormal(loc, scale))

    x = torch.tensor([2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match=r"parameter 'loc' was not in Pyro's store"):
        posterior_as_prior(poisson, guide)(x)
    fit(elbo(poisson, guide), x, steps=200, lr=0.05, progress=False)
    learned = dist.LogNormal(*(pyro.param(name).detach().clone() for name in ("loc", "scale")))
    today = posterior_as_prior(poisson, guide)
    fit(elbo(today, guide), x, steps=50, lr=0.05, progress=False)
    assert pyro.param("scale") < 0.95 * learned.scale
    rate = torch.tensor(2.5)
    got = log_p(today, {"rate": rate}, x)
    torch.testing.assert_close(got, learned.log_prob(rate) + dist.Poisson(rate).log_prob(x).sum())


# Neighbours.


def test_counts_with_an_exact_guide():
    x = dist.Poisson(3.0).sample((30,))
    today = posterior_as_prior(poisson, gamma_guide(x[:20]))
    evidence = log_evidence(today, gamma_guide(x), x[20:], num_samples=20, seed=0)
    truth = poisson_evidence(x) - poisson_evidence(x[:20])
    assert abs(evidence.value.item() - truth.item()) < 1e-9
    assert evidence.monte_carlo_error < 1e-9


def test_a_positive_latent_through_an_autoguide_by_quadrature():
    x = dist.Poisson(3.0).sample((30,))
    guide = AutoNormal(poisson)
    fit(elbo(poisson, guide), x[:20], steps=300, lr=0.05, seed=0, progress=False)
    today = posterior_as_prior(poisson, guide)
    u = torch.linspace(-3, 4, 20001)  # of the logarithm
    q = dist.Normal(guide.locs.rate.detach(), guide.scales.rate.detach())
    terms = q.log_prob(u) + dist.Poisson(u.exp()[:, None]).log_prob(x[20:]).sum(1)
    truth = torch.logsumexp(terms, 0) + torch.log(u[1] - u[0])
    evidence = log_evidence(today, gamma_guide(x), x[20:], num_samples=20000, seed=0)
    assert abs(evidence.value.item() - truth.item()) < 5 * evidence.monte_carlo_error * 10 + 1e-4
    rate = torch.tensor(2.7)
    total = q.log_prob(rate.log()) - rate.log() + dist.Poisson(rate).log_prob(x[20:]).sum()
    torch.testing.assert_close(log_p(today, {"rate": rate}, x[20:]), total, atol=1e-9, rtol=0)


def supports(x, size=None):
    a = pyro.sample("a", dist.Uniform(1.0, 3.0))
    b = pyro.sample("b", dist.Dirichlet(torch.ones(3)))
    c = pyro.sample("c", dist.LKJCholesky(3, torch.tensor(1.0)))
    d = pyro.sample("d", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    e = pyro.sample("e", dist.LogNormal(a, 1.0))
    with data_plate(x, size):
        mean = a * b[0] + c[1, 0] + d.sum() + e
        pyro.sample("x", dist.Normal(mean, 1.0).expand([len(x)]), obs=x)


def split(model):
    guide = AutoGuideList(model)
    guide.append(AutoMultivariateNormal(poutine.block(model, hide=["c", "d"])))
    guide.append(AutoNormal(poutine.block(model, expose=["c", "d"])))
    return guide


KINDS = [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal]


@pytest.mark.parametrize("kind", [*KINDS, split])
def test_densities_and_draws_are_the_guides_own(kind):
    """On an interval, a simplex, Cholesky factors and matrices, whatever depends on what."""
    x, guide = torch.randn(10), kind(supports)
    fit(elbo(supports, guide), x, steps=30, lr=0.05, seed=0, progress=False)
    trace = poutine.trace(guide).get_trace(x)
    values = {n: trace.nodes[n]["value"] for n in "abcde"}
    today = posterior_as_prior(supports, guide)
    likelihood = poutine.trace(poutine.condition(supports, data=values)).get_trace(x)
    likelihood.compute_log_prob()
    got = log_p(today, values, x) - likelihood.nodes["x"]["log_prob_sum"]
    torch.testing.assert_close(got, trace.log_prob_sum(), atol=1e-8, rtol=1e-9)
    once = AutoNormal(today)  # whose supports are the model's
    fit(elbo(today, once), x, steps=3, progress=False)
    assert once.prototype_trace.nodes["a"]["fn"].support.upper_bound == 3.0
    torch.manual_seed(0)
    drawn = [poutine.trace(today).get_trace(x).nodes["a"]["value"] for _ in range(400)]
    theirs = [guide(x)["a"] for _ in range(400)]
    one, other = torch.stack(drawn), torch.stack(theirs)
    assert (one > 1).all()
    assert (one < 3).all()
    assert abs(one.mean() - other.mean()) < 0.15 * other.std() + 0.02


def test_latents_of_rows_stay_as_in_the_model():
    """The scale of the factors' mean is shared; each row has its own `z`, enumerated or not."""

    def model(x, size=None):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(4 * z - 2, 1.0), obs=x)

    x = torch.randn(12) + 2.0 * torch.randn(12).sign()

    def guide(*_, size=None):
        pyro.sample("p", dist.Beta(3.0, 2.0))

    today = posterior_as_prior(model, guide)
    evidence = log_evidence(today, guide, x, num_samples=20000, seed=0)
    p = torch.linspace(0, 1, 20002)[1:-1]
    pair = torch.stack([p.log(), (1 - p).log()], 1)[:, None]  # (P, 1, 2)
    rows = dist.Normal(torch.tensor([2.0, -2.0]), 1.0).log_prob(x[:, None])
    terms = dist.Beta(3.0, 2.0).log_prob(p) + (pair + rows).logsumexp(-1).sum(-1)
    truth = torch.logsumexp(terms, 0) + torch.log(p[1] - p[0])
    assert abs(evidence.value.item() - truth.item()) < 12 * 5 * evidence.monte_carlo_error
    before = AutoNormal(poutine.block(model, hide=["z"]))
    before(x)
    again = posterior_as_prior(model, before)
    assert "z" in poutine.trace(again).get_trace(x).nodes


@pytest.mark.filterwarnings("ignore:log_evidence. 20 draws")  # of a fit of fifty steps
def test_a_factor_model_goes_on_with_its_own_guide():
    """`FactorNormal` states each site, the loadings column by column."""
    x = torch.randn(60, 2) @ torch.randn(2, 5) + 0.3 * torch.randn(60, 5)
    model = BayesianFactorAnalysis(num_features=5, num_factors=2).double()
    guide = FactorNormal(model.initial_values(x[:40]))
    fit(elbo(model, guide), x[:40], steps=50, lr=0.03, seed=0, progress=False)
    today = posterior_as_prior(model, guide)
    trace = poutine.trace(guide).get_trace(x)
    values = {
        n: trace.nodes[n]["value"] for n in ("loc", "loadings", "factor_scale", "noise_variance")
    }
    likelihood = poutine.trace(poutine.condition(model, data=values)).get_trace(x[40:])
    likelihood.compute_log_prob()
    got = log_p(today, values, x[40:]) - likelihood.nodes["x"]["log_prob_sum"]
    torch.testing.assert_close(got, trace.log_prob_sum())
    assert log_evidence(today, guide, x[40:], num_samples=20).num_rows == 20


def test_a_program_of_yesterday_is_no_burden_today(regression):
    model, x, y = regression
    once = posterior_as_prior(model, exact(model, x[:OLD], y[:OLD]))
    twice = posterior_as_prior(once, exact(model, x, y))
    assert twice.args[1] is model


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_is_resumed(regression, tmp_path, compiled, graphs_as_traced):
    model, x, y = regression
    today = posterior_as_prior(model, exact(model, x[:OLD], y[:OLD]))

    def run(steps, path, resume=False):
        guide, data = AutoMultivariateNormal(today), (x[OLD:], y[OLD:])
        settings = {"seed": 0, "batch_size": 8, "lr": 0.03, "compile": compiled, "progress": False}
        fit(elbo(today, guide), data, steps=steps, checkpoint=path, resume=resume, **settings)
        return guide

    whole = run(8, tmp_path / "whole")
    run(3, tmp_path / "parts")
    parts = run(8, tmp_path / "parts", resume=True)
    assert torch.equal(whole.loc, parts.loc)
    assert torch.equal(whole.scale_tril, parts.scale_tril)


def test_a_module_as_model_trains_and_the_old_guide_does_not():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_noise = nn.Parameter(torch.zeros(()))

        def forward(self, x, size=None):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with data_plate(x, size):
                pyro.sample("x", dist.Normal(w, self.log_noise.exp()).expand([len(x)]), obs=x)

    model, x = Model(), 0.1 * torch.randn(20)
    old = AutoNormal(model)
    fit(elbo(model, old), x, steps=5, progress=False)
    today, noise = posterior_as_prior(model, old), model.log_noise.item()
    objective = elbo(today, AutoNormal)
    fit(objective, x, steps=5, lr=0.1, progress=False)
    assert model.log_noise.item() < noise
    names = [name for name, _ in objective.named_parameters()]
    assert names == [
        "model.log_noise",
        "guide.locs.w_unconstrained",
        "guide.scales.w_unconstrained",
    ]


def test_particles_side_by_side_are_particles_one_by_one(regression):
    model, x, y = regression
    today = posterior_as_prior(model, exact(model, x[:OLD], y[:OLD]))
    guide, data = exact(model, x, y), (x[OLD:], y[OLD:])
    settings = {"num_particles": 7, "max_plate_nesting": 1}
    losses = [
        pyro.infer.Trace_ELBO(vectorize_particles=v, **settings).loss(today, guide, *data)
        for v in (False, True)
    ]
    truth = model.marginal(x[:OLD]).log_prob(y[:OLD]) - model.marginal(x).log_prob(y)
    assert abs(losses[0] - truth) < 1e-9
    assert abs(losses[1] - truth) < 1e-9


def test_a_mixture_of_yesterday():
    """Weights, means and covariances have priors in plates; the labels of rows are summed over."""
    x = torch.cat([torch.randn(20, 2) - 2, torch.randn(20, 2) + 2])[torch.randperm(40)]
    model = BayesianGaussianMixture(2, 2).double()
    guide = AutoNormal(poutine.block(model, hide=["z"]))
    fit(elbo(model, guide), x[:20], steps=20, lr=0.05, seed=0, progress=False)
    today = posterior_as_prior(model, guide)
    trace = poutine.trace(guide).get_trace(x)
    names = [name for name, _ in guide.prototype_trace.iter_stochastic_nodes()]
    assert len(names) == 3
    values = {name: trace.nodes[name]["value"] for name in names}
    rows = poutine.trace(poutine.condition(today, data=values)).get_trace(x)
    rows.compute_log_prob()
    total = sum(rows.nodes[name]["log_prob_sum"] for name in values)
    torch.testing.assert_close(total, trace.log_prob_sum(), atol=1e-8, rtol=1e-9)


# Refused.


def shared(x, size=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(w, 1.0).expand([len(x)]))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_guides_without_a_density_are_refused(regression):
    model, x, y = regression
    for kind, message in (
        (AutoNormal, "this AutoNormal has not been fitted"),
        (AutoDelta, "has not been fitted"),
    ):
        with pytest.raises(ValueError, match=message):
            posterior_as_prior(model, kind(model))
    for kind, message in (
        (AutoDelta, "AutoDelta is no Gaussian .* It is a point"),
        (AutoLaplaceApproximation, r"Try guide = guide\.laplace_approximation"),
        (AutoIAFNormal, "AutoIAFNormal is no Gaussian .* Try AutoNormal"),
    ):
        guide = kind(model) if kind is not AutoIAFNormal else kind(model, hidden_dim=[8])
        guide(x, y)
        with pytest.raises(ValueError, match=message):
            posterior_as_prior(model, guide)
    with pytest.raises(ValueError, match="AutoNormalMessenger runs its model"):
        posterior_as_prior(model, AutoNormalMessenger(model))
    with pytest.raises(TypeError, match="guide: expected a Pyro program"):
        posterior_as_prior(model, None)


def test_a_finished_laplace_approximation_is_a_gaussian(regression):
    model, x, y = regression
    guide = AutoLaplaceApproximation(model)
    fit(elbo(model, guide), (x[:OLD], y[:OLD]), steps=3000, lr=0.02, seed=0, progress=False)
    today = posterior_as_prior(model, guide.laplace_approximation(x[:OLD], y[:OLD]))
    values = {"weights": torch.zeros(3), "bias": torch.tensor(0.0)}
    other = posterior_as_prior(model, exact(model, x[:OLD], y[:OLD]))
    assert abs(log_p(today, values, x, y) - log_p(other, values, x, y)) < 1.0


def test_latents_of_rows_in_the_guide_are_refused():
    x = torch.randn(6)
    for kind in (AutoNormal, AutoMultivariateNormal):
        guide = kind(shared)
        guide(x)
        with pytest.raises(ValueError, match="parameters for the latents 'z' of its rows"):
            posterior_as_prior(shared, guide)


def refused(message, model, guide, *data):
    with pytest.raises(ValueError, match=message):
        posterior_as_prior(model, guide)(*data)


def test_guides_that_look_at_the_rows_are_refused():
    """They would be posteriors of the new rows, and those be counted twice."""
    x = dist.Poisson(3.0).sample((10,))

    def sums(x, size=None):
        pyro.sample("rate", dist.Gamma(2.0 + x.sum(), 1.0 + len(x)))

    refused("density of its site 'rate' changes with the rows", poisson, sums, x)
    refused("density of its site 'rate' changes", poisson, sums, torch.zeros(4))

    def first(x, size=None):
        pyro.sample("rate", dist.Gamma(2.0 + x[0], 1.0))

    refused("density of its site 'rate' changes", poisson, first, x)

    def counts(x, size=None):
        pyro.sample("rate", dist.Gamma(5.0, 1.0 + len(x)))

    refused("density of its site 'rate' changes", poisson, counts, x)

    today = posterior_as_prior(
        poisson, lambda x=None, size=None: sums(torch.ones(3) if x is None else x)
    )
    today(size=4)  # without rows there is nothing to look at, and with them it is seen
    with pytest.raises(ValueError, match="density of its site 'rate' changes"):
        today(x)

    def mean_of_rows(x, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x, 1.0))
        pyro.sample("w", dist.Normal(z.mean(), 1.0))

    refused("density of its site 'w' changes", shared, mean_of_rows, torch.randn(5))


def test_auxiliary_sites_that_are_not_told_are_refused():
    def mixed(x, size=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("rate", dist.LogNormal(a, 1.0))

    def moved(x, size=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("rate", dist.Delta(a.exp(), log_density=-a))

    def coin(x, size=None):
        a = pyro.sample("a", dist.Bernoulli(0.5), infer={"is_auxiliary": True})
        pyro.sample("rate", dist.LogNormal(a, 1.0))

    x = torch.ones(4)
    refused("site\\(s\\) 'a' are none of the model", poisson, mixed, x)
    refused("site\\(s\\) 'a' are none of the model", poisson, coin, x)
    refused("a point, or a function of others", poisson, moved, x)


def test_points_are_refused():
    def delta(x, size=None):
        pyro.sample("rate", dist.Delta(torch.tensor(2.0)))

    def narrow(x, size=None):
        pyro.sample("rate", dist.Normal(torch.tensor(2.0), 1e-30))

    refused("'rate' is a point, or a function of others", poisson, delta, torch.ones(4))
    refused("'rate' is a point, which no data would move", poisson, narrow, torch.ones(4))


def test_sites_that_do_not_match_are_refused(regression):
    model, x, y = regression
    full = exact(model, x, y)
    refused("says nothing of site 'rate'", poisson, full, torch.ones(4))
    part = AutoNormal(poutine.block(model, hide=["bias"]))
    part(x, y)
    refused("says nothing of site 'bias', which all rows share", model, part, x, y)
    refused(r"\(3,\) \(of events\)|shape \(\)", LinearRegression(2, noise=0.5), full, x[:, :2], y)

    def more(*_, size=None):
        pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("other", dist.Gamma(2.0, 1.0))

    refused(
        r"site\(s\) 'other' are none of the model, which has 'rate'", poisson, more, torch.ones(4)
    )

    def turned(x, y=None, size=None):  # the model draws the weights first
        b = pyro.sample("bias", dist.Normal(0.0, 1.0))
        pyro.sample("weights", dist.Normal(b, 1.0).expand([3]).to_event(1))

    refused("density of its site 'weights' changes", model, turned, x, y)


def test_a_guide_that_ties_a_plate_together_is_refused_and_one_that_does_not_is_right():
    def model(x, size=None):
        with pyro.plate("groups", 3):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(m.sum(), 1.0).expand([len(x)]), obs=x)

    x = torch.randn(8)
    for kind in (AutoNormal, AutoDiagonalNormal):
        guide = kind(model)
        guide(x)
        trace = poutine.trace(guide).get_trace(x)
        m = trace.nodes["m"]["value"]
        got = log_p(posterior_as_prior(model, guide), {"m": m}, x)
        expected = trace.log_prob_sum() + dist.Normal(m.sum(), 1.0).log_prob(x).sum()
        torch.testing.assert_close(got, expected)
    guide = AutoMultivariateNormal(model)
    guide(x)
    with pytest.raises(ValueError, match="ties together the entries of 'm'"):
        posterior_as_prior(model, guide)


def test_functions_that_use_modules_that_learn_are_refused():
    network = nn.Linear(1, 2)

    def guide(x, size=None):
        loc, scale = network(torch.ones(1))
        pyro.sample("rate", dist.LogNormal(loc, scale.exp()))

    refused("uses the module 'network'", poisson, guide, torch.ones(4))
    network.requires_grad_(False)
    posterior_as_prior(poisson, guide)(torch.ones(4))
