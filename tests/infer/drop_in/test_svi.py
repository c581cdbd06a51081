"""The drop-in `SVI`: Pyro's losses and parameters, for programs as its tutorials write them."""

from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from benchmarks.speed import tutorials
from ppl_models import SVI
from tests.support.oracles import same
from tests.support.tutorials import EFFECTS, ERRORS, PROGRAMS, CompiledSVI, run

pytestmark = pytest.mark.usefixtures("graphs_as_traced")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_the_tutorials_go_as_with_pyro(name):
    losses, values, svi, _ = run(CompiledSVI, *PROGRAMS[name])
    expected, others, *_ = run(pyro.infer.SVI, *PROGRAMS[name])
    assert svi._loss.compiled.reason is None
    assert len(svi._loss.compiled.graphs) == 1
    assert losses == pytest.approx(expected, rel=1e-5)
    for key, value in values.items():
        torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)


OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.01, "betas": (0.95, 0.999)}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.01}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-4, "momentum": 0.9}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99}),
    "clipped": lambda: pyro.optim.Adam({"lr": 0.01}, {"clip_norm": 1.0}),
    "by name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "loc" in name else 0.01}),
    "scheduled": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.9}
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_move_as_with_pyro(name):
    program = PROGRAMS["eight schools"]
    losses, values, svi, state = run(CompiledSVI, *program, optim=OPTIMIZERS[name]())
    expected, others, _, others_state = run(pyro.infer.SVI, *program, optim=OPTIMIZERS[name]())
    assert losses == pytest.approx(expected, rel=1e-5)
    for key, value in values.items():
        torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)
    assert all(f.optimizer is not None for f in svi._fused.values()) == (
        name in ("Adam", "AdamW", "SGD")
    )
    for key in values if name != "scheduled" else ():
        ours, theirs = (s[key]["state"][0] for s in (state, others_state))
        for a, b in zip(ours.values(), theirs.values(), strict=True):
            torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5)


def test_an_optimiser_of_torch():
    expected = run(pyro.infer.SVI, *PROGRAMS["variational autoencoder"])[0]
    pyro.clear_param_store()
    torch.manual_seed(0)
    make, _, data = PROGRAMS["variational autoencoder"]
    model, guide = make()
    modules = [c.cell_contents for f in (model, guide) for c in f.__closure__]
    parameters = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    svi = CompiledSVI(model, guide, optimizer, Trace_ELBO())
    losses = [svi.step(*data) for _ in range(12)]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_ways_of_the_benchmark_have_draws_of_their_own():
    """In turns, and yet as if alone."""
    program = next(p for p in tutorials.programs() if p.name == "eight schools")
    alone = tutorials.Way(pyro.infer.SVI, program)
    alone.run(6)
    ways = [tutorials.Way(pyro.infer.SVI, program) for _ in range(2)]
    for way in 3 * ways:
        way.run(2)
    assert ways[0].losses == ways[1].losses == alone.losses


def test_an_elbo_that_it_does_not_trace_is_pyros():
    results = [
        run(kind, *PROGRAMS["eight schools"], loss=TraceMeanField_ELBO())[0]
        for kind in (CompiledSVI, pyro.infer.SVI)
    ]
    assert results[0] == results[1]


def test_particles_and_arguments_by_name():
    def program(kind):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide = tutorials.eight_schools()
        loss = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        return [svi.step(ERRORS, y=EFFECTS) for _ in range(5)], svi

    losses, svi = program(CompiledSVI)
    assert losses == pytest.approx(program(pyro.infer.SVI)[0], rel=1e-5)
    assert svi._loss.compiled.reason is None
    assert svi.evaluate_loss(ERRORS, y=EFFECTS) > 0


def test_a_program_that_cannot_be_traced_is_pyros():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = z if z > 0 else -2 * z
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))

    make = lambda: (model, AutoNormal(model))  # noqa: E731
    with pytest.warns(UserWarning, match="SVI: it runs eagerly, not compiled: it cannot be traced"):
        losses = run(CompiledSVI, make, 0, ())[0]
    assert losses == pytest.approx(run(pyro.infer.SVI, make, 0, ())[0], rel=1e-6)


@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_are_pyros_unless_compiled_ones_are_asked_for(name):
    """To the last bit, optimiser included."""
    found, values, svi, state = run(SVI, *PROGRAMS[name])
    expected, others, _, others_state = run(pyro.infer.SVI, *PROGRAMS[name])
    assert svi._loss is None
    assert found == expected
    assert same(values, others)
    assert state.keys() == others_state.keys()


def test_numbers_that_a_program_draws_or_reads_elsewhere():
    """By NumPy, from an object, by the kind of the call: a compiled step may hold the first."""

    def program(kind):
        pyro.clear_param_store()
        rng, held = np.random.default_rng(0), SimpleNamespace(x=torch.zeros(3))

        def model(which):
            loc = {n: pyro.param(n, torch.tensor(0.05)) for n in ("a", "b")}[which]
            drawn = torch.tensor(rng.normal(size=3), dtype=torch.float32)
            pyro.sample("x", dist.Normal(loc, 1.0).expand([3]).to_event(1), obs=held.x + drawn)

        svi = kind(model, lambda which: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = []
        for step in range(40):
            held.x = torch.full((3,), float(step % 3))
            losses.append(svi.step("ab"[step % 2]))
        return losses, pyro.param("a").item(), pyro.param("b").item()

    assert program(SVI) == program(pyro.infer.SVI)
