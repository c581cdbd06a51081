"""Errors that say the cause: data on the edge of a support, and a forgotten `.to_event(1)`."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit, from_pyro_svi, log_evidence
from ppl_models.likelihoods import Normal
from ppl_models.plates import data_plate

pytestmark = pytest.mark.filterwarnings("ignore:Encountered")  # Pyro's own, of its first run


def model_of(family):
    def model(x=None, size=None):
        a = pyro.sample("a", dist.Gamma(3.0, 1.0))
        with data_plate(x, size):
            return pyro.sample("x", family(a), obs=x)

    return model


def spoiled(value, row=5, features=()):
    x = torch.linspace(0.2, 0.8, 20)
    x = x[:, None].repeat(1, *features) if features else x
    x[row] = value
    return x


SIMPLEX = torch.tensor([0.0, 0.5, 0.5])
ON_THE_EDGE = [  # the family, and a value
    (lambda a: dist.Beta(a, 2.5), 0.0),
    (lambda a: dist.Beta(2.5, a), 1.0),
    (lambda a: dist.Gamma(a + 1.0, 1.0), 0.0),
    (lambda a: dist.Chi2(a + 3.0), 0.0),
    (lambda a: dist.Uniform(0.0, 1.0 + 0 * a), 1.0),
    (lambda a: dist.Kumaraswamy(a + 1.0, 2.0), 1.0),
]


def refused(model, x, message):
    guide = AutoNormal(model)
    guide(x[:2].clamp(0.2, 0.8), size=len(x))
    for call in (
        lambda: fit(elbo(model, AutoNormal(model)), x, epochs=1, batch_size=4, progress=False),
        lambda: fit(elbo(model, AutoNormal(model)), x, epochs=1, progress=False),
        lambda: log_evidence(model, guide, x, num_samples=3),
        lambda: from_pyro_svi(model, guide, x, num_samples=3),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "Try" in str(caught.value)
        assert "lr" not in str(caught.value)


@pytest.mark.parametrize(("family", "value"), ON_THE_EDGE)
def test_data_on_an_edge_without_a_density(family, value):
    message = (
        rf"site 'x': 1 of 20 rows lie on the edge of .* such as {value:g}, where .* (-?inf|nan)"
    )
    refused(model_of(family), spoiled(value), message)


def test_a_zero_in_a_simplex():
    def family(a):
        return dist.Dirichlet(a + torch.ones(3))

    x = torch.full((20, 3), 1 / 3)
    x[5] = SIMPLEX
    refused(model_of(family), x, r"1 of 20 rows lie on the edge of the support of its Dirichlet")


def test_an_edge_in_the_features_of_a_row():
    def family(a):
        return dist.Beta(a + torch.ones(3), 2.0).to_event(1)

    x = spoiled(0.0, features=(3,))
    x[7, 2] = 0.0
    refused(model_of(family), x, r"2 of 20 rows lie on the edge .* Beta .*, such as 0, where")


@pytest.mark.parametrize(
    ("family", "value"),
    [
        (lambda a: dist.Exponential(a), 0.0),
        (lambda a: dist.HalfCauchy(a), 0.0),
        (lambda a: dist.HalfNormal(a), 0.0),
        (lambda a: dist.Uniform(0.0, 1.0 + 0 * a), 0.0),
        (lambda a: dist.Beta(1.0 + 0 * a, 1.0), 1.0),
        (lambda a: dist.ContinuousBernoulli(0.3 + 0 * a), 0.0),
        (lambda a: dist.Poisson(a), 0.0),
        (lambda a: dist.Bernoulli(0.4 + 0 * a), 1.0),
    ],
)
def test_an_edge_with_a_density_is_taken(family, value):
    model, x = model_of(family), spoiled(value)
    x = x.round() if family(torch.ones(())).support.is_discrete else x
    guide = AutoNormal(model)
    guide(x)
    assert log_evidence(model, guide, x, num_samples=2, seed=0).value.isfinite().all()


def test_masked_rows_may_lie_there():
    def model(x=None, size=None):
        a = pyro.sample("a", dist.Gamma(3.0, 1.0))
        with data_plate(x, size), pyro.poutine.mask(mask=x > 0):
            return pyro.sample("x", dist.Gamma(a + 1.0, 1.0), obs=x)

    run = fit(elbo(model, AutoNormal(model)), spoiled(0.0), epochs=1, progress=False)
    assert len(run.history["loss"]) == 1


def test_no_number_is_infinite_or_undefined():
    """An edge that a first run does not show: an infinite density of draws to come."""

    def model(x=None, size=None):
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.factor("f", torch.where(a.abs() > 1e-3, torch.inf, 0.0))

    guide, x = AutoNormal(model), torch.zeros(4)
    guide(x)
    with pytest.raises(FloatingPointError, match=r"1 of 1 values are inf. In a first run, the fir"):
        log_evidence(model, guide, x, num_samples=5)


def features(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m + torch.zeros(784), 1.0), obs=x)


def latent(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0))
        return pyro.sample("x", dist.Normal(z.sum(-1, True), 1.0).to_event(1), obs=x)


def test_a_forgotten_event_is_named():
    x = torch.zeros(50, 784)
    found = r"the plate 'data' holds 50 entries along dimension -1 .* has 784 there"
    message = rf"site 'x': {found}.*Try .*to_event\(1\)"
    with pytest.raises(ValueError, match=message) as caught:
        fit(elbo(features, AutoNormal(features)), x, epochs=1, progress=False)
    assert "Trace Shapes" not in str(caught.getrepr(style="short", chain=True))
    assert "(50, 784)" in caught.value.__notes__[0]
    for call in (log_evidence, from_pyro_svi):
        with pytest.raises(ValueError, match=message):
            call(features, AutoNormal(features), x)
    with pytest.raises(ValueError, match=r"site 'z': the plate 'data' holds 50 .* has 8 there"):
        fit(elbo(latent, AmortizedNormal(784, 8)), x, epochs=1, progress=False)


def test_no_error_of_a_program_shows_pyros_tables():
    def broken(x=None, size=None):
        with data_plate(x, size):
            raise RuntimeError("a network of the user's")

    x = torch.zeros(5, 3)
    for call in (
        lambda: fit(elbo(broken), x, epochs=1, progress=False),
        lambda: log_evidence(broken, None, x),
    ):
        with pytest.raises(
            RuntimeError, match=r"in broken\(.*\): a network of the user's\n"
        ) as caught:
            call()
        assert "Trace Shapes" not in str(caught.getrepr(style="long", chain=True))
        assert any(
            "in broken" in str(entry) or entry.name == "broken" for entry in caught.traceback
        )


def test_the_first_loss_is_not_blamed_on_the_learning_rate():
    vae = VAE(3, 2, Normal())
    with torch.no_grad():
        vae.likelihood.log_scale.fill_(200.0)
    with pytest.raises(FloatingPointError, match=r"Try other data, or initial values"):
        fit(elbo(vae, AmortizedNormal(3, 2)), torch.zeros(5, 3), epochs=1, progress=False)
