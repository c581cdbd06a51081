"""What happens between steps, or outside torch: the numbers are Pyro's, or Pyro takes the steps.

`python -m tests.support.long_runs --steps 2000` takes more of them, and prints a table.

Each kind of program runs by `pyro.infer.SVI` and by compiled steps. Where `EAGER` has a kind, its
steps must be Pyro's, with a warning that says why.
"""

import contextlib
import contextvars
import copy
import functools
import os
import random
import re
import warnings
from types import ModuleType

import numpy as np
import pandas as pd
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from ppl_models import data_plate, elbo, fit
from tests.support.tutorials import CompiledSVI

pytestmark = pytest.mark.usefixtures("graphs_as_traced")
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
OTHER = 2 * X.flip(0) + 1
TURN = contextvars.ContextVar("turn", default=1.0)


def adam():
    return pyro.optim.Adam({"lr": 0.01})


def nothing(*args, **kwargs):
    """The guide of a model without latents."""


def of(shift=lambda: 0.0, scale=lambda: 1.0, name="loc"):
    def model(x, *_):
        loc = pyro.param(name, torch.zeros(3)) + shift()
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, scale()).to_event(1), obs=x)

    return model


class Length:
    """How many steps are taken, and after how many of them something changes."""

    steps, late, inside = 30, 17, 40


def steps(kind, model, change=None, args=lambda n: (X,), guide=nothing, number=None, around=None):
    """The losses of some steps, before each of which something changes, and the parameters."""
    svi = kind(model, guide, adam(), Trace_ELBO())
    losses = []
    for n in range(number or Length.steps):
        if change is not None:
            change(n, svi)
        with around(n) if around else contextlib.nullcontext():
            losses.append(svi.step(*args(n)))
    return losses, svi


def late(change):
    return lambda n, svi: change(svi) if n == Length.late else None


def two_kinds(kind):
    """Each with parameters of its own, which the other must not move."""

    def model(which):
        loc = pyro.param(f"loc {which}", torch.zeros(3))
        with pyro.plate("rows", len(X)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=X)

    return steps(kind, model, args=lambda n: ("ab"[n % 3 == 0],))


def batch_on_an_object(kind):
    kernel = gp.kernels.RBF(3)
    process = gp.models.GPRegression(X, X[:, 0], kernel, noise=torch.tensor(0.5), jitter=0.01)
    data = [(X, X[:, 0]), (OTHER, OTHER[:, 1]), (X + 1, X[:, 2])]
    return steps(
        kind,
        process.model,
        lambda n, svi: process.set_data(*data[n % 3]) if n % 5 == 0 else None,
        args=lambda n: (),
        guide=process.guide,
    )


def drawn_by_numpy(kind):
    np.random.seed(0)
    return steps(kind, of(lambda: np.random.rand()))


def drawn_by_python(kind):
    random.seed(0)
    return steps(kind, of(lambda: random.random()))


def rare_branch(kind):
    random.seed(0)
    return steps(kind, of(lambda: 1.0 if random.random() < 0.02 else 0.0))


def of_a_loader(kind):
    batches = iter([X + n for n in range(10_000)])
    return steps(kind, of(lambda: next(batches)[0]))


def of_a_generator(kind):
    def numbers():
        while True:
            yield from [0.0] * 17 + [1.0]

    generator = numbers()
    return steps(kind, of(lambda: next(generator)))


def generator_of_numpy(kind):
    rng = np.random.default_rng(0)
    return steps(kind, of(lambda: rng.random() > 0.98))


def generator_of_torch(kind):
    generator = torch.Generator().manual_seed(0)
    return steps(kind, of(lambda: torch.rand(3, generator=generator)))


def reading(read):
    def model(x):
        loc = pyro.param("loc", torch.zeros(3)) + read(x)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return lambda kind: steps(kind, model, args=lambda n: (X if n < Length.late else OTHER,))


def handlers(kind):
    return steps(
        kind,
        of(),
        around=lambda n: poutine.scale(scale=2.0) if n % 3 == 2 else contextlib.nullcontext(),
    )


def conditioned(kind):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(X)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=X)

    def around(n):
        return poutine.scale(scale=0.1) if n >= Length.late else contextlib.nullcontext()

    return steps(kind, model, args=lambda n: (), guide=AutoNormal(model), around=around)


