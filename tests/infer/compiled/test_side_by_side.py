"""Draws side by side: where that does not give what draws give alone, they run one by one."""

import math
import random
import warnings
from collections import deque
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_models import (
    data_plate,
    from_pyro_svi,
    log_evidence,
)
from ppl_models.infer.compiled import side_by_side
from ppl_models.processes import ALONE, Turns
from tests.support.draws import COUNTS, Y, counts, counts_guide, log_joint, values

pytestmark = pytest.mark.usefixtures("float64")
ALONE_HERE = Turns(ALONE, "an evaluation", torch.device("cpu"))


def on_a_value(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = 1.0 if loc > 0 else 2.0
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, scale), obs=x)


def by_item(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(float(loc) * 2, 1.0), obs=x)


def through_numpy(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(torch.as_tensor(np.abs(loc.numpy())), 1.0), obs=x)


class Coupled(torch.autograd.Function):
    """An operation whose rule for many draws takes their mean."""

    @staticmethod
    def forward(value):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, value):
        return value.mean(in_dims[0], keepdim=True).expand_as(value), in_dims[0]


def coupled(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(Coupled.apply(loc), 1.0), obs=x)


def rejecting(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("angle", dist.VonMises(loc, 2.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def loc_guide(x=None, size=None):
    pyro.sample("loc", dist.Normal(0.3, 0.5))


def rejecting_guide(x=None, size=None):
    loc_guide()
    pyro.sample("angle", dist.VonMises(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide"),
    [
        (on_a_value, loc_guide),
        (by_item, loc_guide),
        (through_numpy, loc_guide),
        (coupled, loc_guide),
        (rejecting, rejecting_guide),
    ],
)
def test_programs_of_one_draw_only_run_one_by_one(model, guide, batches):
    data = from_pyro_svi(model, guide, Y, num_samples=30, seed=0)
    assert batches == [False]
    for s in range(30):
        names = ("loc", "angle") if model is rejecting else ("loc",)
        latents = {name: values(data, "posterior", name)[s] for name in names}
        log_p = values(data, "sample_stats", "log_p")[s].item()
        assert log_p == pytest.approx(log_joint(model, latents, Y), abs=1e-10, rel=1e-12)
    assert len(values(data, "prior", "loc").unique()) == 30


def test_networks_compiled_or_scripted(batches):
    """Whatever way they go, the numbers are those of the network itself."""
    plain = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def model_of(network):
        def model(x=None, size=None):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with data_plate(x, size):
                return pyro.sample("x", dist.Normal(network(loc[None])[0], 1.0), obs=x)

        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, which deprecates scripts
        networks = [torch.jit.script(plain), torch.jit.trace(plain, torch.zeros(1)), plain]
        networks += [torch.compile(plain, backend="eager")]
        for network in networks:
            data = from_pyro_svi(model_of(network), loc_guide, Y, num_samples=20, seed=0)
            for s in range(20):
                latents = {"loc": values(data, "posterior", "loc")[s]}
                expected = log_joint(model_of(plain), latents, Y)
                log_p = values(data, "sample_stats", "log_p")[s].item()
                assert log_p == pytest.approx(expected, abs=1e-10, rel=1e-12)
    assert 19 in batches


class Remembering(nn.Module):
    """A program that keeps something from one run to the next, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way, self.count, self.seen, self.mean = way, 0, [], torch.zeros(())
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        if self.way == "a count":
            self.count += 1
        elif self.way == "a list":
            self.seen.append(loc)
        elif self.way == "a mean over draws":
            self.mean = 0.9 * self.mean + 0.1 * loc
        elif self.way == "a buffer":
            self.total += 1
        elif self.way == "a buffer of draws":
            self.total += loc
        shift = self.count + len(self.seen) + self.mean + self.total
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc + shift, 1.0), obs=x)


@pytest.mark.parametrize(
    "way", ["a count", "a list", "a mean over draws", "a buffer", "a buffer of draws"]
)
def test_programs_that_remember_run_one_by_one(way, batches):
    model = Remembering(way)
    data = from_pyro_svi(model, loc_guide, Y, num_samples=30, seed=0)
    assert not any(batches)
    assert len(values(data, "posterior", "loc").unique()) == 30
    # Nothing of a failed attempt stays behind.
    for kept in (model.mean, model.total, *model.seen):
        assert math.isfinite(kept.item())


def test_random_numbers_of_others_run_one_by_one(batches):
    """They would be the same for all draws."""

    def numpys(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc + np.random.normal(), 1.0), obs=x)

    class Own(dist.TorchDistribution):
        """A distribution that draws by Python's random numbers."""

        arg_constraints, support = {}, dist.constraints.real
        has_rsample = True

        def rsample(self, sample_shape=()):
            return torch.tensor(random.gauss(0.3, 0.5))

        def log_prob(self, value):
            return dist.Normal(0.3, 0.5).log_prob(value)

    class Hidden(Own):
        """The same, by a generator that nobody else knows."""

        generator = np.random.default_rng(0)

        def rsample(self, sample_shape=()):
            return torch.tensor(self.generator.normal(0.3, 0.5))

    def guide_of(kind):
        def guide(x=None, size=None):
            pyro.sample("loc", kind())

        return guide

    def model(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    for program, guide in (
        (numpys, loc_guide),
        (model, guide_of(Own)),
        (model, guide_of(Hidden)),
    ):
        data = from_pyro_svi(program, guide, Y, num_samples=30, seed=0)
        assert len(values(data, "posterior", "loc").unique()) == 30
        assert len(values(data, "sample_stats", "log_p").unique()) == 30
    assert batches == [False, False, False]


def seeded(x=None, size=None):
    """The same random directions in each draw."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        directions = torch.randn(3)
    return shifted(x, size, loc, directions)


def seeded_by_pyro(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    state = pyro.util.get_rng_state()
    pyro.set_rng_seed(7)
    directions = torch.empty(3).normal_()
    pyro.util.set_rng_state(state)
    return shifted(x, size, loc, directions)


def generated(x=None, size=None):
    """By a generator of its own."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    directions = torch.randn(3, generator=torch.Generator().manual_seed(7))
    return shifted(x, size, loc, directions)


def shifted(x, size, loc, directions):
    pyro.deterministic("directions", directions)
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc + directions.sum(), 1.0), obs=x)


@pytest.mark.parametrize("model", [seeded, seeded_by_pyro, generated])
def test_numbers_of_a_seed_are_the_same_in_each_draw(model, batches):
    data = from_pyro_svi(model, loc_guide, Y, num_samples=30, seed=0)
    for group in ("posterior", "prior"):
        assert len(values(data, group, "directions").unique(dim=0)) == 1
        assert len(values(data, group, "loc").unique()) == 30
    assert batches == [False]


def test_an_error_that_a_program_goes_on_after(batches):
    """What many draws at once are refused is not what one draw gives."""

    def model(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        try:
            scale = 1.0 if loc > 100 else 2.0
        except RuntimeError:
            scale = 2.0  # as it is for any draw that is compared
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, scale), obs=x)

    assert math.isfinite(log_evidence(model, loc_guide, Y, num_samples=30).mean)
    assert batches == [False]


@pytest.mark.parametrize("kind", [deque, list, set])
def test_nothing_is_added_to_what_a_program_keeps(kind, batches):
    kept = kind()

    def model(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        (kept.add if kind is set else kept.append)(loc)
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    log_evidence(model, loc_guide, Y, num_samples=30)
    assert batches == []
    assert all(math.isfinite(value.item()) for value in kept)


def test_another_generator_of_numpy(batches):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(0))
    try:
        assert math.isfinite(log_evidence(counts, counts_guide, COUNTS, num_samples=30).mean)
    finally:
        np.random.set_bit_generator(before)
    assert batches == [29]


def test_large_draws_go_one_by_one(batches):
    """Of a few at a time the check alone costs more than they gain."""
    log_evidence(counts, counts_guide, torch.ones(700), num_samples=40, batch_size=5)
    assert batches == []


def test_a_wrong_number_of_any_kind_is_seen():
    """Functions that give something else where draws go side by side."""
    index = torch.arange(20)

    def batched(number):
        return side_by_side.is_batchedtensor(number)

    def right(number):
        return {"a": torch.randn(1, 3), "b": number.reshape(1)}

    assert side_by_side._together(right, index, 3)["a"].shape == (20, 3)
    wrong = [
        lambda n: {"a": torch.randn(1, 3) + (1e-3 if batched(n) else 0.0)},
        lambda n: {"a": torch.randn(1, 3).expand(2 if batched(n) else 1, 3)},
        lambda n: {"a": torch.randn(1, 3).to(torch.float32 if batched(n) else torch.float64)},
        lambda n: {"a": torch.randn(1)} | ({} if batched(n) else {"b": torch.zeros(1)}),
        lambda n: {"a": torch.randn(1)} | ({"b": torch.zeros(1)} if batched(n) else {}),
        lambda n: {"a": n.reshape(1) + (1 if batched(n) else 0)},
        lambda n: {"a": torch.zeros(1) + (0.0 if batched(n) else torch.randn(1))},
        lambda n: {"a": torch.zeros(1) + (torch.randn(1) * 0 if batched(n) else 0.0)},
        lambda n: {"a": torch.randn(1) / (0.0 if batched(n) else 1.0)},
    ]
    for run in wrong:
        assert side_by_side._together(run, index, 3) is None


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_random_numbers_that_seldom_matter_are_seen(draw):
    """The draws that are compared agree; another might not."""

    def run(number):
        return {"a": torch.randn(1) + (draw() > 2)}

    assert side_by_side._together(run, torch.arange(20), 3) is None


def test_writing_in_place_gives_what_it_gives_alone():
    def run(number):
        above = torch.randn(1, 3).clamp_(min=0.5)
        data = torch.zeros(1, 3)
        data.data[:, 1:] = above[:, 1:]
        return {"above": above, "data": data}

    results = side_by_side._together(run, torch.arange(20), 3)
    assert results["above"].min() == 0.5
    assert torch.equal(results["data"][:, 1:], results["above"][:, 1:])
    assert results["data"][:, 0].eq(0.0).all()


def test_each_batch_is_checked(monkeypatch):
    """Also those after the first: what is wrong in one of them alone is seen."""
    monkeypatch.setattr(side_by_side, "FEW", 2)

    def run(number):
        late = side_by_side.is_batchedtensor(number) * 1.0
        return {"a": torch.where(number < 20, 1.0, 1.0 + late).reshape(1)}

    parts = list(side_by_side.side_by_side(run, 60, 10, [], ALONE_HERE, seed=0))
    assert torch.cat([part["a"] for part in parts]).eq(1.0).all()
    assert [len(part["a"]) for part in parts] == [1, 10] + [1] * 49


def test_nothing_is_left_switched_on_between_draws():
    """Whoever takes the draws runs code of its own meanwhile."""

    def run(number):
        return {"a": torch.randn(1)}

    before = len(torch.overrides._get_current_function_mode_stack())
    for _ in side_by_side.side_by_side(run, 60, 10, [], ALONE_HERE, seed=0):
        assert len(torch.overrides._get_current_function_mode_stack()) == before
        assert side_by_side.Function.__dict__["apply"] is side_by_side.APPLY


# Order, memory, seeds


@pytest.mark.parametrize("batch_size", [1, 8, 20])
def test_the_batch_size_bounds_the_memory(batch_size, batches):
    x = torch.randn(700).round().abs()  # the largest tensor of a draw
    evidence = log_evidence(counts, counts_guide, x, num_samples=40, batch_size=batch_size)
    most = batch_size * 1024 // 700
    assert all(1 < size <= most for size in batches) if most > 8 else not batches
    assert bool(batches) == (most > 8)
    whole = log_evidence(counts, counts_guide, x, num_samples=40)
    torch.testing.assert_close(evidence.value, whole.value, atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore:log_evidence. 300 draws are as good as")  # the guide is poor
@pytest.mark.parametrize(("steps", "most"), [(1, 1024 // 10), (2000, 1024 // (2000 // 64))])
def test_many_small_tensors_count_too(steps, most, batches):
    """A chain of many steps keeps something of each."""

    def chain(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        for _ in range(steps):
            loc = loc * 0.5
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    log_evidence(chain, loc_guide, torch.ones(10), num_samples=300, batch_size=1)
    assert 0.8 * most < max(batches) <= most


def test_a_gradient_elsewhere_is_not_disturbed():
    """What functions without rules are given is given to draws only."""
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    with mock.patch.object(
        side_by_side.Function, "apply", classmethod(side_by_side._apply_forward)
    ):
        dist.Dirichlet(x).rsample()[0].backward()
    assert x.grad is not None
