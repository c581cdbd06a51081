"""Runs of several processes: ended, resumed, compiled, and of rows that are read."""

import os
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_models import elbo, fit, log_evidence
from ppl_models.infer.training import files
from ppl_models.infer.training.together.as_one import as_one_process
from ppl_models.processes import together
from tests.support.oracles import same, state
from tests.support.runs import dropout_vae
from tests.support.together import all_returned, run_together

OPTIONS: dict[str, Any] = {"batch_size": 9, "lr": 0.01, "seed": 3, "progress": False}
HELD: dict[str, Any] = {"clip": 1.0, "ema": 0.99, "schedule": partial(ExponentialLR, gamma=0.99)}


def rows(n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((n, 4), 0.3, dtype=torch.float64), generator=generator)


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(x.double() for x in dropout_vae(norm=nn.LayerNorm))


def end(*programs: nn.Module) -> dict[str, Any]:
    return {name: x.numpy().copy() for name, x in state(*programs).items()}


def whole_and_resumed(folder: str, stop_at: int) -> dict[str, Any]:
    """A run that is not disturbed, and one that is ended and resumed."""
    one, two = pair(), pair()
    fit(elbo(*one), rows(), steps=37, validation=rows(7), **OPTIONS, **HELD)
    file = {"checkpoint": Path(folder, "run.safetensors"), "validation": rows(7)}
    fit(elbo(*two), rows(), steps=stop_at, **file, **OPTIONS, **HELD)
    three = pair()
    fit(elbo(*three), rows(), steps=37, resume=True, **file, **OPTIONS, **HELD)
    return {"whole": end(*one), "resumed": end(*three)}


@pytest.mark.parametrize("stop_at", [5, 13])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    first, second = all_returned(run_together(whole_and_resumed, 2, str(tmp_path), stop_at))
    for found in (first, second):
        assert all((found["whole"][n] == x).all() for n, x in found["resumed"].items())
    assert all((first["whole"][n] == x).all() for n, x in second["whole"].items())


def gone_on(folder: str, steps: int) -> dict[str, Any]:
    programs = pair()
    with as_one_process():
        file = {"checkpoint": Path(folder, "run.safetensors"), "resume": True}
        options = {**OPTIONS, **HELD, **file, "batch_size": 10}
        run = fit(elbo(*programs), rows(), steps=steps, compile=False, **options)
    return {**end(*programs), "loss": run.history["loss"]}


def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path: Path) -> None:
    expected = gone_on(str(tmp_path / "alone"), 40)
    for count, steps in ((2, 11), (1, 20), (3, 30), (2, 40)):
        folder = str(tmp_path / "several")
        found = (
            run_together(gone_on, count, folder, steps) if count > 1 else [gone_on(folder, steps)]
        )
    for each in all_returned(found):
        for name, x in expected.items():
            assert each[name] == pytest.approx(x, rel=1e-7, abs=1e-9), name


def goes_on_in_its_own_way(folder: str) -> list[float]:
    """In ordinary runs a process that was not there before draws its own numbers."""
    file = {"checkpoint": Path(folder, "run.safetensors"), "resume": True}
    return fit(elbo(*pair()), rows(), steps=20, **file, **OPTIONS).history["loss"]


def test_an_ordinary_run_may_go_on_with_more_processes(tmp_path: Path) -> None:
    fit(elbo(*pair()), rows(), steps=10, checkpoint=tmp_path / "run.safetensors", **OPTIONS)
    first, second = all_returned(run_together(goes_on_in_its_own_way, 2, str(tmp_path)))
    assert first == second
    assert len(first) == 4


