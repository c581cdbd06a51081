"""What several processes cannot train together is an error on all of them, and none waits."""

import os
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, elbo, fit
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.training import files
from ppl_models.processes import ProcessError, together
from ppl_models.transformed import Transformed
from tests.support.together import run_together


def rows(n: int = 20) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(7)).sigmoid().round()


def pair(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return elbo(VAE(4, 2), AmortizedNormal(4, 2))


def standardised(x: Tensor) -> Tensor:
    return (x > x.mean(0)).float()


def normal(x: Tensor | None = None, size: int | None = None) -> Tensor:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def by_rank(x: Tensor | None = None, size: int | None = None) -> Tensor:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample(f"x{together().rank}", dist.Normal(loc, 1.0), obs=x)


def without_size(x: Tensor | None = None) -> Tensor:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def local(x: Tensor | None = None, size: int | None = None) -> Tensor:
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normalised(running: bool = True) -> Any:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, track_running_stats=running)
    encoder = nn.Sequential(norm, nn.Linear(4, 4))
    return elbo(VAE(4, 2), AmortizedNormal(4, 2, encoder))


class Sparse(Objective):
    """A table of which a batch moves a few rows."""

    name = "table"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 2, sparse=True)

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        return self.table(batch[0].long()[:, 0]).square().mean()

    def prepare(self, *batch: Tensor, size: int, data: Any = None) -> None:
        pass

    def named_parameters(self) -> Any:
        yield from self.table.named_parameters()

    def modules(self) -> dict[str, nn.Module]:
        return {"table": self.table}


class Fails(Objective):
    """A quadratic, of which a step goes wrong on one process."""

    name = "quadratic"

    def __init__(self, how: str) -> None:
        torch.manual_seed(0)
        self.how, self.layer, self.count = how, nn.Linear(4, 1), 0

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        value = self.layer(batch[0]).square().mean()
        if together().rank == 1 and torch.is_grad_enabled():
            self.count += 1
            if self.count == 3:
                return self._goes_wrong(value)
        return value

    def _goes_wrong(self, value: Tensor) -> Tensor:
        if self.how == "raises":
            raise KeyError("column")
        if self.how == "ends":
            os._exit(1)
        if self.how == "stalls":
            time.sleep(4)
        return value / 0 if self.how == "infinite" else (value - value).sqrt() * value

    def prepare(self, *batch: Tensor, size: int, data: Any = None) -> None:
        pass

    def named_parameters(self) -> Any:
        yield from self.layer.named_parameters()

    def modules(self) -> dict[str, nn.Module]:
        return {"layer": self.layer}

    def blame(self, *batch: Tensor, size: int) -> str:
        return "it is meant"


def run(what: str) -> Any:
    rank, x = together().rank, rows()
    again = torch.Generator().manual_seed(rank)
    calls: dict[str, Any] = {
        "data": lambda: (pair(), torch.rand(20, 4, generator=again).round(), {}),
        "parameters": lambda: (pair(rank), x, {}),
        "seed": lambda: (pair(), x, {"seed": rank}),
        "batch_size": lambda: (pair(), x, {"batch_size": 5 + rank}),
        "sites": lambda: (elbo(by_rank, AutoNormal), x[:, 0], {}),
        "code": lambda: (elbo([normal, local][rank], AutoNormal), x[:, 0], {}),
        "few rows": lambda: (pair(), x[:1], {}),
        "small batch": lambda: (pair(), x, {"batch_size": 1}),
        "batch norm": lambda: (normalised(), x, {}),
        "batch norm without buffers": lambda: (normalised(False), x, {}),
        "one vector of all rows": lambda: (elbo(local, AutoMultivariateNormal), x[:, 0], {}),
        "transform": lambda: (pair(), Transformed(x, transform=standardised), {}),
        "no size": lambda: (elbo(without_size, AutoNormal), x[:, 0], {}),
        "sparse": lambda: (Sparse(), x, {}),
        **{
            how: (lambda how=how: (Fails(how), x, {}))
            for how in ("infinite", "slope", "raises", "ends", "stalls")
        },
    }
    objective, data, options = calls[what]()
    options = {"epochs": 4, "progress": False, "seed": 1, **options}
    return fit(objective, data, **options).steps


EXPECTED = {
    "data": "expected the same data on all 2 processes",
    "parameters": "expected the same parameters on all 2 processes",
    "seed": "expected the same seed on all 2 processes, got 0 on process 0 and 1 on process 1",
    "batch_size": "expected the same settings on all 2 processes",
    "sites": "expected the same sites of the programs on all 2 processes",
    "code": "expected the same code on all 2 processes",
    "few rows": "expected a row or more for each of 2 processes, got 1 of 1 rows",
    "small batch": "expected a row or more for each of 2 processes, got 1 of 20 rows",
    "batch norm": "its loss cannot be shared by 2 processes",
    "batch norm without buffers": "the log-density of a row depends on the other rows",
    "one vector of all rows": "on 2 processes, each of which has a part of each batch: Auto",
    "transform": "the transform cannot be shared by 2 processes",
    "no size": "on 2 processes, each of which has a part of each batch",
}


@pytest.mark.parametrize("what", EXPECTED)
def test_what_cannot_be_shared_is_refused_on_all_before_a_step(what: str) -> None:
    for error in run_together(run, 2, what, patience=20.0):
        assert isinstance(error, ValueError), error
        assert EXPECTED[what] in str(error)


@pytest.mark.parametrize("how", ["infinite", "slope"])
def test_a_number_that_is_not_finite_on_one_ends_the_run_of_all(how: str) -> None:
    for error in run_together(run, 2, how, patience=20.0):
        assert isinstance(error, FloatingPointError), error
        assert "epoch 3, on process 1 of 2, quadratic: the " in str(error)
        assert "at step 3" in str(error)


@pytest.mark.parametrize(("how", "text"), [("raises", "KeyError: 'column'"), ("sparse", "sparse")])
def test_what_one_raises_the_others_are_told(how: str, text: str) -> None:
    first, second = run_together(run, 2, how, patience=20.0)
    assert isinstance(first, ProcessError)
    assert text in str(first)
    assert isinstance(second, KeyError if how == "raises" else ProcessError)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ends", "stalls"])
def test_one_that_does_not_answer_ends_the_run_of_the_others(how: str) -> None:
    began = time.perf_counter()
    first, _ = run_together(run, 2, how, patience=2.0)
    assert isinstance(first, ProcessError)
    assert "one has ended, stalls" in str(first)
    assert time.perf_counter() - began < 30


def written_on_a_full_disk(folder: str) -> Any:
    path = Path(folder, "run.safetensors")
    options = {"seed": 1, "checkpoint": path, "progress": False}
    fit(pair(), rows(), epochs=2, **options)
    if together().is_first:
        os.environ["KEPT"] = str(hash(path.read_bytes()))
        files.os.fsync = _full
    return fit(pair(), rows(), epochs=4, resume=True, **options)


def _full(number: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_run_of_all_and_leaves_the_file_before(tmp_path: Path) -> None:
    first, second = run_together(written_on_a_full_disk, 2, str(tmp_path), patience=20.0)
    assert isinstance(first, OSError)
    assert isinstance(second, ProcessError)
    assert "writing the checkpoint" in str(second)
    assert "No space left" in str(second)
    assert files.read(tmp_path / "run.safetensors")["step"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]
