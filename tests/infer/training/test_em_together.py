"""EM on several processes: each step is that of one, and what is not alike is an error on all."""

import io
import math
import warnings
from contextlib import redirect_stderr

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_models import (
    FactorAnalysis,
    GaussianMixture,
    LabelShift,
    PoissonMixture,
    ProbabilisticPCA,
    fit_em,
)
from ppl_models.processes import ProcessError, by_parts, processes_of, together
from tests.support.together import all_returned, run_together


def clusters(rows: int = 61, features: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, features, dtype=torch.float64, generator=generator)
    x[: rows // 3] += 2.5
    x[rows // 2 :, 0] *= 3
    return 100 + x


def holes(x: Tensor) -> Tensor:
    x = x.clone()
    x[::4, 0] = x[1::5, 2] = math.nan
    return x


def weights(x: Tensor) -> Tensor:
    """Of which every second one is zero: of a stream one of two processes has nothing."""
    weight = torch.linspace(0.1, 2.0, len(x), dtype=torch.float64)
    weight[::2] = 0
    return weight


def shares(x: Tensor) -> Tensor:
    return (x[:, :2] - 100).softmax(1)


MODELS = {
    **{kind: lambda k=kind: GaussianMixture(3, 3, k) for kind in ("full", "tied", "diag")},
    "spherical": lambda: GaussianMixture(3, 3, "spherical"),
    "in float32": lambda: GaussianMixture(3, 3).float(),
    "marginal": lambda: GaussianMixture(3, 2, missing="marginalise"),
    "factors": lambda: FactorAnalysis(3, 1),
    "pca": lambda: ProbabilisticPCA(3, 1),
    "marginal factors": lambda: FactorAnalysis(3, 1, missing="marginalise"),
    "marginal pca": lambda: ProbabilisticPCA(3, 1, missing="marginalise"),
    "counts": lambda: PoissonMixture(3, 2),
    "shares": lambda: LabelShift(torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)),
    "own": lambda: Own(),
}


class Own(nn.Module):
    """A user's, which knows nothing of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def initialise(self, x: Tensor) -> None:
        nn.init.normal_(self.loc)

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """Half of the way to the mean."""
        batches = [x] if isinstance(x, Tensor) else list(x)
        mean = sum(batch.sum(0) for batch in batches) / sum(map(len, batches))
        value = -(mean - self.loc).square().sum()
        self.loc.add_(mean - self.loc, alpha=0.5)
        return value


class Shared(Own):
    """The same, which adds up over the processes."""

    @by_parts
    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        here = processes_of(x)
        with here.all_or_none("Shared"):
            batches = [x] if isinstance(x, Tensor) else list(x)
            total, rows = sum(batch.sum(0) for batch in batches), sum(map(len, batches))
        total, rows = here.totals(total, rows)
        value = -(total / rows - self.loc).square().sum()
        self.loc.add_(total / rows - self.loc, alpha=0.5)
        return value


MODELS["shared"] = Shared
WAYS = ["in memory", "weighted", "restarts", "as it is", "Dataset", "DataLoader", "weighted stream"]


def data_of(kind: str, way: str) -> Tensor:
    x = clusters()
    if "marginal" in kind:
        x = holes(x)
    if kind == "counts":
        x = x.sub(98).clamp(min=0).round()
    return shares(x) if kind == "shares" else x


def fitted(kind: str, way: str) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of all steps, and what they lead to."""
    torch.manual_seed(3)
    model = MODELS[kind]()
    model = model if kind == "in float32" else model.double()
    x = data_of(kind, way)
    options: dict = {"seed": 0, "max_steps": 8, "tolerance": 1e-9, "progress": False}
    if "weighted" in way:
        options["sample_weight"] = weights(x)
    if way == "restarts":
        options["restarts"] = 3
    if way == "as it is":
        options["initialise"] = False
    if way in ("Dataset", "weighted stream"):  # batches that are not even, the last of one row
        x, options["batch_size"] = TensorDataset(x), 12
    if way == "DataLoader":
        x = DataLoader(TensorDataset(x), batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = fit_em(model, x, **options)
    return run.history["loss"], {n: v.clone() for n, v in model.state_dict().items()}


def fits(cases: list[tuple[str, str]]) -> list[tuple[list[float], dict[str, Tensor]]]:
    return [fitted(*case) for case in cases]


CASES = {
    kind: [(kind, way) for way in WAYS if kind not in ("own", "shared") or "weighted" not in way]
    for kind in MODELS
}


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], list]:
    """What two processes end with, and, of some cases, three."""
    results: dict[tuple[str, str], list] = {}
    for count, every in ((2, 1), (3, 4)):
        cases = [case for some in CASES.values() for case in some[::every]]
        for ends in all_returned(run_together(fits, count, cases)):
            for case, end in zip(cases, ends, strict=True):
                results.setdefault(case, []).append(end)
    return results


@pytest.mark.parametrize("kind", MODELS)
def test_n_processes_are_one(kind: str, found: dict[tuple[str, str], list]) -> None:
    """In the losses of all steps, and in the parameters."""
    exact = 1e-6 if kind == "in float32" else 1e-10
    for case in CASES[kind]:
        losses, state = fitted(*case)
        assert len(losses) > 1, case
        assert len(found[case]) in (2, 5)
        for number, (own, own_state) in enumerate(found[case]):
            assert own == pytest.approx(losses, rel=exact, abs=exact), case
            same, same_state = found[case][0 if number < 2 else 2]
            assert own == same, case  # to the last bit
            for name, value in state.items():
                assert torch.equal(own_state[name], same_state[name]), (case, name)
                atol = 10 * exact * (1 + value.double().abs().max().item())
                torch.testing.assert_close(own_state[name], value, rtol=0, atol=atol)