def interrupted(folder: str) -> dict[str, Any]:
    class Interrupting(Dataset):
        def __len__(self) -> int:
            return 40

        def __getitems__(self, places: list[int]) -> list[Tensor]:
            self.read = getattr(self, "read", 0) + 1
            if together().rank == 1 and self.read == 12:
                signal.raise_signal(signal.SIGINT)
            return [rows()[i] for i in places]

    signal.signal(signal.SIGINT, signal.default_int_handler)
    programs, file = pair(), {"checkpoint": Path(folder, "run.safetensors")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ended = fit(elbo(*programs), Interrupting(), epochs=9, **file, **OPTIONS)
    after = fit(elbo(*programs), rows(), epochs=9, resume=True, **file, **OPTIONS)
    said = [str(warning.message) for warning in caught]
    return {"steps": (ended.steps, after.steps), "said": said, **end(*programs)}


def test_ctrl_c_on_one_ends_all_after_the_same_step(tmp_path: Path) -> None:
    first, second = all_returned(run_together(interrupted, 2, str(tmp_path)))
    assert first["steps"] == second["steps"]
    assert 0 < first["steps"][0] < 45 == first["steps"][1]
    assert "interrupted after" in first["said"][0]
    assert second["said"] == []  # the first one says it
    assert all((first[n] == x).all() for n, x in second.items() if n not in ("said", "steps"))


def stopped() -> Any:
    programs = pair()
    kept = {"validation": rows(11), "patience": 2, "compile": False}
    with as_one_process():
        options = {**OPTIONS, "lr": 0.2, "batch_size": 10}
        return fit(elbo(*programs), rows(), epochs=99, **kept, **options).history


def test_patience_ends_all_where_it_ends_one() -> None:
    expected = stopped()
    for found in all_returned(run_together(stopped, 2)):
        assert len(found["loss"]) == len(expected["loss"]) < 99
        assert found["validation"] == pytest.approx(expected["validation"], rel=1e-7)


class Listed(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Tensor:
        return rows()[i]


def read_from(kind: str) -> Any:
    """Losses of rows that are read."""
    x = rows()
    data = {
        "dataset": Listed(),
        "loader": DataLoader(TensorDataset(x), batch_size=10),
    }[kind]
    own = {**OPTIONS, "batch_size": None if isinstance(data, DataLoader) else 10}
    with as_one_process():
        return fit(elbo(*pair()), data, epochs=3, compile=False, **own).history["loss"]


@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_rows_that_are_read_are_shared_alike(kind: str) -> None:
    expected = read_from(kind)
    for found in all_returned(run_together(read_from, 2, kind)):
        assert found == pytest.approx(expected, rel=1e-9)


def compiled() -> Any:
    found = {}
    for how in (False, True, "auto"):
        programs = pair()
        run = fit(elbo(*programs), rows(), epochs=5, compile=how, **OPTIONS, **HELD)
        found[how] = run.history["loss"], run.eager_because, end(*programs)
    return found


@pytest.mark.slow
def test_compiled_losses_are_the_same() -> None:
    for found in all_returned(run_together(compiled, 2)):
        assert found[True][0] == pytest.approx(found[False][0], rel=1e-9)
        assert found["auto"][0] == found[False][0]
        assert found["auto"][1] == "steps of several processes come one by one"


def evidences() -> list[float]:
    """Those of test rows after runs with five seeds."""
    found = []
    for seed in range(5):
        programs = pair()
        fit(elbo(*programs), rows(400), epochs=15, **{**OPTIONS, "batch_size": 40, "seed": seed})
        found.append(log_evidence(*programs, rows(500)[400:], num_samples=100, seed=0).mean)
    return found


@pytest.mark.slow
def test_ordinary_runs_agree_in_distribution() -> None:
    alone, several = torch.tensor(evidences()), all_returned(run_together(evidences, 2))
    assert several[0] == several[1]
    found = torch.tensor(several[0])
    error = (alone.var() / 5 + found.var() / 5).sqrt()
    assert abs(alone.mean() - found.mean()) < 3 * error + 2e-3


def noise_of_rows() -> Any:
    """What each process draws for its rows in an ordinary run."""
    drawn: list[Tensor] = []

    class Noted(nn.Module):
        name, turns = "noted", 1

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 1).double()

        def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
            noise = torch.randn(len(batch[0]))
            if torch.is_grad_enabled():
                drawn.append(noise)
            return (self.layer(batch[0])[:, 0] * noise).mean()

        def prepare(self, *batch: Tensor, size: int, data: Any = None) -> None:
            pass

        def modules(self) -> dict[str, nn.Module]:  # type: ignore[override]
            return {"layer": self.layer}

    fit(Noted(), rows(), epochs=2, **OPTIONS)
    return torch.cat(drawn).tolist()


def test_each_process_draws_its_own_noise() -> None:
    first, second = all_returned(run_together(noise_of_rows, 2))
    assert not set(first) & set(second)


def test_a_checkpoint_has_the_generators_of_all(tmp_path: Path) -> None:
    all_returned(run_together(whole_and_resumed, 2, str(tmp_path), 5))
    written = files.read(tmp_path / "run.safetensors")
    assert len(written["rng_of_others"]) == 1
    assert not same(written["rng"], written["rng_of_others"][0])
    assert os.listdir(tmp_path) == ["run.safetensors"]
