"""The bridge to ArviZ: names, shapes, and numbers that must be those of the model."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoDelta, AutoNormal

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, data_plate, elbo, fit, from_pyro_mcmc, from_pyro_svi
from ppl_models.likelihoods import Categorical
from tests.support.oracles import LOCS, linear_gaussian, mixture, mixture_evidence

GROUPS = {
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
    "sample_stats",
}
NEW = "InferenceData" not in vars(az)  # ArviZ 1.x


def groups_of(data) -> set[str]:
    return set(data.children) if NEW else set(data.groups())


def draw(model, guide, *data, **options):
    options = {"num_samples": 40, "seed": 0} | options
    return from_pyro_svi(model, guide, *data, **options)


def counts_model(x=None, size=None):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


COUNTS = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])


def counts_guide(x=None, size=None):
    pyro.sample("rate", dist.Gamma(2.0 + x.sum(), 1.0 + len(x)))


def test_groups_dimensions_and_attributes():
    model, x = linear_gaussian(rows=7)
    data = draw(model, ExactPosterior(model), x)
    assert groups_of(data) == GROUPS
    assert data["posterior"]["z"].dims == ("chain", "draw", "data", "z_dim_0")
    assert data["posterior"]["z"].shape == (1, 40, 7, 2)
    for group in ("posterior_predictive", "prior_predictive"):
        assert data[group]["x"].shape == (1, 40, 7, 5)
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert data["observed_data"]["x"].dims == ("data", "x_dim_0")
    assert data["sample_stats"]["log_p"].dims == ("chain", "draw")
    assert data["posterior"].attrs["inference_library"] == "pyro"
    np.testing.assert_array_equal(data["observed_data"]["x"].values, x.numpy())


@pytest.mark.parametrize("batch_size", [1, 9, 4096])
def test_densities_are_those_of_the_draws(batch_size):
    """Also where draws come in many batches, of some rows each."""
    model, x = linear_gaussian(rows=7)
    data = draw(model, ExactPosterior(model), x, batch_size=batch_size)
    z = torch.from_numpy(data["posterior"]["z"].values)
    mean = model.loc + z @ model.loadings.T
    likelihood = dist.Normal(mean, model.log_scale.exp()).log_prob(x).sum(-1).detach()
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    posterior = model.posterior(x).log_prob(z[0]).unsqueeze(0).detach()
    stats = data["sample_stats"]
    close = np.testing.assert_allclose
    close(data["log_likelihood"]["x"].values, likelihood, rtol=1e-8)
    close(stats["log_p"].values, (likelihood + prior).sum(-1), rtol=1e-8)
    close(stats["log_q"].values, posterior.sum(-1), rtol=1e-8)


def test_discrete_values_are_integers():
    """As ArviZ expects: it smooths what is not."""
    data = draw(counts_model, counts_guide, COUNTS)
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        assert data[group]["x"].dtype == int
    assert data["observed_data"]["x"].values.tolist() == COUNTS.tolist()
    assert data["posterior"]["rate"].dtype == np.float32
    vae = VAE(5, 2, Categorical(4))  # its grey levels are thirds
    grey = draw(vae, AmortizedNormal(5, 2), vae(size=3))
    assert grey["posterior_predictive"]["x"].dtype == np.float32


def test_rows_are_not_mixed_up():
    model, x = linear_gaussian(rows=30)
    data = draw(model, ExactPosterior(model), x, num_samples=4000, batch_size=7 * 11)
    mean = data["posterior"]["z"].values[0].mean(0)
    np.testing.assert_allclose(mean, model.posterior(x).mean.detach(), atol=0.1)
    predicted = data["posterior_predictive"]["x"].values[0].mean(0)
    expected = model.loc + model.posterior(x).mean @ model.loadings.T
    np.testing.assert_allclose(predicted, expected.detach(), atol=0.12)
    # The prior knows nothing of the rows.
    assert np.abs(data["prior"]["z"].values.mean((0, 1))).max() < 0.1


def test_names_of_dimensions_and_labels():
    model, x = linear_gaussian(rows=4)
    data = draw(
        model,
        ExactPosterior(model),
        x,
        dims={"z": ["factor"], "x": ["subject"]},
        coords={"factor": ["ability", "diligence"], "subject": list("abcde")},
    )
    assert data["posterior"]["z"].dims == ("chain", "draw", "data", "factor")
    assert data["posterior"]["z"].sel(factor="ability").shape == (1, 40, 4)
    assert data["observed_data"]["x"].dims == ("data", "subject")
    for bad, message in (
        ({"coords": {"factor": ["one"]}, "dims": {"z": ["factor"]}}, "2 entries"),
        ({"dims": {"z": ["a", "b"]}}, "1 event dimension"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(model, ExactPosterior(model), x, **bad)


@pytest.mark.parametrize("enumerated", [False, True])
def test_what_is_a_function_of_data_is_that_of_the_data(enumerated):
    def model(x=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            if enumerated:
                pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            seen = pyro.sample("x", dist.Normal(m, 1.0), obs=x)
            pyro.deterministic("residual", seen - m)

    x = torch.arange(5.0)
    guide = AutoNormal(poutine.block(model, expose=["m"]))
    posterior = from_pyro_svi(model, guide, x, num_samples=8)["posterior"]
    m, residual = (torch.as_tensor(posterior[name].values)[0] for name in ("m", "residual"))
    torch.testing.assert_close(residual, x - m[:, None])


def test_event_dims_are_named_at_the_site():
    def model(x=None, size=None):
        prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        loc = pyro.sample("loc", prior, infer={"event_dims": ["axis"]})
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    data = draw(model, AutoNormal(model), torch.randn(5, 2))
    assert data["posterior"]["loc"].dims == ("chain", "draw", "axis")


def test_autoguides_show_their_latents_and_nothing_else():
    data = draw(counts_model, AutoNormal(counts_model), COUNTS)
    assert list(data["posterior"].data_vars) == ["rate"]
    assert data["posterior"]["rate"].dims == ("chain", "draw")
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "data")


def test_latents_of_all_rows_are_drawn_from_the_guide():
    data = draw(counts_model, counts_guide, COUNTS, num_samples=4000)
    exact = dist.Gamma(2.0 + COUNTS.sum(), 1.0 + len(COUNTS))
    rate = torch.from_numpy(data["posterior"]["rate"].values)
    assert rate.mean().item() == pytest.approx(exact.mean.item(), rel=0.02)
    stats = data["sample_stats"]
    # Exact posterior: log p - log q is the evidence, the same at every draw.
    assert (stats["log_p"] - stats["log_q"]).std() < 1e-4
    expected = dist.Poisson(rate[..., None]).log_prob(COUNTS)
    np.testing.assert_allclose(data["log_likelihood"]["x"].values, expected, rtol=1e-5)


def test_enumerated_sites_are_drawn_from_their_posterior():
    x = torch.tensor([-2.0, -1.0, 1.5, 3.0], dtype=torch.float64)
    data = draw(mixture, None, x, num_samples=20_000)
    component = torch.from_numpy(data["posterior"]["component"].values[0])
    got = torch.stack([(component == k).double().mean(0) for k in range(3)], -1)
    log_joint = torch.tensor([0.2, 0.5, 0.3]).log() + dist.Normal(LOCS, 1.0).log_prob(x[:, None])
    torch.testing.assert_close(got, log_joint.softmax(1).double(), atol=0.015, rtol=0)
    likelihood = data["log_likelihood"]["x"].values[0, 0]
    np.testing.assert_allclose(likelihood, mixture_evidence(x))


def test_a_latent_vector_below_an_enumerated_site_stays_what_was_drawn():
    """Pyro's `infer_discrete` takes the event of what it replays for dimensions of the batch."""
    locs = torch.tensor([[-3.0, 0.0, 1.0], [3.0, 1.0, 0.0]])

    def model(x, size=None):
        with data_plate(x, size):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(locs[k.long()], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x, 1e-4).to_event(1))

    x = torch.cat([locs, locs + 0.5, locs - 0.5])  # z is next to x, and tells k nearly
    posterior = from_pyro_svi(model, guide, x, num_samples=50, seed=0)["posterior"]
    z = torch.from_numpy(posterior["z"].values[0])
    torch.testing.assert_close(z, x.expand_as(z), atol=1e-2, rtol=0)
    assert (posterior["k"].values[0] == [0, 1, 0, 1, 0, 1]).all()


