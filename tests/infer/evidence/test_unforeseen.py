"""Programs that nobody wrote for this library: each with its number on paper."""

import math

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from ppl_models import data_plate, elbo, from_pyro_svi, log_evidence
from ppl_models.infer.evidence.impute import impute

pytestmark = pytest.mark.usefixtures("float64")

NAN = math.nan


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


class Case:
    """A model, a guide that is the posterior, data, and their log evidence."""

    guide = None

    def data(self):
        return (numbers(0.3, -1.2, 2.0, 0.7, 1.1),)


class Censored(Case):
    """Times until an event, of which some were only seen not to have come."""

    def data(self):
        return numbers(0.5, 1.0, 2.0, 3.0), torch.tensor([False, False, True, True])

    def model(self, time, censored, size=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with data_plate(time, size):
            density = dist.Exponential(rate).log_prob(time)
            pyro.factor("time", torch.where(censored, -rate * time, density))

    def guide(self, time, censored, size=None):
        pyro.sample("rate", dist.Gamma(4.0, 7.5))

    def evidence(self):
        return math.lgamma(4) - 4 * math.log(7.5)


class Events(Case):
    """Events of a Poisson process: what is between them is a factor of all."""

    def model(self, time, size=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.factor("between", -rate)
        with data_plate(time, size):
            pyro.factor("event", rate.log() + 0 * time)

    def guide(self, time, size=None):
        pyro.sample("rate", dist.Gamma(7.0, 2.0))

    def evidence(self):
        return math.lgamma(7) - 7 * math.log(2)


class Improper(Case):
    """A flat prior has an evidence, too, in units of it."""

    def model(self, x, size=None):
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(self, x, size=None):
        pyro.sample("mean", dist.Normal(x.mean(), 5**-0.5))

    def evidence(self):
        (x,) = self.data()
        spread = (x - x.mean()).square().sum().item()
        return -2 * math.log(2 * math.pi) - spread / 2 - math.log(5) / 2


class Crossed(Case):
    """Effects of two groupings that cross, integrated out by their joint posterior."""

    def data(self):
        left, right = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 0])
        return left, right, numbers(0.1, 0.5, -0.3, 0.2, 1.0)

    def model(self, left, right, y=None, size=None):
        with pyro.plate("left", 3):
            u = pyro.sample("u", dist.Normal(0.0, 0.7))
        with pyro.plate("right", 2):
            v = pyro.sample("v", dist.Normal(0.0, 0.5))
        with data_plate(left, size):
            pyro.sample("y", dist.Normal(u[left] + v[right], 0.4), obs=y)

    def guide(self, left, right, y=None, size=None):
        design = torch.cat([torch.eye(3)[left], torch.eye(2)[right]], 1)
        prior = numbers(0.49, 0.49, 0.49, 0.25, 0.25).reciprocal().diag()
        precision = prior + design.T @ design / 0.16
        mean = torch.linalg.solve(precision, design.T @ y / 0.16)
        joint = dist.MultivariateNormal(mean, precision_matrix=precision)
        both = pyro.sample("both", joint, infer={"is_auxiliary": True})
        with pyro.plate("left", 3):
            pyro.sample("u", dist.Delta(both[:3]))
        with pyro.plate("right", 2):
            pyro.sample("v", dist.Delta(both[3:]))

    def evidence(self):
        left, right, y = self.data()
        same = 0.49 * (left[:, None] == left) + 0.25 * (right[:, None] == right)
        covariance = same + 0.16 * torch.eye(5)
        return dist.MultivariateNormal(torch.zeros(5), covariance).log_prob(y).item()


class ChangePoint(Case):
    """The step at which a mean changes, summed over."""

    def model(self, x, size=None):
        steps = len(x)
        change = pyro.sample(
            "change", dist.Categorical(torch.ones(steps)), infer={"enumerate": "parallel"}
        )
        with data_plate(x, size):
            mean = torch.where(torch.arange(steps) < change, 0.0, 1.0)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def evidence(self):
        (x,) = self.data()
        before, after = (dist.Normal(mean, 1.0).log_prob(x) for mean in (0.0, 1.0))
        each = [before[:n].sum() + after[n:].sum() for n in range(len(x))]
        return torch.stack(each).logsumexp(0).item() - math.log(len(x))