def another_optim(kind):
    return steps(kind, of(), late(lambda svi: setattr(svi, "optim", pyro.optim.SGD({"lr": 1e-3}))))


def another_model(kind):
    return steps(kind, of(), late(lambda svi: setattr(svi, "model", of(scale=lambda: 2.0))))


def another_guide(kind):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(X)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=X)

    def guide():
        loc = pyro.param("mine", torch.ones(3))
        pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    return steps(
        kind,
        model,
        late(lambda svi: setattr(svi, "guide", guide)),
        args=lambda n: (),
        guide=AutoNormal(model),
    )


def another_loss(kind):
    def twice(model, guide, *args):
        return 2 * Trace_ELBO().loss_and_grads(model, guide, *args)

    return steps(kind, of(), late(lambda svi: setattr(svi, "loss_and_grads", twice)))


def two_names(kind):
    torch.manual_seed(0)
    first = nn.Linear(3, 3)
    second = nn.Sequential(first)

    def model(x):
        pyro.module("first", first)
        pyro.module("second", second)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(second(x), 1.0).to_event(1), obs=x)

    return steps(kind, model)


def installed_package(kind):
    module = ModuleType("package_of_someone")
    module.__file__ = os.path.join(os.path.dirname(np.__path__[0]), "package_of_someone.py")
    exec("SCALE = 1.0\ndef scale():\n    return SCALE", vars(module))
    return steps(
        kind, of(scale=lambda: module.scale()), late(lambda _: setattr(module, "SCALE", 2.0))
    )


def number_of_a_library(kind):
    before = np.pi
    try:
        return steps(kind, of(scale=lambda: np.pi), late(lambda _: setattr(np, "pi", 3.0)))
    finally:
        np.pi = before


def filled(read):
    def run(kind):
        held = torch.ones(())
        return steps(kind, of(scale=lambda: read(held)), late(lambda _: held.data.fill_(2.0)))

    return run


def shared_with_numpy(kind):
    array = np.ones(3, dtype=np.float32)
    held = torch.from_numpy(array)
    return steps(kind, of(scale=lambda: held), late(lambda _: array.fill(2.0)))


def long(make):
    def run(kind):
        held = make()
        return steps(kind, of(scale=lambda: float(held[-1])), late(lambda _: put(held)))

    def put(held):
        held[-1] = 2.0

    return run


def environment(kind):
    os.environ["SCALE_OF_A_TEST"] = "1.0"
    try:
        return steps(
            kind,
            of(scale=lambda: float(os.environ["SCALE_OF_A_TEST"])),
            late(lambda _: os.environ.update(SCALE_OF_A_TEST="2.0")),
        )
    finally:
        del os.environ["SCALE_OF_A_TEST"]


def context_variable(kind):
    token = TURN.set(1.0)
    try:
        return steps(kind, of(scale=lambda: TURN.get()), late(lambda _: TURN.set(2.0)))
    finally:
        TURN.reset(token)


def cache(kind):
    settings = {"scale": 1.0}

    @functools.lru_cache
    def scale():
        return settings["scale"]

    def change(_):
        settings["scale"] = 2.0
        scale.cache_clear()

    return steps(kind, of(scale=lambda: scale()), late(change))


class Falsy:
    scale = 1.0

    def __bool__(self):
        return False


def falsy(kind):
    given = Falsy()

    def model(x, thing):
        of(scale=lambda: thing.scale)(x)

    return steps(
        kind, model, late(lambda _: setattr(given, "scale", 2.0)), args=lambda n: (X, given)
    )


def with_argument(make):
    def model(x, other):
        of(scale=lambda: 1.0 + len(other))(x)

    return lambda kind: steps(kind, model, args=lambda n: (X, make()))


def of_changing_length(kind):
    def model(x):
        rows = x[x[:, 0] > 0]
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("rows", len(rows)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=rows)

    return steps(kind, model, args=lambda n: (X + 0.1 * n,))


def raising_at_first(kind):
    broken = [True]

    def model(x):
        if broken[0]:
            raise ValueError("not yet")
        of()(x)

    svi = kind(model, nothing, adam(), Trace_ELBO())
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            svi.step(X)
    broken[0] = False
    return [svi.step(X) for _ in range(10)], svi


