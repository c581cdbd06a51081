"""Files: whole or not at all, and never unpickled."""

import functools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, load, save
from ppl_models.infer.programs.own import own_parameters
from ppl_models.infer.training import files
from tests.support.oracles import binary, same, state
from tests.support.runs import dropout_vae, quiet

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


@pytest.mark.parametrize("call", [save, load])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda x: x, r"got function. Try the guide .* a function has no weights.*Pyro's store"),
        (nn.Linear, r"got the class Linear. Try an object, Linear\("),
        (nn.Parameter(torch.zeros(1)), r"got Parameter. Try the guide or the network"),
    ],
    ids=["function", "class", "parameter"],
)
def test_what_is_no_module(tmp_path, call, given, said):
    with pytest.raises(TypeError, match=f"model: expected a module, {said}"):
        call(saved(tmp_path), model=given)


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
