"""Numbers of a program that change: inputs of its graph where they can be, and always right."""

import copy
import math
import operator

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

from ppl_models import SVI, data_plate, elbo, fit
from ppl_models.infer.compiled import graph
from ppl_models.infer.compiled.steps import loop
from ppl_models.infer.compiled.traced.following import Record, value_of
from ppl_models.infer.training import blocks
from ppl_models.infer.training.batches import Batch
from ppl_models.infer.training.descent import Descent

pytestmark = [
    pytest.mark.usefixtures("graphs_as_traced"),
    # Of parameters that some of these programs have for others.
    pytest.mark.filterwarnings("ignore:elbo. the loss does not depend on model.small"),
]
X = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DOUBLE = {"dtype": torch.float64}
SCALE = 1.5  # which a case moves


class Program(nn.Module):
    """A density whose location is an expression of the location and of numbers."""

    def __init__(self, where, **numbers):
        super().__init__()
        self.where = where
        self.loc = nn.Parameter(torch.linspace(0.5, 1.5, 3, **DOUBLE))
        self.small = nn.Parameter(torch.ones((), **DOUBLE))
        for name, value in numbers.items():
            setattr(self, name, value)

    def forward(self, x, size=None):
        with data_plate(x, size):
            loc = self.where(self, self.loc)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


class Guided(nn.Module):
    """What weighs the densities of a model and of a guide."""

    def __init__(self, beta):
        super().__init__()
        self.beta = beta
        self.loc = nn.Parameter(torch.zeros(3, **DOUBLE))

    def forward(self, x, size=None):
        with poutine.scale(scale=self.beta):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, **DOUBLE), 1.0).to_event(1))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x, size=None):
        pyro.module("guided", self)
        with poutine.scale(scale=self.beta):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))


def rises(name, start=0.1, by=0.07):
    return lambda m, i: setattr(m, name, start + by * i)


def takes(name, *values):
    return lambda m, i: setattr(m, name, values[i % len(values)])


def together(*changes):
    return lambda m, i: [change(m, i) for change in changes]


def move_scale(_, i):
    global SCALE
    SCALE = 1.0 + 0.1 * i


class Entries:
    """A number in a list that is held."""

    def __init__(self):
        self.values = [1.0, 2.0]

    def __call__(self, m, loc):
        return loc * self.values[1]


def entry(m, i):
    m.where.values[1] = 1.0 + 0.1 * i


def chosen(m, loc):
    return loc * m.beta if m.beta > 0.5 else loc + m.beta


def repeated(m, loc):
    for _ in range(m.k):
        loc = loc * 1.1
    return loc + torch.zeros(m.k, **DOUBLE).sum() + torch.ones(m.k, **DOUBLE).sum()


def looked_up(m, loc):
    return loc * (1.0, 1.0, 2.0, 3.0)[m.k]


