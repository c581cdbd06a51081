"""Programs of all kinds over many steps, by Pyro and by compiled steps: `--steps 2000`.

A line for each kind and each way: the same numbers, eager with a reason, or WRONG. What happens
between two steps happens between two runs of `--each` steps where the way is `SVI.run`. Where
losses are further apart than 1e-4, the eager steps are run again with their parameters moved by a
rounding after each: "as near" are numbers within twice the spread of these.
"""

import argparse
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.infer
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ppl_models.infer.compiled.code import native
from tests.infer.compiled import test_deceivers as deceivers
from tests.infer.drop_in import test_kinds as kinds
from tests.support.tutorials import CompiledSVI


class Runs:
    """Takes a run where a step is asked for.

    Arguments:
        kind: Makes what takes steps.
        each: Steps of a run.
    """

    def __init__(self, kind: Callable[..., Any], each: int) -> None:
        self.kind, self.each = kind, each

    def __call__(self, *args: Any) -> Any:
        svi = self.kind(*args)
        own, each = svi.step, self.each

        def step(*args: Any, **kwargs: Any) -> float:
            if self.kind is CompiledSVI:
                del svi.step
                try:
                    return svi.run(each, *args, **kwargs).losses.sum().item()
                finally:
                    svi.step = step
            return sum(own(*args, **kwargs) for _ in range(each))

        svi.step = step
        return svi


def fitted(make: Callable[[], Any], compiled: bool, steps: int) -> list[float]:
    """The losses of a deceiver, with what was said."""
    losses, _, said = deceivers.run(make, compiled, steps)
    for text in said:
        warnings.warn(text, stacklevel=1)
    return losses


def told(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call gives from the same seeds, and what it says of eager steps."""
    pyro.clear_param_store()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = call()
        except Exception as error:  # which must be the same by both
            found = f"{type(error).__name__}: {error}"
    return found, [str(w.message) for w in said if "eagerly" in str(w.message)]


class Rounded:
    """A context in which each step of an optimiser ends with its parameters rounded otherwise."""

    def __enter__(self) -> None:
        self.calls = 0
        self.hook = register_optimizer_step_post_hook(self.move)

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()

    @torch.no_grad()
    def move(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Moves them by the last digit, up and down in turn."""
        self.calls += 1
        for x in (x for group in optimizer.param_groups for x in group["params"]):
            x.mul_(1 + (-1) ** self.calls * torch.finfo(x.dtype).eps)


def cases(steps: int) -> Iterator[tuple[str, str, Callable[[bool], Any]]]:
    """The way, the kind, and its losses with and without compiled steps."""
    for name, run in kinds.KINDS.items():
        yield (
            "step",
            name,
            lambda compiled, run=run: run(CompiledSVI if compiled else pyro.infer.SVI)[0],
        )
    for name, make in kinds.INSIDE.items():
        yield "run", name, lambda compiled, make=make: kinds.by_run(make, compiled)
        yield "fit", name, lambda compiled, make=make: kinds.by_fit(make, compiled)
    for name, make in deceivers.PROGRAMS.items():
        yield "fit", name, lambda compiled, make=make: fitted(make, compiled, steps)


def between(each: int) -> Iterator[tuple[str, str, Callable[[bool], Any]]]:
    """The same of kinds that change between runs."""
    for name, run in kinds.KINDS.items():
        yield (
            "run",
            name,
            lambda compiled, run=run: run(Runs(CompiledSVI if compiled else pyro.infer.SVI, each))[
                0
            ],
        )


def report(way: str, name: str, take: Callable[[bool], Any]) -> bool:
    """Prints a line; returns whether it is right."""
    (expected, _), (found, said) = (told(lambda c=c: take(c)) for c in (False, True))
    if isinstance(expected, str) or isinstance(found, str):
        right = expected == found
        print(f"{way:5} {name:32} {'both' if right else 'WRONG':7} {expected} {found}"[:150])
        return right
    expected, found = np.array(expected), np.array(found)
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    reason = said[0].split(": ", 1)[1][:90] if said else ""
    state = "eager" if said else "same"
    if not (right := bool(apart < 1e-4)):
        with Rounded():
            moved = np.array(told(lambda: take(False))[0])
        spread = np.abs(moved - expected).max() / np.abs(expected).max()
        right = bool(apart < 2 * spread)
        state, reason = "as near" if right else "WRONG", f"rounded otherwise {spread:.0e}"
    print(f"{way:5} {name:32} {state:7} {apart:.0e} {reason}", flush=True)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--only", default="", help="ways, such as step,run,fit,between")
    parser.add_argument("--real", action="store_true", help="with the compiler: seconds for each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.real:
        torch.compile = lambda graph, **_: graph
        native._compile = lambda graph, *_: graph
    kinds.Length.steps = kinds.Length.inside = args.steps
    kinds.Length.late = args.steps * 17 // 30
    ways = args.only.split(",") if args.only else ["step", "run", "fit", "between"]
    chosen = [case for case in cases(args.steps) if case[0] in ways]
    right = [report(*case) for case in chosen]
    if "between" in ways:
        kinds.Length.steps = args.steps // args.each
        kinds.Length.late = kinds.Length.steps * 17 // 30
        right += [report(*case) for case in between(args.each)]
    print(f"{sum(right)} of {len(right)} are right, over {args.steps} steps")


if __name__ == "__main__":
    main()
