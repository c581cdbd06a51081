"""Runs that go on from a checkpoint: bit for bit, or refused."""

import functools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit
from ppl_models.infer.training import files
from ppl_models.infer.training import progress as progress_module
from ppl_models.infer.training.progress import Progress
from tests.support.oracles import binary, same, state
from tests.support.runs import SOURCES, cosine, dropout_vae, everything, quiet, trained


def interrupted(
    path: Path, at: int, total: int, make: Callable[[], Any] = dropout_vae, **options: Any
) -> tuple[dict[str, Tensor], Any]:
    quiet(elbo(*make()), steps=at, checkpoint=path, **options)
    pair = make()
    torch.randn(17)  # another process would stand elsewhere
    run = quiet(elbo(*pair), steps=total, checkpoint=path, resume=True, **options)
    return state(*pair), run


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("at", [1, 5, 6, 7])  # five steps are an epoch
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, source, at):
    pair = dropout_vae()
    run = quiet(elbo(*pair), steps=2 * at, **everything(source))
    resumed, again = interrupted(tmp_path / "run", at, 2 * at, **everything(source))
    assert same(resumed, state(*pair))
    assert again.steps == run.steps == 2 * at
    assert again.history == run.history


def test_resumed_without_a_seed(tmp_path):
    """The seed of the first part is in the checkpoint, that of the validation too."""
    options = everything("tensor", seed=None)
    torch.manual_seed(2)
    pair = dropout_vae()
    run = quiet(elbo(*pair), steps=14, **options)
    torch.manual_seed(2)
    resumed, again = interrupted(tmp_path / "run", 7, 14, **options)
    assert same(resumed, state(*pair))
    assert again.history == run.history


SCHEDULERS: dict[str, Any] = {
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [3, 9], 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, 3, cycle_momentum=False),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[5],
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_resumed_under_every_schedule(tmp_path, name):
    options = everything("tensor", schedule=SCHEDULERS[name])
    pair = dropout_vae()
    quiet(elbo(*pair), steps=14, **options)
    assert same(interrupted(tmp_path / "run", 7, 14, **options)[0], state(*pair))


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(torch.optim.SGD, momentum=0.9),
        functools.partial(torch.optim.AdamW, amsgrad=True),
        torch.optim.RMSprop,
        torch.optim.Adagrad,
    ],
)
def test_resumed_under_every_optimiser(tmp_path, optimizer):
    options = everything("tensor", optimizer=optimizer)
    pair = dropout_vae()
    quiet(elbo(*pair), steps=14, **options)
    assert same(interrupted(tmp_path / "run", 7, 14, **options)[0], state(*pair))


def test_resumed_after_early_stopping_stays_stopped(tmp_path):
    options = everything("tensor", patience=2, lr=0.5, clip=None)
    pair = dropout_vae()
    run = quiet(elbo(*pair), epochs=40, **options)
    assert run.steps < 200  # it stopped
    for at in (3, 11, run.steps):
        resumed, again = interrupted(tmp_path / f"run-{at}", at, 200, **options)
        assert same(resumed, state(*pair))
        assert again.history == run.history


def function_model(x: Tensor, size: int | None = None) -> None:
    loc = pyro.param("loc", torch.zeros(4))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def function_guide(x: Tensor, size: int | None = None) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x, scale).to_event(1))


class Wrapped(nn.Module):
    """A function as the `forward` of a module: its parameters belong to that."""

    def __init__(self, program: Callable[..., None]) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor, size: int | None = None) -> None:
        self.program(x, size)