RISES = rises("beta")
# The location, what changes at each step, and how many graphs are made: None where so many that
# the program runs by itself.
CASES = {
    "a factor": (lambda m, loc: loc * m.beta, RISES, 2),
    "on the left": (lambda m, loc: 2.0 / (m.beta - loc) + m.beta**loc, RISES, 2),
    "an exponent": (lambda m, loc: loc**m.beta, RISES, 2),
    "twice": (lambda m, loc: loc * m.beta + m.beta**2, RISES, 2),
    "negative": (lambda m, loc: loc * -abs(m.beta - 0.5), RISES, 2),
    "bounds": (lambda m, loc: loc.clamp(m.beta, 0.9) + loc.clamp(max=m.beta), RISES, 2),
    "compared": (lambda m, loc: torch.where(loc > m.beta, loc, m.beta), RISES, 2),
    "filled": (lambda m, loc: loc + torch.full((3,), m.beta, **DOUBLE), RISES, 2),
    "a tensor": (lambda m, loc: loc * torch.tensor(m.beta, **DOUBLE), RISES, 2),
    "an entry of a tensor": (lambda m, loc: loc * torch.tensor([m.beta, 1, 2]), RISES, None),
    "in place": (lambda m, loc: (loc * 1.0).add_(m.beta).mul_(m.beta), RISES, 2),
    "no dimension": (lambda m, loc: m.small * m.beta + loc, RISES, 2),
    "integers": (lambda m, loc: loc + torch.arange(3) * m.beta, RISES, 2),
    "a branch": (chosen, takes("beta", 0.1, 0.2, 0.3, 0.6, 0.7, 0.8), 4),
    "least": (lambda m, loc: loc * min(1.0, 2 * m.beta), RISES, 2),
    "a bound of NumPy": (lambda m, loc: loc * float(np.clip(m.beta, 0, 0.5)), RISES, None),
    "an array": (lambda m, loc: loc * float(np.asarray(m.beta) * 2), RISES, None),
    "a root": (lambda m, loc: loc * math.sqrt(m.beta), RISES, None),
    "a root that is the number by chance": (
        lambda m, loc: loc * math.sqrt(m.beta),
        takes("beta", 0.25, 1.0, 4.0, 9.0),
        None,
    ),
    "by way of a tensor": (
        lambda m, loc: loc * min(0.5, torch.tensor(m.beta, **DOUBLE).item()),
        RISES,
        None,
    ),
    "and an integer": (
        lambda m, loc: loc * m.beta + m.k,
        together(RISES, lambda m, i: setattr(m, "k", 1 + i // 9)),
        3,
    ),
    "rounded down": (lambda m, loc: loc * int(4 * m.beta), RISES, None),
    "in words": (lambda m, loc: loc * float(f"{m.beta}"), RISES, None),
    "two that swap": (
        lambda m, loc: loc * m.a + m.b,
        together(takes("a", 1.0, 2.0), takes("b", 2.0, 1.0)),
        2,
    ),
    "two that were equal": (
        lambda m, loc: loc * m.a + m.b,
        together(takes("a", 1.0, 2.0, 3.0, 5.0), takes("b", 1.0, 2.0, 4.0, 0.5)),
        2,
    ),
    "two, one after the other": (
        lambda m, loc: loc * m.a + m.b,
        together(rises("a"), lambda m, i: setattr(m, "b", 1.0 + max(i - 4, 0))),
        3,
    ),
    "a constant by chance": (
        lambda m, loc: loc * 2.0 + m.beta + loc**2.0,
        takes("beta", 1.0, 2.0, 3.0, 2.0, 1.5),
        2,
    ),
    "zero": (lambda m, loc: loc * m.beta, takes("beta", 0.0, 1.0, 0.5, 0.25), 2),
    "infinite": (
        lambda m, loc: loc.clamp(max=m.beta),
        takes("beta", 1.0, math.inf, 2.0, 0.7, math.inf),
        None,
    ),
    "undefined": (
        lambda m, loc: torch.where(loc > 99.0, m.beta, loc * 2),
        takes("beta", 1.0, math.nan, 2.0, 0.7),
        None,
    ),
    "an integer as a factor": (lambda m, loc: loc * m.k, takes("k", 1, 2, 3), None),
    "an integer as an exponent": (lambda m, loc: loc**m.k, takes("k", 2, 3, 4), None),
    "an integer, and then none": (lambda m, loc: loc * m.k, takes("k", 1, 2, 2.5), None),
    "a size": (repeated, takes("k", 1, 2, 3), 3),
    "a place": (looked_up, takes("k", 0, 1, 2, 3), None),
    "true or false": (lambda m, loc: loc * 2 if m.k else loc, takes("k", True, False), 2),
    "true as a factor": (lambda m, loc: loc * m.k, takes("k", True, False), 2),
    "a global": (lambda m, loc: loc * SCALE, move_scale, 2),
    "an entry of a list": (Entries(), entry, 2),
}


def program(where):
    return Program(where, beta=0.3, k=1, a=1.5, b=0.5)


def steps(compile, name, count=24, every=1):
    """The losses of some steps, and what was traced."""
    where, change, _ = CASES[name]
    model = program(where)
    batch = Batch((X,), torch.arange(len(X)), len(X))
    descent = Descent(elbo(model), batch, lr=0.01, compile=compile)
    found = []
    for i in range(count):
        change(model, i // every)
        found.append(descent.step(batch)["elbo"].item())
    assert type(model.beta) is float
    return found, descent.compiled[0]


@pytest.mark.filterwarnings("ignore:elbo. it runs eagerly")
@pytest.mark.parametrize("name", CASES)
def test_numbers_that_change_at_each_step(name):
    (eager, _), (found, compiled) = (steps(compile, name) for compile in (False, True))
    np.testing.assert_allclose(found, eager, rtol=1e-12)
    graphs = CASES[name][-1]
    if graphs is None:
        assert "more often than once in 128 steps" in compiled.reason
    else:
        assert compiled.reason is None
        assert compiled.traced == graphs


@pytest.mark.parametrize("name", ["a root", "an integer as an exponent", "an entry of a tensor"])
def test_what_cannot_be_followed_is_read_from_another_trace(name, monkeypatch):
    """Where that is no waste, and takes no compilation."""
    monkeypatch.setattr(graph, "WORTH", 16)
    (eager, _), (found, compiled) = (steps(c, name, 250, every=20) for c in (False, True))
    np.testing.assert_allclose(found, eager, rtol=1e-12)
    assert compiled.reason is None
    assert compiled.traced == 2
    assert compiled.retraced <= 12


class Kinds(torch.fx.Interpreter):
    """Runs a graph, and notes of which dtypes its results are."""

    found: set[torch.dtype] = set()

    def run_node(self, node):
        result = super().run_node(node)
        if node.op == "call_function" and isinstance(result, torch.Tensor):
            self.found = self.found | {result.dtype}
        return result


def test_single_precision_stays_single():
    model = program(lambda m, loc: (m.small * m.beta).pow(m.beta) + loc).float()
    batch = Batch((X.float(),), torch.arange(len(X)), len(X))
    descent = Descent(elbo(model), batch, lr=0.01, compile=True)
    for beta in (0.1, 0.3, 0.7):
        model.beta = beta
        loss = descent.step(batch)["elbo"]
        descent.step_number = 1
    (code,) = (g for g in descent.compiled[0].graphs.values())
    assert code.traced.inputs
    assert {x.dtype for x in code.traced.inputs.values()} == {torch.float64}
    assert loss.dtype == torch.float32
    kinds = Kinds(code.traced.graph)
    kinds.run(torch.arange(len(X)), X.float())
    assert kinds.found == {torch.float32}


# --- the numbers of SVI -------------------------------------------------------------------------


def annealed(x, beta, k=1):
    with poutine.scale(scale=beta):
        z = pyro.sample("z", dist.Normal(torch.zeros(3, **DOUBLE), 1.0).to_event(1))
    if beta > 0.7:
        z = z + pyro.param("late", torch.ones(3, **DOUBLE))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(k * z, 1.0).to_event(1), obs=x)


def annealed_guide(x, beta, k=1):
    loc = pyro.param("loc", torch.zeros(3, **DOUBLE))
    with poutine.scale(scale=beta):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def svi_steps(kind, count, args, **options):
    pyro.clear_param_store()
    torch.manual_seed(0)
    optim = pyro.optim.Adam({"lr": 0.01})
    svi = kind(annealed, annealed_guide, optim, Trace_ELBO(), **options)
    losses = [svi.step(X, *args(i)) for i in range(count)]
    params = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}
    return losses, params, svi


ARGUMENTS = {
    "rising, with a branch and an end": lambda i: (min(1.0, (i + 1) / 60),),
    "rising": lambda i: (0.001 * (i + 1),),
    "falling, past the branch": lambda i: (0.9 - 0.01 * i,),
    "in cycles": lambda i: (min(1.0, 0.1 + (i % 20) / 15),),
    "two, by name": lambda i: (0.2 + 0.001 * i, 1.0 + 0.002 * i),
    "an integer in between": lambda i: (0.2 + 0.001 * i, 2 if i % 2 else 3),
}
NAMES = {"rising": 2, "two, by name": 2, "rising, with a branch and an end": 5}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_number_among_the_arguments_of_svi(name):
    expected, params, _ = svi_steps(pyro.infer.SVI, 90, ARGUMENTS[name])
    found, others, svi = svi_steps(SVI, 90, ARGUMENTS[name], compile=True)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert params.keys() == others.keys()
    for key, value in params.items():
        torch.testing.assert_close(others[key], value, rtol=1e-12, atol=1e-12)
    compiled = svi._loss.compiled
    assert compiled.reason is None
    if name in NAMES:
        assert compiled.traced <= NAMES[name]


# --- the numbers of blocks ----------------------------------------------------------------------


class Called(Guided):
    """Whose weight a callback moves at the end of each epoch, before the validation."""

    def __init__(self, change):
        super().__init__(0.1)
        self.change, self.epochs = change, []

    def train(self, mode=True):
        if not mode and self.training:
            self.epochs.append(self.beta)
            self.change(self, len(self.epochs))
        return super().train(mode)


@pytest.fixture
def taken(monkeypatch):
    """The blocks that runs take."""
    found, run = [], blocks.Blocks._run

    def noted(self, planned):
        found.append((self, sum(times for _, times in planned)))
        return run(self, planned)

    monkeypatch.setattr(blocks.Blocks, "_run", noted)
    return found


def trained(compile, change, epochs=8, start=0, **options):
    model = Called(change)
    if start:
        model.epochs = [0.0] * start
    data = {"batch_size": 5, "lr": 0.01, "validation": X[:5], "progress": False, "seed": 3}
    run = fit(elbo(model, model.guide), X, epochs=epochs, compile=compile, **data, **options)
    return run.history, model


@pytest.mark.parametrize(
    ("change", "graphs"),
    [
        (rises("beta"), 2),
        (lambda m, i: setattr(m, "beta", min(1.0, 0.2 * i)), 3),
        (takes("beta", 0.5, 2.0, 1.0), 3),
    ],
)
def test_a_callback_between_blocks(change, graphs, taken):
    (eager, one), (found, other) = (trained(compile, change) for compile in (False, True))
    for name, values in eager.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12)
    torch.testing.assert_close(one.loc, other.loc, rtol=1e-12, atol=1e-12)
    assert one.epochs == other.epochs
    assert len(one.epochs) > 8
    assert sum(n for _, n in taken) >= 39
    steps = {id(kind.step) for kind in taken[-1][0].loop.made.values()}
    assert len(steps) <= 2 * graphs  # for batches of 5, and of 4


