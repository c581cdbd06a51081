"""What measures: it changes nothing, and the peers written by hand do what they are said to."""

import importlib
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
)


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def fitted(**options):
    torch.manual_seed(0)
    model, guide = VAE(6, 2), AmortizedNormal(6, 2)
    x = torch.bernoulli(torch.full((20, 6), 0.5))
    fit(elbo(model, guide), x, epochs=4, batch_size=8, seed=0, progress=False, **options)
    return list(model.state_dict().values())


def test_a_stopwatch_changes_nothing(benchmark):
    watch = benchmark("measure").Stopwatch("cpu", every=3)
    with_it, without = fitted(schedule=watch), fitted()
    assert all(map(torch.equal, with_it, without))
    assert len(watch.times) == 5  # the start, and each of four epochs
    assert watch.times == sorted(watch.times)
    first, second, third, fourth = watch.times[1:]
    assert watch.seconds() == [second - first, third - second, fourth - third]


def test_a_step_by_hand_is_recorded_as_the_manual_has_it(benchmark, monkeypatch):
    measure, told = benchmark("measure"), []

    class Stream:
        def wait_stream(self, other):
            told.append("wait")

    class Graph:
        def replay(self):
            told.append("replay")

    @contextmanager
    def graph(recorded):
        told.append("record")
        yield
        told.append("recorded")

    for name, stub in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    replay = measure.captured(lambda: told.append("step"))
    replay()
    steps = ["step"] * 3
    assert told == ["wait", *steps, "wait", "record", "step", "recorded", "replay"]


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_captured_epoch_is_the_epoch_by_hand(benchmark, device, monkeypatch):
    """On the CPU a step stands for its recording."""
    vae_epoch = benchmark("speed.vae_epoch")
    images = torch.rand(300, 784).to(device)  # batches of 256 and 44
    if device == "cpu":
        monkeypatch.setattr(vae_epoch.measure, "captured", lambda step: step)
    made = []
    monkeypatch.setattr(
        vae_epoch, "networks", lambda *a, make=vae_epoch.networks: made.append(make(*a)) or made[-1]
    )
    captured = vae_epoch.by_hand_captured(images, 0)
    eager, *_ = vae_epoch.by_hand(images, 0, 10**9)  # with a rate that stays
    for epoch in (captured, eager):
        torch.manual_seed(1)
        epoch()
        epoch()
    (first, second) = ([*decoder.parameters(), *encoder.parameters()] for decoder, encoder in made)
    for a, b in zip(first, second, strict=True):
        if device == "cpu":
            torch.testing.assert_close(a, b)
        else:  # which was taken three steps before it was recorded
            assert (a - b).abs().max() < 0.1
            assert (a - b).abs().max() > 0


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_every_number_has_its_machine(benchmark, device):
    measure = benchmark("measure")
    about = measure.about(device)
    assert about["machine"]
    assert about["machine"] in measure.heading(device)
    assert measure.peak(device) >= (0 if device == "cuda" else 50)
    calls = []
    assert measure.seconds(lambda: calls.append(1), device, times=3) > 0
    assert len(calls) == 3