@pytest.mark.parametrize("style", ["functions", "params in forward", "autoguide"])
def test_resumed_in_every_style(tmp_path, style):
    def make() -> tuple[Any, Any]:
        if style == "functions":
            pyro.clear_param_store()
            return function_model, function_guide
        if style == "params in forward":
            return Wrapped(function_model), Wrapped(function_guide)
        model = FactorAnalysis(4, 2)
        nn.init.ones_(model.loadings)
        return model, pyro.infer.autoguide.AutoNormal(model)

    def parameters(objective: Any) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in objective.named_parameters()}

    options = everything("tensor", validation=None, lr=0.1)
    whole = elbo(*make())
    quiet(whole, steps=14, **options)
    expected = parameters(whole)
    quiet(elbo(*make()), steps=7, checkpoint=tmp_path / "run", **options)
    resumed = elbo(*make())
    quiet(resumed, steps=14, checkpoint=tmp_path / "run", resume=True, **options)
    assert expected
    assert same(parameters(resumed), expected)


def test_a_finished_run_resumed_is_left_alone(tmp_path):
    options, path = everything("tensor"), tmp_path / "run"
    pair = dropout_vae()
    run = quiet(elbo(*pair), epochs=2, checkpoint=path, **options)
    fresh = dropout_vae()
    again = quiet(elbo(*fresh), epochs=2, checkpoint=path, resume=True, **options)
    assert same(state(*pair), state(*fresh))
    assert again.steps == run.steps
    assert again.history == run.history


def test_a_finished_run_in_mid_epoch_resumed_is_left_alone(tmp_path):
    resumed, again = interrupted(tmp_path / "run", 7, 7, **everything("tensor"))
    pair = dropout_vae()
    run = quiet(elbo(*pair), steps=7, **everything("tensor"))
    assert same(resumed, state(*pair))
    assert again.history == run.history


def test_resume_without_a_file_begins_anew(tmp_path):
    pair, other = dropout_vae(), dropout_vae()
    options = everything("tensor")
    quiet(elbo(*pair), steps=4, checkpoint=tmp_path / "run", resume=True, **options)
    quiet(elbo(*other), steps=4, **options)
    assert same(state(*pair), state(*other))
    assert (tmp_path / "run").exists()


def test_another_horizon_is_refused(tmp_path):
    options, path = everything("tensor", schedule=cosine), tmp_path / "run"
    quiet(elbo(*dropout_vae()), epochs=2, checkpoint=path, **options)
    before, pair = path.read_bytes(), dropout_vae()
    old = state(*pair)
    with pytest.raises(ValueError, match=r"schedule was made for 10 steps in all, got 20.*same"):
        quiet(elbo(*pair), epochs=4, checkpoint=path, resume=True, **options)
    assert path.read_bytes() == before
    assert same(state(*pair), old)


