"""Programs made to deceive compiled steps by someone who has read them: none may, in silence.

Each runs by blocks of steps and by itself: the numbers are the same, be it that there is code for
it, that its steps come one by one, or that it runs eagerly and `REASONS` has why.
"""

import array
import ctypes
import random
import re
import threading
import warnings
import weakref
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ppl_models import SVI, Transformed, data_plate, elbo, fit
from ppl_models.infer.compiled.steps import loop
from tests.support.tutorials import CompiledSVI

pytestmark = pytest.mark.usefixtures("graphs_as_traced")
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
ODD = 0.1 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
ODD[27] = 100.0  # a row in forty
COUNTS, TRACED = "changes numbers or tensors of its own", "cannot be traced"


class Program(nn.Module):
    """Rows around a location, which `shift` moves; all of them noisier where `scale` says so."""

    def __init__(self, shift=lambda: 0.0, scale=lambda: 1.0):
        super().__init__()
        self.loc, self.other = (nn.Parameter(torch.zeros(3)) for _ in range(2))
        self.shift, self.scale = shift, scale

    def mean(self):
        return self.loc + 0.5 * self.other + self.shift()

    def forward(self, x, size=None):
        mean, scale = self.mean(), self.scale()
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


# --- what passes a comparison of one step, but not a block ---------------------------------------


def put_back():
    """Noise whose generator is put back: the same in each step."""

    def noise():
        with torch.random.fork_rng(devices=[]):
            return torch.randn(3)

    return Program(noise)


def alias(read):
    """The memory of a parameter by another name, which moves with it."""
    program = Program()
    held = read(program.loc)
    program.shift = lambda: 0.9 * held
    return program


def memory_in_common():
    """Two parameters with one number in common, which both move."""
    program, both = Program(), torch.zeros(7)
    program.loc, program.other = nn.Parameter(both[:4]), nn.Parameter(both[3:])
    program.mean = lambda: program.loc[1:] + program.other[:3] + program.loc[0]
    return program


def reading_the_count():
    """The noise grows with the steps that the optimiser has counted."""
    program, made = Program(), []

    def optimizer(parameters, lr):
        made.append(torch.optim.Adam(parameters, lr=lr))
        return made[0]

    def scale():
        state = made[0].state.get(program.loc, {}) if made else {}
        return 1 + state.get("step", torch.zeros(())) / 100

    program.scale = scale
    return program, {"optimizer": optimizer}


# --- counts where nobody looks, which change the program at the fortieth step --------------------


def counting(make):
    def program():
        count = make()
        return Program(scale=lambda: 2.0 if count() > 40 else 1.0)

    return program


def in_place(values):
    def count():
        values[0] += 1
        return values[0]

    return count


class Own:
    def __init__(self):
        self.number = 0

    def __getitem__(self, _):
        self.number += 1
        return self.number


class Slotted:
    __slots__ = ("number",)


def by_name(kept):
    setattr(kept, "num" + "ber", 0)

    def count():
        setattr(kept, "num" + "ber", getattr(kept, "num" + "ber") + 1)
        return getattr(kept, "num" + "ber")

    return count


def by_vars():
    kept = Own()

    def count():
        vars(kept)["number"] += 1
        return vars(kept)["number"]

    return count


def by_brackets():
    kept = Own()
    return lambda: kept[0]


def of_a_table():
    table = pd.DataFrame({"number": [0.0]})

    def count():
        table.iloc[0, 0] += 1
        return table.iloc[0, 0]

    return count


def of_a_thread():
    kept = threading.local()
    kept.numbers = [0]
    return lambda: in_place(kept.numbers)()


KEPT = Own()


def by_a_weak_reference():
    KEPT.number = 0
    reference = weakref.ref(KEPT)

    def count():
        reference().number += 1
        return reference().number

    return count


class Described:
    """A descriptor that counts."""

    def __init__(self):
        self.number = 0

    def __get__(self, instance, owner):
        self.number += 1
        return self.number


def by_a_descriptor():
    kind = type("Kind", (), {"value": Described()})
    kept = kind()
    return lambda: kept.value


NUMBER = 0


def by_globals():
    globals()["NUMBER"] = 0

    def count():
        globals()["NUMBER"] += 1
        return globals()["NUMBER"]

    return count


def rarely(draw):
    """A branch taken once in thirty steps, by a method of a generator of its own."""
    return Program(scale=lambda: 3.0 if draw() < 0.03 else 1.0)


def asking_torch():
    """Counts in a tensor, and compares it with another one."""
    number, limit = torch.zeros(()), torch.tensor(40.0)

    def scale():
        if torch.equal(number, limit):
            return 2.0
        number.add_(1)
        return 1.0

    return Program(scale=scale)


