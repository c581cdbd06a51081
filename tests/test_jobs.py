"""Work side by side: to the same bits, by joblib's context, and never by threads."""

import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import joblib
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_models import GaussianMixture, compare, fit_em, sbc
from ppl_models.plates import data_plate
from ppl_models.processes import jobs
from ppl_models.processes.jobs import jobs_at_once, side_by_side
from tests.support.together import all_returned, run_together


def apart():
    return joblib.parallel_config(backend="loky", n_jobs=2)


def here_alone():
    return joblib.parallel_config(n_jobs=1)


def square(x: float) -> tuple[float, int]:
    if x == 2:
        warnings.warn("it is two", UserWarning, stacklevel=2)
    return x**2, os.getpid()


def test_pieces_are_done_here_without_a_context() -> None:
    with pytest.warns(UserWarning, match="it is two"):
        found = list(side_by_side(square, [(1,), (2,), (3,)], "test"))
    assert found == [(1, os.getpid()), (4, os.getpid()), (9, os.getpid())]
    assert jobs_at_once("test") == 1


def test_pieces_are_done_elsewhere_in_a_context_and_what_they_warn_of_comes_here() -> None:
    with apart(), pytest.warns(UserWarning, match="it is two"):
        found = list(side_by_side(square, [(1,), (2,), (3,)], "test"))
    assert [x for x, _ in found] == [1, 4, 9]
    assert os.getpid() not in {process for _, process in found}


def test_how_many() -> None:
    assert jobs_at_once("test", otherwise=3) == 3
    assert jobs_at_once("test", num_jobs=2, otherwise=3) == 2
    with joblib.parallel_config(n_jobs=4):
        assert jobs_at_once("test", otherwise=3) == 4
        assert jobs_at_once("test", num_jobs=2) == 2
    with joblib.parallel_config(n_jobs=1):
        assert jobs_at_once("test", otherwise=3) == 1


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_threads_and_forks_are_refused(backend: str) -> None:
    x = torch.randn(30, 2, dtype=torch.float64)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        with pytest.raises(ValueError, match=r"compare: .* of their own.*backend='loky', n_jobs=2"):
            compare({1: GaussianMixture(2, 1).double()}, x, folds=2)
        with pytest.raises(ValueError, match="fit_em: expected joblib"):
            fit_em(GaussianMixture(2, 1).double(), x, restarts=2)
    with joblib.parallel_config(backend=backend, n_jobs=1):
        fit_em(GaussianMixture(2, 1).double(), x, restarts=2)


def test_a_backend_with_threads_of_another_kind_does_one_at_a_time() -> None:
    """Such as Dask's, whose workers may have several: what they share is that of one."""
    inside, most = [0], [0]

    def work() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1

    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(jobs._apart, work, (), jobs.Settings.of_here()) for _ in range(8)]
    assert [one.result() for one in done] == [(None, [])] * 8
    assert most == [1]


def _surroundings() -> tuple:
    return torch.get_num_threads(), torch.get_default_dtype(), jobs_at_once("test", otherwise=2)


def test_elsewhere_threads_and_precision_are_those_here() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    try:
        with apart():
            found = list(side_by_side(_surroundings, [(), ()], "test"))
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    assert found == [(3, torch.float64, 1)] * 2  # and nothing is shared out once more


