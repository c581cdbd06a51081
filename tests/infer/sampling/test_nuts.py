"""NUTS against closed forms, by compiled code and by the program itself."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_models import data_plate, nuts
from ppl_models.infer.programs.program import Program
from ppl_models.infer.sampling.density import Density
from ppl_models.infer.sampling.unconstrained import Unconstrained

pytest.importorskip("nutpie")
FAST = {"draws": 1000, "tune": 500, "chains": 2, "seed": 0, "progress": False}


def unconstrained(model, *data):
    return Unconstrained(Program(model, "model"), data)


def normal(x, size=None):
    """Mean and precision of normal rows, of which the posterior is known."""
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    mean = pyro.sample("mean", dist.Normal(0.0, (1 / precision).sqrt()))
    with data_plate(x, size):
        pyro.sample("x", dist.Normal(mean, (1 / precision).sqrt()), obs=x)


def moments(data, name):
    values = data.posterior[name].values
    return values.mean(), values.std()


def error(data, name):
    """A generous one of a mean: of a tenth of the draws."""
    values = data.posterior[name].values
    return 4 * values.std() / math.sqrt(values.size / 10)


def test_a_conjugate_posterior():
    x = torch.tensor([0.3, 1.2, -0.4, 2.0, 0.9])
    found = nuts(normal, x, **FAST)
    n, mean = len(x), x.mean().item()
    shape = 2 + n / 2
    spread = ((x - mean) ** 2).sum().item()
    rate = 1 + spread / 2 + n * mean**2 / (2 * (1 + n))
    assert abs(moments(found, "precision")[0] - shape / rate) < error(found, "precision")
    assert abs(moments(found, "mean")[0] - n * mean / (n + 1)) < error(found, "mean")
    assert moments(found, "precision")[1] == pytest.approx(math.sqrt(shape) / rate, rel=0.1)
    assert found.posterior["mean"].dims == ("chain", "draw")
    assert found.log_likelihood["x"].shape == (2, 1000, 5)
    assert not found.sample_stats["diverging"].values.any()
    assert {"n_steps", "energy", "log_p"} <= set(found.sample_stats)


def test_the_density_is_that_of_the_program_and_of_the_change_of_variables():
    x = torch.randn(7, dtype=torch.float64)
    density = unconstrained(normal, x)
    at = torch.tensor([0.3, -0.7], dtype=torch.float64)
    names = list(density.parts)
    assert names == ["precision", "mean"]
    precision, mean = at[0].exp(), at[1]
    expected = dist.Gamma(2.0, 1.0).log_prob(precision) + at[0]
    scale = precision**-0.5
    expected += dist.Normal(0.0, scale).log_prob(mean) + dist.Normal(mean, scale).log_prob(x).sum()
    torch.testing.assert_close(density.at(at), expected)
    given = {"precision": precision, "mean": mean}
    torch.testing.assert_close(density.of(given), at)


def test_code_is_in_double_precision_whatever_the_program_is_in():
    density = Density(unconstrained(normal, torch.randn(50)), None)
    density.compile(chains=1)
    position = torch.tensor([0.5, 0.1], dtype=torch.float64)
    assert density.native is not None
    value, slope, latents = density.native(position)
    wanted, gradient = density.evaluate(position.numpy())
    assert value.item() == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(slope, gradient, rtol=1e-10)
    np.testing.assert_allclose(latents, [math.exp(0.5), 0.1], rtol=1e-12)


def test_a_support_that_depends_on_another_latent():
    r"""Uniform up to a width that is uniform itself: its mean is a quarter."""

    def model():
        width = pyro.sample("width", dist.Uniform(0.0, 1.0))
        pyro.sample("below", dist.Uniform(0.0, width))

    found = nuts(model, **FAST, target_accept=0.95)
    assert abs(moments(found, "below")[0] - 0.25) < 2 * error(found, "below")
    assert (found.posterior["below"] <= found.posterior["width"]).all()


def test_enumerated_latents_are_summed_out_and_drawn_afterwards():
    def mixture(x, size=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with data_plate(x, size):
            side = pyro.sample("side", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(mean + 4 * side, 1.0), obs=x)

    x = torch.tensor([0.1, -0.3, 4.2, 0.2, 0.4, 3.6, 0.0, -0.1])
    found = nuts(mixture, x, **FAST)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    rows = torch.stack(
        [dist.Normal(grid + 4 * k, 1.0).log_prob(x.double()[:, None]) for k in (0, 1)]
    )
    log = torch.tensor([0.7, 0.3], dtype=torch.float64).log()[:, None, None]
    density = (rows + log).logsumexp(0).sum(0) + dist.Normal(0.0, 3.0).log_prob(grid)
    weight = density.softmax(0)
    mean = (weight * grid).sum().item()
    assert abs(moments(found, "mean")[0] - mean) < error(found, "mean")
    assert found.posterior["side"].values.mean((0, 1)).round().tolist() == [0, 0, 1, 0, 0, 1, 0, 0]


def test_a_simplex_and_a_matrix():
    def model():
        weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 3.0, 5.0])))
        pyro.sample("factor", dist.LKJCholesky(3, 2.0))
        pyro.sample("count", dist.Multinomial(10, weights), obs=torch.tensor([1.0, 4.0, 5.0]))

    found = nuts(model, **FAST)
    np.testing.assert_allclose(
        found.posterior["weights"].mean(("chain", "draw")), [3 / 20, 7 / 20, 10 / 20], atol=0.02
    )
    assert found.posterior["factor"].shape == (2, 1000, 3, 3)


def test_it_starts_from_a_guide():
    x = torch.tensor([100.0, 101.0, 99.5])

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1000.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(x.mean(), 0.1))

    density = Density(unconstrained(model, x), torch.full((2, 1), 100.0).double())
    assert density.start(3).tolist() == [100.0]
    found = nuts(model, x, guide=guide, **FAST)
    assert abs(moments(found, "mean")[0] - 100.1667) < error(found, "mean")


def test_the_same_seed_gives_the_same_draws():
    x = torch.randn(20)
    first, second = (nuts(normal, x, **FAST).posterior["mean"].values for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_program_that_cannot_be_traced_runs_by_itself():
    def branches(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = 1.0 if mean.item() > 1e6 else 2.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    x = torch.tensor([1.0, 2.0])
    with pytest.warns(UserWarning, match="nuts: it runs eagerly, not compiled"):
        found = nuts(branches, x, draws=300, tune=100, chains=1, seed=0, progress=False)
    precision = 1 + 2 / 4
    assert abs(moments(found, "mean")[0] - 3 / 4 / precision) < error(found, "mean")


def test_a_density_that_is_finite_nowhere():
    def model():
        scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
        pyro.factor("never", -math.inf * scale.abs().ceil())

    with pytest.raises(ValueError, match="not finite at any of 100 positions"):
        nuts(model, **FAST)


def test_discrete_latents_without_an_end():
    def model():
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        pyro.sample("count", dist.Poisson(rate))

    with pytest.raises(ValueError, match="site 'count' is a discrete latent, Poisson"):
        nuts(model, **FAST)


def test_a_model_without_continuous_latents():
    with pytest.raises(ValueError, match="expected a model with continuous latents"):
        nuts(lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0)), **FAST)


def test_what_a_program_writes_into_is_followed():
    """Both ways of writing into a tensor in single precision, of its own or given to it."""
    given = torch.zeros(3)

    def model(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        mean = torch.zeros(3)
        for n in range(3):
            mean[n] = slope * (n + 1)
        part = given[1:]
        part += mean[1:]
        with pyro.plate("rows", 3):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            pyro.sample("y", dist.Normal(given, 1.0), obs=x)

    x = torch.tensor([1.0, 2.0, 3.0])
    density = Density(unconstrained(model, x), None)
    density.compile(chains=1)
    assert density.native is not None
    slope = torch.tensor([0.7], dtype=torch.float64)
    means = torch.stack([slope * torch.tensor([1.0, 2.0, 3.0]), slope * torch.tensor([0.0, 2, 3])])
    prior = dist.Normal(torch.zeros(1, dtype=torch.float64), 10.0)
    wanted = dist.Normal(means, 1.0).log_prob(x).sum() + prior.log_prob(slope).sum()
    assert density.evaluate(slope.numpy())[0] == pytest.approx(wanted.item(), rel=1e-12)
    assert density.native(slope)[0].item() == pytest.approx(wanted.item(), rel=1e-12)
    assert given.tolist() == [0, 0, 0]


def test_numbers_that_a_program_reads_off_its_data():
    """They are no reason to run eagerly, and those that depend on a latent are."""
    group = torch.tensor([0, 1, 2, 0, 1, 2])

    def model(x):
        with pyro.plate("groups", int(group.max()) + 1):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for n in pyro.plate("rows", 6):
            pyro.sample(f"x_{n}", dist.Normal(mean[group[n]], float(x.std())), obs=x[n])

    density = Density(unconstrained(model, torch.randn(6)), None)
    density.compile(chains=1)
    assert density.native is not None

    def hidden(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        kept = torch.zeros(2)
        with torch.no_grad():
            kept[1:].copy_(mean.expand(1))
        scale = 1.0 + (kept.sum() > 0).item()
        pyro.sample("x", dist.Normal(mean, scale).expand([6]).to_event(1), obs=x)

    density = Density(unconstrained(hidden, torch.randn(6)), None)
    with pytest.warns(UserWarning, match="nuts: it runs eagerly, not compiled"):
        density.compile(chains=1)


def test_a_latent_below_a_discrete_one():
    """Means of a mixture of two normals, of which the third datum says which it is."""

    def model(x):
        side = pyro.sample("side", dist.Bernoulli(0.5))
        mean = pyro.sample("mean", dist.Normal(4 * side, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    found = nuts(model, torch.tensor([1.0, 2.0, 3.0]), **FAST)
    assert abs(moments(found, "mean")[0] - 2.0) < error(found, "mean")  # between 0 and 4
    assert abs(found.posterior["side"].values.mean() - 0.5) < 0.1


@pytest.mark.filterwarnings("ignore:Singular sample")  # of draws of the prior
def test_positive_definite_matrices():
    def model():
        pyro.sample("matrix", dist.Wishart(torch.tensor(9.0), torch.eye(2) / 9))

    density = unconstrained(model)
    assert density.size == 3
    found = nuts(model, **FAST)
    mean = found.posterior["matrix"].values.mean((0, 1))
    np.testing.assert_allclose(mean, np.eye(2), atol=0.1)


def test_a_program_whose_code_goes_wrong_where_the_draws_are(monkeypatch):
    """Code that is compared at the start alone would be right there."""
    x, compared = torch.randn(10), []

    def differs(self, native, positions):
        compared.append(len(positions))
        return "its code has another density" if len(compared) == 2 else None

    monkeypatch.setattr(Density, "_difference", differs)
    with pytest.warns(UserWarning, match="runs eagerly, not compiled: its code has another"):
        found = nuts(normal, x, draws=40, tune=40, chains=2, seed=0, progress=False)
    assert compared == [3, 8]
    assert found.posterior["mean"].shape == (2, 40)


def test_an_interrupt_gives_no_draws(monkeypatch):
    """Not those until then, of which some only tune."""

    class Running:
        cancelled = False

        def wait(self):
            raise KeyboardInterrupt

        def cancel(self):
            Running.cancelled = True

    monkeypatch.setattr("nutpie.sample", lambda *_, **__: Running())
    with pytest.raises(KeyboardInterrupt):
        nuts(normal, torch.randn(3), **FAST)
    assert Running.cancelled


def test_latents_that_come_and_go():
    def by_value(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        if mean > 0.5:
            mean = mean + pyro.sample("more", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site.s. 'more' are latents of one run"):
        nuts(by_value, torch.tensor(2.0), **FAST)

    calls = []

    def by_count(x):
        calls.append(1)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        if len(calls) > 40:  # while it samples
            pyro.sample("more", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with (
        pytest.warns(UserWarning, match="runs eagerly"),
        pytest.raises(ValueError, match=r"site.s. 'more' are latents of one run"),
    ):
        nuts(by_count, torch.tensor(2.0), **FAST)


def test_a_support_that_depends_on_a_discrete_latent():
    def model():
        side = pyro.sample("side", dist.Bernoulli(0.5))
        pyro.sample("below", dist.Uniform(torch.zeros(()), 1.0 + side))

    with pytest.raises(ValueError, match="its support depends on a discrete latent"):
        nuts(model, **FAST)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dist.VonMises(0.0, 1.0), "a latent on a circle, VonMises"),
        (dist.Delta(torch.tensor(1.0)), "a latent at a single point"),
        (dist.Bernoulli(torch.full((3,), 0.5)).to_event(1), "a discrete latent, Bernoulli"),
        (dist.ProjectedNormal(torch.ones(3)), "whose support nobody has mapped"),
    ],
)
def test_latents_that_cannot_be_moved(wrong, message):
    def model():
        pyro.sample("free", dist.Normal(0.0, 1.0))
        pyro.sample("wrong", wrong)

    with pytest.raises(ValueError, match=f"nuts: site 'wrong' is {message}|{message}"):
        nuts(model, **FAST)


def test_an_improper_prior():
    def model(x):
        real = torch.distributions.constraints.real
        mean = pyro.sample("mean", dist.ImproperUniform(real, (), ()))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    found = nuts(model, torch.tensor([1.0, 2.0, 3.0]), **FAST)
    assert abs(moments(found, "mean")[0] - 2.0) < error(found, "mean")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dims": {"pair": ["a", "b"]}}, "dims: site 'pair' has 1 event dimension"),
        ({"coords": {"data": ["a"]}}, "coords: 'data' has 3 entries"),
    ],
)
def test_what_cannot_be_reported_is_said_before_the_first_step(given, message, monkeypatch):
    monkeypatch.setattr(Density, "compile", lambda *_: pytest.fail("it has begun"))

    def model(x, size=None):
        pyro.sample("pair", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        normal(x, size)

    with pytest.raises(ValueError, match=message):
        nuts(model, torch.randn(3), **FAST, **given)


def test_data_outside_of_their_support(monkeypatch):
    def model(x):
        logits = pyro.sample("logits", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)

    monkeypatch.setattr(Density, "compile", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(ValueError, match="outside the support of its Bernoulli"):
        nuts(model, torch.tensor([0.0, 1.0, 2.0]), **FAST)
    with pytest.raises(ValueError, match="not finite at any of 100 positions"):
        nuts(model, torch.tensor([0.0, 1.0, math.nan]), **FAST)


def test_an_error_of_the_program_is_not_taken_for_a_density():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(float(np.exp(mean.numpy())), 1.0), obs=x)

    with pytest.raises(ValueError, match="the model raised RuntimeError: Can't call numpy"):
        nuts(model, torch.tensor(2.0), **FAST)


def test_a_program_that_draws_by_itself():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 100, subsample_size=10) as rows:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    with pytest.raises(ValueError, match=r"counts 10 times|draws"):
        nuts(model, torch.randn(100), **FAST)


def test_a_guide_of_other_sites():
    with pytest.raises(ValueError, match="does not draw the site"):
        nuts(normal, torch.randn(3), guide=lambda x, size=None: None, **FAST)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"chains": 1.5}, {"target_accept": 1.0}])
def test_settings_that_are_none(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        nuts(normal, torch.randn(3), **FAST | wrong)
