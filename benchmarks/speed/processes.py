"""Steps of the MNIST VAE by two processes with a thread each, beside one with two threads.

    python -m benchmarks.speed.processes --data-root data

The same net (784-400-50-400-784), batches of 256 (`--batch`), Adam, and fresh binarisation as in
`vae_epoch`. Runs come one after the other, in turns; a line is the median over rounds of the median
time of a step, its start and its compilation aside. The exchange is timed by itself, in the same
processes: the sum of the flat gradient, as each step has it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.speed.vae_epoch import BATCH, NUM_LATENTS, networks
from guides import AmortizedNormal
from ppl_models import VAE, datasets, elbo, fit
from ppl_models.processes import together

EVERY, TIMES = 25, 200
WAYS = {"eager": False, "compiled": True}


def steps(args: argparse.Namespace) -> dict[str, Any]:
    """The time of a step here, and that of its exchange."""
    train, _ = datasets.mnist(args.data_root, binarize="fresh")
    decoder, encoder = networks(0, torch.device("cpu"))
    vae = VAE(784, NUM_LATENTS, decoder=decoder)
    guide = AmortizedNormal(784, NUM_LATENTS, encoder)
    watch = measure.Stopwatch("cpu", EVERY)
    options = {"batch_size": args.batch, "steps": args.steps, "seed": 0, "compile": WAYS[args.way]}
    fit(elbo(vae, guide), train, schedule=watch, progress=False, **options)
    size = sum(p.numel() for module in (vae, guide) for p in module.parameters())
    found = {"step": statistics.median(watch.seconds()) / EVERY, "bytes": 4 * size}
    here = together()
    if not here.alone:
        flat = torch.zeros(size)
        measure.seconds(lambda: here.sum_into(flat), "cpu", 20)
        found["exchange"] = measure.seconds(lambda: here.sum_into(flat), "cpu", TIMES)
    return found


def run(args: argparse.Namespace, way: str, count: int) -> dict[str, Any]:
    """What so many processes print, with two threads together."""
    command = [sys.executable, "-m", "benchmarks.speed.processes"]
    if count > 1:
        command[1:2] = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", "-m"]
    command += ["--data-root", str(args.data_root), "--steps", str(args.steps), "--way", way]
    command += ["--batch", str(args.batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // count)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--way", choices=WAYS, help="that of a process of its own")
    args = parser.parse_args(argv)
    if args.way:
        found = steps(args)
        if together().is_first:
            print(json.dumps(found))
        return
    print(f"{measure.heading('cpu')}, batches of {args.batch}")
    print(f"{'':10} {'1 x 2 threads':>14} {'2 x 1 thread':>14} {'ratio':>7} {'exchange':>10}")
    for way in WAYS:
        rounds = [[run(args, way, count) for count in (1, 2)] for _ in range(args.rounds)]
        one, two = (statistics.median(pair[n]["step"] for pair in rounds) for n in (0, 1))
        exchange = statistics.median(pair[1]["exchange"] for pair in rounds)
        size = rounds[0][1]["bytes"] / 2**20
        ratios = statistics.median(pair[0]["step"] / pair[1]["step"] for pair in rounds)
        print(
            f"{way:10} {one * 1e3:11.2f} ms {two * 1e3:11.2f} ms {ratios:6.2f}x "
            f"{exchange * 1e3:7.2f} ms of {size:.1f} MiB"
        )


if __name__ == "__main__":
    main()
