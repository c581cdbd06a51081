"""The log predictive density of new rows: a closed form first, then what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import Normal

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, log_predictive


def model(x=None, size=None):
    """A mean that all rows share, with known noise."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 0.5), obs=x)


def guide(x=None, size=None):
    """Any: here it is what was learned."""
    pyro.sample("loc", dist.Normal(torch.tensor(0.7).double(), 0.2))


def test_it_is_the_density_with_the_shared_latents_integrated_out():
    new = torch.tensor([0.7, -0.5, 2.5]).double()
    found = log_predictive(model, guide, new, num_samples=20_000, seed=0)
    expected = Normal(0.7, math.hypot(0.2, 0.5)).log_prob(new)
    error = found.row_variance.sqrt()
    assert ((found.value - expected).abs() < 4 * error).all()
    assert error.max() < 0.02
    assert (found.kind, found.num_rows) == ("estimate", 3)
    assert str(found).startswith("log predictive density ")
    assert "20000 draws" in str(found)
    assert found.standard_error == pytest.approx(found.value.std().item() / math.sqrt(3))


def test_each_row_is_predicted_by_itself():
    new = torch.linspace(-1, 2, 5).double()
    together = log_predictive(model, guide, new, num_samples=300, seed=0).value
    alone = [log_predictive(model, guide, x[None], num_samples=300, seed=0).value for x in new]
    torch.testing.assert_close(together, torch.cat(alone))


def test_enumerated_latents_of_rows_are_summed_over():
    def mixture(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 1.0))
        with data_plate(x, size):
            probs = torch.tensor(0.3).double()
            sign = pyro.sample("sign", dist.Bernoulli(probs), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(loc + 3 * sign, 0.5), obs=x)

    new = torch.tensor([0.5, 3.0, 1.9]).double()
    found = log_predictive(mixture, guide, new, num_samples=20_000, seed=0)
    laws = [Normal(0.7 + 3 * sign, math.hypot(0.2, 0.5)) for sign in (0, 1)]
    density = [p * law.log_prob(new).exp() for p, law in zip((0.7, 0.3), laws, strict=True)]
    torch.testing.assert_close(found.value, sum(density).log(), atol=0.03, rtol=0)


def test_a_guide_that_infers_rows_is_refused():
    with pytest.raises(ValueError, match=r"site.s. 'z' belong to single rows.*Try log_evidence"):
        log_predictive(VAE(4, 2), AmortizedNormal(4, 2), torch.ones(3, 4))


def test_rows_that_depend_on_each_other_are_refused():
    def chain(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 1.0))
        return pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(ValueError, match="is not one of single rows"):
        log_predictive(chain, guide, torch.ones(3).double())


def test_rows_that_were_not_observed_are_refused():
    """The density of a row that a mask leaves out is one, whatever the guide has learned."""

    def masked(x, mask, size=None):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 1.0))
        with data_plate(x, size), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x)

    def learned(x, mask, size=None):
        guide()

    new, every = torch.tensor([0.7, -0.5, 2.5]).double(), torch.ones(3).bool()
    found = log_predictive(masked, learned, new, every, num_samples=10, seed=0)
    same = log_predictive(model, guide, new, num_samples=10, seed=0)
    torch.testing.assert_close(found.value, same.value)
    with pytest.raises(ValueError, match="a mask leaves out 1 of 3 entries of 'x'"):
        log_predictive(masked, learned, new, every.index_fill(0, torch.tensor(1), False))


def test_a_likelihood_in_part_is_refused():
    """Censored data, whose probability is a factor."""

    def censored(x, size=None):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 1.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x)
            pyro.factor("beyond", torch.where(x > 2, -1.0, 0.0).double())

    with pytest.raises(ValueError, match=r"pyro.factor site\(s\) 'beyond' lie in the plates"):
        log_predictive(censored, guide, torch.tensor([0.7, 2.5]).double())