def test_the_same_horizon_is_resumed(tmp_path):
    """As it is when a run was killed: the checkpoint says how many steps there were to be."""
    options, path = everything("tensor", schedule=cosine), tmp_path / "run"
    whole = dropout_vae()
    quiet(elbo(*whole), epochs=3, **options)

    class Killed(torch.optim.Adam):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            Killed.steps += 1
            if Killed.steps == 8:
                raise KeyboardInterrupt
            return super().step(closure)

    Adam = functools.partial(torch.optim.Adam, fused=True)
    Killed.__name__ = "Adam"
    with pytest.raises(KeyboardInterrupt):
        quiet(
            elbo(*dropout_vae()),
            epochs=3,
            checkpoint=path,
            checkpoint_every=0,
            **options | {"optimizer": functools.partial(Killed, fused=True)},
        )
    pair = dropout_vae()
    quiet(elbo(*pair), epochs=3, checkpoint=path, resume=True, **options | {"optimizer": Adam})
    assert same(state(*pair), state(*whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"lr=0.01, now 0.5"),
        ({"batch_size": 6}, r"batch_size=5, now 6"),
        ({"clip": None}, r"clip=0.05, now None"),
        ({"optimizer": torch.optim.SGD}, r"optimizer='Adam', now 'SGD'"),
        ({"schedule": None}, r"schedule='ExponentialLR', now 'NoneType'"),
        ({"schedule": cosine}, r"schedule='ExponentialLR', now 'CosineAnnealingLR'"),
        ({"data": binary(21)}, r"rows=22, now 21"),
        ({"amp": True}, r"amp=False, now True"),
        ({"validation": None}, r"validated=True, now False"),
        ({"seed": 1}, r"written with seed=0, got seed=1"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, message):
    path = tmp_path / "run"
    quiet(elbo(*dropout_vae()), steps=3, checkpoint=path, **everything("tensor"))
    before, pair = path.read_bytes(), dropout_vae()
    old = state(*pair)
    options = everything("tensor") | change
    with pytest.raises(ValueError, match=message):
        quiet(elbo(*pair), steps=6, checkpoint=path, resume=True, **options)
    assert path.read_bytes() == before
    assert same(state(*pair), old)


def test_a_checkpoint_from_before_a_setting_existed(tmp_path):
    path, options = tmp_path / "run", everything("tensor")
    whole, pair = dropout_vae(), dropout_vae()
    quiet(elbo(*whole), steps=6, **options)
    quiet(elbo(*pair), steps=3, checkpoint=path, **options)
    tree = files.read(path)
    for name in ("compile", "ema"):
        del tree["settings"][name]
    files.write(path, tree)
    with pytest.raises(ValueError, match="compile=False, now True"):
        quiet(elbo(*dropout_vae()), steps=6, checkpoint=path, resume=True, compile=True, **options)
    with pytest.raises(ValueError, match=r"ema=None, now 0\.9"):
        quiet(elbo(*dropout_vae()), steps=6, checkpoint=path, resume=True, ema=0.9, **options)
    pair = dropout_vae()
    quiet(elbo(*pair), steps=6, checkpoint=path, resume=True, compile=False, **options)
    assert same(state(*pair), state(*whole))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_checkpoint_from_another_device_goes_on_here(tmp_path, device):
    """Its generator of random numbers is left out, where there is none."""
    path, options = tmp_path / "run", everything("tensor")
    whole, pair = dropout_vae(), dropout_vae()
    quiet(elbo(*whole), steps=6, **options)
    quiet(elbo(*pair), steps=3, checkpoint=path, **options)
    tree = files.read(path)
    tree["rng"][device] = torch.zeros(16, dtype=torch.uint8)
    files.write(path, tree)
    pair = dropout_vae()
    quiet(elbo(*pair), steps=6, checkpoint=path, resume=True, **options)
    assert same(state(*pair), state(*whole))


def test_another_models_checkpoint(tmp_path):
    path = tmp_path / "run"
    quiet(elbo(*dropout_vae()), steps=3, checkpoint=path, **everything("tensor"))
    model, guide = VAE(4, 3), AmortizedNormal(4, 3)
    with pytest.raises(ValueError, match=r"run: another model's: it lacks 0\.guide.*Try the model"):
        quiet(elbo(model, guide), steps=6, checkpoint=path, resume=True, **everything("tensor"))
    wide = dropout_vae()
    wide[0].decoder[0] = nn.Linear(2, 8, bias=False)
    with pytest.raises(ValueError, match=r"it has 0\.model\.decoder\.0\.bias, unknown here"):
        quiet(elbo(*wide), steps=6, checkpoint=path, resume=True, **everything("tensor"))


def test_a_truncated_checkpoint(tmp_path):
    path = tmp_path / "run"
    quiet(elbo(*dropout_vae()), steps=3, checkpoint=path, **everything("tensor"))
    path.write_bytes(path.read_bytes()[:-10])
    options = everything("tensor")
    with pytest.raises(ValueError, match=r"truncated.*Try an earlier"):
        quiet(elbo(*dropout_vae()), steps=6, checkpoint=path, resume=True, **options)


WORKER = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from pathlib import Path
from ppl_models.infer.training.descent import Descent
from ppl_models import elbo
from ppl_models.infer.training import files
from tests.support.oracles import same, state
from tests.support.runs import cosine, dropout_vae, everything, quiet

folder = Path(sys.argv[1])
quiet(elbo(*dropout_vae()), steps=2, **everything("tensor"))  # lazy imports, once for all
step = Descent.step

def train(path, pipe):
    def told(descent, batch):
        os.write(pipe, b".")
        return step(descent, batch)

    Descent.step = told
    pair = dropout_vae()
    options = everything("tensor", schedule=cosine)
    quiet(elbo(*pair), steps=30, checkpoint=path, checkpoint_every=0, resume=True, **options)
    files.write(path.with_suffix(".result"), {"tensors": state(*pair)})

def child(path):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            train(path, write)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.close(write)
    return pid, open(read, "rb", buffering=0)

def finish(path):
    pid, pipe = child(path)
    with pipe:
        steps = len(pipe.read())
    assert os.waitpid(pid, 0)[1] == 0, f"{path} failed"
    return steps, files.read(path.with_suffix(".result"))["tensors"]

total, expected = finish(folder / "whole")
assert total == 30

random.seed(0)
killed = 0
for i in range(20):
    path = folder / f"run-{i}"
    pid, pipe = child(path)
    with pipe:
        for _ in range(random.randint(2, 20)):
            pipe.read(1)  # another step has begun, and the one before is written
        time.sleep(random.uniform(0, 0.005))
        os.kill(pid, signal.SIGKILL)
    killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
    if path.exists():
        files.read(path)  # whole
    steps, tensors = finish(path)
    assert steps < 30, f"run {i} began anew"
    assert same(tensors, expected), f"run {i} ended elsewhere"
print(killed, "killed")
assert killed >= 10
"""


def test_killed_at_twenty_random_moments(tmp_path):
    root = str(Path(__file__).parents[3])
    result = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path), root],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "killed" in result.stdout


def test_resume_with_a_sampler_that_has_its_own_generator(tmp_path):
    def run(steps, **options):
        torch.manual_seed(3)
        vae, guide = VAE(4, 2), AmortizedNormal(4, 2)
        data = TensorDataset(binary())
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(5))
        loader = DataLoader(data, batch_size=5, sampler=sampler)
        fit(elbo(vae, guide), loader, steps=steps, seed=0, **options)
        return vae.decoder[0].weight

    path = tmp_path / "run"
    run(6, checkpoint=path)
    assert torch.equal(run(12), run(12, checkpoint=path, resume=True))


@pytest.mark.parametrize("options", [{}, {"steps": 41, "epochs": None}, {"validation": True}])
def test_losses_of_an_accelerator_are_read_now_and_then(options, monkeypatch, tmp_path):
    """Several epochs at a time where they are short, with the same history."""
    data = binary(20, 4)
    if "validation" in options:
        options = {"validation": data[:5]}
    settings = {"epochs": 10, "checkpoint": tmp_path / "run"} | options
    _, expected = trained(data, **settings)
    reads = []
    table = progress_module._table
    monkeypatch.setattr(Progress, "_costs_nothing", False)
    monkeypatch.setattr(progress_module, "READ_EVERY", 17)
    monkeypatch.setattr(progress_module, "_table", lambda s: reads.append(len(s)) or table(s))
    _, run = trained(data, **settings)
    assert run.history == expected.history
    assert max(reads) == (4 if "validation" in options else 14)
    assert sum(reads) == run.steps


def test_the_step_of_a_loss_read_late_is_named(monkeypatch):
    monkeypatch.setattr(Progress, "_costs_nothing", False)
    objective = elbo(*dropout_vae())
    loss = objective.loss
    calls = []

    def third(*batch, size=None):
        calls.append(1)
        return loss(*batch, size=size) * (math.nan if len(calls) == 8 else 1.0)

    monkeypatch.setattr(objective, "loss", third)
    monkeypatch.setattr(torch, "isfinite", lambda x: torch.ones_like(x, dtype=torch.bool))
    with pytest.raises(FloatingPointError, match="elbo: the loss is nan at step 7"):
        quiet(objective, binary(20, 4), epochs=10, batch_size=5)
