"""Guides of Pyro that hold latents of rows in ways of their own: right, or refused with words."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import (
    AutoDiscreteParallel,
    AutoGaussian,
    AutoGuideList,
    AutoIAFNormal,
    AutoNormal,
    AutoStructured,
)
from torch import Tensor
from torch.distributions import constraints

from ppl_models import data_plate, elbo, from_pyro_svi, log_evidence, predict
from tests.support.conjugate import rows, shared
from tests.support.runs import quiet

pytestmark = pytest.mark.usefixtures("float64")

N = 10


def clusters(x=None, size=None):
    with data_plate(x, size):
        infer = {"enumerate": "parallel"}
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])), infer=infer)
        return pyro.sample("x", dist.Normal(2.0 * k - 1.0, 1.0), obs=x)


def data(n: int = N) -> Tensor:
    return torch.linspace(-3, 3, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]


class OfRows(EasyGuide):
    def guide(self, x=None, size=None):
        size = len(x) if size is None else size
        subsample = None if size == len(x) else torch.arange(len(x))
        with self.plate("data", size, subsample=subsample, dim=-1):
            loc = pyro.param("loc", lambda: torch.zeros(size), event_dim=0)
            pyro.sample("z", dist.Normal(loc, math.sqrt(0.2)))


class OfGroup(EasyGuide):
    """As in Pyro's own examples, without an argument `size`."""

    def guide(self, x):
        loc = pyro.param("loc", lambda: torch.zeros(1))
        scale = pyro.param("scale", lambda: torch.ones(1), constraints.positive)
        self.group("m").sample("group", dist.Normal(loc, scale).to_event(1))


def test_rows_of_an_easy_guide_keep_their_identity():
    x, guide = data(), OfRows(rows)
    quiet(elbo(rows, guide), x, epochs=300, batch_size=4, lr=0.05, seed=0)
    means = from_pyro_svi(rows, guide, x, num_samples=300, seed=0)["posterior"]["z"].mean(
        ("chain", "draw")
    )
    assert torch.corrcoef(torch.stack([torch.tensor(means.values), x]))[0, 1] > 0.99
    truth = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x)
    found = log_evidence(rows, guide, x, num_samples=500, seed=0)
    assert found.value.sum().item() == pytest.approx(truth.sum().item(), abs=0.1)
    with pytest.raises(ValueError, match="has the latents 'z' of the rows"):
        predict(rows, guide, x + 5, num_samples=3)


def test_an_easy_guide_takes_what_it_is_written_to_take():
    x, guide = data(), OfGroup(shared)
    quiet(elbo(shared, guide), x, epochs=600, batch_size=4, lr=0.02, seed=0)
    truth = dist.MultivariateNormal(torch.zeros(N), torch.eye(N) + 9.0).log_prob(x).item()
    found = log_evidence(shared, guide, x, num_samples=500, seed=0)
    assert found.value.item() == pytest.approx(truth, abs=0.05)


def test_an_error_leaves_no_plate_of_an_easy_guide_behind():
    x, guide = data(), OfRows(rows)
    quiet(elbo(rows, guide), x, epochs=1, batch_size=4)
    for other in (x[:3], torch.cat([x, x])):
        with pytest.raises(ValueError, match=r"invalid shape of pyro\.param"):
            log_evidence(rows, guide, other, num_samples=3)
    assert log_evidence(rows, guide, x, num_samples=3).value.shape == (N,)


def listed(model) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["z"])))
    return guide


def test_a_list_of_guides_is_whole_after_it_was_copied():
    """Pyro's copy takes the parts of the original from under it."""
    x, guide = data(), listed(rows)
    quiet(elbo(rows, guide), x, epochs=2, batch_size=4, lr=0.1)
    before = log_evidence(rows, guide, x, num_samples=4, seed=0).value
    for one in (copy.deepcopy(guide), guide):
        assert torch.equal(log_evidence(rows, one, x, num_samples=4, seed=0).value, before)
        quiet(elbo(rows, one), x, epochs=1, batch_size=4)


def in_list(model) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoDiscreteParallel(model))
    return guide


@pytest.mark.parametrize("make", [AutoDiscreteParallel, in_list])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_probabilities_of_a_first_batch_are_of_no_other_rows(make, batch_size):
    """With batches of one length they were taken for those of any rows."""
    with pytest.raises(ValueError, match=r"AutoDiscreteParallel: .*batch_size=None"):
        quiet(elbo(clusters, make(clusters)), data(12), epochs=2, batch_size=batch_size)


def test_discrete_guides_of_the_whole_data_reach_the_evidence():
    x, guide = data(), AutoDiscreteParallel(clusters)
    quiet(elbo(clusters, guide), x, epochs=400, lr=0.05, seed=0)
    weighed = [dist.Normal(c, 1.0).log_prob(x) + math.log(p) for c, p in ((-1, 0.4), (1, 0.6))]
    truth = torch.logaddexp(*weighed)
    assert -elbo(clusters, guide).loss(x).item() == pytest.approx(truth.mean().item(), abs=0.01)
    found = log_evidence(clusters, guide, x, num_samples=500, seed=0)
    assert found.value.sum().item() == pytest.approx(truth.sum().item(), abs=0.05)


@pytest.mark.parametrize("make", [AutoStructured, AutoGaussian, AutoIAFNormal])
def test_guides_of_all_rows_at_once_say_why_they_take_no_minibatch(make):
    with pytest.raises(ValueError, match=r"Auto\w+: it holds the latents.*batch_size=None"):
        quiet(elbo(rows, make(rows)), data(12), epochs=1, batch_size=4)
