"""Kills processes of a run of two under `torchrun --max-restarts`: `--kills 50`.

Each time one of them, at any moment: while they start, agree, take steps, or write. The run must
end bit for bit where one ends that nobody disturbed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from ppl_models import elbo, fit
from ppl_models.infer.training import files
from ppl_models.processes import together
from tests.support.oracles import same, state
from tests.support.runs import dropout_vae

ROWS = torch.bernoulli(torch.full((43, 4), 0.3), generator=torch.Generator().manual_seed(1))


def train(path: Path, steps: int) -> None:
    """Goes on from a checkpoint to the end, and writes what it ended with."""
    pair = dropout_vae(norm=nn.LayerNorm)
    schedule = partial(ExponentialLR, gamma=0.9999)
    options = {"batch_size": 8, "lr": 0.01, "clip": 1.0, "ema": 0.99, "schedule": schedule}
    files_of = {"checkpoint": path, "checkpoint_every": 0.02, "resume": True}
    held_out = {"validation": ROWS[:9], "progress": False}
    fit(elbo(*pair), ROWS, steps=steps, seed=3, **options, **files_of, **held_out)
    if together().is_first:
        files.write(path.with_suffix(".result"), {"tensors": state(*pair)})


def launched(path: Path, steps: int, restarts: int, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--monitor-interval=0.05"]
    command += [f"--max-restarts={restarts}", "-m", "tests.support.kills_together"]
    command += ["--path", str(path), "--steps", str(steps)]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def workers(launcher: subprocess.Popen) -> list[int]:
    try:
        text = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(pid) for pid in text.split()]


def disturb(path: Path, steps: int, kills: int, log: Path) -> int:
    """Kills so many processes, or fewer if the run ends before; returns how many."""
    launcher, killed, known = launched(path, steps, kills + 1, log), 0, set()
    while launcher.poll() is None and killed < kills:
        fresh = [pid for pid in workers(launcher) if pid not in known]
        if len(fresh) < 2:
            time.sleep(0.02)
            continue
        known.update(fresh)
        if random.random() < 0.7:  # once they take steps and write, else while they start
            wait_for_a_file(launcher, path)
        time.sleep(random.uniform(0, 2))
        try:
            os.kill(random.choice(fresh), signal.SIGKILL)
        except ProcessLookupError:  # the run has ended
            break
        killed += 1
        at = files.read(path)["step"] if path.exists() else 0
        print(f"kill {killed}: at step {at} or after it", flush=True)
    if launcher.wait() != 0:
        raise RuntimeError(f"the run failed: {log.read_text()[-3000:]}")
    return killed


def wait_for_a_file(launcher: subprocess.Popen, path: Path) -> None:
    began = time.time()
    while launcher.poll() is None and not (path.exists() and path.stat().st_mtime > began):
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--path", type=Path, help="that of a process under torchrun")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.path is not None:
        train(args.path, args.steps)
        return
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, log = Path(folder, "whole"), Path(folder, "log")
        if launched(whole, args.steps, 0, log).wait() != 0:
            raise RuntimeError(log.read_text()[-3000:])
        expected = files.read(whole.with_suffix(".result"))["tensors"]
        done = 0
        while done < args.kills:
            path = Path(folder, f"run-{done}")
            done += disturb(path, args.steps, args.kills - done, log)
            found = files.read(path.with_suffix(".result"))["tensors"]
            if not same(found, expected):
                raise RuntimeError("the run ended elsewhere")
            print(f"after {done} kills: the end is the same bit for bit", flush=True)


if __name__ == "__main__":
    main()
