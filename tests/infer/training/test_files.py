"""Files, whole or not at all and never unpickled, and the runs that go on from them."""

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit, load, save
from ppl_models.infer.programs.program import own_parameters
from ppl_models.infer.training import files
from tests.support.oracles import binary, same, state

quiet = functools.partial(fit, progress=False)


def dropout_vae(features: int = 4) -> tuple[VAE, AmortizedNormal]:
    """The same parameters at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = nn.Sequential(nn.Linear(features, 8), nn.Dropout(0.3), nn.Linear(8, 4))
        decoder = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, features)
        )
        return VAE(features, 2, decoder=decoder), AmortizedNormal(features, 2, encoder=encoder)


# --- save and load --------------------------------------------------------------------------


class WithParam(nn.Module):
    """Pyro keeps its parameter; the weights are its own; the two matrices are one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tied = nn.Linear(3, 3), nn.Linear(3, 3)
        self.tied.weight = self.layer.weight
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor, size: int | None = None) -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with data_plate(x, size):
            mean = self.tied(self.layer(x))
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def test_round_trip(tmp_path):
    a, b = dropout_vae(), (VAE(4, 2, decoder=dropout_vae()[0].decoder), dropout_vae()[1])
    quiet(elbo(*a), binary(), steps=3, seed=0)
    assert not same(state(*a), state(*b))
    save(tmp_path / "deep" / "weights.safetensors", model=a[0], guide=a[1])
    load(str(tmp_path / "deep" / "weights.safetensors"), guide=b[1], model=b[0])
    assert same(state(*a), state(*b))
    assert os.listdir(tmp_path / "deep") == ["weights.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_every_number_survives(tmp_path, dtype):
    a, b = nn.Module(), nn.Module()
    values = torch.tensor([0.1, -3e8, 0.0, 7.5]).to(dtype)
    a.register_buffer("x", values), b.register_buffer("x", torch.zeros(4, dtype=dtype))
    a.register_buffer("empty", torch.zeros(0, 2)), b.register_buffer("empty", torch.zeros(0, 2))
    a.register_buffer("scalar", torch.tensor(2)), b.register_buffer("scalar", torch.tensor(0))
    save(tmp_path / "w", a=a)
    load(tmp_path / "w", a=b)
    assert torch.equal(b.x, values)
    assert b.x.dtype == dtype
    assert b.scalar == 2


def test_parameters_in_forward_and_tied_weights(tmp_path):
    a, b = WithParam(), WithParam()
    x = torch.randn(9, 3)
    quiet(elbo(a), x, steps=5, lr=0.1, seed=0)
    save(tmp_path / "w", model=a)
    elbo(b).prepare(x, size=9)
    load(tmp_path / "w", model=b)
    assert torch.equal(own_parameters(a)["scale"], own_parameters(b)["scale"])
    assert torch.equal(a.layer.weight, b.tied.weight)
    assert b.tied.weight is b.layer.weight
    assert torch.equal(elbo(a).loss(x), elbo(b).loss(x))


@pytest.mark.parametrize("number", range(40))
def test_files_of_every_length_are_read(tmp_path, number):
    """The first bytes of a file are the length of its header, and may be those of a pickle."""
    path = tmp_path / "w"
    files.write(path, {"kind": "weights", "modules": {}, "x": "a" * number * 8})
    assert files.read(path)["x"] == "a" * number * 8


def test_trees_survive(tmp_path):
    tree = {
        "a": [1, 2.5, None, True, "x", (1, (2,)), {3: {"4": float("inf")}}, []],
        "b": {"tensor": "no", "list": {"dict": 1}},
        "long": 0.1 + 0.2,
    }
    files.write(tmp_path / "t", tree)
    assert files.read(tmp_path / "t") == tree
    with pytest.raises(TypeError, match="cannot write /a/0 of type object"):
        files.write(tmp_path / "t", {"a": [object()]})
    assert files.read(tmp_path / "t") == tree


# --- files that are not as they should be ---------------------------------------------------


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save(path, model=FactorAnalysis(5, 2))
    return path


def test_the_payload_is_live(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "boom")))
    assert (tmp_path / "boom").exists()


PICKLES: dict[str, Callable[[Any, Path], Any]] = {
    f"protocol {n}": functools.partial(
        lambda value, path, n: path.write_bytes(pickle.dumps(value, protocol=n)), n=n
    )
    for n in range(6)
} | {
    "torch.save": torch.save,
    "old torch.save": functools.partial(torch.save, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("resume", [False, True])
def test_a_pickle_is_refused_unopened(tmp_path, kind, resume):
    path, boom = tmp_path / "weights.safetensors", tmp_path / "boom"
    PICKLES[kind](Payload(boom), path)
    before = path.read_bytes()
    model = FactorAnalysis(5, 2)
    old = state(model)
    expected = "truncated or not a safetensors" if kind in ("protocol 0", "protocol 1") else (
        "pickle.*was not opened.*Expected a safetensors file"
    )  # fmt: skip
    options = {"steps": 1, "checkpoint": path, "resume": True}
    objective, data = elbo(model, AmortizedNormal(5, 2)), torch.zeros(3, 5)
    read = functools.partial(quiet, objective, data, **options) if resume else (
        functools.partial(load, path, model=model)
    )  # fmt: skip
    with pytest.raises(ValueError, match=expected):
        read()
    assert not boom.exists()
    assert path.read_bytes() == before
    assert same(state(model), old)


@pytest.mark.parametrize("keep", [0, 1, 5, 8, 9, 100, 0.5, -1])
def test_a_truncated_file(tmp_path, keep):
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)] if keep == 0.5 else content[:keep])
    model = FactorAnalysis(5, 2)
    old = state(model)
    with pytest.raises(ValueError, match=r"weights.safetensors: truncated.*Try an earlier"):
        load(path, model=model)
    assert same(state(model), old)


