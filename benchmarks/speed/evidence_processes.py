"""Evidence and draws by two processes of one thread each, beside one process of two threads.

Both stand ready and take turns, so that whatever else the machine does disturbs both alike.

python -m benchmarks.speed.evidence_processes
"""

import argparse
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.distributed as group
from pyro.infer.autoguide import AutoNormal

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, from_pyro_svi, log_evidence
from ppl_models.datasets import digits
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.processes import Processes

Call = Callable[[], Any]
Side = tuple[int, int]  # how many processes, and threads of each


def regression(x: torch.Tensor, y: torch.Tensor | None = None, size: int | None = None) -> Any:
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)


def calls() -> dict[str, Call]:
    """What is timed."""
    torch.manual_seed(0)
    vae, guide = VAE(64, 8), AmortizedNormal(64, 8)
    _, rows = digits(binary=True)
    x, y = torch.randn(20_000, 30), torch.randn(20_000)
    weights = AutoNormal(regression)
    weights(x, y)
    return {
        "log_evidence, VAE of 297 digits, 1000 draws": lambda: log_evidence(
            vae, guide, rows, num_samples=1000, seed=0
        ),
        "from_pyro_svi, the same, 200 draws": lambda: from_pyro_svi(
            vae, guide, rows, num_samples=200, seed=0
        ),
        "log_evidence, regression of 20000 rows, 2000 draws": lambda: log_evidence(
            regression, weights, x, y, num_samples=2000, seed=0
        ),
    }


def work(pipe: Connection, threads: int, rank: int, count: int, store: str) -> None:
    """Answers each name with what this call took, and its number."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    if count > 1:
        group.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    sent, gather = [0, 0], Processes.gather

    def counted(here: Processes, x: torch.Tensor) -> list[torch.Tensor]:
        sent[0], sent[1] = sent[0] + 1, sent[1] + x.numel() * x.itemsize
        return gather(here, x)

    Processes.gather = counted  # type: ignore
    known = calls()
    while name := pipe.recv():
        sent[:] = 0, 0
        began = time.perf_counter(), time.process_time()
        found = known[name]()
        seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        is_number = isinstance(found, Evidence)
        value = found.mean if is_number else float(found["posterior"]["z"].sum())
        pipe.send((*seconds, *sent, value))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=11)
    repeats: int = parser.parse_args().repeats
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        store = Path(folder, "store").as_uri()
        sides: dict[Side, Any] = {(1, 1): [], (1, 2): [], (2, 1): []}
        for (count, threads), pipes in sides.items():
            for rank in range(count):
                pipe, other = context.Pipe()
                args = (other, threads, rank, count, store)
                context.Process(target=work, args=args, daemon=True).start()
                pipes.append(pipe)
        for name in calls():
            _show(name, _timed(name, sides, repeats))
        for pipe in (pipe for pipes in sides.values() for pipe in pipes):
            pipe.send("")  # that was all


def _timed(name: str, sides: dict[Side, Any], repeats: int) -> dict[Side, list[Any]]:
    """All that the sides answer, in turns, after one that does not count."""
    found: dict[Side, list[Any]] = {side: [] for side in sides}
    for _ in range(1 + repeats):
        for side, pipes in sides.items():
            for pipe in pipes:
                pipe.send(name)
            found[side].append([max(each) for each in zip(*(p.recv() for p in pipes), strict=True)])
    assert len({value for each in found.values() for *_, value in each}) == 1
    return {side: each[1:] for side, each in found.items()}


def _show(name: str, found: dict[Side, list[Any]]) -> None:
    wall = {side: statistics.median(one[0] for one in each) for side, each in found.items()}
    used = {side: statistics.median(one[1] for one in each) for side, each in found.items()}
    ratios = [a[0] / b[0] for a, b in zip(found[1, 2], found[2, 1], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    times, size = found[2, 1][0][2:4]
    print(
        f"{name}: one process {wall[1, 1]:.3f} s, of two threads {wall[1, 2]:.3f} s, two processes "
        f"{wall[2, 1]:.3f} s; two threads / two processes {middle:.2f} (quartiles {low:.2f} to "
        f"{high:.2f}); CPU of one {used[1, 1]:.3f} s, of each of two {used[2, 1]:.3f} s, ratio "
        f"{used[1, 1] / used[2, 1]:.2f}; {times} exchanges, {size / 2**20:.2f} MiB of each",
        flush=True,
    )


if __name__ == "__main__":
    main()
