"""The time of a step, all ways in one process and in turns."""

import time
from argparse import Namespace
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks import measure
from benchmarks.speed.peers import ways
from benchmarks.speed.peers.ways import Data, Take
from benchmarks.speed.steps import cases

PEER = "NumPyro, scanned"


def data_of(only: list[str]) -> Iterator[tuple[str, Data]]:
    """The programs whose names begin so, with their data."""
    for case in cases("cpu"):
        if case.name.startswith(tuple(only)):
            yield case.name, tuple(tensor.numpy() for tensor in case.data)


def per_step(take: Take, steps: int) -> float:
    if own := getattr(take, "per_step", None):
        return own(steps)
    began = time.perf_counter()
    take(steps)
    return (time.perf_counter() - began) / steps


def enough(take: Take, aim: float) -> int:
    """So many steps that they take about the seconds aimed at, whole blocks of them."""
    block = steps = getattr(take, "block", 1)
    while (found := steps * per_step(take, steps)) < aim / 4:
        steps *= 4
    return block * max(1, round(aim * steps / found / block))


def measured(name: str, data: Data, args: Namespace) -> None:
    print(f"\n{name}", flush=True)
    takes = {way: make(name, data) for way in args.ways if (make := ways.maker(way)) is not None}
    ends = {way: take(args.warm) for way, take in takes.items()}
    steps = {way: enough(take, args.seconds) for way, take in takes.items()}
    times: dict[str, list[float]] = {way: [] for way in takes}
    for _ in range(args.rounds):
        for way, take in takes.items():
            times[way].append(1e6 * per_step(take, steps[way]))
    print(f"  {'microseconds a step':28}{'median':>10}{'decile':>10}{'to NumPyro':>12}{'loss':>12}")
    for way in args.ways:
        if way not in takes:
            print(f"  {way:28}{'-':>10}")
            continue
        median, decile = np.median(times[way]), np.quantile(times[way], 0.1)
        ratio = f"{median / np.median(times[PEER]):.2f} x" if PEER in takes else ""
        print(f"  {way:28}{median:10.1f}{decile:10.1f}{ratio:>12}{ends[way]:12.4f}", flush=True)


def main(args: Namespace) -> None:
    torch.set_num_threads(1)
    args.ways = [way for way in ways.STEPS if way.startswith(tuple(args.ways))]
    print(measure.heading("cpu"))
    print(f"loss: nats per row, the mean of the last tenth of {args.warm} steps from the start")
    for name, data in data_of(args.only):
        measured(name, data, args)
