"""What a trace holds fast, changed in mid-training: `SVI` goes on as Pyro's does."""

import argparse
from collections import ChainMap, UserDict, deque
from types import ModuleType, SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from tests.support.tutorials import CompiledSVI

pytestmark = pytest.mark.usefixtures("graphs_as_traced")
X = torch.randn(20, 3)
SETTINGS = {"scale": 1.0}
SCALE = 1.0


def adam():
    return pyro.optim.Adam({"lr": 0.01})


def nothing(*args, **kwargs):
    """The guide of a model without latents."""


def of(scale, shift=lambda: 0.0):
    """A model whose scale is what `scale` gives for the arguments after the data."""

    def model(x, *rest, **named):
        loc = pyro.param("loc", torch.zeros(3)) + shift()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale(*rest, **named)).to_event(1), obs=x)

    return model


def steps(kind, model, change=lambda step, svi: None, args=lambda step: (X,), loss=None, number=8):
    svi = kind(model, nothing, adam(), loss or Trace_ELBO())
    losses = []
    for step in range(number):
        change(step, svi)
        given = args(step)
        named = given[-1] if isinstance(given[-1], dict) else {}
        losses.append(svi.step(*(given[:-1] if named else given), **named))
    return [*losses, *(v.tolist() for v in pyro.get_param_store().values())], svi


def once(change):
    return lambda step, svi: change(svi) if step == 4 else None


def closure(kind):
    scale = 1.0

    def change(svi):
        nonlocal scale
        scale = 2.0

    return steps(kind, of(lambda: scale), once(change))


def in_globals(kind):
    def change(svi):
        global SCALE
        SCALE = 2.0

    try:
        return steps(kind, of(lambda: SCALE), once(change))
    finally:
        globals()["SCALE"] = 1.0


def in_a_global_dict(kind):
    try:
        return steps(
            kind, of(lambda: SETTINGS["scale"]), once(lambda _: SETTINGS.update(scale=2.0))
        )
    finally:
        SETTINGS["scale"] = 1.0


def long(container):
    def run(kind):
        held = container([1.0] * 500)

        def change(svi):
            held[300] = 2.0 if isinstance(held[300], float) else torch.tensor(2.0)

        return steps(kind, of(lambda: held[300]), once(change))

    return run


class Plain:
    """A model that is a method, of an object that is no module."""

    factor = 1.0

    def __init__(self):
        self.beta, self.tensor, self.numbers = 1.0, torch.ones(3), [1.0]
        self.inner = SimpleNamespace(scale=1.0)

    def model(self, x):
        scale = self.beta * self.tensor * self.numbers[0] * self.inner.scale * self.factor
        return of(lambda: scale)(x)


def plain(change):
    def run(kind):
        thing = Plain()
        return steps(kind, thing.model, once(lambda _: change(thing)))

    return run


def of_the_class(kind):
    try:
        return plain(lambda _: setattr(Plain, "factor", 2.0))(kind)
    finally:
        Plain.factor = 1.0


class Holder(nn.Module):
    """A module that keeps its scale in many ways."""

    factor = 1.0

    def __init__(self, scale):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))
        self.register_buffer("beta", torch.tensor(1.0))
        self.tensor, self.settings, self.scale = torch.tensor(1.0), {"scale": 1.0}, scale

    def forward(self, x):
        pyro.module("holder", self)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, self.scale(self)).to_event(1), obs=x)


def holder(scale, change):
    def run(kind):
        module = Holder(scale)
        return steps(kind, module, once(lambda _: change(module)))

    return run


class Slotted:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 1.0


def python_module():
    module = ModuleType("settings_of_someone")
    code = "half = 0.5\nsettings = {'scale': 1.0}\ndef double():\n    return 2 * half"
    exec(code, vars(module))
    return module


def held(make, scale, change):
    def run(kind):
        at = make()
        return steps(kind, of(lambda: scale(at)), once(lambda _: change(at)))

    return run


def frozen(kind):
    module = Holder(lambda m: 1.0).eval()  # in training mode Pyro warns

    def change(step, svi):
        module.loc.requires_grad_(step % 6 < 3)

    return steps(kind, of(lambda: 1.0, lambda: pyro.module("m", module).loc), change)


def mode_in_a_list(kind):
    modules = [nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))]

    def model(x):
        return of(lambda: 1.0, lambda: modules[0](x).mean(0))(x)

    losses, svi = steps(kind, model, once(lambda _: modules[0].eval()))
    return [*losses, *(b.tolist() for b in modules[0].buffers())], svi