def test_enumerated_sites_beside_latents_of_all_rows():
    @pyro.infer.config_enumerate
    def model(x=None, size=None):
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0).to_event(1))
        with data_plate(x, size):
            component = pyro.sample("component", dist.Categorical(torch.ones(2)))
            return pyro.sample("x", dist.Normal(locs[component], 1.0), obs=x)

    x = torch.tensor([-3.1, -2.7, 2.5, 3.3, 3.0])
    guide = AutoDelta(poutine.block(model, hide=["component"]))
    with pytest.warns(UserWarning, match="'locs' is a point"):
        data = draw(model, guide, x)
    assert data["posterior"]["component"].dims == ("chain", "draw", "data")
    locs = torch.from_numpy(data["posterior"]["locs"].values)
    expected = dist.Normal(locs[:, :, None], 1.0).log_prob(x[:, None]).logsumexp(-1) - np.log(2)
    np.testing.assert_allclose(data["log_likelihood"]["x"].values, expected, rtol=1e-5)


def test_deterministic_sites_are_derived_quantities():
    def model(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * loc)
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.deterministic("square", z**2)
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    data = draw(model, AutoNormal(model), torch.randn(6))
    posterior = data["posterior"]
    assert posterior["square"].dims == ("chain", "draw", "data")
    np.testing.assert_allclose(posterior["twice"].values, 2 * posterior["loc"].values, rtol=1e-6)
    np.testing.assert_allclose(posterior["square"].values, posterior["z"].values ** 2, rtol=1e-6)
    assert list(data["log_likelihood"].data_vars) == ["x"]


