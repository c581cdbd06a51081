"""Ctrl-C: a run ends between two steps and can go on; Pyro is never left in disorder."""

import os
import random
import signal
import threading
import time
from contextlib import contextmanager, suppress

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from ppl_models import data_plate, elbo, fit
from ppl_models.infer.programs.own import running
from ppl_models.infer.programs.pyro_internals import active_handlers, context_of, taken_dims
from ppl_models.infer.programs.rows import Rows
from tests.support.oracles import same

X = torch.linspace(-1, 1, 12)


def model(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(loc, scale))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.fixture(autouse=True)
def heard():
    """A shell has what it starts in the background ignore Ctrl-C, and so would the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def interrupts(*delays):
    """Ctrl-C after so many seconds each, from another thread, once a run is on its way."""

    ended = threading.Event()  # before it began, by the second of the run before, which came late

    def send():
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            if ended.wait(0.0005):
                return
        for delay in delays:
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def clean(guide):
    """Whether nothing of a run is left in Pyro."""
    assert list(active_handlers()) == []
    assert list(taken_dims()) == []
    assert running == []
    assert set(pyro.get_param_store().keys()) <= {"scale"}
    assert guide.create_plates is None
    assert context_of(guide).active == 0
    return True


def interrupted(guide, **options):
    settings = {"steps": 10**6, "batch_size": 5, "seed": 0, "progress": False}
    return fit(elbo(model, guide), X, **{**settings, **options})


def test_a_run_ends_between_two_steps():
    """Eighty times, each at a moment of its own."""
    moments = random.Random(0)
    guide = AutoNormal(model)
    fit(elbo(model, guide), X, steps=1, batch_size=5, seed=0, progress=False)
    for _ in range(80):
        with interrupts(moments.uniform(0.001, 0.02)), pytest.warns(UserWarning, match="fit: int"):
            run = interrupted(guide)
        assert clean(guide)
        assert run.steps < 10**6
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert fit(elbo(model, guide), X, steps=5, batch_size=5, progress=False).steps == 5


@pytest.mark.filterwarnings("ignore:fit. interrupted")
def test_a_second_one_stops_at_once():
    """Where it comes in time; two at the same moment are one."""
    moments = random.Random(1)
    guide = AutoNormal(model)
    fit(elbo(model, guide), X, steps=1, batch_size=5, seed=0, progress=False)
    stopped = 80
    for _ in range(80):
        first, second = moments.uniform(0.001, 0.02), moments.uniform(0, 0.001)
        with suppress(KeyboardInterrupt), interrupts(first, second):
            interrupted(guide)
            stopped -= 1
            time.sleep(0.1)
        assert clean(guide)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert stopped > 0  # how often depends on the machine: 19 to 60 times
    assert fit(elbo(model, guide), X, steps=5, batch_size=5, progress=False).steps == 5


@pytest.mark.parametrize("kind", [pyro.plate, Rows, type(context_of(AutoNormal(model)))])
def test_an_interrupt_inside_of_an_exit(kind, monkeypatch):
    """Which then does none of its work."""
    guide, left, original = AutoNormal(model), [], kind.__exit__
    fit(elbo(model, guide), X, steps=1, batch_size=5, seed=0, progress=False)

    def leave(self, *error):
        left.append(1)
        if len(left) == 7:
            raise KeyboardInterrupt
        return original(self, *error)

    monkeypatch.setattr(kind, "__exit__", leave)
    with pytest.raises(KeyboardInterrupt):
        interrupted(guide)
    monkeypatch.undo()
    assert clean(guide)
    assert fit(elbo(model, guide), X, steps=5, batch_size=5, progress=False).steps == 5


def test_an_interrupted_run_goes_on_as_if_there_was_none(tmp_path):
    def run(**options):
        pyro.clear_param_store()
        guide = AutoNormal(model)
        options = {"batch_size": 5, "seed": 0, "lr": 0.01, "progress": False, **options}
        run = fit(elbo(model, guide), X, compile=False, **options)
        return run, {**guide.state_dict(), "scale": pyro.param("scale").detach()}

    path = tmp_path / "run"
    run(steps=1)  # the first one imports what it needs
    with interrupts(0.15), pytest.warns(UserWarning, match=r"of 1000000 steps.*resume=True"):
        first, values = run(steps=10**6, checkpoint=path)
    assert path.exists()
    assert same(run(steps=first.steps)[1], values)
    total = first.steps + 50
    again, resumed = run(steps=total, checkpoint=path, resume=True)
    whole, expected = run(steps=total)
    assert same(resumed, expected)
    assert again.history == whole.history


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.12
def test_a_loader_with_processes():
    loader = DataLoader(TensorDataset(X), batch_size=4, num_workers=1)

    def shared(x=None, size=None):
        loc = pyro.param("loc", torch.tensor(0.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with interrupts(1.0), pytest.warns(UserWarning, match="fit: interrupted"):
        fit(elbo(shared), loader, steps=10**6, progress=False)
    assert list(taken_dims()) == []


def test_a_handler_of_the_users_is_left_in_place():
    seen = []
    former = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with interrupts(0.02):
            run = interrupted(AutoNormal(model), steps=100)
        assert (run.steps, seen) == (100, [1])
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)


def test_in_another_thread():
    runs = []
    thread = threading.Thread(target=lambda: runs.append(interrupted(AutoNormal(model), steps=3)))
    thread.start()
    thread.join()
    assert runs[0].steps == 3
