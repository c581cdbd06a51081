"""Pseudo-likelihoods of a program that nothing else knows: an Ising chain of three spins."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from ppl_models import data_plate, elbo, from_pyro_svi, log_evidence, log_predictive

EVERY = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # (8, 3)


class Spins(dist.TorchDistribution):
    """Each spin given its neighbours on the chain, with a strength that is a parameter."""

    is_pseudo_likelihood = True
    arg_constraints = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, strength, batch_shape=(), leak=0.0):
        self.strength, self.leak = strength, leak
        super().__init__(torch.Size(batch_shape), torch.Size([3]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.strength, batch_shape, self.leak)

    def log_conditionals(self, value, given):
        signs = 2 * given - 1
        field = signs.roll(1, -1) * torch.tensor([0.0, 1.0, 1.0])
        field = field + signs.roll(-1, -1) * torch.tensor([1.0, 1.0, 0.0])
        logits = 2 * self.strength * field + self.leak * given
        return dist.Bernoulli(logits=logits).log_prob(value)

    def log_prob(self, value):
        return self.log_conditionals(value, value).sum(-1)


def program(**settings):
    def model(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", Spins(torch.tensor(0.7), **settings), obs=x)

    return model


def test_the_conditionals_are_those_of_the_chain():
    """By its joint distribution, exp(strength * (s1 s2 + s2 s3)) / Z, over all rows."""
    s = 2 * EVERY - 1
    joint = (0.7 * (s[:, 0] * s[:, 1] + s[:, 1] * s[:, 2])).softmax(0)
    expected = torch.zeros(8)
    for i in range(3):
        flipped = EVERY.clone()
        flipped[:, i] = 1 - flipped[:, i]
        other = joint[(flipped @ torch.tensor([4.0, 2.0, 1.0])).long()]
        expected += (joint / (joint + other)).log()
    evidence = log_evidence(program(), None, EVERY)
    assert evidence.kind == "pseudo-likelihood"
    torch.testing.assert_close(evidence.value.float(), expected)
    assert evidence.value.exp().sum() > 1.5  # over all rows: it is no density
    torch.testing.assert_close(elbo(program()).loss(EVERY), -expected.mean())


def test_an_entry_that_foresees_itself_is_found():
    with pytest.raises(ValueError, match="site 'x': the conditional of entry 0 depends on"):
        log_evidence(program(leak=1.0), None, EVERY)


def test_what_has_not_finitely_many_values_cannot_be_tried():
    class Real(Spins):
        support = constraints.real_vector

    def model(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", Real(torch.tensor(0.7)), obs=x)

    with pytest.raises(ValueError, match="over all values of an entry"):
        log_evidence(model, None, EVERY[:1])


def test_what_does_not_say_so_is_exact():
    class Silent(Spins):
        is_pseudo_likelihood = False

    def model(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", Silent(torch.tensor(0.7)), obs=x)

    assert log_evidence(model, None, EVERY).kind == "exact"


def test_they_are_no_densities_of_rows():
    """`az.loo` would take them for such, and so would whoever compares models by new rows."""

    class Drawn(Spins):
        def sample(self, sample_shape=()):  # any rows: no number here depends on them
            return torch.zeros(self._extended_shape(torch.Size(sample_shape)))

    def model(x, size=None):
        strength = pyro.sample("strength", dist.Normal(0.7, 0.1))
        with data_plate(x, size):
            pyro.sample("x", Drawn(strength), obs=x)

    def guide(x, size=None):
        pyro.sample("strength", dist.Normal(0.7, 0.1))

    with pytest.raises(ValueError, match=r"log_predictive: site\(s\) 'x' are pseudo-likelihoods"):
        log_predictive(model, guide, EVERY)
    with pytest.warns(UserWarning, match=r"does not hold the site\(s\) 'x', pseudo-likelihoods"):
        data = from_pyro_svi(model, guide, EVERY, num_samples=5)
    assert "log_likelihood" not in data
    assert log_evidence(model, guide, EVERY, num_samples=5).kind == "pseudo-likelihood"
