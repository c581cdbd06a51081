"""Densities whose terms are too large for float32: refused, with what to write."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy import stats

from guides import AmortizedNormal
from ppl_models import VAE, PoissonMixture, data_plate, from_pyro_svi, log_evidence
from ppl_models.infer.trials.precision import in_float64
from ppl_models.likelihoods import Bernoulli, Categorical, LogisticMixture, Normal
from tests.support.oracles import binary

COUNT = 1e6
LARGE = {
    "NegativeBinomial": lambda t: (dist.NegativeBinomial(t(COUNT), t(0.5)), 1.0, None),
    "GammaPoisson": lambda t: (dist.GammaPoisson(t(COUNT), t(1.0)), 1.0, None),
    "Poisson": lambda t: (dist.Poisson(t(COUNT)), 1.0, stats.poisson(COUNT)),
    "Binomial": lambda t: (dist.Binomial(t(2 * COUNT), t(0.5)), 1.0, None),
    "BetaBinomial": lambda t: (dist.BetaBinomial(t(COUNT), t(COUNT), t(2 * COUNT)), 1.0, None),
    "Gamma": lambda t: (dist.Gamma(t(COUNT), t(1.0)), 1.0, stats.gamma(COUNT)),
    "Beta": lambda t: (dist.Beta(t(COUNT), t(COUNT)), 0.5 / COUNT, stats.beta(COUNT, COUNT)),
}
FACTS = {
    "NegativeBinomial": stats.nbinom(COUNT, 0.5),
    "GammaPoisson": stats.nbinom(COUNT, 0.5),
    "Binomial": stats.binom(2 * COUNT, 0.5),
    "BetaBinomial": stats.betabinom(2 * COUNT, COUNT, COUNT),
}


def model_of(make, dtype, shared=False):
    def model(x, size=None):
        if shared:
            pyro.sample("loc", dist.Normal(x.new_zeros(()), 1.0))
        with data_plate(x, size):
            pyro.sample("x", make(lambda number: torch.tensor(number, dtype=dtype))[0], obs=x)

    return model


@pytest.mark.parametrize("name", LARGE)
def test_large_numbers_are_refused_in_float32_and_right_in_float64(name):
    make = LARGE[name]
    _, unit, truth = make(torch.tensor)
    truth = truth or FACTS[name]
    x = torch.tensor([3e-3, 0.0, -1e-3, 7e-4], dtype=torch.float64).add(1.0).mul(COUNT * unit)
    x = x.round() if unit == 1.0 else x.float().double()
    log_prob = getattr(truth, "logpmf", None) if name not in ("Gamma", "Beta") else truth.logpdf
    expected = torch.from_numpy(log_prob(x.numpy()))
    found = log_evidence(model_of(make, torch.float64), None, x)
    torch.testing.assert_close(found.value, expected, atol=1e-3, rtol=1e-5)
    with pytest.raises(ValueError, match=rf"site 'x': .* of its {name} is .*float64.*\.double\(\)"):
        log_evidence(model_of(make, torch.float32), None, x.float())
    with pytest.raises(ValueError, match=r"site 'x': .*\.double\(\)"):
        from_pyro_svi(model_of(make, torch.float32), None, x.float(), num_samples=3)


def test_large_numbers_that_are_masked_are_no_alarm():
    x = torch.tensor([3.0, COUNT, 5.0])

    def model(x, size=None):
        with data_plate(x, size), poutine.mask(mask=x < 10):
            pyro.sample("x", dist.Poisson(x + 0.5), obs=x)

    found = log_evidence(model, None, x).value
    expected = dist.Poisson(x + 0.5).log_prob(x).double()
    torch.testing.assert_close(found, expected * torch.tensor([1.0, 0.0, 1.0]))


def test_the_sum_over_many_rows_keeps_its_digits():
    def model(x, size=None):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x, size=None):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.zeros(300_001)
    found = log_evidence(model, guide, x, num_samples=1)
    each = dist.Normal(0.0, 1.0).log_prob(x[0]).item()
    assert found.value.item() == pytest.approx(300_001 * each, abs=1e-6, rel=0)


def test_a_row_that_is_not_among_the_first():
    make = LARGE["Poisson"]
    x = torch.full((50,), COUNT)
    x[:-1] = 3.0

    def model(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", dist.Poisson(x + 0.5), obs=x)

    for batch_size in (7, 4096):
        with pytest.raises(ValueError, match=r"of its Poisson is"):
            log_evidence(model, None, x, batch_size=batch_size)
    assert make(torch.tensor)[0].log_prob(torch.tensor(3.0)) < 0


def test_with_latents_that_all_rows_share():
    model = model_of(LARGE["NegativeBinomial"], torch.float32, shared=True)
    with pytest.raises(ValueError, match=r"of its NegativeBinomial is"):
        log_evidence(model, AutoNormal(model), torch.full((5,), COUNT), num_samples=30)


@pytest.mark.parametrize("count", [1.0, 30.0, 3000.0])
@pytest.mark.parametrize("name", LARGE)
def test_ordinary_numbers_pass(name, count):
    def model(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", dist.NegativeBinomial(torch.tensor(count), torch.tensor(0.5)), obs=x)
            pyro.sample("y", dist.Poisson(torch.tensor(count)), obs=x)

    x = torch.tensor([0.9, 1.0, 1.1]).mul(count).round()
    truth = stats.nbinom(count, 0.5).logpmf(x.numpy()) + stats.poisson(count).logpmf(x.numpy())
    found = log_evidence(model, None, x)
    torch.testing.assert_close(found.value, torch.from_numpy(truth), atol=2e-2, rtol=0.0)


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Normal(), Categorical(2), LogisticMixture(2, 2)]
)
def test_the_float64_of_a_density_is_that_of_its_parameters(likelihood):
    vae, x = VAE(4, 2, likelihood), binary(9)
    trace = pyro.poutine.trace(vae).get_trace(x)
    fn = trace.nodes["x"]["fn"]
    with torch.no_grad():
        before, better = fn.log_prob(x), in_float64(fn, x)
        assert fn.log_prob(x).dtype == torch.float32  # it keeps nothing of it
    if better is not None:
        torch.testing.assert_close(better, before.double(), atol=1e-5, rtol=1e-5)
    assert log_evidence(vae, AmortizedNormal(4, 2), x, num_samples=3).value.dtype == torch.float64


def test_counts_of_a_mixture():
    model = PoissonMixture(1, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.log(COUNT))
    x = torch.full((5, 1), COUNT)
    for method in ("auto", "importance"):
        with pytest.raises(ValueError, match=r"is -?\d.* in float32 and .*\.double\(\)"):
            log_evidence(model, None, x, method=method)
    found = log_evidence(model.double(), None, x.double())
    expected = torch.full((5,), stats.poisson(COUNT).logpmf(COUNT), dtype=torch.float64)
    torch.testing.assert_close(found.value, expected, atol=1e-3, rtol=0.0)