def regression(x, y=None, size=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


def test_covariates_are_constant_data():
    x, y = torch.randn(9, 2), torch.randn(9)
    data = draw(regression, AutoNormal(regression), x, y)
    assert groups_of(data) == GROUPS | {"constant_data"}
    assert list(data["constant_data"].data_vars) == ["x"]
    assert data["constant_data"]["x"].dims == ("data", "x_dim_1")
    assert list(data["observed_data"].data_vars) == ["y"]
    assert data["posterior_predictive"]["y"].shape == (1, 40, 9)


def test_a_seed_repeats_the_draws_and_leaves_the_generator_alone():
    vae, guide, x = VAE(5, 2), AmortizedNormal(5, 2), torch.ones(3, 5)
    state = torch.get_rng_state()
    a, b = (draw(vae, guide, x)["posterior"]["z"].values for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("chains", [1, 2])
def test_mcmc(chains):
    kernel = NUTS(counts_model, jit_compile=False)
    mcmc = MCMC(kernel, 60, 60, num_chains=1, disable_progbar=True)
    mcmc.run(COUNTS)
    if chains == 2:  # as two processes would have left it
        mcmc._samples = {k: v.reshape(2, 30) for k, v in mcmc._samples.items()}
        mcmc._diagnostics = mcmc._diagnostics * 2
        mcmc.num_chains, mcmc.num_samples = 2, 30
    data = from_pyro_mcmc(mcmc)
    rate = torch.from_numpy(data["posterior"]["rate"].values)
    assert rate.shape == (chains, 60 // chains)
    assert torch.equal(rate, mcmc.get_samples(group_by_chain=True)["rate"])
    expected = dist.Poisson(rate[..., None]).log_prob(COUNTS)
    np.testing.assert_allclose(data["log_likelihood"]["x"].values, expected, rtol=1e-5)
    log_p = dist.Gamma(2.0, 1.0).log_prob(rate) + expected.sum(-1)
    np.testing.assert_allclose(data["sample_stats"]["log_p"].values, log_p, rtol=1e-5)
    assert data["sample_stats"]["diverging"].dtype == bool
    assert groups_of(data) == GROUPS
    assert np.isfinite(float(az.summary(data)["mean"].iloc[0]))


def test_trajectories_that_diverged_are_of_their_chain():
    mcmc = MCMC(NUTS(counts_model, jit_compile=False), 8, 5, disable_progbar=True)
    mcmc.run(COUNTS)
    mcmc._samples = {k: v.reshape(2, 4) for k, v in mcmc._samples.items()}
    (found,) = mcmc._diagnostics
    mcmc._diagnostics = [{**found, "divergences": [2]}, {**found, "divergences": [0, 3]}]
    mcmc.num_chains, mcmc.num_samples = 2, 4
    diverging = from_pyro_mcmc(mcmc)["sample_stats"]["diverging"].values
    assert diverging.tolist() == [[False, False, True, False], [True, False, False, True]]


def test_mcmc_of_a_regression_keeps_covariates():
    mcmc = MCMC(NUTS(regression), 20, 20, disable_progbar=True)
    x, y = torch.randn(9, 2), torch.randn(9)
    mcmc.run(x, y)
    data = from_pyro_mcmc(mcmc, dims={"weight": ["covariate"]})
    assert data["posterior"]["weight"].dims == ("chain", "draw", "covariate")
    assert list(data["constant_data"].data_vars) == ["x"]


def test_mcmc_that_has_not_run():
    with pytest.raises(ValueError, match=r"mcmc\.run"):
        from_pyro_mcmc(MCMC(NUTS(counts_model), 10, 10))


@pytest.fixture(scope="module")
def fitted():
    pyro.set_rng_seed(0)
    guide = AutoNormal(counts_model)
    fit(elbo(counts_model, guide), COUNTS, epochs=300, lr=2e-2)
    return from_pyro_svi(counts_model, guide, COUNTS, num_samples=500, seed=0)


def test_summary_and_loo(fitted):
    summary = az.summary(fitted, kind="stats")
    exact = (2.0 + COUNTS.sum()) / (1.0 + len(COUNTS))
    assert float(summary.loc["rate", "mean"]) == pytest.approx(exact.item(), rel=0.1)
    loo = az.loo(fitted)
    value = getattr(loo, "elpd_loo", None) or loo.elpd
    rate = torch.distributions.Gamma(2.0 + COUNTS.sum(), 1.0 + len(COUNTS)).mean
    assert value == pytest.approx(dist.Poisson(rate).log_prob(COUNTS).sum().item(), rel=0.15)


def test_plots(fitted):
    import matplotlib.pyplot as plt

    predictive = getattr(az, "plot_ppc", None) or az.plot_ppc_dist
    posterior = getattr(az, "plot_posterior", None) or az.plot_dist
    for plot in (predictive, posterior, az.plot_trace):
        assert plot(fitted) is not None
        plt.close("all")


def test_to_netcdf_and_back(fitted, tmp_path):
    path = tmp_path / "posterior.nc"
    fitted.to_netcdf(path)
    again = az.from_netcdf(path)
    for group in GROUPS:
        for name, array in fitted[group].data_vars.items():
            np.testing.assert_array_equal(array.values, again[group][name].values)


def test_deterministic_sites_in_the_plate_need_not_be_of_rows():
    matrix = torch.arange(16.0).reshape(4, 4)

    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("matrix", matrix)
            pyro.deterministic("number", torch.tensor(3.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x=None, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    posterior = from_pyro_svi(model, guide, torch.randn(7), num_samples=500)["posterior"]
    assert posterior["matrix"].shape == (1, 500, 4, 4)
    assert (posterior["matrix"].values == matrix.numpy()).all()
    assert posterior["number"].shape == (1, 500)


def test_sums_over_many_rows_keep_their_digits():
    torch.manual_seed(0)
    x = torch.randn(3000, 50) * 100

    def model(x=None, size=None):
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(torch.zeros(50), 1.0).to_event(1), obs=x)

    stats = from_pyro_svi(model, None, x, num_samples=1)["sample_stats"]
    exact = dist.Normal(torch.zeros(50), 1.0).to_event(1).log_prob(x).double().sum().item()
    assert stats["log_p"].item() == pytest.approx(exact, rel=1e-12)


def test_improper_priors_are_left_out():
    def model(x=None, size=None):
        real = dist.constraints.real
        loc = pyro.sample("loc", dist.ImproperUniform(real, torch.Size(), torch.Size()))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x=None, size=None):
        pyro.sample("loc", dist.Normal(x.mean(), len(x) ** -0.5))

    data = from_pyro_svi(model, guide, torch.randn(9), num_samples=30)
    assert data["posterior"]["loc"].shape == (1, 30)
    assert "prior" not in (data.children if hasattr(data, "children") else data.groups())


def test_a_run_of_another_library_is_refused():
    class MCMC:
        def get_samples(self):
            return {"z": torch.zeros(10, 2)}

    with pytest.raises(TypeError, match=r"got .*MCMC. Try arviz.from_numpyro"):
        from_pyro_mcmc(MCMC())
