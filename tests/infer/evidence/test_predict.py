"""The posterior predictive at new inputs: closed forms, or a refusal with what to write."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro import poutine
from pyro.infer import MCMC, NUTS, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    Classifier,
    GaussianDiscriminant,
    LinearRegression,
    data_plate,
    elbo,
    fit,
    from_pyro_mcmc,
    from_pyro_svi,
    predict,
)
from tests.support.oracles import linear_gaussian

NOISE = 0.5
torch.manual_seed(0)
X, NEW = torch.randn(12, 2), torch.tensor([[1.0, 0.0], [0.5, -2.0], [3.0, 1.0]])
Y = X @ torch.tensor([1.0, -0.5]) + NOISE * torch.randn(12)
COVARIANCE = torch.linalg.inv(torch.eye(2) + X.T @ X / NOISE**2)
MEAN = COVARIANCE @ X.T @ Y / NOISE**2
COUNTS = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
LOCS = torch.tensor([-1.0, 2.0])


def regression(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weight, NOISE), obs=y)


def exact_weight(x: Tensor, y: Tensor | None = None, size: int | None = None) -> None:
    pyro.sample("weight", dist.MultivariateNormal(MEAN, COVARIANCE))


def counts_model(x: Tensor | None = None, size: int | None = None) -> Tensor:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def counts_guide(x: Tensor, size: int | None = None) -> None:
    pyro.sample("rate", dist.Gamma(2.0 + x.sum(), 1.0 + len(x)))


def groups_of(data) -> set[str]:
    return set(data.children) if hasattr(data, "children") else set(data.groups())


def drawn(predictions, name: str) -> np.ndarray:
    values = predictions["predictions"][name].values
    return values.reshape(-1, *values.shape[2:])


def is_the_regression(predictions, scale: float = 1.0) -> None:
    y = drawn(predictions, "y")
    variance = NOISE**2 + (NEW @ COVARIANCE * NEW).sum(1)
    error = (variance / len(y)).sqrt().max().item()
    np.testing.assert_allclose(y.mean(0), NEW @ MEAN, atol=5 * scale * error)
    np.testing.assert_allclose(y.var(0), variance, rtol=0.1 * scale)
    # What the rows share makes them depend on each other.
    got = np.cov(y.T)[0, 2]
    assert got == pytest.approx((NEW[0] @ COVARIANCE @ NEW[2]).item(), abs=0.02 * scale)


def test_linear_regression_from_a_guide():
    predictions = predict(regression, exact_weight, NEW, num_samples=8000, seed=0)
    is_the_regression(predictions)
    assert groups_of(predictions) == {"predictions", "predictions_constant_data"}
    assert list(predictions["predictions"].data_vars) == ["y"]
    assert predictions["predictions"]["y"].dims == ("chain", "draw", "data")
    constant = predictions["predictions_constant_data"]["x"]
    np.testing.assert_array_equal(constant.values, NEW)
    assert constant.dims == ("data", "x_dim_1")


def test_linear_regression_from_a_posterior_of_svi():
    posterior = from_pyro_svi(regression, exact_weight, X, Y, num_samples=8000, seed=0)
    predictions = predict(regression, posterior, NEW, seed=1)
    is_the_regression(predictions)
    assert type(predictions) is type(posterior)
    # Draw by draw: what is left of the mean of each is noise.
    weight = posterior["posterior"]["weight"].values[0]
    noise = drawn(predictions, "y") - weight @ NEW.numpy().T
    assert noise.std() == pytest.approx(NOISE, rel=0.03)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.05


def test_linear_regression_from_mcmc_keeps_chains():
    mcmc = MCMC(NUTS(regression), 600, 200, disable_progbar=True)
    mcmc.run(X, Y)
    posterior = from_pyro_mcmc(mcmc)
    predictions = predict(regression, posterior, NEW, seed=1)
    is_the_regression(predictions, scale=2.5)
    mcmc._samples = {k: v.reshape(2, 300, *v.shape[2:]) for k, v in mcmc._samples.items()}
    mcmc._diagnostics = mcmc._diagnostics * 2
    two = predict(regression, from_pyro_mcmc(mcmc), NEW, seed=1)
    assert two["predictions"]["y"].shape == (2, 300, 3)
    np.testing.assert_array_equal(drawn(two, "y"), drawn(predictions, "y"))


def test_an_autoguide_that_was_fitted():
    guide = AutoMultivariateNormal(regression, init_scale=0.1)
    fit(elbo(regression, guide), (X, Y), epochs=1, progress=False)
    with torch.no_grad():  # its optimum
        lower = torch.linalg.cholesky(COVARIANCE)
        guide.loc.copy_(MEAN)
        guide.scale, guide.scale_tril = lower.diag(), lower / lower.diag()[:, None]
    is_the_regression(predict(regression, guide, NEW, num_samples=8000, seed=0))


def test_counts_are_negative_binomial():
    posterior = from_pyro_svi(counts_model, counts_guide, COUNTS, num_samples=20_000, seed=0)
    x = drawn(predict(counts_model, posterior, size=2, seed=1), "x")
    total, rows = 2 + COUNTS.sum(), 1.0 + len(COUNTS)
    exact = dist.NegativeBinomial(total, probs=1 / (1 + rows))
    assert x.dtype == int
    for k in range(10):
        p = exact.log_prob(torch.tensor(float(k))).exp().item()
        assert (x == k).mean() == pytest.approx(p, abs=0.01)
    covariance = (total / rows**2).item()  # of two rows: the variance of the rate
    assert np.cov(x.T)[0, 1] == pytest.approx(covariance, abs=0.15)


def test_a_guide_that_reads_the_new_rows_is_refused():
    """Its posterior would be that of the new rows, without a word."""
    with pytest.raises(ValueError, match=r"depend on the rows.*from_pyro_svi"):
        predict(counts_model, counts_guide, COUNTS[:3])
    with pytest.raises(ValueError, match=r"cannot be called with the new inputs.*from_pyro_svi"):
        predict(counts_model, counts_guide, size=3)

    def least_squares(x, y, size=None):
        pyro.sample("weight", dist.MultivariateNormal(MEAN, COVARIANCE))

    with pytest.raises(ValueError, match=r"cannot be called with the new inputs.*from_pyro_svi"):
        predict(regression, least_squares, NEW)


def test_what_the_posterior_lacks_is_not_drawn_from_the_prior():
    posterior = from_pyro_svi(counts_model, counts_guide, COUNTS, num_samples=10)
    for given in (posterior, None, lambda x, y=None, size=None: None):
        with pytest.raises(ValueError, match="lacks the model's site 'weight'"):
            predict(regression, given, NEW)

    def plain(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("obs", len(x)):
            return pyro.sample("y", dist.Normal(x @ weight + shift, NOISE), obs=y)

    for given in (posterior, None, lambda x, y=None: None):
        with pytest.raises(ValueError, match="lacks the model's site 'weight'"):
            predict(plain, given, NEW)
    assert predict(plain, exact_weight, NEW)["predictions"]["y"].dims[2:] == ("obs",)
    with pytest.raises(ValueError, match=r"If 'y' is what is to be predicted, try predict\("):
        from_pyro_svi(regression, exact_weight, NEW)
    with pytest.raises(
        TypeError, match=r"expected tensors, .* with one entry for each row, got None"
    ):
        predict(regression, exact_weight, NEW, None)
    with pytest.raises(ValueError, match="AutoNormal has not been fitted"):
        predict(regression, AutoNormal(regression), NEW)
    with pytest.raises(ValueError, match="would guide what is to be predicted"):
        predict(regression, AutoNormalMessenger(regression), NEW)
    with pytest.raises(TypeError, match="expected a guide, or an ArviZ object"):
        predict(regression, 3, NEW)


def test_latents_of_new_rows_are_inferred_anew():
    """Against p(x' | x) = N(mu + W E[z | x], W V W' + Psi) of factor analysis."""
    model, x = linear_gaussian(rows=4)
    got = drawn(predict(model, None, x, num_samples=6000, seed=0), "x")
    z = model.posterior(x)
    mean = model.loc + z.mean @ model.loadings.T
    covariance = model.loadings @ z.covariance_matrix[0] @ model.loadings.T
    variance = covariance.diag() + (2 * model.log_scale).exp()
    np.testing.assert_allclose(got.mean(0), mean.detach(), atol=0.1)
    np.testing.assert_allclose(got[:, 0].var(0), variance.detach(), rtol=0.1)


def test_latents_of_rows_that_were_fitted_are_refused():
    vae, guide, x = VAE(5, 2), AmortizedNormal(5, 2), torch.ones(3, 5)
    posterior = from_pyro_svi(vae, guide, x, num_samples=5)
    with pytest.raises(ValueError, match=r"'z' of new rows.*amortised guide"):
        predict(vae, posterior, x)
    assert predict(vae, guide, x, num_samples=7)["predictions"]["x"].shape == (1, 7, 3, 5)
    for given in (posterior, guide, None):  # fresh rows need none of them
        fresh = predict(vae, given, size=4, num_samples=5)
        assert list(fresh["predictions"].data_vars) == ["z", "x"]
        assert fresh["predictions"]["x"].shape == (1, 5, 4, 5)
    automatic = AutoNormal(vae)
    fit(elbo(vae, automatic), x, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"AutoNormal has the latents 'z' of the rows"):
        predict(vae, automatic, x)


def test_a_guide_of_the_fitted_rows_is_told_by_its_own_latents():
    """The covariate is measured with an error: `y`, to be predicted, is none of them."""

    def measured(x=None, y=None, size=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            true = pyro.sample("true", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(true, 0.5), obs=x)
            return pyro.sample("y", dist.Normal(slope * true, 0.3), obs=y)

    x, guide = torch.randn(6), AutoNormal(measured)
    fit(elbo(measured, guide), (x, 2 * x), steps=1, progress=False)
    with pytest.raises(ValueError, match=r"AutoNormal has the latents 'true' of the rows"):
        predict(measured, guide, x[:3])


def two_levels(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        own = pyro.sample("own", dist.Normal(slope * x, 2.0))
        return pyro.sample("y", dist.Normal(own, 1.0), obs=y)


def test_latents_of_rows_of_which_nothing_was_seen_are_drawn_from_the_model():
    """Those that were fitted are of other rows: y' ~ N(slope x', 2^2 + 1)."""
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([50.0, 50.0, 50.0])
    guide = AutoNormal(two_levels)
    fit(elbo(two_levels, guide), (x, y), epochs=1, progress=False)
    with torch.no_grad():
        guide.locs.slope.fill_(2.0)
        guide.scales.slope = torch.tensor(0.1)
        guide.locs.own.fill_(50.0)
    posterior = from_pyro_svi(two_levels, guide, x, y, num_samples=8000, seed=0)
    for given in (guide, posterior):
        for new in (torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0, 0.0])):
            got = drawn(predict(two_levels, given, new, num_samples=8000, seed=0), "y")
            np.testing.assert_allclose(got.mean(0), 2 * new, atol=0.1)
            np.testing.assert_allclose(got.var(0), 5 + 0.01 * new**2, rtol=0.07)


def test_groups_are_kept_and_rows_are_not():
    number = [3]

    def groups(group, y=None, size=None):
        with pyro.plate("group", number[0]):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with data_plate(group, size):
            return pyro.sample("y", dist.Normal(loc[group], 0.1), obs=y)

    def guide(group, y=None, size=None):
        with pyro.plate("group", 3):
            pyro.sample("loc", dist.Normal(torch.tensor([1.0, 2.0, 3.0]), 0.01))

    group = torch.tensor([0, 1, 2, 2, 1])
    posterior = from_pyro_svi(groups, guide, group, torch.randn(5), num_samples=50)
    new = torch.tensor([2, 0])
    for given in (guide, posterior):
        got = drawn(predict(groups, given, new, num_samples=50), "y")
        np.testing.assert_allclose(got.mean(0), [3.0, 1.0], atol=0.1)
        number[0] = 5
        with pytest.raises(ValueError, match=r"site 'loc' has shape \(3,\), and at the new"):
            predict(groups, given, torch.tensor([4, 0]))
        number[0] = 3

    def rows(x, y=None):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            return pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    x = torch.randn(4)
    guide = AutoNormal(rows)
    fit(elbo(rows, guide), (x, x), epochs=1, progress=False)
    posterior = from_pyro_svi(rows, guide, x, x, num_samples=5)
    for given in (guide, posterior):
        with pytest.raises(ValueError, match=r"site 'z' belongs to the rows that were fitted"):
            predict(rows, given, x + 10)


def test_a_model_without_a_plate():
    def plain(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = pyro.deterministic("mean", x @ weight)
        return pyro.sample("y", dist.Normal(mean, NOISE).to_event(1), obs=y)

    mcmc = MCMC(NUTS(plain), 600, 200, disable_progbar=True)
    mcmc.run(X, Y)
    predictions = predict(plain, from_pyro_mcmc(mcmc), NEW, seed=0)
    is_the_regression(predictions, scale=2.5)
    assert list(predictions["predictions"].data_vars) == ["mean", "y"]
    np.testing.assert_allclose(drawn(predictions, "mean").mean(0), NEW @ MEAN, atol=0.15)


@config_enumerate
def one_component(x: Tensor | None = None, size: int | None = None) -> None:
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
    with data_plate(x, size):
        pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)


def test_enumerated_sites_of_all_rows_are_those_of_the_posterior():
    with pytest.warns(UserWarning, match="log_likelihood"):
        posterior = from_pyro_svi(one_component, None, torch.tensor([2.0, 1.5, 2.5]))
    got = drawn(predict(one_component, posterior, size=50, seed=0), "x")
    assert got.mean() == pytest.approx(2.0, abs=0.05)  # of the prior: 1.1
    with pytest.raises(ValueError, match="lacks the model's site 'k'"):
        predict(one_component, None, size=3)


@config_enumerate
def components(x: Tensor | None = None, size: int | None = None) -> None:
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(shift + 3 * LOCS[k], 1.0), obs=x)


def test_enumerated_sites_of_rows():
    def guide(x=None, size=None):
        pyro.sample("shift", dist.Normal(1.0, 0.01))

    x = torch.tensor([7.0, -2.0, 7.5])
    posterior = from_pyro_svi(components, guide, x, num_samples=2000)
    for given in (guide, posterior):
        fresh = drawn(predict(components, given, size=3, num_samples=2000, seed=0), "x")
        assert fresh.mean() == pytest.approx(1 + 3 * (0.3 * -1 + 0.7 * 2), abs=0.25)
        again = drawn(predict(components, given, x[:2], num_samples=2000, seed=0), "x")
        np.testing.assert_allclose(again.mean(0), [7.0, -2.0], atol=0.15)


def test_reparameterised_sites():
    program = poutine.reparam(regression, {"weight": LocScaleReparam(0.0)})
    guide = AutoNormal(program)
    fit(elbo(program, guide), (X, Y), epochs=400, lr=2e-2, progress=False)
    posterior = from_pyro_svi(program, guide, X, Y, num_samples=2000, seed=0)
    for given in (guide, posterior):
        got = drawn(predict(program, given, NEW, num_samples=2000, seed=0), "y")
        np.testing.assert_allclose(got.mean(0), NEW @ MEAN, atol=0.15)


@pytest.mark.parametrize("support", [dist.constraints.real, dist.constraints.positive])
def test_improper_priors(support):
    def flat(x=None, size=None):
        loc = pyro.sample("loc", dist.ImproperUniform(support, (), ()))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x=None, size=None):
        pyro.sample("loc", dist.Normal(5.0, 0.5))

    posterior = from_pyro_svi(flat, guide, torch.randn(5), num_samples=4000)
    for given in (guide, posterior):
        x = drawn(predict(flat, given, size=2, num_samples=4000, seed=0), "x")
        np.testing.assert_allclose(x.mean(0), 5.0, atol=0.1)
        np.testing.assert_allclose(x.var(0), 1.25, rtol=0.1)
    with pytest.raises(ValueError, match="lacks the model's site 'loc'"):
        predict(flat, None, size=2)


def test_models_of_the_library():
    model = LinearRegression(2, noise=NOISE)
    exact = model.posterior(X, Y)  # of the weights and the bias

    def guide(x, y=None, size=None):
        both = pyro.sample("both", exact, infer={"is_auxiliary": True})
        pyro.sample("weights", dist.Delta(both[:2]).to_event(1))
        pyro.sample("bias", dist.Delta(both[2]))

    got = drawn(predict(model, guide, NEW, num_samples=8000, seed=0), "y")
    inputs = torch.cat([NEW, torch.ones(3, 1)], 1)
    variance = NOISE**2 + (inputs @ exact.covariance_matrix * inputs).sum(1)
    np.testing.assert_allclose(got.mean(0), inputs @ exact.mean, atol=0.04)
    np.testing.assert_allclose(got.var(0), variance, rtol=0.1)


def test_models_without_latents():
    classifier = Classifier(2, 3)
    got = drawn(predict(classifier, None, NEW, num_samples=4000, seed=0), "y")
    exact = classifier.conditional(NEW).probs.detach()
    np.testing.assert_allclose([(got == c).mean(0) for c in range(3)], exact.T, atol=0.03)


def test_classes_of_new_rows():
    """Enumerated, and drawn from their posterior given the rows."""
    model = GaussianDiscriminant(2, 2)
    x = torch.cat([X, X + 2.0])
    model.maximum_likelihood(x, torch.arange(2).repeat_interleave(12))
    got = predict(model, None, NEW, num_samples=4000, seed=0)
    exact = model.posterior(NEW).probs[:, 1].detach()
    np.testing.assert_allclose(drawn(got, "y").mean(0), exact, atol=0.03)


def test_numbers_of_draws_names_and_seeds():
    posterior = from_pyro_svi(regression, exact_weight, X, Y, num_samples=20)
    state = torch.get_rng_state()
    options = {"coords": {"data": ["a", "b", "c"]}, "seed": 3}
    a, b = (predict(regression, posterior, NEW, num_samples=7, **options) for _ in range(2))
    np.testing.assert_array_equal(drawn(a, "y"), drawn(b, "y"))
    assert torch.equal(state, torch.get_rng_state())
    assert a["predictions"]["y"].sel(data="b").shape == (1, 7)
    assert a["predictions_constant_data"]["x"].sel(data="c").shape == (2,)
    for call, message in (
        (lambda: predict(regression, posterior, NEW, num_samples=21), "at most its 20 draws"),
        (lambda: predict(regression, posterior, NEW, size=3), "none beside new inputs"),
        (lambda: predict(counts_model, None), "got neither"),
        (lambda: predict(regression, posterior, NEW, num_samples=0), "positive whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_fewer_draws_are_taken_from_all_chains():
    chains = np.array([[[9.0, 0.0]] * 10, [[-9.0, 0.0]] * 10])  # (chain, draw, feature)
    weight = xarray.Dataset({"weight": (("chain", "draw", "weight_dim_0"), chains)})
    posterior = xarray.DataTree.from_dict({"posterior": weight})
    y = drawn(predict(regression, posterior, NEW, num_samples=4, seed=0), "y")
    assert np.sign(y[:, 0]).tolist() == [1, 1, -1, -1]


def test_a_posterior_of_either_generation_of_arviz():
    posterior = from_pyro_svi(regression, exact_weight, X, Y, num_samples=20)
    names = posterior.children if hasattr(posterior, "children") else posterior.groups()
    tree = xarray.DataTree.from_dict({n: posterior[n].copy() for n in names})
    one, other = (predict(regression, given, NEW, seed=0) for given in (posterior, tree))
    np.testing.assert_array_equal(drawn(one, "y"), drawn(other, "y"))


def test_predictions_are_what_arviz_takes(tmp_path):
    predictions = predict(regression, exact_weight, NEW, num_samples=50)
    path = tmp_path / "predictions.nc"
    predictions.to_netcdf(path)
    again = az.from_netcdf(path)
    np.testing.assert_array_equal(drawn(again, "y"), drawn(predictions, "y"))