class Labels(Case):
    """Rows with labels in one plate, and rows without in another."""

    def data(self):
        known = torch.tensor([True, False, True, False, True])
        return *super().data(), numbers(0, 1, 1, 0, 1), known

    def model(self, x, label, known):
        with pyro.plate("known", int(known.sum())):
            k = pyro.sample("k", dist.Bernoulli(0.3), obs=label[known])
            pyro.sample("x", dist.Normal(2 * k, 1.0), obs=x[known])
        with pyro.plate("unknown", int((~known).sum())):
            k = pyro.sample("k_", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x_", dist.Normal(2 * k, 1.0), obs=x[~known])

    def evidence(self):
        x, label, known = self.data()
        log_prob = torch.stack([dist.Normal(2 * k, 1.0).log_prob(x) for k in (0.0, 1.0)], 1)
        log_prob = log_prob + numbers(0.7, 0.3).log()
        given = log_prob.gather(1, label.long()[:, None])[:, 0]
        return torch.where(known, given, log_prob.logsumexp(1)).sum().item()


class Process(Case):
    """A Gaussian process of `pyro.contrib.gp`, which holds its rows itself."""

    def __init__(self):
        kernel = gp.kernels.RBF(1, torch.tensor(1.0), torch.tensor(0.3))
        self.process = gp.models.GPRegression(*self.data(), kernel, torch.tensor(0.1), jitter=0)

    def data(self):
        x = torch.linspace(0, 1, 5)
        return x, (6 * x).sin()

    def model(self, x, y):
        self.process.set_data(x, y)
        return self.process.model()

    def evidence(self):
        x, y = self.data()
        covariance = (-0.5 * ((x[:, None] - x) / 0.3).square()).exp() + 0.1 * torch.eye(5)
        return dist.MultivariateNormal(torch.zeros(5), covariance).log_prob(y).item()


class Uneven(Case):
    """Sequences of uneven length, of hidden states, masked beyond their ends."""

    moves, locs = numbers(0.8, 0.2, 0.3, 0.7).reshape(2, 2), numbers(-1, 1)

    def data(self):
        return numbers(*range(12)).reshape(3, 4).sin(), torch.tensor([4, 2, 3])

    def model(self, x, length, size=None):
        with data_plate(x, size):
            z: torch.Tensor | int = 0
            for t in pyro.markov(range(int(length.max()))):
                with poutine.mask(mask=t < length):
                    z = pyro.sample(
                        f"z_{t}", dist.Categorical(self.moves[z]), infer={"enumerate": "parallel"}
                    )
                    pyro.sample(f"x_{t}", dist.Normal(self.locs[z], 1.0), obs=x[:, t])

    def evidence(self):
        total = 0.0
        for x, length in zip(*self.data(), strict=True):
            forward = self.moves[0].log()
            for t in range(length):
                forward = (forward[:, None] + self.moves.log()).logsumexp(0) if t else forward
                forward = forward + dist.Normal(self.locs, 1.0).log_prob(x[t])
            total += forward.logsumexp(0).item()
        return total


CASES = [Censored, Events, Improper, Crossed, ChangePoint, Labels, Process, Uneven]


@pytest.mark.filterwarnings("ignore:log_likelihood. it does not hold")
@pytest.mark.parametrize("kind", CASES)
def test_its_number_is_that_on_paper(kind):
    case = kind()
    data, expected = case.data(), pytest.approx(case.evidence())
    evidence = log_evidence(case.model, case.guide, *data, num_samples=20)
    assert evidence.value.sum().item() == expected
    assert evidence.mean * len(data[0]) == expected
    assert evidence.kind == ("exact" if case.guide is None else "lower bound")
    loss = elbo(case.model, case.guide).loss(*data)
    assert -loss.item() * len(data[0]) == expected
    stats = from_pyro_svi(case.model, case.guide, *data, num_samples=3)["sample_stats"]
    assert (stats["log_p"] - stats["log_q"]).values == expected


class NotAtRandom(nn.Module):
    """Whether an entry is missing depends on it; what is observed first has the shape of rows."""

    missing = "marginalise"

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x, size=None):
        there = ~x.isnan()
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("there", dist.Bernoulli(logits=z).to_event(1), obs=there.double())
            entries = dist.Normal(9.0 + z, 0.1).mask(there).to_event(1)
            pyro.sample("x", entries, obs=x.nan_to_num() * self.scale)


def of_entries(x, size=None):
    with data_plate(x, size):
        z = torch.where(x.isnan(), 0.0, x - 9)
        pyro.sample("z", dist.Normal(z, 1.0).to_event(1))


def test_missing_entries_are_drawn_from_the_site_of_the_rows():
    x = numbers(9.5, NAN, 8.0, NAN, NAN, NAN).reshape(3, 2)
    drawn = impute(NotAtRandom(), of_entries, x, 4000, num_particles=2000, seed=0)
    z = torch.linspace(-9, 9, 2001)
    weight = (-z.square() / 2).exp() * torch.sigmoid(-z)  # of an entry that is missing
    mean = 9 + ((z * weight).sum() / weight.sum()).item()
    assert drawn[..., x.isnan()].mean(0).tolist() == pytest.approx([mean] * 4, abs=0.1)


@pytest.mark.parametrize("scale", [0.1, 0.0])
def test_rows_in_other_units_are_not_taken_for_rows(scale):
    x = numbers(9.5, NAN, 8.0, NAN).reshape(2, 2)
    with pytest.raises(ValueError, match=r"one site of the model that observes the rows.*got none"):
        impute(NotAtRandom(scale), of_entries, x, 3)


def test_two_sites_of_the_same_rows_are_refused():
    x = numbers(1.0, NAN, 1.0, NAN).reshape(2, 2)  # as large as the truth that it is there
    with pytest.raises(ValueError, match="got 'there', 'x'"):
        impute(NotAtRandom(), of_entries, x, 3)