def test_a_run_goes_back_to_a_time_with_the_same_numbers(taken, monkeypatch):
    """Where code is found to be wrong after a number changed."""
    eager, _ = trained(False, rises("beta"))
    renewed, renew, difference = [], blocks.Blocks._renew, loop.Loop.difference
    monkeypatch.setattr(blocks.Blocks, "_renew", lambda self: (renewed.append(1), renew(self))[1])

    def spoilt(self, *given):
        return "it was spoilt" if len(renewed) == 4 else difference(self, *given)

    monkeypatch.setattr(loop.Loop, "difference", spoilt)
    with pytest.warns(UserWarning, match="it was spoilt"):
        found, _ = trained(True, rises("beta"))
    np.testing.assert_allclose(found["loss"], eager["loss"], rtol=1e-12)


def test_a_run_with_a_number_that_changes_is_resumed_bit_for_bit(tmp_path, taken):
    change, path = rises("beta"), tmp_path / "run"
    whole, model = trained(True, change)
    trained(True, change, epochs=3, checkpoint=path)
    parts, again = trained(True, change, start=3, checkpoint=path, resume=True)
    assert parts["loss"] == whole["loss"]
    assert torch.equal(model.loc, again.loc)


# --- what follows -------------------------------------------------------------------------------


def test_numbers_are_followed():
    record = Record()
    a, b = record.follow(2.0, 0), record.follow(3.0, 1)
    assert min(a, 1.0) == 1.0
    results = [a + b, 1 - a, a**2, -b, abs(-b), a // 2, a % 2, 3 / a, +b]
    assert [float(x) for x in results] == [5.0, -1.0, 4.0, -3.0, 3.0, 1.0, 0.0, 1.5, 3.0]
    record.open = False
    values = [5.0, 7.0]
    given = [value_of(x.formula, values) for x in results]
    assert given == [12.0, -4.0, 25.0, -7.0, 7.0, 2.0, 1.0, 0.6, 7.0]
    assert record.conditions[0] == ((operator.gt, 0, (1.0,)), True)  # `a` is greater than 1


READS = [
    *(int, float, hash, str, repr, bool, round, math.floor, math.ceil, math.trunc, copy.copy),
    *(lambda x: x == "2.0", lambda x: x + 1j, lambda x: [1.0, 2.0].index(x)),
    *("{:.2f}".format, lambda x: x.real, lambda x: x.is_integer(), lambda x: x == 2.0),
    *(lambda x: divmod(x, 2), lambda x: x in {2.0: 1}, lambda x: x.as_integer_ratio()),
]


@pytest.mark.parametrize("read", READS)
def test_what_reads_a_number_is_a_condition(read):
    record = Record()
    assert read(record.follow(2.0, 0)) == read(2.0)
    record.open = False
    assert record.conditions
