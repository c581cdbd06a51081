"""Recorded steps on a GPU: the numbers of eager steps there, for the same seed.

What can be seen without a GPU is in `test_replay.py`.
"""

from functools import partial

import pyro
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from benchmarks.speed import tutorials
from guides import AmortizedNormal
from ppl_models import VAE, Transformed, elbo, fit, iwae
from ppl_models.infer.training.batches import Chosen
from ppl_models.infer.training.descent import Descent
from tests.support.every_objective import COMPILED
from tests.support.tutorials import CompiledSVI

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Graphs that hold reads of torch's own run compiled, step by step.
    pytest.mark.filterwarnings("ignore:steps are compiled, but not recorded"),
]

MUST = (  # what is recorded for certain
    "GaussianMixture, diag",
    "LinearRegression, AutoNormal",
    "LinearRegression, AutoMultivariateNormal",
    "LogisticRegression",
    "VAE, Bernoulli",
    "VAE, Normal",
    "iwae",
    "MADE",
    "Diffusion",
)
X = torch.bernoulli(torch.full((50, 6), 0.4))


@pytest.fixture
def no_compiler(monkeypatch):
    """Graphs run as they are traced: the compiler takes long for each."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)


def steps(make, data, compile, **options):
    """The losses of some steps on the GPU, and the descent."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    objective = make()
    objective.loss(*data)  # an autoguide makes its parameters
    for module in objective.modules().values():
        module.to("cuda")
    tensors = tuple(x.cuda() for x in data)
    size = len(tensors[0])
    batch = Chosen(tensors, torch.arange(size, device="cuda"), size)
    descent = Descent(objective, batch.gathered(), lr=1e-3, compile=compile, **options)
    torch.manual_seed(1)
    losses = [descent.step(batch) for _ in range(8)]
    return [step[objective.name].item() for step in losses], descent


def recorded(descent):
    return descent.replay.reason is None and all(
        recording.replay is not None for recording in descent.replay.recordings.values()
    )


@pytest.mark.parametrize("name", COMPILED)
def test_steps_are_those_of_the_program(name, no_compiler):
    make, data, _ = COMPILED[name]
    expected, _ = steps(make, data, False)
    found, descent = steps(make, data, True)
    assert found == pytest.approx(expected, rel=1e-3)
    if name in MUST:
        assert recorded(descent)


OPTIONS = {
    "clipped": {"clip": 0.1},
    "averaged": {"ema": 0.9},
    "scheduled": {"schedule": partial(ExponentialLR, gamma=0.5)},
    "AdamW": {"optimizer": torch.optim.AdamW},
    "SGD": {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
    "RMSprop": {"optimizer": torch.optim.RMSprop},
    "bfloat16": {"amp": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, no_compiler):
    make = lambda: elbo(VAE(6, 2), AmortizedNormal(6, 2))  # noqa: E731
    expected, _ = steps(make, (X,), False, **OPTIONS[name])
    found, descent = steps(make, (X,), True, **OPTIONS[name])
    assert found == pytest.approx(expected, rel=3e-3)
    assert recorded(descent)


def fitted(**settings):
    torch.manual_seed(0)
    objective = elbo(VAE(6, 2), AmortizedNormal(6, 2))
    settings = {"epochs": 8, "batch_size": 16, "seed": 0, "device": "cuda"} | settings
    run = fit(objective, Transformed(X, transform=torch.bernoulli), **settings)
    return run.history["loss"], [p.detach().cpu() for _, p in objective.named_parameters()]


@pytest.mark.parametrize("amp", [False, True])
def test_a_fit_with_the_compiler(amp):
    """With fresh binarisation, an uneven last batch, and the real compiler."""
    found, expected = (fitted(compile=on, amp=amp) for on in (True, False))
    assert found[0] == pytest.approx(expected[0], rel=1e-2 if amp else 1e-4)


def test_a_resumed_run_goes_on(tmp_path, no_compiler):
    expected = fitted(compile=True)
    fitted(compile=True, epochs=None, steps=14, checkpoint=tmp_path / "run")
    found = fitted(compile=True, resume=True, checkpoint=tmp_path / "run")
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for ours, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow(no_compiler):
    """With one fit after the other, nor with their steps."""
    peaks = []
    for epochs in (8, 8, 80):
        fitted(compile=True, epochs=epochs)
        peaks.append(torch.cuda.memory_allocated())
    assert peaks[1] <= peaks[0]
    assert peaks[2] <= peaks[0]


def test_many_particles_by_the_compiler():
    make = lambda: iwae(VAE(6, 2), AmortizedNormal(6, 2), 5)  # noqa: E731
    expected, _ = steps(make, (X,), False)
    found, descent = steps(make, (X,), True)
    assert found == pytest.approx(expected, rel=1e-4)
    assert recorded(descent)


@pytest.mark.parametrize("name", [p.name for p in tutorials.programs()])
def test_the_drop_in(name, no_compiler):
    program = next(p for p in tutorials.programs(1, "cuda") if p.name == name)
    expected, found = tutorials.Way(pyro.infer.SVI, program), tutorials.Way(CompiledSVI, program)
    for way in (expected, found):
        way.run(10)
    assert found.losses == pytest.approx(expected.losses, rel=1e-3)
