"""Kills runs in the middle of blocks of compiled steps, and resumes them: `--kills 20`.

Each must end bit for bit where a run ends that nobody disturbed.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import ExponentialLR

from ppl_models import elbo, fit
from ppl_models.infer.compiled.steps import loop
from ppl_models.infer.training import files
from tests.support.oracles import same, state
from tests.support.runs import dropout_vae

STEPS, BLOCK = 4096, 256
ROWS = torch.bernoulli(torch.full((40, 4), 0.3), generator=torch.Generator().manual_seed(1))
RUN = loop.Loop.run


def train(path: Path, pipe: int) -> None:
    """Goes on from a checkpoint to the end; tells of each block that begins."""

    def told(self, plan, *rest):
        if sum(times for _, times in plan) > 1:
            os.write(pipe, b".")
        return RUN(self, plan, *rest)

    loop.Loop.run, loop.LONGEST = told, BLOCK
    pair = dropout_vae()
    schedule = partial(ExponentialLR, gamma=0.999)
    options = {"batch_size": 8, "lr": 0.01, "clip": 1.0, "ema": 0.99, "schedule": schedule}
    files_of = {"checkpoint": path, "checkpoint_every": 0, "resume": True}
    fit(elbo(*pair), ROWS, steps=STEPS, seed=3, compile=True, progress=False, **options, **files_of)
    files.write(path.with_suffix(".result"), {"tensors": state(*pair)})


def child(path: Path) -> tuple[int, int]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            train(path, write)
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(status)
    os.close(write)
    return pid, read


def finish(path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """The number of blocks that a run took to its end, and what it ended with."""
    pid, read = child(path)
    with open(read, "rb", buffering=0) as pipe:
        blocks = len(pipe.read())
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError(f"{path} failed")
    return blocks, files.read(path.with_suffix(".result"))["tensors"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    torch.set_num_threads(1)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        total, expected = finish(Path(folder) / "whole")
        print(f"undisturbed: {total} blocks")
        for n in range(parser.parse_args().kills):
            path = Path(folder) / f"run-{n}"
            pid, pipe = child(path)
            for _ in range(random.randint(1, total - 2)):
                os.read(pipe, 1)  # another block has begun
            time.sleep(random.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pipe)
            blocks, tensors = finish(path)
            if not same(tensors, expected):
                raise RuntimeError(f"run {n} ended elsewhere")
            print(f"run {n}: killed, resumed for {blocks} blocks, the same bit for bit", flush=True)


if __name__ == "__main__":
    main()
