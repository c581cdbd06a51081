"""What networks that are split over processes take of memory and time, beside whole ones.

    torchrun --nproc-per-node 2 -m benchmarks.speed.sharded
    torchrun --nproc-per-node 2 -m benchmarks.speed.sharded --whole

A classifier of eight layers of 3536 units, 100 million parameters, with Adam in single precision:
four numbers a parameter (itself, its gradient, two moments), 1.6 GB whole. `held` counts what the
optimiser has of these after a step, `resident` is the memory of the process then, less what it was
before there was a network, and `peak` the most of it in a step.
"""

import argparse
import statistics
import threading
import time
from pathlib import Path

import torch
import torch.distributed.fsdp  # which `fit` would import, and which takes memory of its own
from torch import Tensor, nn

from ppl_models import Classifier, elbo, fit
from ppl_models.processes import together

WIDTH, LAYERS = 3536, 8
GIB = 2**30


def resident() -> float:
    """The memory of this process, in GiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 2**20


class Seen:
    """Takes note of memory and time after each step, and of the most memory in between."""

    def __init__(self) -> None:
        self.before, self.peak, self.ended = resident(), 0.0, False
        self.held: list[float] = []
        self.after: list[float] = []
        self.times: list[float] = []

    def optimizer(self, parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        made = torch.optim.Adam(parameters, lr=lr, fused=True)
        made.register_step_post_hook(self.note)
        return made

    def note(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        states = [x for state in optimizer.state.values() for x in state.values()]
        slopes = [p.grad for p in moved if p.grad is not None]
        every = [*moved, *slopes, *(x for x in states if isinstance(x, Tensor))]
        self.held.append(sum(x.numel() * x.element_size() for x in every) / GIB)
        self.after.append(resident() - self.before)
        self.times.append(time.perf_counter())
        if len(self.times) == 5:  # two of the trial of the optimiser, and three to warm up
            self.peak = 0.0

    def watch(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, resident() - self.before)
            time.sleep(0.002)


def measured(shard: bool, width: int, steps: int, rows: int) -> tuple[float, ...]:
    """What is held, resident and at the peak, in GiB, and the seconds of a step."""
    seen = Seen()
    watcher = threading.Thread(target=seen.watch)
    watcher.start()
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model = Classifier(width, 10, width, network=nn.Sequential(*layers))
    x, y = torch.randn(rows, width), torch.arange(rows) % 10
    fit(
        elbo(model),
        (x, y),
        steps=steps,
        seed=0,
        optimizer=seen.optimizer,
        compile=False,
        progress=False,
        shard=shard,
    )
    seen.ended = True
    watcher.join()
    apart = [b - a for a, b in zip(seen.times[-steps:-1], seen.times[-steps + 1 :], strict=True)]
    return seen.held[-1], seen.after[-1], seen.peak, statistics.median(apart[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--whole", action="store_true", help="networks that are not split")
    args = parser.parse_args()
    torch.set_num_threads(1)
    processes = together()
    found = measured(not args.whole, args.width, args.steps, args.rows)
    for rank, each in enumerate(processes.gather_values(list(found))):
        if processes.is_first:
            held, after, peak, seconds = each
            print(
                f"| {'whole' if args.whole else 'sharded'} | {rank} of {processes.count} | "
                f"{held:.2f} | {after:.2f} | {peak:.2f} | {seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
