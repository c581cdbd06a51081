"""Networks that are split over processes train as whole ones do, and are whole again afterwards."""

import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from guides import AmortizedNormal
from ppl_models import (
    GAN,
    VAE,
    Classifier,
    Diffusion,
    adversarial,
    data_plate,
    denoising,
    elbo,
    fit,
    load,
    log_evidence,
    save,
)
from ppl_models.infer.training.together.as_one import as_one_process
from ppl_models.infer.training.together.shards import networks
from ppl_models.infer.training.together.shards.networks import Networks
from ppl_models.infer.training.together.shards.shards import Shards
from ppl_models.infer.training.together.shards.whether import check_moves_each_alone
from ppl_models.processes import together
from tests.support.as_one import rows, trained
from tests.support.together import all_returned, run_together


def vae() -> tuple[Any, Any, dict]:
    x = (rows(28) > 0).double()
    model, guide = VAE(5, 2).double(), AmortizedNormal(5, 2).double()
    return elbo(model, guide), x, {"batch_size": 10, "validation": x[:15], "ema": 0.9}


def diffusion() -> tuple[Any, Any, dict]:
    return denoising(Diffusion(num_features=5).double()), rows(21), {"batch_size": 9}


def labels(x: Tensor) -> Tensor:
    return (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def classifier() -> tuple[Any, Any, dict]:
    model, x = Classifier(5, 3, num_hidden=6).double(), rows(25)
    return elbo(model), (x, labels(x)), {"batch_size": 10, "clip": 0.1}


class Tied(nn.Module):
    """A network with tied, frozen and uneven parts, beside what belongs to none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.middle, self.last = nn.Linear(5, 3).requires_grad_(False), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.second(self.first(x).tanh())).tanh()).squeeze(-1)


class Regression(nn.Module):
    """A network, a scale of the module's own, and a latent that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.log_scale = Tied(), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        shift = pyro.sample("shift", dist.Normal(x.new_zeros(()), 1.0))
        with data_plate(x, size):
            mean = self.network(x) + shift
            return pyro.sample("y", dist.Normal(mean, self.log_scale.exp()), obs=y)


def regression() -> tuple[Any, Any, dict]:
    x = rows(19)
    return elbo(Regression().double(), AutoNormal), (x, x.sum(1)), {"batch_size": 12, "clip": 0.5}


PROGRAMS = {made.__name__: made for made in (vae, diffusion, classifier, regression)}


def _sharded(names: list[str], large: int) -> dict[str, Any]:
    networks.LARGE = large
    return {name: trained(PROGRAMS[name], shard=True) for name in names}


@pytest.fixture(scope="module")
def found() -> dict[Any, Any]:
    names = list(PROGRAMS)
    runs = {(n, s): all_returned(run_together(_sharded, n, names, s)) for n, s in CASES}
    return {1: {name: trained(made) for name, made in PROGRAMS.items()}, **runs}


CASES = [(2, 2**20), (3, 8)]  # processes, and from what size on layers are gathered alone


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_one_process_is_n_with_shards(found: Any, name: str, case: tuple[int, int]) -> None:
    one = found[1][name]
    for each in found[case]:
        assert each[name]["steps"] == one["steps"]
        for key, values in one["history"].items():
            assert each[name]["history"][key] == pytest.approx(values, rel=1e-9, abs=1e-12), key
        for key, x in one["parameters"].items():
            assert each[name]["parameters"][key] == pytest.approx(x, rel=1e-7, abs=1e-9), key
        assert each[name]["next"] == one["next"]


# --- What is held meanwhile, and afterwards -------------------------------------------------------


def _held() -> dict[str, Any]:
    objective, x, options = vae()
    model = objective.model
    before, kinds = list(model.parameters()), [type(m) for m in model.modules()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    sizes: dict[str, int] = {}

    def seen(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        sizes["moved"] = sum(p.numel() for p in parameters)
        return torch.optim.Adam(parameters, lr=lr)

    options |= {"epochs": 2, "seed": 0, "progress": False, "shard": True, "optimizer": seen}
    fit(objective, x, **options)
    fit(objective, x, **options)  # again
    after = list(model.parameters())
    return {
        "same": all(a is b for a, b in zip(before, after, strict=True)),
        "kinds": kinds == [type(m) for m in model.modules()],
        "attributes": attributes == [sorted(vars(m)) for m in model.modules()],
        "hooks": sum(len(v) for m in model.modules() for k, v in vars(m).items() if "hooks" in k),
        "sizes": (sizes["moved"], sum(p.numel() for _, p in objective.named_parameters())),
        "evidence": log_evidence(model, objective.guide, x, seed=0).value.mean().item(),
    }


def test_afterwards_modules_are_what_they_were() -> None:
    first, second = all_returned(run_together(_held, 2))
    for each in (first, second):
        assert each["same"]
        assert each["kinds"]
        assert each["attributes"]
        assert each["hooks"] == 0
    moved = [each["sizes"][0] for each in (first, second)]
    every = first["sizes"][1]
    assert sum(moved) == every
    assert max(moved) < 0.52 * every
    assert first["evidence"] == second["evidence"]


# --- Checkpoints ----------------------------------------------------------------------------------


def _run(path: str, epochs: int, **options: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    objective, x, own = vae()
    own |= {"checkpoint": path, "patience": 50, "lr": 1e-2, "seed": 1, "progress": False}
    with as_one_process():
        run = fit(objective, x, epochs=epochs, compile=False, **own, **options)
    parameters = {name: p.detach().numpy().copy() for name, p in objective.named_parameters()}
    if together().is_first and "resume" in options:
        save(f"{path}.weights", model=objective.model)
    return {"history": run.history, "parameters": parameters}


def _run_on(path: str, epochs: int, resume: bool, shard: bool) -> dict[str, Any]:
    return _run(path, epochs, shard=shard, **({"resume": True} if resume else {}))


@pytest.mark.parametrize(
    ("first", "then"), [((2, True), (1, False)), ((1, False), (3, True)), ((2, True), (2, True))]
)
def test_a_checkpoint_is_of_whole_tensors(tmp_path: Path, first: Any, then: Any) -> None:
    undisturbed = _run(str(tmp_path / "all"), 6)
    path = str(tmp_path / "run")
    for (count, shard), epochs, resume in ((first, 3, False), (then, 6, True)):
        arguments = (path, epochs, resume, shard)
        if count == 1:
            found = [_run_on(*arguments)]
        else:
            found = all_returned(run_together(_run_on, count, *arguments))
    for each in found:
        for key, values in undisturbed["history"].items():
            assert each["history"][key] == pytest.approx(values, rel=1e-9), key
        for key, x in undisturbed["parameters"].items():
            assert each["parameters"][key] == pytest.approx(x, rel=1e-7, abs=1e-9), key
    model = VAE(5, 2).double()
    load(f"{path}.weights", model=model)
    for name, p in model.named_parameters():
        assert (found[0]["parameters"][f"model.{name}"] == p.detach().numpy()).all()


# --- What is split, and what is not ---------------------------------------------------------------


def _found(objective: Any, *batch: Tensor) -> list[str]:
    modules = list(objective.modules().values())
    looked = Networks(modules, lambda: objective.loss(*batch, size=len(batch[0])))
    names = {
        m: f"{root}.{n}" for root, r in objective.modules().items() for n, m in r.named_modules()
    }
    return sorted(names[network] for network in looked.found)


def test_the_networks_of_programs_are_found() -> None:
    x = rows(6)
    assert _found(vae()[0], (x > 0).double()) == ["guide.encoder", "model.decoder"]
    assert _found(classifier()[0], x, labels(x)) == ["model.head", "model.network"]
    objective, (x, y), _ = regression()
    objective.prepare(x, y, size=len(x))
    assert _found(objective, x, y) == ["model.network"]


class Reading(nn.Module):
    """A program that uses its network in one more way than by its forward."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use, self.kept = use, torch.zeros(())
        self.network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        if use == "kept":
            self.network.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: Any, result: Tensor) -> None:
        self.kept = self.network[0].weight * 1.0

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        mean = self.network(x).squeeze(-1)
        if self.use == "read":
            mean = mean + x @ self.network[0].weight[0]
        if self.use == "read without a gradient":
            mean = mean + x @ self.network[0].weight[0].detach()
        if self.use == "called in parts":
            mean = mean + self.network[0](x)[:, 0]
        if self.use == "kept":
            mean = mean + self.kept.sum()
        if self.use == "statement":
            pyro.module("network", self.network)
        if self.use == "asked":
            mean = mean + self.network[0].weight.shape[0]
        with data_plate(x, size):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("", ["model.network"]),
        ("asked", ["model.network"]),
        ("read", ["model.network.2"]),
        ("read without a gradient", ["model.network.2"]),
        ("kept", ["model.network.2"]),
        ("called in parts", ["model.network.0", "model.network.2"]),
        ("statement", []),
    ],
)
def test_a_network_that_is_used_otherwise_is_not_split(use: str, expected: list[str]) -> None:
    x = rows(6)
    assert _found(elbo(Reading(use)), x, x[:, 0]) == expected


class Odd(nn.Module):
    """Modules that return no tensors, or their own, or keep lists of their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.mean = nn.LSTM(5, 3, batch_first=True).double(), nn.Linear(3, 1).double()
        self.table, self.prior = Table(), Prior()

    def forward(self, x: Tensor, size: int | None = None) -> Tensor:
        h = self.mean(self.rnn(x[:, None])[0][:, 0]) + self.table()
        with data_plate(x, size):
            return pyro.sample("x", self.prior(h).to_event(1), obs=x)


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(4, 1).double())

    def forward(self) -> Tensor:
        return self.rows[0]


class Prior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1).double()
        self.log_scale = nn.Parameter(torch.zeros(1).double())

    def forward(self, h: Tensor) -> dist.Normal:
        return dist.Normal(self.layer(h), self.log_scale.exp())


def test_modules_that_return_no_tensors_of_their_own_are_not_split() -> None:
    assert _found(elbo(Odd()), rows(6)) == ["model.mean", "model.prior.layer"]


def _warned() -> list[str]:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(elbo(Odd()), rows(8), epochs=1, seed=0, progress=False, shard=True)
    return [str(w.message) for w in caught]


def test_what_stays_whole_is_said_once() -> None:
    first, second = all_returned(run_together(_warned, 2))
    assert second == []
    (text,) = first
    assert "model.rnn.weight_ih_l0" in text
    assert "stay whole on each process, 125 of " in text


# --- Refusals -------------------------------------------------------------------------------------


class Stale(nn.Module):
    """A network that keeps its parameters in a list as well, where no one finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1).double()
        self.kept = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.kept[0], self.layer.bias).squeeze(-1)


class Hidden(Reading):
    def __init__(self) -> None:
        super().__init__("")
        self.network = Stale()


def _refused(case: str) -> None:
    torch.manual_seed(0)
    model = Hidden() if case == "stale" else Reading("statement" if case == "statement" else "")
    before = [(p, p.detach().clone()) for p in model.parameters()]
    x, other = rows(8), [nn.Parameter(torch.zeros(3))]
    options: dict[str, Any] = {
        "compile": {"compile": True},
        "rows": {"batch_size": 7},
        "optimizer": {"optimizer": torch.optim.Adafactor},
        "other parameters": {
            "optimizer": lambda p, lr: torch.optim.Adam(other if p[0].shape == (2, 5) else p, lr)
        },
        "schedule": {"schedule": lambda optimizer: None},
    }.get(case, {})
    if case == "gradient":  # a fault that is planted: half of it
        set_factor = FSDPModule.set_gradient_divide_factor
        FSDPModule.set_gradient_divide_factor = lambda self, factor: set_factor(self, 2 * factor)
    objective: Any = elbo(model) if case != "game" else adversarial(GAN(5, 2).double())
    data: Any = (x, x[:, 0]) if case != "game" else x
    try:
        fit(objective, data, epochs=1, seed=0, progress=False, shard=True, **options)
    finally:  # all is as it was
        for p, (old, value) in zip(model.parameters(), before, strict=True):
            assert p is old
            assert torch.equal(p, value)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("compile", "expected steps that are not compiled"),
        ("rows", "expected a row of each batch on each of 2 processes, got a batch of 1"),
        ("game", "expected one objective, got 2"),
        ("optimizer", "expected an optimiser that moves each number by its own gradient"),
        ("statement", "elbo: expected a network that can be split"),
        ("schedule", "expected a callable that returns a scheduler"),
        ("gradient", "not what it was: the gradient of model.network.0.weight differs"),
        ("stale", "a sharded network is not what it was"),
        ("other parameters", "expected an optimiser of the parameters that it was given"),
    ],
)
def test_what_cannot_be_split_is_refused_on_all_processes(case: str, expected: str) -> None:
    for error in run_together(_refused, 2, case):
        assert isinstance(error, TypeError if case == "schedule" else ValueError), error
        assert expected in str(error)


def test_one_process_trains_as_without() -> None:
    one, other = trained(vae), trained(vae, shard=True)
    assert one["history"] == other["history"]
    with pytest.raises(AssertionError):  # no shards were made that could be asked
        assert any(isinstance(x, Shards) for x in other.values())


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "RMSprop", "NAdam", "Adagrad"])
def test_optimisers_that_move_each_number_alone(kind: str) -> None:
    check_moves_each_alone(getattr(torch.optim, kind), 0.1)
    check_moves_each_alone(None, 0.1)


# --- Failures -------------------------------------------------------------------------------------


class Broken(Reading):
    """A program that fails on one process, at a step that is not the first."""

    def __init__(self, how: str) -> None:
        super().__init__("")
        self.how, self.calls = how, 0

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        rank = together().rank
        self.calls += self.training and torch.is_grad_enabled()
        if self.calls == 5 and rank == 1:
            if self.how == "raises":
                raise KeyError("a row that is not there")
            x = x * float("nan")
        with pyro.validation_enabled(False):
            return super().forward(x, y, size)


def _broken(how: str) -> str:
    torch.manual_seed(0)
    model, x = Broken(how), rows(8)
    parameters = list(model.parameters())
    error: Exception | None = None
    try:
        fit(elbo(model), (x, x[:, 0]), epochs=20, seed=0, progress=False, shard=True)
    except Exception as raised:
        error = raised
    whole = all(a is b and a.numel() for a, b in zip(model.parameters(), parameters, strict=True))
    if how == "raises" and together().rank == 1 and error is not None:
        raise error  # the end of this process, which the others come to know
    return f"{type(error).__name__}: {error} {whole}"


def test_a_loss_that_is_not_finite_ends_all_processes_alike() -> None:
    first, second = all_returned(run_together(_broken, 2, "not finite"))
    assert first == second
    assert first.endswith(" True")
    assert "FloatingPointError" in first
    assert "on process 1 of 2, elbo: the loss is nan at step 3; the first site" in first
    assert "in rows 1, 3, 5, 7 of the data" in first


def test_an_error_of_one_process_ends_the_others() -> None:
    first, second = run_together(_broken, 2, "raises", patience=20.0)
    assert isinstance(second, KeyError)
    assert first.startswith("ProcessError: process 0 of 2 waited for parts of a network")
