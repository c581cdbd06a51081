r"""What a step costs that several processes share: the sum of the gradient over all of them.

    torchrun --nproc-per-node 2 -m benchmarks.speed.exchange

Measured, between processes of this machine: the sum of one flat tensor by gloo over loopback, as it
is between machines; that by the memory which processes of one machine share; and by that all of
the exchange of `fit`: gradients in, sum, gradients out, and what goes beside them. These are first
deciles of many.
Modelled: the time of a sum over `P` processes by a network, and for gloo by the line through the
smallest and the largest size,

.. math::
    t = \alpha \log_2 P + 2 \, \frac{P - 1}{P} \, \frac{n}{\beta}

with `n` bytes, the latency :math:`\alpha` and the bandwidth :math:`\beta` of each link, which for
other networks are the published ones. These figures are no measurements: they leave out the time to
copy, stragglers, switches that are shared, and what of it is hidden behind the backward pass.

References:
    | Optimization of Collective Communication Operations in MPICH (Thakur et al., 2005)
    | https://doi.org/10.1177/1094342005051521
    | https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import measure
from ppl_models.infer.training.together.exchange import Exchange
from ppl_models.processes import Processes, together

SIZES = [10**4, 10**5, 10**6, 10**7, 10**8]  # bytes
MODELS = {"0.1 M": 4 * 10**5, "1 M": 4 * 10**6, "10 M": 4 * 10**7, "100 M": 4 * 10**8, "1 G": 4e9}
PROCESSES = [8, 64, 512]


class Link(NamedTuple):
    """A network between processes."""

    name: str
    latency: float  # alpha, seconds
    bandwidth: float  # beta, bytes a second, in one direction
    most: int  # processes that it connects


# Bandwidths as published: InfiniBand EDR 100 Gb/s (ConnectX-5), NDR 400 Gb/s (ConnectX-7), NVLink 4
# 900 GB/s of an H100 in both directions (at most 8 in a machine). Of latencies there is no one
# figure: some microseconds for a message from one GPU to another are assumed.
LINKS = [
    Link("InfiniBand 100 Gb/s", 5e-6, 12.5e9, 10**6),
    Link("InfiniBand 400 Gb/s", 5e-6, 50e9, 10**6),
    Link("NVLink 450 GB/s", 3e-6, 450e9, 8),
]


def modelled(size: float, count: int, latency: float, bandwidth: float) -> float:
    """The seconds of a sum of so many bytes over so many processes.

    Example:
        >>> modelled(1e9, 2, 0.0, 1e9)
        1.0
    """
    return latency * math.log2(count) + 2 * (count - 1) / count * size / bandwidth


def fitted(sizes: Sequence[int], seconds: Sequence[float], count: int) -> tuple[float, float]:
    """The latency and the bandwidth of the line through the smallest and the largest size.

    Example:
        >>> times = [modelled(n, 2, 1e-4, 1e9) for n in (10**4, 10**6, 10**8)]
        >>> [f"{x:.3g}" for x in fitted([10**4, 10**6, 10**8], times, 2)]
        ['0.0001', '1e+09']
    """
    (few, soon), *_, (many, late) = zip(sizes, seconds, strict=True)
    a_byte = (late - soon) / (many - few)
    latency = (soon - a_byte * few) / math.log2(count)
    return latency, 2 * (count - 1) / count / a_byte


def timed(call: Callable[[], object], here: Processes, size: int) -> float:
    """The first decile of the times of a call on all processes, that of the slowest one."""
    times = []
    for n in range(max(9, min(200, 10**8 // size // 4))):
        here.total(torch.zeros(1))  # all begin together
        began = time.perf_counter()
        call()
        if n > 1:
            times.append(time.perf_counter() - began)
    return max(here.gather_values(statistics.quantiles(times, n=10)[0]))


def exchanged(here: Processes, size: int) -> Callable[[], object]:
    """The exchange of a step, of a model of so many bytes in eight parameters."""
    exchange = Exchange(here)
    parameters = [nn.Parameter(torch.zeros(size // 4 // 8)) for _ in range(8)]
    slopes = [torch.ones_like(p) for p in parameters]

    def call() -> None:
        for p, slope in zip(parameters, slopes, strict=True):
            p.grad = slope
        exchange.average("elbo", list(parameters), {"elbo": torch.ones(())}, 1 / here.count, None)

    return call


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes")
    args = parser.parse_args(argv)
    here = together()
    if here.alone:
        parser.error("expected two processes or more: torchrun --nproc-per-node 2 -m ...")
    torch.set_num_threads(1)
    flat = {size: torch.zeros(size // 4) for size in args.sizes}
    sums = [timed(lambda: dist.all_reduce(flat[size]), here, size) for size in args.sizes]  # noqa: B023
    shared = [timed(lambda: here.sum_into(flat[size]), here, size) for size in args.sizes]  # noqa: B023
    steps = [timed(exchanged(here, size), here, size) for size in args.sizes]
    if not here.is_first:
        return
    latency, bandwidth = fitted(args.sizes, sums, here.count)
    print(f"{measure.heading('cpu')}, {here.count} processes\n")
    print("| bytes | gloo, us | by the line, us | by memory, us | exchange of a step, us |")
    print(f"|{'---|' * 5}")
    for size, *times in zip(args.sizes, sums, shared, steps, strict=True):
        times.insert(1, modelled(size, here.count, latency, bandwidth))
        print(f"| {size:.0e} | {' | '.join(f'{t * 1e6:.0f}' for t in times)} |")
    print(f"\nalpha {latency * 1e6:.0f} us, beta {bandwidth / 1e9:.2f} GB/s\n")
    print(f"modelled, ms | {' | '.join(MODELS)} |\n|{'---|' * (1 + len(MODELS))}")
    for link in [Link("gloo, as here", latency, bandwidth, 10**6), *LINKS]:
        for count in (n for n in PROCESSES if n <= link.most):
            times = (modelled(n, count, link.latency, link.bandwidth) for n in MODELS.values())
            row = " | ".join(f"{1e3 * t:.3g}" for t in times)
            print(f"| {link.name}, {count} processes | {row} |")


if __name__ == "__main__":
    main()
