"""Whole runs of the programs of `benchmarks.speed.tutorials`: by `SVI.run`, by `fit`, by Pyro.

python -m benchmarks.speed.tutorial_runs

Microseconds of a step, of the processor. Those of single steps are medians of rounds; those of runs
are what a longer run takes more than a shorter one, in medians, since both are compiled first. Each
ends after as many steps from the same seed, with which `fit` starts elsewhere; the losses at the
end are means of the last tenth.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from benchmarks import measure
from benchmarks.speed.tutorials import Program, programs
from ppl_models import SVI, elbo, fit

SHORT, RATE = 2020, 0.01


def svi_of(kind: Callable[..., Any], program: Program) -> Any:
    pyro.clear_param_store()
    torch.manual_seed(0)
    depth = program.depth
    loss = TraceEnum_ELBO(max_plate_nesting=depth) if depth else Trace_ELBO()
    return kind(*program.make(), pyro.optim.Adam({"lr": RATE}), loss)


def by_steps(kind: Callable[..., Any], program: Program, steps: int) -> list[float]:
    svi = svi_of(kind, program)
    return [svi.step(*program.data) for _ in range(steps)]


def by_run(program: Program, steps: int) -> list[float]:
    return svi_of(partial(SVI, compile=True), program).run(steps, *program.data).losses.tolist()


def by_fit(program: Program, steps: int, compile: bool = True) -> list[float]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide = program.make()

    def of_rows(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *rows, size=None: run(*rows)

    objective = elbo(of_rows(model), of_rows(guide))
    run = fit(objective, program.data, steps=steps, lr=RATE, compile=compile, progress=False)
    return [len(program.data[0]) * x for x in run.history["loss"]]


def seconds(take: Callable[[], Any]) -> float:
    began = time.process_time()
    take()
    return time.process_time() - began


def per_step(take: Callable[[int], Any], more: int, rounds: int) -> float:
    """What a step takes by the difference of two runs."""
    took: dict[int, list[float]] = {SHORT: [], SHORT + more: []}
    for _ in range(rounds):
        for steps, times in took.items():
            times.append(seconds(partial(take, steps)))
    return (statistics.median(took[SHORT + more]) - statistics.median(took[SHORT])) / more


def single(kind: Callable[..., Any], program: Program, rounds: int) -> float:
    """What a call of `step` takes, after a warm-up."""
    svi = svi_of(kind, program)

    def steps(count: int) -> None:
        for _ in range(count):
            svi.step(*program.data)

    steps(50)
    return statistics.median(seconds(partial(steps, 100)) / 100 for _ in range(rounds))


def end(losses: list[float]) -> float:
    return statistics.fmean(losses[-len(losses) // 10 :])


def row(program: Program, more: int, rounds: int) -> str:
    compiled = partial(SVI, compile=True)
    runs = {"run": partial(by_run, program), "fit": partial(by_fit, program)}
    ends = {"pyro": end(by_steps(pyro.infer.SVI, program, SHORT))}
    ends["run"] = end(by_run(program, SHORT))
    ends |= {"eager fit": end(by_fit(program, SHORT, False)), "fit": end(by_fit(program, SHORT))}
    took = {
        "pyro": single(pyro.infer.SVI, program, rounds),
        "step": single(compiled, program, rounds),
        **{name: per_step(take, more, rounds) for name, take in runs.items()},
    }
    micro = "".join(f"{1e6 * took[name]:10.1f}" for name in took)
    times = "".join(f"{took['step'] / took[name]:9.1f} x" for name in runs)
    losses = "".join(f"{value:12.4f}" for value in ends.values())
    return f"{program.name:28}{micro}{times}{losses}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--scale", type=int, default=20, help="30 rows of data times this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--more", type=int, default=10_000, help="steps of the longer runs")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)

    print(measure.heading("cpu"))
    ways = "".join(f"{name:>10}" for name in ("Pyro", "step", "run", "fit"))
    times = f"{'run':>11}{'fit':>11}"
    print(f"{'microseconds a step':28}{ways}{times}  losses: Pyro, run; fit, eager and compiled")
    for program in programs(args.scale):
        if program.name.startswith(tuple(args.only)):
            print(row(program, args.more, args.rounds), flush=True)


if __name__ == "__main__":
    main()