def store_state(kind):
    kept = []

    def change(step, svi):
        if step == 2:
            state = pyro.get_param_store().get_state()
            copies = {k: v.detach().clone().requires_grad_() for k, v in state["params"].items()}
            kept.append({**state, "params": copies})
        elif step == 5:
            pyro.get_param_store().set_state(kept[0])

    return steps(kind, of(lambda: 1.0), change)


def by_hand(svi):
    for optimizer in svi.optim.optim_objs.values():
        optimizer.param_groups[0]["lr"] = 0.5


def loaded(svi):
    for optimizer in svi.optim.optim_objs.values():
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})


def another_parameter(kind):
    def model(x, stage):
        extra = (lambda: pyro.param("more", torch.ones(3))) if stage else (lambda: 0.0)
        return of(lambda: 1.0, extra)(x)

    return steps(kind, model, args=lambda step: (X, step // 4))


def particles(kind):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        return of(lambda: 1.0, lambda: z)(x)

    loss = Trace_ELBO()
    svi = kind(model, AutoNormal(model), adam(), loss)
    losses = []
    for step in range(6):
        loss.num_particles = 1 + 6 * (step > 2)
        losses.append(svi.step(X))
    return losses, svi


def depth_found_by_pyro(kind):
    @pyro.infer.config_enumerate
    def model(x):
        weights = pyro.param("weights", torch.ones(2) / 2, constraint=dist.constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x[:, 0])

    return steps(kind, model, loss=TraceEnum_ELBO())


def changes_its_input(kind):
    x = X.clone()

    def model(x):
        x.add_(1.0)
        return of(lambda: 1.0)(x)

    return steps(kind, model, args=lambda step: (x,))


def running_mean(kind):
    mean = torch.zeros(3)
    return steps(kind, of(lambda: 1.0, lambda: mean.lerp_(X.mean(0), 0.1).clone()))


def read(how):
    return holder(how, lambda m: m.beta.fill_(2.0))


SAME = {
    "a closure": closure,
    "a global": in_globals,
    "a global dict": in_a_global_dict,
    "an attribute of an object": plain(lambda o: setattr(o, "beta", 2.0)),
    "a tensor of an object": plain(lambda o: setattr(o, "tensor", torch.full((3,), 2.0))),
    "a list of an object": plain(lambda o: o.numbers.__setitem__(0, 2.0)),
    "a long list": long(list),
    "a long dict": long(lambda entries: dict(enumerate(entries))),
    "a long list of tensors": long(lambda entries: [torch.tensor(entry) for entry in entries]),
    "an object of an object": plain(lambda o: setattr(o.inner, "scale", 2.0)),
    "an attribute of a class": of_the_class,
    "a tensor of a module": holder(
        lambda m: m.tensor, lambda m: setattr(m, "tensor", torch.tensor(2.0))
    ),
    "a dict of a module": holder(
        lambda m: m.settings["scale"], lambda m: m.settings.update(scale=2.0)
    ),
    "an attribute of a class, by its name": held(
        lambda: SimpleNamespace(kind=type("Kind", (), {"scale": 1.0})),
        lambda at: at.kind.scale,
        lambda at: setattr(at.kind, "scale", 2.0),
    ),
    "an object of a class, by its name": held(
        lambda: type("Kind", (), {"inner": Plain()}),
        lambda kind: kind.inner.beta,
        lambda kind: setattr(kind.inner, "beta", 2.0),
    ),
    "an attribute that was its class's": plain(lambda p: setattr(p, "factor", 2.0)),
    "an attribute of a module that was its class's": holder(
        lambda m: m.factor, lambda m: setattr(m, "factor", 2.0)
    ),
    "a dict of a module of Python": held(
        python_module, lambda at: at.settings["scale"], lambda at: at.settings.update(scale=2.0)
    ),
    "a number behind a function of a module of Python": held(
        python_module, lambda at: at.double(), lambda at: vars(at).update(half=1.0)
    ),
    "a number in a package": held(
        lambda: SimpleNamespace(part=python_module()),
        lambda at: at.part.half,
        lambda at: vars(at.part).update(half=1.0),
    ),
    "a namespace in another": held(
        lambda: SimpleNamespace(inner=argparse.Namespace(scales=[1.0])),
        lambda at: at.inner.scales[0],
        lambda at: at.inner.scales.__setitem__(0, 2.0),
    ),
    "a mapping": held(
        lambda: ChainMap(UserDict(scale=1.0)),
        lambda at: at["scale"],
        lambda at: at.update(scale=2.0),
    ),
    "a queue": held(lambda: deque([1.0]), lambda at: at[0], lambda at: at.__setitem__(0, 2.0)),
    "a set": held(lambda: {1.0}, max, lambda at: at.add(2.0)),
    "an array": held(lambda: np.ones(2), lambda at: at[0], lambda at: at.fill(2.0)),
    "a slot": held(Slotted, lambda at: at.scale, lambda at: setattr(at, "scale", 2.0)),
    "a buffer": read(lambda m: m.beta),
    "a buffer read as a number": read(lambda m: m.beta.item()),
    "a frozen parameter": frozen,
    "a mode, of a module in a list": mode_in_a_list,
    "the store is cleared": lambda kind: steps(
        kind, of(lambda: 1.0), once(lambda _: pyro.clear_param_store())
    ),
    "the store is loaded": store_state,
    "a parameter is assigned": lambda kind: steps(
        kind,
        of(lambda: 1.0),
        once(lambda _: pyro.get_param_store().__setitem__("loc", torch.ones(3))),
    ),
    "a learning rate": lambda kind: steps(kind, of(lambda: 1.0), once(by_hand)),
    "the state of an optimiser": lambda kind: steps(kind, of(lambda: 1.0), once(loaded)),
    "a parameter that comes later": another_parameter,
    "particles": particles,
    "a depth of plates that Pyro finds": depth_found_by_pyro,
    "a tensor that the program changes": running_mean,
    "an input that the program changes": changes_its_input,
    "an input that comes twice": lambda kind: steps(
        kind, of(lambda y: 1 + y.square()), args=lambda step: (X, X if step < 4 else 2 * X)
    ),
    "an input that the closure has": lambda kind: steps(
        kind, of(lambda: 1.0, lambda: X.mean(0)), args=lambda step: (2 * X if step > 3 else X,)
    ),
    "an input of another layout": lambda kind: steps(
        kind,
        of(lambda: 1.0, lambda: 0.0),
        args=lambda step: (X if step < 4 else X.T.contiguous().T,),
    ),
    "1 and True": lambda kind: steps(
        kind, of(lambda a: 2.0 if a is True else 1.0), args=lambda step: (X, step < 4 or 1)
    ),
    "tensors in a tuple": lambda kind: steps(
        kind, of(lambda a: a[0].exp()), args=lambda step: (X, (torch.tensor(0.1 * step),))
    ),
    "a list in a tuple": lambda kind: steps(
        kind, of(lambda a: a[0][0]), args=lambda step: (X, ([1.0],))
    ),
    "names in another order": lambda kind: steps(
        kind,
        of(lambda a, b: a.exp() + b),
        args=lambda step: (
            X,
            dict(sorted({"a": X[0, 0], "b": X[0].square()}.items(), reverse=step > 3)),
        ),
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SAME)
def test_it_goes_on_as_with_pyro(name):
    results = []
    for kind in (pyro.infer.SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        found, svi = SAME[name](kind)
        results.append((found, torch.rand(())))
    (expected, draw), (found, other) = results
    assert svi._loss.compiled.reason is None
    assert svi._loss.compiled.traced > 0
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    assert draw == other


def test_what_a_training_loop_keeps_beside_its_model_is_no_constant():
    thing = Plain()
    thing.losses, thing.epoch = [], 0

    def change(step, svi):
        thing.losses.append(step)
        thing.epoch += 1

    svi = steps(CompiledSVI, thing.model, change)[1]
    assert svi._loss.compiled.traced == 1
    assert svi._loss.compiled.reason is None


def test_integers_that_are_new_at_each_step_are_left_to_pyro():
    def program(kind):
        pyro.clear_param_store()
        return steps(kind, of(lambda a: a), args=lambda step: (X, 1 + step), number=12)

    with pytest.warns(UserWarning, match="numbers among the arguments are ever new"):
        found, svi = program(CompiledSVI)
    assert found == program(pyro.infer.SVI)[0]
    assert len(svi._loss.ready) < 12


def test_an_object_as_an_argument_is_left_to_pyro():
    def program(kind):
        box = SimpleNamespace(x=X)
        model = of(lambda: 1.0)

        def args(step):
            box.x = X + step
            return (box,)

        pyro.clear_param_store()
        return steps(kind, lambda box: model(box.x), args=args)

    with pytest.warns(UserWarning, match="of the type SimpleNamespace, which may change"):
        found, _ = program(CompiledSVI)
    assert found == program(pyro.infer.SVI)[0]


def test_a_parameter_that_is_not_a_number_fails_as_with_pyro():
    def change(svi):
        pyro.param("loc").data.fill_(float("nan"))

    with pytest.raises(ValueError, match="Expected parameter loc"):
        steps(CompiledSVI, of(lambda: 1.0), once(change))
