"""EM on two processes beside one with two threads, and fits side by side beside one after another.

python -m benchmarks.speed.em_processes                     # two cores, three minutes
python -m benchmarks.speed.em_processes --rows 50000 --rounds 2

The first table: a step of `fit_em` from the same place, in a process with two threads, in two by
`torchrun --nproc-per-node 2` with one thread each, and in one with one thread, in turns: by how
much the shortest of three longer fits takes longer. Times are those of the clock and, which others
on the machine disturb less, of the processor: of two processes the longer one. Losses of all steps
are compared number by number. What the exchange costs is the step of 100 rows.
The second: `compare` by joblib's loky, whose workers have started, beside the same here.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor

from ppl_models import FactorAnalysis, GaussianMixture, PoissonMixture, compare, fit_em
from ppl_models.processes import together

FEATURES, COMPONENTS = 10, 10


def rows(number: int) -> Tensor:
    """From clusters that overlap, the same on all processes."""
    torch.manual_seed(0)
    locs = 2 * torch.randn(COMPONENTS, FEATURES, dtype=torch.float64)
    which = torch.randint(COMPONENTS, (number,))
    return locs[which] + torch.randn(number, FEATURES, dtype=torch.float64)


def holes(x: Tensor) -> Tensor:
    return x.masked_fill(torch.rand(x.shape) < 0.05, float("nan"))


def cases(number: int) -> dict[str, tuple[Callable[[], Any], Tensor]]:
    x, few = rows(number), rows(100)
    kinds = ("full", "tied", "diag", "spherical")
    mixtures = {
        f"mixture, {kind}": (lambda k=kind: GaussianMixture(FEATURES, COMPONENTS, k), x)
        for kind in kinds
    }
    return {
        **mixtures,
        "mixture, 5 % missing": (
            lambda: GaussianMixture(FEATURES, 3, missing="marginalise"),
            holes(x[: number // 10]),
        ),
        "factor analysis": (lambda: FactorAnalysis(FEATURES, 3), x),
        "counts": (lambda: PoissonMixture(FEATURES, 3), x[: number // 10].abs().round()),
        "mixture, full, 100 rows": (lambda: GaussianMixture(FEATURES, 3), few),
    }


def steps(make: Callable[[], Any], x: Tensor, number: int) -> tuple[float, float, list[float]]:
    """Seconds of a step by the clock and of the processor, and the losses.

    Those by which fits of more steps take longer, of several the shortest.
    """
    options = {"initialise": False, "tolerance": 0.0, "progress": False}
    shortest = []
    for count in (number, 4 * number):
        found = []
        for _ in range(4):
            torch.manual_seed(1)
            began = time.process_time()
            run = fit_em(make().double(), x, max_steps=count, **options)
            found.append((run.seconds, time.process_time() - began, run.steps))
        shortest.append([min(values) for values in zip(*found[1:], strict=True)])
    few, many = shortest
    wall, cpu, more = (b - a for a, b in zip(few, many, strict=True))
    return wall / more, max(together().gather_values(cpu / more)), run.history["loss"]


def work(number: int) -> None:
    """What is timed in a process of its own, or in two."""
    warnings.simplefilter("ignore")
    found = {name: steps(*case, number=3) for name, case in cases(number).items()}
    if together().is_first:
        print("FOUND", json.dumps(found))


Found = dict[str, tuple[float, float, list[float]]]


def measured(command: list[str], threads: int, number: int) -> Found:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
    whole = [*command, "-m", "benchmarks.speed.em_processes", "--work", "--rows", str(number)]
    text = subprocess.run(whole, env=environment, check=True, capture_output=True, text=True).stdout
    (line,) = [line for line in text.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


def beside(number: int, rounds: int) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ways = {
        "two threads": ([sys.executable], 2),
        "two processes": ([*launcher, "--nproc-per-node", "2"], 1),
        "one thread": ([sys.executable], 1),
    }
    found: dict[str, list[Found]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (command, threads) in ways.items():
            found[name].append(measured(command, threads, number))
    print("| step of | two threads, ms | two processes, ms | times | losses differ by |", end="")
    print(" processor, one thread, ms | each of two processes, ms | times |")
    print("|---|---|---|---|---|---|---|---|")
    for name in found["one thread"][0]:
        wall, cpu = (
            {way: 1e3 * min(one[name][at] for one in each) for way, each in found.items()}
            for at in (0, 1)
        )
        losses, others = (found[way][0][name][2] for way in ("one thread", "two processes"))
        apart = max(abs(a - b) / abs(a) for a, b in zip(losses, others, strict=True))
        clock, own = wall["two threads"], cpu["one thread"]
        print(
            f"| {name} | {clock:.2f} | {wall['two processes']:.2f} "
            f"| {clock / wall['two processes']:.2f} | {apart:.0e} | {own:.2f} "
            f"| {cpu['two processes']:.2f} | {own / cpu['two processes']:.2f} |"
        )


def used(process: str = "self") -> float:
    """Seconds of the processor, of this process and of those it has started (Linux)."""
    place = Path("/proc", process)
    own = sum(map(int, place.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]))
    children = " ".join(path.read_text() for path in place.glob("task/*/children")).split()
    return own / os.sysconf("SC_CLK_TCK") + sum(map(used, children))


def compared(x: Tensor, jobs: int) -> tuple[float, float, Tensor]:
    """Seconds of a comparison, by the clock and of the processor, and what it finds."""
    torch.manual_seed(0)
    candidates = {k: GaussianMixture(FEATURES, k).double() for k in range(1, 9)}
    before, began = used(), time.perf_counter()
    with joblib.parallel_config(backend="loky", n_jobs=jobs):
        found = compare(candidates, x, restarts=3, seed=0, progress=False)
    return time.perf_counter() - began, used() - before, found.held_out_rows


def comparisons(number: int, rounds: int) -> None:
    torch.set_num_threads(1)
    x = rows(number)
    for jobs in (2, 1):  # workers start
        compared(x[:200], jobs)
    found = {jobs: [compared(x, jobs) for _ in range(rounds)] for jobs in (1, 2)}
    print(
        f"\n| comparison of 8 mixtures, 48 fits, {number} rows | s | times as fast | processor, s |"
    )
    print("|---|---|---|---|")
    clock, cpu = ({jobs: min(o[at] for o in each) for jobs, each in found.items()} for at in (0, 1))
    for jobs, name in ((1, "one after another"), (2, "two side by side")):
        print(f"| {name} | {clock[jobs]:.2f} | {clock[1] / clock[jobs]:.2f} | {cpu[jobs]:.2f} |")
    same = all(torch.equal(found[1][0][2], one[2]) for one in found[2])
    print(f"\nBoth come to the same bits: {same}.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--compared", type=int, default=2000, help="rows of the comparison")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.rows)
        return
    beside(args.rows, args.rounds)
    comparisons(args.compared, args.rounds)


if __name__ == "__main__":
    main()
