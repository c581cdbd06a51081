"""Bayesian Gaussian mixtures: the program, its prior, and its draws for ArviZ."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats

from guides.mixture import MeanFieldMixture, MixturePosterior
from ppl_models import elbo, fit, from_pyro_svi
from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from ppl_models.mixtures.conjugate import weights_of
from tests.support.mixtures import both_priors, build, clusters, every_kind


def shared_draw(model, num: int | None = None) -> dict[str, torch.Tensor]:
    """The latents that rows share, from the prior."""
    if num is None:
        trace = poutine.trace(model.sample_shared).get_trace(model.prior)
    else:
        with pyro.plate("draws", num, dim=-2):
            trace = poutine.trace(model.sample_shared).get_trace(model.prior)
    nodes = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
    return {name: nodes[name]["value"] for name in nodes if name not in ("component", "draws")}


def log_rows(model, latents, x: torch.Tensor) -> torch.Tensor:
    """log pi_k N(x_n | mu_k, Sigma_k), (N, K), written out."""
    weights = latents["weights"] if "weights" in latents else weights_of(latents["sticks"])
    columns = []
    for k in range(model.num_components):
        sigma = latents["covariances"][k]
        matrix = sigma if model.covariance == "full" else sigma.expand(2).diag()
        normal = torch.distributions.MultivariateNormal(latents["locs"][k], matrix)
        columns.append(weights[k].log() + normal.log_prob(x))
    return torch.stack(columns, 1)


# The program


@both_priors
@every_kind
@pytest.mark.parametrize("size", [7, 70])
def test_enumerated_elbo_is_the_sum_over_components(covariance, weights, size):
    model, x = build(3, covariance, weights), torch.randn(7, 2).double()
    latents = shared_draw(model)
    given = poutine.condition(model, data=latents)
    prior = poutine.trace(poutine.condition(model.sample_shared, data=latents))
    log_prior = prior.get_trace(model.prior).log_prob_sum()
    evidence = log_rows(model, latents, x).logsumexp(1)
    expected = -(size / 7 * evidence.sum() + log_prior) / size
    loss = elbo(given).loss(x, size=size)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)


def test_the_density_of_the_prior_is_the_textbooks():
    """scipy's inverse Wishart, Dirichlet and normal."""
    model = build(3, "full", prior_df=6.5, prior_strength=0.3, concentration=0.7)
    latents = shared_draw(model)
    prior = poutine.trace(poutine.condition(model.sample_shared, data=latents))
    got = prior.get_trace(model.prior).log_prob_sum().item()
    psi = 0.75**2 * (6.5 - 3) * np.eye(2)  # so that the mean is 0.75^2
    expected = stats.dirichlet([0.7] * 3).logpdf(latents["weights"])
    for k in range(3):
        sigma, mu = latents["covariances"][k].numpy(), latents["locs"][k].numpy()
        expected += stats.invwishart(6.5, psi).logpdf(sigma)
        expected += stats.multivariate_normal([0.25, -0.5], sigma / 0.3).logpdf(mu)
    assert got == pytest.approx(expected, abs=1e-6)  # 0.3 and 0.7 are rounded to float32


@every_kind
def test_draws_from_the_prior_have_its_moments(covariance):
    model = build(3, covariance, prior_df=9.0, prior_strength=0.25)
    draws = shared_draw(model, 20_000)
    expected = 0.75**2 * torch.eye(2).double()
    found = draws["covariances"].mean((0, 1))
    wanted = {"full": expected, "diag": expected.diagonal(), "spherical": expected[0, :1]}
    torch.testing.assert_close(found, wanted[covariance], atol=0.01, rtol=0)
    locs = draws["locs"].flatten(0, 1)
    torch.testing.assert_close(locs.mean(0), model.loc, atol=0.03, rtol=0)
    torch.testing.assert_close(locs.T.cov(), expected / 0.25, atol=0.06, rtol=0)


def test_weights_have_the_stated_means():
    draws = shared_draw(build(4, concentration=0.5), 20_000)["weights"][:, 0]
    torch.testing.assert_close(draws.sum(1), torch.ones(20_000).double())
    torch.testing.assert_close(draws.mean(0), torch.full((4,), 0.25).double(), atol=0.01, rtol=0)
    # The variance of a Dirichlet of 4 times 1/2: (1/4 3/4) / (1 + 2)
    torch.testing.assert_close(draws.var(0), torch.full((4,), 1 / 16).double(), atol=3e-3, rtol=0)

    sticks = shared_draw(build(5, weights="stick-breaking", concentration=2.0), 20_000)["sticks"]
    weights = weights_of(sticks)[:, 0]
    torch.testing.assert_close(weights.sum(1), torch.ones(20_000).double())
    expected = [
        1 / 3 * (2 / 3) ** k for k in range(4)
    ]  # E[pi_k] = (1 - r) r^(k - 1), r = a / (1 + a)
    expected.append(1 - sum(expected))
    torch.testing.assert_close(weights.mean(0), torch.tensor(expected).double(), atol=0.01, rtol=0)


@both_priors
def test_tiny_concentrations_are_finite(weights):
    """Draws by rounding 0 or 1 would have an infinite density."""
    model = build(30, weights=weights, concentration=1e-3)
    for _ in range(50):
        trace = poutine.trace(model.sample_shared).get_trace(model.prior)
        assert torch.isfinite(trace.log_prob_sum())