def clusters(rows: int = 80) -> Tensor:
    x = torch.randn(rows, 2, dtype=torch.float64)
    x[: rows // 2] += 4
    return x


def test_a_comparison_is_the_same_to_the_last_bit() -> None:
    x, found = clusters(), []
    for context in (here_alone, apart):
        torch.manual_seed(0)
        candidates = {k: GaussianMixture(2, k).double() for k in (1, 3)}
        with context():
            one = compare(candidates, x, folds=3, restarts=2, max_steps=3, seed=0)
        found.append((one, [p for m in candidates.values() for p in m.state_dict().values()]))
    (here, own), (there, theirs) = found
    assert torch.equal(here.held_out_rows, there.held_out_rows)
    assert torch.equal(here.fitted_rows, there.fitted_rows)
    assert all(map(torch.equal, own, theirs))
    assert here.warnings == there.warnings != {}
    assert str(here) == str(there)


class Wandering(nn.Module):
    """Half of the way to the mean in each step, from a start drawn at random, or nearly so."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.draws = draws

    def initialise(self, x: Tensor) -> None:
        nn.init.normal_(self.loc)

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        value = -(x.mean(0) - self.loc).square().sum()
        way = 0.3 + 0.4 * torch.rand(()) if self.draws else 0.5
        self.loc.add_((x.mean(0) - self.loc) * way)
        return value


@pytest.mark.parametrize("kind", ["mixture", "own", "own that draws"])
def test_restarts_come_to_the_same_end(kind: str) -> None:
    x, found = clusters(), []
    for context in (here_alone, apart):
        torch.manual_seed(0)
        model = Wandering("draws" in kind) if "own" in kind else GaussianMixture(2, 3).double()
        with context():
            run = fit_em(model, x, restarts=3, seed=1, tolerance=1e-5)
        found.append((run.history, list(model.state_dict().values()), torch.rand(3)))
    (history, own, drawn), (there, theirs, also) = found
    assert history == there
    assert all(map(torch.equal, own, theirs))
    assert torch.equal(drawn, also)  # generators go on from the same state


def _compared(together: bool) -> list[list[list[float]]]:
    import ppl_models.infer.selection.compare as room

    torch.manual_seed(0)
    x = clusters()
    if together:
        room.stacking = lambda held_out, *_: held_out[:, 0]  # by ArviZ, slow to import
    with joblib.parallel_config(n_jobs=2 if together else None):
        assert jobs_at_once("test", num_jobs=2) == (1 if together else 2)
        found = compare({2: GaussianMixture(2, 2).double()}, x, folds=2, restarts=2, seed=0)
    return [found.held_out_rows.tolist(), found.fitted_rows.tolist()]


def test_processes_that_compute_together_share_nothing_else() -> None:
    first, other = all_returned(run_together(_compared, 2, True))
    assert first == other
    torch.testing.assert_close(torch.tensor(first), torch.tensor(_compared(False)))


def normal(x: Tensor | None = None, size: int | None = None) -> Tensor:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def refit(model: Callable, x: Tensor) -> Callable:
    """The exact posterior."""
    warnings.warn(
        f"fitted here: {os.environ.get('HOME_OF_TEST') == str(os.getpid())}", stacklevel=2
    )
    posterior = dist.Normal(x.sum() / (len(x) + 1), (len(x) + 1) ** -0.5)

    def guide(x: Tensor, size: int | None = None) -> None:
        pyro.sample("mean", posterior)

    return guide


def test_ranks_are_the_same_wherever_posteriors_are_made(monkeypatch) -> None:
    monkeypatch.setenv("HOME_OF_TEST", str(os.getpid()))
    args = {"size": 5, "refit": refit, "num_simulations": 20, "num_draws": 10, "seed": 0}
    with pytest.warns(UserWarning, match="fitted here: True"):
        one = sbc(normal, None, num_jobs=1, **args)
    with apart(), pytest.warns(UserWarning, match="fitted here: False"):
        two = sbc(normal, None, **args)
    assert torch.equal(one.ranks["mean"], two.ranks["mean"])
    assert torch.equal(one.ranks["log_p"], two.ranks["log_p"])


class Refuses(GaussianMixture):
    def initialise(self, x: Tensor, sample_weight: Tensor | None = None) -> None:
        raise ValueError("not these rows")


class Locked(GaussianMixture):
    def __init__(self) -> None:
        super().__init__(2, 1)
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> "Locked":
        return self


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        # Of all rows and of each fold, whichever is first to fail.
        (Refuses(2, 1), ValueError, r"compare: candidate 'bad', [a-z0-9 ]+: not these rows"),
        (Locked(), TypeError, "sent to another process, got Locked of candidate 'bad' "),
    ],
)
def test_errors_elsewhere_name_the_candidate(bad: nn.Module, error: type, message: str) -> None:
    candidates = {"good": GaussianMixture(2, 1).double(), "bad": bad.double()}
    with apart(), pytest.raises(error, match=message):
        compare(candidates, clusters(), folds=2, restarts=1, seed=0)
