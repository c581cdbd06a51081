"""Bayesian factor analysis: exact densities first, then the number of factors it finds."""

import math

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from sklearn.decomposition import FactorAnalysis as Peer
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides.factor_normal import FactorNormal
from ppl_models import FactorAnalysis, elbo, fit, from_pyro_svi, log_evidence
from ppl_models.factors.bayesian import BayesianFactorAnalysis

SITES = ("loc", "loadings", "noise_variance")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def values(features: int = 5, factors: int = 2, draws: tuple[int, ...] = ()) -> dict[str, Tensor]:
    return {
        "loc": draw(*draws, features),
        "loadings": draw(*draws, features, factors),
        "noise_variance": draw(*draws, features).exp(),
    }


def log_joint(model: BayesianFactorAnalysis, latents: dict[str, Tensor], *args, **kwargs) -> Tensor:
    held = poutine.condition(model, data=latents)
    return poutine.trace(held).get_trace(*args, **kwargs).log_prob_sum()


def simulated(seed: int, rows: int, features: int, factors: int = 3) -> Tensor:
    """Standardised rows with so many factors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    loadings = 0.6 * normal(features, factors)
    scale = (0.3 + 0.6 * torch.rand(features, generator=generator, dtype=torch.float64)).sqrt()
    x = normal(rows, factors) @ loadings.T + scale * normal(rows, features)
    return (x - x.mean(0)) / x.std(0)


def fitted(x: Tensor, factors: int = 8, **options) -> tuple[BayesianFactorAnalysis, FactorNormal]:
    model = BayesianFactorAnalysis(x.shape[1], factors).to(x.dtype)
    guide = FactorNormal(model.initial_values(x))
    settings = {"steps": 200, "lr": 0.05, "schedule": CosineAnnealingLR, "seed": 0} | options
    fit(elbo(model, guide), x, progress=False, **settings)
    assert all(parameter.isfinite().all() for parameter in guide.parameters())
    return model, guide


def posterior(model, guide, x: Tensor, num_samples: int = 100) -> dict[str, Tensor]:
    data = from_pyro_svi(model, guide, x, num_samples=num_samples, seed=1)["posterior"]
    return {name: torch.from_numpy(data[name].values[0]) for name in SITES}


def counts(model, draws: dict[str, Tensor]) -> Tensor:
    return model.num_relevant(draws["loadings"], draws["noise_variance"])


@pytest.fixture(scope="module")
def found():
    pyro.set_rng_seed(0)
    x = simulated(3, 400, 12)
    model, guide = fitted(x)
    return model, guide, x


# Exact densities


@pytest.mark.parametrize("size", [7, 70])
def test_the_program_is_what_the_equations_say(size):
    center, spread = draw(5), draw(5).exp()
    model = BayesianFactorAnalysis(5, 2, prior_loc=center, prior_scale=spread).double()
    latents, x = values() | {"factor_scale": draw(2).exp()}, draw(7, 5)
    loc, loadings, noise, tau = (latents[name] for name in (*SITES, "factor_scale"))

    expected = dist.Normal(center, spread).log_prob(loc).sum()
    expected += (math.log(2) - math.log(math.pi) - (tau**2).log1p()).sum()
    expected += dist.Normal(0.0, spread[:, None] * tau).log_prob(loadings).sum()
    rate = 0.05 * spread**2
    density = 1.1 * rate.log() - math.lgamma(1.1) - 2.1 * noise.log() - rate / noise
    expected += density.sum()
    row = torch.distributions.MultivariateNormal(loc, loadings @ loadings.T + noise.diag())
    expected += row.log_prob(x).sum() * size / 7
    torch.testing.assert_close(
        log_joint(model, latents, x, size=size), expected, atol=1e-6, rtol=1e-6
    )  # the priors are kept in float32


def test_other_units_give_the_same_model():
    """Priors in those units change the density by that of the change of variables alone."""
    center, spread = draw(4), draw(4).exp().float().double()
    center = center.float().double()
    plain = BayesianFactorAnalysis(4, 2).double()
    other = BayesianFactorAnalysis(4, 2, prior_loc=center, prior_scale=spread).double()
    latents, x = values(4, 2) | {"factor_scale": draw(2).exp()}, draw(6, 4)
    moved = latents | {
        "loc": center + spread * latents["loc"],
        "loadings": spread[:, None] * latents["loadings"],
        "noise_variance": spread**2 * latents["noise_variance"],
    }
    # loc, two columns of loadings, the noise (squared) and six rows, each times the scale
    change = (1 + 2 + 2 + 6) * spread.log().sum()
    expected = log_joint(plain, latents, x) - change
    torch.testing.assert_close(log_joint(other, moved, center + spread * x), expected)


def test_summing_out_the_latent_of_a_row_is_exact():
    """By the trapezoid rule over a grid of two latents."""
    model, x = BayesianFactorAnalysis(5, 2).double(), draw(3, 5)
    latents = values() | {"factor_scale": draw(2).exp()}
    loc, loadings, noise = (latents[name] for name in SITES)
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    row = dist.Normal(loc + z @ loadings.T, noise.sqrt()).to_event(1)
    joint = row.log_prob(x[:, None]) + dist.Normal(0.0, 1.0).log_prob(z).sum(1)
    expected = (joint.logsumexp(1) + 2 * math.log(18 / 360)).sum()
    held = poutine.condition(model, data=latents)
    trace = poutine.trace(held).get_trace(x)
    trace.compute_log_prob()
    got = trace.nodes["x"]["log_prob"].sum()
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=0)


def test_posterior_of_each_draw_is_that_of_factor_analysis():
    model, x, draws = BayesianFactorAnalysis(5, 2), draw(7, 5), values(draws=(4,))
    ours = model.posterior(x, **draws)
    assert (ours.batch_shape, ours.event_shape) == ((4, 7), (2,))
    for s in range(4):
        plain = FactorAnalysis(5, 2).double()
        with torch.no_grad():
            plain.loc.copy_(draws["loc"][s])
            plain.loadings.copy_(draws["loadings"][s])
            plain.log_scale.copy_(draws["noise_variance"][s].log() / 2)
        expected = plain.posterior(x)
        torch.testing.assert_close(ours.mean[s], expected.mean.detach())
        torch.testing.assert_close(ours.covariance_matrix[s], expected.covariance_matrix.detach())
        one = model.posterior(x, **{name: value[s] for name, value in draws.items()})
        torch.testing.assert_close(one.mean, ours.mean[s])


def test_relevance_is_what_a_row_tells():
    """One minus the variances of the posterior of a row, along its axes."""
    model, draws = BayesianFactorAnalysis(5, 3), values(5, 3, draws=(4,))
    left = torch.linalg.eigvalsh(model.posterior(draw(1, 5), **draws).covariance_matrix[:, 0])
    got = model.relevance(draws["loadings"], draws["noise_variance"])
    torch.testing.assert_close(got, 1 - left)
    assert (got.diff() <= 0).all()


def test_what_is_known_depends_on_no_rotation_and_no_units():
    model, draws = BayesianFactorAnalysis(5, 3), values(5, 3)
    loadings, noise = draws["loadings"], draws["noise_variance"]
    turned = loadings @ torch.linalg.qr(draw(3, 3)).Q
    covariance = model.covariance(loadings, noise)
    torch.testing.assert_close(covariance, loadings @ loadings.T + noise.diag())
    torch.testing.assert_close(model.covariance(turned, noise), covariance)
    units = draw(5).exp()
    relevance = model.relevance(loadings, noise)
    torch.testing.assert_close(
        model.relevance(units[:, None] * turned, units**2 * noise), relevance
    )


def test_num_relevant_counts_what_is_above_the_threshold():
    loadings = torch.eye(3, dtype=torch.float64) * torch.tensor([3.0, 1.1, 0.9])
    noise = torch.ones(3, dtype=torch.float64)  # signal-to-noise 9, 1.21, 0.81
    assert BayesianFactorAnalysis.num_relevant(loadings, noise) == 2
    assert BayesianFactorAnalysis.num_relevant(loadings, noise, threshold=0.85) == 1
    many = BayesianFactorAnalysis.num_relevant(loadings.expand(4, 2, 3, 3), noise.expand(4, 2, 3))
    assert many.shape == (4, 2)


def test_the_prior_can_be_sampled():
    model = BayesianFactorAnalysis(4, 2, prior_loc=torch.arange(4.0), prior_scale=0.1)
    loc = torch.stack(
        [poutine.trace(model).get_trace(size=3).nodes["loc"]["value"] for _ in range(400)]
    )
    torch.testing.assert_close(loc.mean(0), torch.arange(4.0), atol=0.02, rtol=0)
    torch.testing.assert_close(loc.std(0), torch.full((4,), 0.1), atol=0.02, rtol=0)
    assert model(size=3).shape == (3, 4)


# The start, and the guide


def test_initial_values_are_about_the_maximum_of_the_likelihood():
    x = simulated(0, 300, 12)
    start = BayesianFactorAnalysis(12, 3).double().initial_values(x)
    found = dist.LowRankMultivariateNormal(*(start[name] for name in SITES)).log_prob(x).mean()
    best = Peer(3, tol=1e-8, max_iter=5000).fit(x.numpy()).score(x.numpy())
    assert best - 0.01 < found < best + 1e-6
    assert (start["factor_scale"].diff() < 0).all()


def test_initial_values_have_the_variances_of_the_rows():
    """Those of the maximum of the likelihood: over the number of rows, few as they are."""
    x = simulated(seed=1, rows=12, features=6)
    start = BayesianFactorAnalysis(6, 2).double().initial_values(x)
    variances = start["loadings"].square().sum(1) + start["noise_variance"]
    torch.testing.assert_close(variances, x.var(0, correction=0), atol=0, rtol=0.02)


def test_initial_values_move_with_the_units():
    x, center, spread = simulated(0, 50, 6), draw(6), draw(6).exp()
    plain = BayesianFactorAnalysis(6, 2).double().initial_values(x)
    model = BayesianFactorAnalysis(6, 2, prior_loc=center, prior_scale=spread).double()
    other = model.initial_values(center + spread * x)
    near = {"atol": 1e-5, "rtol": 1e-5}  # priors in float32
    torch.testing.assert_close(other["loc"], center + spread * plain["loc"], **near)
    torch.testing.assert_close(other["loadings"], spread[:, None] * plain["loadings"], **near)
    torch.testing.assert_close(other["noise_variance"], spread**2 * plain["noise_variance"], **near)
    torch.testing.assert_close(other["factor_scale"], plain["factor_scale"], **near)


def test_the_guide_is_a_dense_gaussian():
    start = values() | {"factor_scale": draw(2).exp()}
    guide = FactorNormal(start)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    trace = poutine.trace(guide).get_trace()
    loc, loadings, noise, tau = (trace.nodes[n]["value"] for n in (*SITES, "factor_scale"))
    mean, own, along = guide.loadings, guide.log_scale.exp(), guide.log_along.exp()

    def column(center: Tensor, k: int) -> torch.distributions.MultivariateNormal:
        covariance = (own[k] ** 2).diag() + mean @ (along[k] ** 2).diag() @ mean.T
        return torch.distributions.MultivariateNormal(center, covariance)

    expected = column(guide.loc, 2).log_prob(loc)
    expected += sum(column(mean[:, k], k).log_prob(loadings[:, k]) for k in range(2))
    for value, center, scale in (
        (tau, guide.log_factor_scale, guide.factor_scale_log_scale),
        (noise, guide.log_noise_variance, guide.noise_variance_log_scale),
    ):
        expected += dist.LogNormal(center, scale.exp()).log_prob(value).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_the_guide_starts_where_it_is_told():
    start = values() | {"factor_scale": draw(2).exp()}
    guide = FactorNormal(start, init_scale=1e-6)
    trace = poutine.trace(guide).get_trace()
    for name, value in start.items():
        torch.testing.assert_close(trace.nodes[name]["value"].detach(), value, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        guide.loadings.zero_()
    assert start["loadings"].abs().max() > 0  # a copy


# What it finds


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "rows", "features"), [(0, 200, 12), (1, 300, 20)])
def test_three_factors_are_found(seed, rows, features):
    x = simulated(seed, rows, features)
    model, guide = fitted(x)
    assert (counts(model, posterior(model, guide, x)) == 3).double().mean() > 0.9


def test_no_factors_are_found_where_there_are_none():
    x = draw(300, 10)
    model, guide = fitted(x, factors=5, steps=100)
    assert (counts(model, posterior(model, guide, x, 50)) == 0).all()


@pytest.mark.slow
def test_minibatches_find_the_same(found):
    x = found[2]
    model, guide = fitted(x, batch_size=100)
    assert (counts(model, posterior(model, guide, x)) == 3).double().mean() > 0.9


@pytest.mark.slow
def test_an_autoguide_finds_the_same(found):
    model, _, x = found
    start = init_to_value(values=model.initial_values(x))
    guide = AutoNormal(model, init_loc_fn=start, init_scale=0.01)
    fit(elbo(model, guide), x, steps=200, lr=0.05, seed=0, progress=False)
    assert (counts(model, posterior(model, guide, x)) == 3).double().mean() > 0.9


def test_the_spread_of_the_posterior_is_that_of_many_rows(found):
    """Of the mean, Sigma / N; of the covariance, that of a sample covariance."""
    model, guide, x = found
    draws = posterior(model, guide, x, 3000)
    sample = torch.cov(x.T)
    loc = torch.cov(draws["loc"].T) * len(x)
    assert (loc - sample).abs().mean() < 0.1
    torch.testing.assert_close(loc.diagonal().mean(), sample.diagonal().mean(), atol=0.2, rtol=0)
    covariance = model.covariance(draws["loadings"], draws["noise_variance"])
    assert (covariance.mean(0) - sample).abs().max() < 0.1
    variance = sample.diagonal()
    expected = ((variance[:, None] * variance + sample**2) / len(x)).sqrt()
    ratio = covariance.std(0) / expected
    assert 0.85 < ratio.mean() < 1.2


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")  # a guide of means
def test_the_evidence_is_a_lower_bound_of_the_whole_data(found):
    model, guide, x = found
    evidence = log_evidence(model, guide, x, num_samples=50, seed=0)
    assert evidence.kind == "lower bound"
    assert evidence.value.shape == (1,)
    best = Peer(8, tol=1e-4).fit(x.numpy()).score(x.numpy())
    assert best - 1.5 < evidence.mean < best


def test_arviz_names_features_and_factors(found):
    model, guide, x = found
    coords = {"feature": [f"mark {d}" for d in range(12)], "factor": list("abcdefgh")}
    data = from_pyro_svi(model, guide, x, num_samples=20, coords=coords, seed=0)
    assert data["posterior"]["loadings"].dims == ("chain", "draw", "feature", "factor")
    assert data["posterior"]["noise_variance"].dims == ("chain", "draw", "feature")
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "data", "feature")
    assert "loadings_columns" not in data["posterior"]
    table = az.summary(data, var_names=["loadings", "factor_scale"], kind="stats")
    assert "loadings[mark 3, b]" in table.index
    assert len(table) == 12 * 8 + 8
    dims = {"loadings": ["subject", "ability"]}
    renamed = from_pyro_svi(model, guide, x, num_samples=3, dims=dims, seed=0)
    assert renamed["posterior"]["loadings"].dims == ("chain", "draw", "subject", "ability")


# What is hard


def test_a_constant_feature_is_no_trouble():
    x = torch.cat([simulated(0, 200, 6, factors=1), torch.full((200, 1), 3.0)], 1).float()
    model, guide = fitted(x, factors=3)
    draws = posterior(model, guide, x)
    assert counts(model, draws).double().mean() < 1.2
    assert draws["loadings"][:, 6].abs().max() < 0.1
    assert 1e-5 < draws["noise_variance"][:, 6].mean() < 1e-2  # the floor of its prior


def test_equal_features_are_no_trouble():
    """A Heywood case: their noise is zero, and maximum likelihood has no maximum."""
    x = simulated(0, 300, 4, factors=1)
    x = torch.cat([x, x[:, :1]], 1).float()
    model, guide = fitted(x, factors=5, steps=100)
    draws = posterior(model, guide, x, 50)
    assert draws["noise_variance"].min() > 1e-6
    found = model.covariance(draws["loadings"], draws["noise_variance"]).mean(0)
    assert found[0, 4] == pytest.approx(1.0, abs=0.1)


def test_one_row_leaves_the_priors():
    model = BayesianFactorAnalysis(4, 2)
    guide = AutoNormal(model)
    x = torch.randn(1, 4)
    fit(elbo(model, guide), x, steps=50, lr=0.05, seed=0, progress=False)
    assert all(parameter.isfinite().all() for parameter in guide.parameters())


def test_as_many_factors_as_features_and_fewer_rows():
    fitted(draw(5, 8), factors=8, steps=50)
    fitted(draw(20, 1), factors=1, steps=50)


@pytest.mark.parametrize("lr", [10.0, 1e4])
def test_a_fit_that_runs_away_is_an_error(lr):
    x = simulated(0, 50, 5)
    model = BayesianFactorAnalysis(5, 3).double()
    guide = FactorNormal(model.initial_values(x))
    with pytest.raises(FloatingPointError, match="Try a smaller lr"):
        fit(elbo(model, guide), x, steps=100, lr=lr, seed=0, progress=False)
    assert all(parameter.isfinite().all() for parameter in guide.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_factors": 0}, "1 to 6 factors .*got num_factors=0"),
        ({"num_factors": -1}, "got num_factors=-1"),
        ({"num_factors": 7}, "got num_factors=7. Try num_factors=3"),
        ({"num_features": 0}, "num_features: expected a positive whole number"),
        ({"prior_loc": torch.zeros(5)}, r"prior_loc: .* got shape \(5,\).* Try prior_loc=x.mean"),
        ({"prior_loc": torch.nan}, "prior_loc: expected a finite number"),
        ({"prior_scale": torch.ones(6, 1)}, r"got shape \(6, 1\). Try prior_scale=x.std"),
        ({"prior_scale": torch.inf}, "prior_scale: expected a finite number"),
        ({"prior_scale": 0.0}, "prior_scale: expected positive numbers"),
        ({"prior_scale": torch.tensor([1.0] * 5 + [-1.0])}, "1 of 6 that are not"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BayesianFactorAnalysis(**({"num_features": 6, "num_factors": 2} | arguments))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(1, 6), "at least two rows"),
        (torch.full((10, 6), torch.nan), "10 of 10 rows hold NaN"),
        (torch.randn(10, 4), "6 features"),
        (torch.zeros(10, 6, dtype=torch.uint8), "floating-point"),
        (350 * torch.randn(100, 6), "Try standardised rows, or prior_loc"),
        (100 + torch.randn(100, 6), "is 1.* from prior_loc"),
        (1e-3 * torch.randn(100, 6), "standard deviation 0.00"),
        (torch.ones(10, 6), "if not all are"),
    ],
)
def test_refused_rows(x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        BayesianFactorAnalysis(6, 2).initial_values(x)


def test_rows_that_are_not_finite_are_refused_by_fit():
    model = BayesianFactorAnalysis(6, 2)
    guide = FactorNormal(model.initial_values(torch.randn(20, 6)))
    with pytest.raises(ValueError, match="finite"):
        fit(elbo(model, guide), torch.full((20, 6), torch.nan), steps=1)
    with pytest.raises(ValueError, match="6 features"):
        model(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="6 features"):
        model.posterior(torch.zeros(3, 4), **values(6, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loadings": None}, "expected loc, loadings, factor_scale, noise_variance"),
        ({"loadings": torch.zeros(5)}, r"loadings of shape \(D, K\)"),
        ({"loc": torch.zeros(4)}, r"shape \(5,\) for 'loc', got \(4,\)"),
        ({"factor_scale": torch.zeros(2)}, "finite positive numbers"),
        ({"noise_variance": -torch.ones(5)}, "'noise_variance'"),
        ({"loc": torch.full((5,), torch.nan)}, "finite numbers"),
    ],
)
def test_a_guide_refuses_to_start_from(change, message):
    start = values() | {"factor_scale": draw(2).exp()} | change
    start = {name: value for name, value in start.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        FactorNormal(start)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_guide_refuses_a_scale(scale):
    with pytest.raises(ValueError, match="init_scale: expected a positive number"):
        FactorNormal(values() | {"factor_scale": draw(2).exp()}, init_scale=scale)