@both_priors
@every_kind
def test_samples_of_the_program(covariance, weights):
    model = build(3, covariance, weights)
    assert model(size=11).shape == (11, 2)
    trace = poutine.trace(model).get_trace(size=11)
    assert trace.nodes["weights"]["value"].shape == (3,)
    assert trace.nodes["z"]["value"].shape == (11,)
    scales = trace.nodes["scales"]["value"]
    covariances = trace.nodes["covariances"]["value"]
    if covariance == "full":
        covariances = covariances.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(scales**2, covariances.expand(3, 2))


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
@every_kind
def test_autoguides_take_the_program(kind, covariance):
    model, x = build(3, covariance, "stick-breaking"), clusters()
    guide = kind(poutine.block(model, hide=["z"]))
    run = fit(elbo(model, guide), x, steps=2, seed=0)
    assert all(map(math.isfinite, run.history["loss"]))


# The posterior of the components of rows


@pytest.mark.filterwarnings("ignore:guide. its site .* is a point")  # on purpose
def test_drawn_components_have_their_exact_probabilities():
    torch.manual_seed(3)
    model, x = build(3), clusters(0.4, rows=40)
    latents = shared_draw(model)
    latents["locs"] = torch.tensor([[-0.5, 0.0], [0.4, 0.4], [0.4, -0.4]]).double()
    latents["covariances"] = 0.2 * torch.eye(2).double().expand(3, 2, 2)
    latents["weights"] = torch.tensor([0.5, 0.3, 0.2]).double()

    def guide(x, size=None):
        pyro.sample("weights", dist.Delta(latents["weights"], event_dim=1))
        with pyro.plate("component", 3, dim=-1):
            pyro.sample("covariances", dist.Delta(latents["covariances"], event_dim=2))
            pyro.sample("locs", dist.Delta(latents["locs"], event_dim=1))

    data = from_pyro_svi(model, guide, x, num_samples=200, seed=0)
    z = data["posterior"]["z"].values[0]  # (S, N)
    assert z.shape == (200, 40)
    assert z.dtype.kind == "i"
    exact = log_rows(model, latents, x).softmax(1)
    found = torch.stack([torch.from_numpy(z == k).double().mean(0) for k in range(3)], 1)
    error = (exact * (1 - exact) / 200).sqrt().clamp(min=1e-3)
    assert ((found - exact) / error).abs().max() < 4.5
    assert 0.1 < exact.max(1).values.min() < 0.9  # some rows are in doubt
    log_likelihood = data["log_likelihood"]["x"].values[0]
    expected = log_rows(model, latents, x).logsumexp(1)
    np.testing.assert_allclose(log_likelihood, expected.expand(200, 40), atol=1e-10)


def test_one_component_has_all_rows():
    model, x = build(1), clusters(rows=30)
    data = from_pyro_svi(model, MeanFieldMixture(model, x), x, num_samples=2)
    assert data["posterior"]["z"].shape == (1, 2, 30)
    assert not data["posterior"]["z"].values.any()
    np.testing.assert_array_equal(data["posterior"]["weights"].values, 1.0)


def test_names_for_arviz():
    model, x = build(3, "full", "stick-breaking"), clusters(rows=30)
    guide = MixturePosterior(model, x)
    posterior = from_pyro_svi(model, guide, x, num_samples=2)["posterior"]
    dims = {name: variable.dims[2:] for name, variable in posterior.items()}
    assert dims == {
        "sticks": ("stick",),
        "weights": ("component",),
        "covariances": ("component", "feature", "other_feature"),
        "locs": ("component", "feature"),
        "scales": ("component", "feature"),
        "z": ("data",),
    }
    weights = weights_of(torch.from_numpy(posterior["sticks"].values))
    np.testing.assert_allclose(posterior["weights"].values, weights)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": 0}, "num_components: expected a positive whole number, got 0"),
        ({"num_features": 0}, "num_features"),
        ({"num_components": 2.5}, "num_components"),
        ({"covariance": "tied"}, "expected one of 'full', 'diag', 'spherical', got 'tied'"),
        ({"weights": "uniform"}, "weights: expected 'dirichlet' or 'stick-breaking'"),
        ({"concentration": 0.0}, "concentration: expected a positive number"),
        ({"concentration": math.inf}, "concentration"),
        ({"concentration": torch.ones(3)}, "concentration"),
        ({"prior_strength": -1.0}, "prior_strength: expected a positive number"),
        ({"prior_df": 3.0}, "prior_df: expected a finite number above 3, got 3.0"),
        ({"prior_df": 2.0, "covariance": "diag"}, "above 2"),
        ({"prior_loc": torch.zeros(3)}, r"prior_loc: .* or 2 of them.*shape \(3,\)"),
        ({"prior_loc": math.nan}, "prior_loc"),
        ({"prior_scale": torch.ones(2, 2)}, r"prior_scale.*shape \(2, 2\)"),
        ({"prior_scale": 0.0}, "prior_scale: expected positive numbers"),
        ({"prior_scale": torch.tensor([1.0, -1.0])}, "prior_scale: expected positive numbers"),
        ({"prior_scale": torch.ones(2), "covariance": "spherical"}, "prior_scale.*one for all"),
    ],
)
def test_priors_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        BayesianGaussianMixture(**({"num_features": 2, "num_components": 3} | arguments))