def refused(kind: str) -> None:
    torch.manual_seed(0)
    here, x, options = together(), clusters(), {"seed": 0, "restarts": 2, "progress": False}
    model = GaussianMixture(3, 2).double()
    if kind == "data":
        x[7, 1] += here.rank
    elif kind == "rows":
        x = x[: 60 - here.rank]
    elif kind == "parameters":
        model.locs.data.add_(here.rank)
    elif kind == "settings":
        options["tolerance"] = 10.0 ** -(6 + here.rank)
    elif kind == "seeds":
        options["seed"] = here.rank
    elif kind == "weights":
        options["sample_weight"] = torch.full((61,), 1.0 + here.rank)
    elif kind == "models":
        model = [GaussianMixture(3, 2), FactorAnalysis(3, 2)][here.rank].double()
    elif kind == "arguments":
        options["max_steps"] = 5 - 5 * here.rank
    elif kind == "unusable":
        x[3, 0] = math.nan if here.rank else 0.0
    elif kind == "few":
        x, model = x[:1], FactorAnalysis(3, 1).double()
    elif kind == "few weights":
        options["sample_weight"] = (torch.arange(61) == 3).double()
    elif kind == "stream":
        x = TensorDataset(x + here.rank)
    elif kind == "start":
        model.initialise = lambda x: _fails(here.rank == 1)
    elif kind == "read":
        x, options["batch_size"] = Broken(x, here.rank == 1), 20
        model, options["restarts"] = FactorAnalysis(3, 1).double(), 1
    elif kind == "own":
        model = Own()
        model.em_step = lambda x: _fails(here.rank == 1)
    elif kind == "shared":
        x[-2:] = 0  # the first process has the last row, and the second the one before
        model = Fails()
    fit_em(model, x, **options)


class Broken(Dataset):
    """Rows that can no longer be read once steps are taken."""

    def __init__(self, x: Tensor, broken: bool) -> None:
        self.x, self.broken, self.read = x, broken, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Tensor:
        self.read += 1
        if self.broken and self.read > len(self) + 5:
            raise OSError("the disk is gone")
        return self.x[row]


def _fails(does: bool) -> Tensor:
    if does:
        raise ArithmeticError("it does not work here")
    return torch.zeros(())


class Fails(Shared):
    """Cannot go through one of the rows."""

    @by_parts
    def em_step(self, x: Tensor) -> Tensor:
        here = processes_of(x)
        with here.all_or_none("Fails"):
            _fails(bool((next(iter(x))[-1] == 0).all()) and here.rank == 1)
        return here.totals(torch.zeros(()))[0]


ALIKE = {
    "data": "the same data on all 2 processes",
    "rows": "the same data on all 2 processes",
    "stream": "the same data on all 2 processes",
    "weights": "the same data on all 2 processes",
    "parameters": "the same parameters on all 2 processes",
    "settings": "the same settings on all 2 processes",
    "seeds": "the same settings on all 2 processes",
    "models": "the same model on all 2 processes",
    "few": "a row or more for each of 2 processes, got 1 in all",
    "few weights": "a row or more for each of 2 processes, got 1 in all",
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_is_not_alike_is_an_error_on_all(kind: str) -> None:
    for error in run_together(refused, 2, kind):
        assert isinstance(error, ValueError)
        assert ALIKE[kind] in str(error)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("arguments", ValueError, "max_steps: expected"),
        ("unusable", ValueError, "hold NaN or infinity"),
        ("start", ArithmeticError, "it does not work here"),
        ("read", OSError, "the disk is gone"),
        ("own", ArithmeticError, "it does not work here"),
        ("shared", ArithmeticError, "it does not work here"),
    ],
)
def test_an_error_on_one_is_one_on_all(kind: str, error: type, message: str) -> None:
    other, own = run_together(refused, 2, kind)
    assert type(own) is error
    assert message in str(own)
    assert isinstance(other, ProcessError)
    assert f"failed on process 1: {error.__name__}: " in str(other)
    assert message in str(other)


def _alone() -> list[float]:
    """A step outside of a fit is taken by whoever takes it; and one fit more is one of all."""
    x = clusters()
    torch.manual_seed(0)
    model = GaussianMixture(3, 2).double()
    if together().is_first:
        model.initialise(x)
        return [model.em_step(x).item() for _ in range(3)]
    return []


def test_steps_outside_of_a_fit_exchange_nothing() -> None:
    first, other = all_returned(run_together(_alone, 2))
    assert other == []
    assert first == _alone()


def _told() -> tuple[str, list[str]]:
    shown = io.StringIO()
    with redirect_stderr(shown), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_em(GaussianMixture(3, 2).double(), clusters(), max_steps=2, tolerance=0.0, seed=0)
    return shown.getvalue(), [str(warning.message) for warning in caught]


def test_the_first_process_alone_warns() -> None:
    (_, first), (shown, other) = all_returned(run_together(_told, 2))
    assert any("still rising" in message for message in first)
    assert (shown, other) == ("", [])


def _from_other_seeds(kind: str) -> list[Tensor]:
    """Generators that nobody seeded alike: the first process says where to start."""
    torch.manual_seed(3)
    model = MODELS[kind]().double()
    torch.manual_seed(4 + together().rank)
    fit_em(model, clusters(), restarts=2, tolerance=1e-4, progress=False)
    return list(model.state_dict().values())


@pytest.mark.parametrize("kind", ["own", "shared", "diag"])
def test_starts_are_those_of_the_first_process(kind: str) -> None:
    first, other = all_returned(run_together(_from_other_seeds, 2, kind))
    assert all(map(torch.equal, first, other))
    torch.testing.assert_close(first, _from_other_seeds(kind))