def reading_memory():
    """A small gradient, which turns where a parameter has come by, read from its address."""
    program = Program()
    program.tiny = nn.Parameter(torch.zeros(4))
    address = ctypes.c_float.from_address(program.loc.data_ptr())
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0])

    def shift():
        pull = 1.0 if address.value < 0.03 else -1.0
        pyro.factor("pull", 1e-5 * pull * (weight * program.tiny).sum())
        return 0.0

    program.shift = shift
    return program


def by_functions():
    """A gradient within, of torch.func, which works where a trace does not look."""
    program = Program()
    program.shift = lambda: 0.1 * torch.func.grad(lambda x: (x**3).sum())(program.loc)
    return program


def counting_transform():
    """The forty-first batch and all after it are turned over."""
    calls = []

    def transform(x):
        calls.append(1)
        return -x if len(calls) > 40 else x

    return Program(), {"data": Transformed(X, transform=transform)}


def moved_by_a_validation():
    """Each validation adds to the noise."""
    program = Program()
    program.noise = 1.0

    def scale():
        program.noise += 0.0 if program.training else 0.1
        return program.noise

    program.scale = scale
    return program, {"validation": X[:5], "batch_size": 10}


# --- more than a gradient and a rule -------------------------------------------------------------


def clamped(program):
    program.loc.data[0].clamp_(max=-0.2)


def step_of_its_own():
    """One number of six is kept below a bound, by a step that stands for that of the class."""
    program = Program()

    def optimizer(parameters, lr):
        made = torch.optim.Adam(parameters, lr=lr)
        step = made.step
        made.step = lambda *given: (step(*given), clamped(program))[0]
        return made

    return program, {"optimizer": optimizer}


class Clip(torch.autograd.Function):
    """The identity, with a gradient of at most 1."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope.clamp(-1, 1)


def small(slope):
    return slope.clamp(-1, 1)


def small_in_place(parameter):
    parameter.grad.clamp_(-1, 1)


def clipped(way):
    """A gradient is clipped, which makes a difference for one row in forty."""

    def make():
        program, inner = Program(), nn.Identity()
        if way == "parameter":
            program.loc.register_hook(small)
        elif way == "gradient":
            program.loc.register_post_accumulate_grad_hook(small_in_place)
        elif way == "module":
            inner.register_full_backward_hook(lambda module, before, after: (small(before[0]),))

        def mean():
            found = inner(program.loc * 1.0)
            if way == "function":
                return Clip.apply(found)
            if way == "tensor" and found.requires_grad:
                found.register_hook(small)
            return found + 0.5 * program.other

        program.mean = mean
        options = {"optimizer": partial(torch.optim.SGD), "batch_size": 1, "data": ODD}
        return program, {**options, "steps": 160}

    return make


PROGRAMS = {
    "a generator that is put back": put_back,
    "a parameter without gradient": lambda: alias(lambda p: p.detach()),
    "a parameter by NumPy": lambda: alias(lambda p: torch.from_numpy(p.detach().numpy())),
    "memory in common": memory_in_common,
    "the count of an optimiser": reading_the_count,
    "a count in bytes": counting(lambda: in_place(bytearray(1))),
    "a count in an array": counting(lambda: in_place(array.array("i", [0]))),
    "a count of C": counting(lambda: in_place((ctypes.c_int * 1)())),
    "a count by its name": counting(lambda: by_name(Own())),
    "a count in a slot": counting(lambda: by_name(Slotted())),
    "a count by vars": counting(by_vars),
    "a count by brackets": counting(by_brackets),
    "a count in a table": counting(of_a_table),
    "a count of a thread": counting(of_a_thread),
    "a count by a reference": counting(by_a_weak_reference),
    "a count of a descriptor": counting(by_a_descriptor),
    "a count by globals": counting(by_globals),
    "a method of NumPy": lambda: rarely(np.random.default_rng(0).random),
    "a method of Python": lambda: rarely(random.Random(0).random),
    "torch.equal": asking_torch,
    "memory": reading_memory,
    "torch.func": by_functions,
    "a transform that counts": counting_transform,
    "a validation": moved_by_a_validation,
    "a step of its own": step_of_its_own,
    **{f"clipped by a {way}": clipped(way) for way in ("parameter", "gradient")},
    **{f"clipped by a {way}": clipped(way) for way in ("module", "function", "tensor")},
}
REASONS = {
    "a generator that is put back": "another state of torch's generator",
    **{name: COUNTS for name in PROGRAMS if name.startswith("a count ")},
    "a method of NumPy": "holds a Generator",
    "a method of Python": "holds a Random",
    "torch.equal": COUNTS,
    "a parameter without gradient": "another exp_avg",
    "a parameter by NumPy": "another exp_avg",
    "memory": "another exp_avg",
    "torch.func": "a trace does not see",
    "clipped by a module": "a hook of its gradient",
    "clipped by a function": "Clip has a gradient of its own",
    "clipped by a tensor": "register_hook",
}


def run(make, compiled, steps=90):
    """The losses, the parameters, and what was said."""
    pyro.clear_param_store()
    given = make()
    program, options = given if isinstance(given, tuple) else (given, {})
    options = {"data": X, "lr": 0.01, "steps": steps, "seed": 3, **options}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = options.pop("data")
        history = fit(elbo(program), data, compile=compiled, progress=False, **options).history
    eager = [str(w.message) for w in said if "eagerly" in str(w.message)]
    return history["loss"], [p.tolist() for p in program.parameters()], eager


def assert_same(first, second):
    assert first[0] == pytest.approx(second[0], rel=1e-4)
    for a, b in zip(first[1], second[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_none_deceives(name):
    found = run(PROGRAMS[name], True)
    assert_same(found, run(PROGRAMS[name], False))
    if name in REASONS:
        assert re.search(REASONS[name], " ".join(found[2])), found[2]
    assert len(found[2]) == (name in REASONS)


def test_hooks_of_all_optimisers_are_seen():
    def make():
        made.append(Program())
        return made[-1]

    made = []
    hook = register_optimizer_step_post_hook(lambda *_: clamped(made[-1]))
    try:
        assert_same(run(make, True), run(make, False))
    finally:
        hook.remove()


class Masked(Program):
    """A buffer with infinite numbers, as a causal mask has."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def mean(self):
        return self.mask.softmax(-1) @ self.loc + self.other