def test_a_foreign_safetensors_file(tmp_path):
    save_file({"loc": torch.zeros(5)}, tmp_path / "w")
    with pytest.raises(ValueError, match=r"not one of ppl_models.*load_state_dict"):
        load(tmp_path / "w", model=FactorAnalysis(5, 2))


@pytest.mark.parametrize("content", [b"hello world, this is text", b"\0" * 100, b"{}" * 50])
def test_a_file_that_is_none(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(tmp_path / "w", model=FactorAnalysis(5, 2))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors: there is no such file"):
        load(tmp_path / "nowhere.safetensors", model=FactorAnalysis(5, 2))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load(tmp_path, model=FactorAnalysis(5, 2))


def test_another_models_weights(tmp_path):
    path, other = saved(tmp_path), FactorAnalysis(5, 3)
    old = state(other)
    with pytest.raises(ValueError, match=r"loadings has shape \(5, 2\), expected \(5, 3\)"):
        load(path, model=other)
    with pytest.raises(ValueError, match=r"lacks bias, weight; it has loadings, loc, log_scale"):
        load(path, model=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"it has no 'guide'; it has 'model'"):
        load(path, guide=other)
    with pytest.raises(TypeError, match="model: expected a module, got dict"):
        load(path, model={})
    assert same(state(other), old)


def test_all_modules_are_filled_or_none(tmp_path):
    a, b = FactorAnalysis(5, 2), FactorAnalysis(5, 2)
    save(tmp_path / "w", a=a, b=b)
    target, wrong = FactorAnalysis(5, 2), FactorAnalysis(6, 2)
    old = state(target)
    with pytest.raises(ValueError, match="w: b"):
        load(tmp_path / "w", a=target, b=wrong)
    assert same(state(target), old)


def test_an_autoguide_before_its_first_call(tmp_path):
    model = FactorAnalysis(4, 2)
    guide = pyro.infer.autoguide.AutoNormal(model)
    guide(binary())
    save(tmp_path / "w", guide=guide)
    fresh = pyro.infer.autoguide.AutoNormal(model)
    with pytest.raises(ValueError, match=r"no parameters before its first call: try guide"):
        load(tmp_path / "w", guide=fresh)


def test_weights_and_checkpoints_are_not_confused(tmp_path):
    path = saved(tmp_path)
    model, guide = FactorAnalysis(5, 2), AmortizedNormal(5, 2)
    with pytest.raises(ValueError, match=r"expected a checkpoint of fit, got weights.*load\("):
        quiet(elbo(model, guide), torch.zeros(3, 5), steps=1, checkpoint=path, resume=True)
    quiet(elbo(model, guide), torch.zeros(3, 5), steps=1, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected weights.*got a checkpoint.*resume=True"):
        load(tmp_path / "run", model=model)


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, failing):
    def crash(*_: Any) -> None:
        raise OSError("the disk is gone")

    path = saved(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(os, failing, crash)
    with pytest.raises(OSError, match="the disk is gone"):
        save(path, model=FactorAnalysis(7, 3))
    monkeypatch.undo()
    assert path.read_bytes() == before
    load(path, model=FactorAnalysis(5, 2))
    save(path, model=FactorAnalysis(7, 3))  # what the crash left behind is not in the way
    assert os.listdir(tmp_path) == [path.name]


# --- resume ---------------------------------------------------------------------------------


class Rows(Dataset):
    """Draws from torch's generator itself, as augmentation does."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, i: int) -> Tensor:
        return torch.bernoulli(0.2 + 0.6 * binary()[i])


def loader(**options: Any) -> DataLoader:
    return DataLoader(Rows(), batch_size=5, shuffle=True, **options)


SOURCES: dict[str, Callable[[], Any]] = {
    "tensor": binary,
    "dataset": Rows,
    "loader": loader,
    "loader with a generator": lambda: loader(generator=torch.Generator()),
    "ordered loader": lambda: DataLoader(TensorDataset(binary()), batch_size=5),
}


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def everything(source: str, **options: Any) -> dict[str, Any]:
    return {
        "data": SOURCES[source](),
        "batch_size": None if "loader" in source else 5,
        "lr": 1e-2,
        "schedule": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.97),
        "clip": 0.05,
        "validation": binary(7),
        "seed": 0,
    } | options


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


# --- SIGKILL --------------------------------------------------------------------------------

WORKER = """
import os, random, signal, sys, time
sys.path[:0] = sys.argv[2].split(os.pathsep)
import torch
torch.set_num_threads(1)
from pathlib import Path
from ppl_models.infer.training.descent import Descent
from test_files import cosine, dropout_vae, elbo, everything, files, quiet, same, state

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
    here = Path(__file__).parent
    places = os.pathsep.join([str(here), str(here.parents[2])])
    result = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path), places],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "killed" in result.stdout
