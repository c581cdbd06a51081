"""The time of whole runs: each is a process of its own, from cold and from warm caches."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import measure
from benchmarks.speed.peers import ways
from benchmarks.speed.peers.steps import data_of

EAGER = ("by hand", "pyro.infer.SVI", "fit, eager")  # for which caches are nothing


class Total(NamedTuple):
    """A process: wall-clock seconds, those of the processor, those of imports, and the loss."""

    seconds: float
    processor: float
    imports: float
    loss: float


def caches(folder: Path) -> dict[str, str]:
    """Where compiled code is kept, down to the least of it."""
    return {
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def processor() -> float:
    """The seconds that all processes so far, which have ended, took of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def whole(way: str, name: str, steps: int, folder: Path) -> Total:
    """Runs `one_run` in a process of its own, with its caches in a folder."""
    command = [sys.executable, "-m", "benchmarks.speed.peers.one_run", way, name, str(steps)]
    began, before = time.perf_counter(), processor()
    done = subprocess.run(
        [*command, str(folder / "data.npz")],
        env={**os.environ, **caches(folder)},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{way}, {name}, {steps} steps:\n{done.stderr}")
    return Total(seconds, processor() - before, **json.loads(done.stdout.splitlines()[-1]))


def forecast(found: dict[int, float], steps: int) -> float:
    """The seconds of a longer run, by the two before it."""
    if len(found) < 2:
        return 0.0
    (few, least), (many, most) = list(found.items())[-2:]
    return most + (steps - many) * (most - least) / (many - few)


def table(way: str, name: str, data: ways.Data, args: Namespace) -> None:
    """A line for cold caches, and one for warm ones; `~` before what is only forecast."""
    found: dict[str, dict[int, float]] = {"cold": {}, "warm": {}}
    cells: dict[str, list[str]] = {"cold": [], "warm": []}
    kinds = ["cold"] if way in EAGER else ["cold", "warm"]
    ends, imports = [], []
    for steps in args.steps:
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "data.npz", *data)
            for kind in kinds:
                expected = forecast(found[kind], steps)
                if expected > args.limit:
                    cells[kind].append(f"~{expected:.0f}")
                    continue
                run = whole(way, name, steps, Path(folder))
                found[kind][steps] = run.seconds
                cells[kind].append(f"{run.seconds:.1f} ({run.processor:.1f})")
                ends.append(run.loss)
                imports.append(run.imports)
    for kind in kinds:
        shown = "".join(f"{cell:>16}" for cell in cells[kind])
        print(f"  {way:26}{'' if way in EAGER else kind:6}{shown}", end="")
        print(f"{np.median(imports):10.1f}{ends[-1]:12.4f}", flush=True)


def main(args: Namespace) -> None:
    print(measure.heading("cpu"))
    print("seconds of a process, imports and compilation in them (of the processor: in brackets);")
    print("loss: nats per row, the mean of the last tenth of the steps of the longest run")
    for name, data in data_of(args.only):
        counts = "".join(f"{steps:>16,}" for steps in args.steps)
        print(f"\n{name:32}{counts}{'imports':>12}{'loss':>12}", flush=True)
        for way in ways.TOTAL:
            if way.startswith(tuple(args.ways)) and ways.maker(way) is not None:
                table(way, name, data, args)