def test_infinite_numbers_hide_nothing(monkeypatch):
    original, calls = loop.Loop.run, []

    def tampered(self, plan, *rest):
        losses = original(self, plan, *rest)
        calls.append(plan)
        for pack in plan[0][0].step.packs if len(calls) > 3 else ():
            pack.parameters[0].data[0].add_(0.01)
        return losses

    expected = run(Masked, False)
    monkeypatch.setattr(loop.Loop, "run", tampered)
    monkeypatch.setattr(loop, "LONGEST", 8)
    found = run(Masked, True)
    assert_same(found, expected)
    assert "another parameter model.loc" in found[2][0]
    assert len(calls) > 3


# --- by the drop-in ------------------------------------------------------------------------------


def steps(kind, program, change=lambda n, svi: None, args=lambda n: (X,), number=40):
    pyro.clear_param_store()
    svi = kind(program, lambda *_: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = []
    for n in range(number):
        change(n, svi)
        losses.append(svi.step(*args(n)))
    return losses


def hooked(n, svi):
    """From the fifth step on a hook of Pyro's optimisers bounds a number."""
    if n == 5:
        for parameter, optimizer in svi.optim.optim_objs.items():
            optimizer.register_step_post_hook(
                lambda *_, p=parameter: p.data.view(-1)[0].clamp_(max=-0.1) * 0
            )


class Paired(Program):
    def forward(self, x, y):
        mean = self.mean() * (2.0 if x is y else 1.0)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x + y)


class Sparse(Program):
    def forward(self, x):
        x = x.to_dense() if x.is_sparse else x
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.mean(), 1.0).to_event(1), obs=x)


class Asking(Program):
    def forward(self, x):
        mean = self.mean() * (2.0 if x.requires_grad else 1.0)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x.detach())


OTHER, WANTING = X.clone(), X.clone().requires_grad_()
CALLS = {
    "hooks": (Program, {"change": hooked}),
    "one tensor twice": (Paired, {"args": lambda n: (X, X if n > 7 and n % 2 else OTHER)}),
    "a sparse tensor": (Sparse, {"args": lambda n: (X.to_sparse(),)}),
    "a gradient is wanted": (Asking, {"args": lambda n: (WANTING if n > 7 and n % 2 else X,)}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:.*runs eagerly")
def test_no_call_deceives(name):
    make, options = CALLS[name]
    found, expected = (steps(kind, make(), **options) for kind in (CompiledSVI, pyro.infer.SVI))
    assert found == pytest.approx(expected, rel=1e-4)


class Annealed(poutine.messenger.Messenger):
    """A handler that counts, and trusts the rows less after a while."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def _pyro_sample(self, message):
        if message["name"] == "x":
            self.calls += 1
            message["scale"] = message["scale"] * (0.5 if self.calls > 30 else 1.0)


def test_handlers_around_a_run_do_not_deceive():
    losses = []
    for compiled in (True, False):
        pyro.clear_param_store()
        kind = CompiledSVI if compiled else pyro.infer.SVI
        svi = kind(Program(), lambda *_: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        with Annealed():
            many = svi.run(60, X).losses.tolist() if compiled else [svi.step(X) for _ in range(60)]
        losses.append(many)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_step_of_a_subclass_is_that_of_its_runs():
    class Bounded(SVI):
        def step(self, *args, **kwargs):
            loss = super().step(*args, **kwargs)
            clamped(self.model)
            return loss

    losses = []
    for take in (
        lambda svi: svi.run(40, X).losses.tolist(),
        lambda svi: [svi.step(X) for _ in range(40)],
    ):
        pyro.clear_param_store()
        svi = Bounded(
            Program(), lambda *_: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile=True
        )
        losses.append(take(svi))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