def copied(kind):
    _, svi = steps(kind, of(), number=5)
    other = copy.deepcopy(svi)
    return [one.step(X) for one in (svi, other) * 4], other


def plate_named_data(kind):
    """Latents of a row in a plate of this name, and of another size."""

    def model(x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return steps(kind, model, guide=AutoNormal(model))


def settings_of_torch(kind):
    def change(n, svi):
        torch.set_default_dtype(torch.float64 if n % 7 > 3 else torch.float32)

    try:
        return steps(kind, of(lambda: torch.full((3,), 0.1).double().sum()), change)
    finally:
        torch.set_default_dtype(torch.float32)


OUTSIDE = "outside torch"
MOVES_ON = "of which code would hold the next value fast"
LENGTH = "which may change unseen"
EAGER = {
    "np.random": "NumPy",
    "random": "NumPy",
    "a rare branch": "NumPy",
    "next of a loader": MOVES_ON,
    "a generator": MOVES_ON,
    "a generator of NumPy": MOVES_ON,
    "a generator of torch": MOVES_ON,
    "numpy": OUTSIDE,
    "tolist": OUTSIDE,
    "asarray": OUTSIDE,
    "a long list": LENGTH,
    "a long array": LENGTH,
    "a falsy object": "of the type Falsy",
    "an array as an argument": "of the type ndarray",
    "a table as an argument": "of the type DataFrame",
    "a set as an argument": "of the type set",
    "x[mask]": "depends on values",
}
KINDS = {
    "two kinds of calls": two_kinds,
    "set_data": batch_on_an_object,
    "np.random": drawn_by_numpy,
    "random": drawn_by_python,
    "a rare branch": rare_branch,
    "next of a loader": of_a_loader,
    "a generator": of_a_generator,
    "a generator of NumPy": generator_of_numpy,
    "a generator of torch": generator_of_torch,
    "numpy": reading(lambda x: float(x.numpy().mean())),
    "tolist": reading(lambda x: max(x[:, 0].tolist())),
    "asarray": reading(lambda x: float(np.asarray(x).mean())),
    "handlers": handlers,
    "handlers from a step on": conditioned,
    "another optimiser": another_optim,
    "another model": another_model,
    "another guide": another_guide,
    "another loss": another_loss,
    "two names": two_names,
    "an installed package": installed_package,
    "a number of a library": number_of_a_library,
    "data.fill_": filled(lambda held: held),
    "data.fill_, read": filled(lambda held: held.item()),
    "shared with NumPy": shared_with_numpy,
    "a long list": long(lambda: [1.0] * 20_000),
    "a long array": long(lambda: np.ones(20_000)),
    "a list": long(lambda: [1.0] * 2000),
    "an array": long(lambda: np.ones(2000)),
    "os.environ": environment,
    "a ContextVar": context_variable,
    "a cache": cache,
    "a falsy object": falsy,
    "an array as an argument": with_argument(lambda: np.ones(2)),
    "a table as an argument": with_argument(lambda: pd.DataFrame({"a": [1.0, 2.0]})),
    "a set as an argument": with_argument(lambda: {1, 2}),
    "x[mask]": of_changing_length,
    "raises at first": raising_at_first,
    "deepcopy": copied,
    "a plate named data": plate_named_data,
    "settings of torch": settings_of_torch,
}


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_pyros(name):
    results = []
    for kind in (pyro.infer.SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            losses, svi = KINDS[name](kind)
        values = [v.tolist() for _, v in sorted(pyro.get_param_store().items())]
        results.append((losses, values, torch.rand(())))
    (expected, others, draw), (found, values, other) = results
    ours = [str(w.message) for w in said if "eagerly" in str(w.message)]
    assert found == pytest.approx(expected, rel=1e-5)
    for a, b in zip(values, others, strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert draw == other
    if name in EAGER:
        assert len(ours) == 1
        assert re.search(EAGER[name], ours[0]), ours
    else:
        assert not ours
        assert svi._loss is None or svi._loss.compiled.traced > 0  # none for a loss of the user's


@pytest.mark.parametrize("compiled", [False, True])
def test_data_that_turn_invalid_raise(compiled):
    def model(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    pyro.clear_param_store()
    svi = (CompiledSVI if compiled else pyro.infer.SVI)(model, nothing, adam(), Trace_ELBO())
    for _ in range(9):
        svi.step((X > 0).float())
    with pytest.raises(ValueError, match="support"):
        svi.step(0.5 + 0 * X)


def test_what_nobody_sees_is_found_at_a_random_moment(tmp_path):
    """And the warning does not say that the numbers were right."""
    kept = tmp_path / "scale"
    kept.write_text("1")

    def change(n, svi):
        if n == 60:
            kept.write_text("2")

    pyro.clear_param_store()
    with pytest.warns(UserWarning, match="those since then may have been wrong") as said:
        _, svi = steps(CompiledSVI, of(scale=lambda: float(kept.read_text())), change, number=600)
    assert len(said) == 1
    assert int(re.search(r"after (\d+) steps", svi._loss.compiled.reason)[1]) < 500


def test_moments_are_the_same_with_each_run_and_draw_nothing_of_the_users():
    found = []
    for _ in range(2):
        pyro.clear_param_store()
        torch.manual_seed(0)
        random.seed(0)
        _, svi = steps(CompiledSVI, of(), number=100)
        (graph,) = svi._loss.compiled.graphs.values()
        found.append((graph.moments.next, random.random()))
        assert graph.moments.last > 30
    assert found[0] == found[1]
    random.seed(0)
    assert random.random() == found[0][1]


# --- by blocks of steps: what happens in a program, as nothing happens between two steps ----------


def stateful(make):
    """What a program adds to its mean: made anew for each run."""
    return lambda: (lambda read: lambda x: read())(make())


def loader():
    batches = iter([float(n) for n in range(10_000)])
    return lambda: next(batches)


def rare():
    generator = random.Random(0)
    return lambda: float(generator.random() < 0.05)


def cached():
    kept = {}

    def shift():
        if not kept:
            kept["shift"] = torch.rand(()).item()
        return kept["shift"]

    return shift


INSIDE = {
    "np.random": stateful(lambda: lambda: np.random.rand()),
    "a rare branch": stateful(lambda: lambda: float(random.random() < 0.05)),
    "a rare branch, of its own": stateful(rare),
    "next of a loader": stateful(loader),
    "numpy": lambda: lambda x: float(x.numpy().mean()),
    "tolist": lambda: lambda x: max(x[:, 0].tolist()),
    "x[mask]": lambda: lambda x: x[x[:, 0] > 0].mean(),
    "a cache": stateful(cached),
    "a ContextVar": stateful(lambda: TURN.get),
    "a long list": stateful(lambda: (lambda held: lambda: held[-1])([1.0] * 20_000)),
}
RIGHT = {"a cache", "a ContextVar", "a long list"}  # of which there is code


MIXED = [INSIDE[name] for name in ("numpy", "tolist", "x[mask]")]  # whose rows are not independent


def shifted(make):
    shift = make()

    def model(x, size=None):
        loc = pyro.param("loc", torch.zeros(3)) + shift(x)
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return model


def by_run(make, compiled):
    kind = CompiledSVI if compiled else pyro.infer.SVI
    svi = kind(shifted(make), nothing, adam(), Trace_ELBO())
    if compiled:
        return svi.run(Length.inside, X).losses.tolist()
    return [svi.step(X) for _ in range(Length.inside)]


def by_fit(make, compiled):
    mixed = make in MIXED
    options = {"batch_size": None if mixed else 5, "lr": 0.01, "seed": 3, "progress": False}
    options["steps"] = Length.inside
    return fit(elbo(shifted(make)), X, compile=compiled, **options).history["loss"]


@pytest.mark.parametrize("way", [by_run, by_fit])
@pytest.mark.parametrize("name", INSIDE)
def test_blocks_of_steps_are_the_programs(name, way):
    found = []
    for compiled in (False, True):
        pyro.clear_param_store()
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found.append(way(INSIDE[name], compiled))
    ours = [w for w in said if "eagerly" in str(w.message)]
    assert len(ours) == (name not in RIGHT), [str(w.message) for w in said]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
