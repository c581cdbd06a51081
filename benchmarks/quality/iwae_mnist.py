r"""The published protocol of importance-weighted autoencoders on MNIST, in many short calls.

    MODULE=benchmarks.quality.iwae_mnist
    python -m $MODULE --data-root data --particles 1 --device cuda --minutes 9
    python -m $MODULE --data-root data --particles 50 --device cuda --minutes 9
    python -m $MODULE --data-root data --steps 2000 --test-rows 200 --samples 100

The first two are called again, with the same arguments, until the table is printed: a call goes on
from the files of the one before, and ends `--minutes` after it began. The third is a shortened run,
and says so.

One layer of 50 latents, encoder and decoder with two layers of 200 tanh units; 60,000 training
rows, each batch of 20 binarised anew; the ELBO (1 particle) or the importance-weighted bound. The
learning rate is :math:`10^{-3 - i / 7}` for :math:`3^i` passes, :math:`i = 0, \dots, 7`: in all
3280 passes, or 9,840,000 steps. All 10,000 test rows, drawn once, 5000 importance samples each.

Where the paper is silent this follows the authors' code: weights uniform as of Glorot and Bengio,
the means and the scales of the encoder with fans of their own; biases zero, but those of the pixels
the log-odds of the training means, which are held within 0.001 and 0.999. Adam's epsilon of 1e-4 is
meant for the gradient of a sum over the 20 rows; the losses here are means, so that it is a
twentieth. Where the code differs from the paper, this follows the paper: betas of 0.9 and 0.999
(the code has 0.99, and second moments that start at one), rates that are not rounded, and all
60,000 rows, in a new order at each pass (the code keeps 400 for validation, and one order).

References:
    | Importance Weighted Autoencoders (Burda et al., 2016)
    | https://arxiv.org/abs/1509.00519, https://github.com/yburda/iwae
"""

import argparse
import bisect
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.measure import about, heading, wait
from guides import AmortizedNormal
from ppl_models import VAE, Transformed, datasets, elbo, fit, iwae, log_evidence
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.training import files
from ppl_models.nn import MLP
from ppl_models.scoped import mix

LONG = 20_000  # steps that are worth the time of a compiler
LATENTS, HIDDEN, BATCH = 50, (200, 200), 20
ENDS = list(itertools.accumulate(3**i for i in range(8)))  # passes until a stage ends
ADAM = partial(torch.optim.Adam, betas=(0.9, 0.999), eps=1e-4 / BATCH, fused=True)
PUBLISHED = {1: 86.76, 50: 84.78}  # test NLL in nats, by the number of particles
FIRST = 1000  # steps, of the first part of a call
SETTLED = 200  # steps of a part, in which all is compiled and recorded
PART = 100  # test rows that are evaluated together
AT_ONCE = {"cpu": 4096, "cuda": 100_000}  # draws that are evaluated at once


def factor(step: int, steps_a_pass: int) -> float:
    """The learning rate of a step, to that of the first."""
    stage = bisect.bisect_right(ENDS[:-1], step // steps_a_pass)
    return 10 ** (-stage / 7)


class Schedule:
    """The rates as `fit` takes them, whatever the step that a call ends at. It notes the time.

    Arguments:
        steps_a_pass: The steps of a pass.
        device: Where they are taken.
        at: After which steps to note the time.
    """

    def __init__(self, steps_a_pass: int, device: str, at: Sequence[int] = ()) -> None:
        self.steps_a_pass, self.device, self.at = steps_a_pass, device, at
        self.times: list[float] = []

    def __call__(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        if step in self.at:
            wait(self.device)
            self.times.append(time.perf_counter())
        return factor(step, self.steps_a_pass)


def programs(images: Tensor) -> tuple[VAE, AmortizedNormal]:
    """The model and its guide, as they are before the first step."""
    num_features = images.shape[1]
    decoder = MLP(LATENTS, num_features, HIDDEN)
    encoder = MLP(num_features, 2 * LATENTS, HIDDEN)
    for layer in (*decoder, *encoder):
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    for half in encoder[-1].weight.detach().chunk(2):  # means, log-scales
        nn.init.xavier_uniform_(half)
    with torch.no_grad():
        decoder[-1].bias.copy_(images.mean(0).clamp(0.001, 0.999).logit())
    guide = AmortizedNormal(num_features, LATENTS, encoder)
    return VAE(num_features, LATENTS, decoder=decoder), guide


class Clock:
    """How long this call may go on."""

    def __init__(self, minutes: float | None) -> None:
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.ends = time.perf_counter() + self.seconds

    @property
    def left(self) -> float:
        return self.ends - time.perf_counter()

    @property
    def out(self) -> bool:
        """Whether so little is left that nothing new is worth its start."""
        return self.left < min(0.05 * self.seconds, 20)


def train(
    objective: Any,
    data: Transformed,
    total: int,
    path: Path,
    clock: Clock,
    speed: dict[str, Any],
    *,
    seed: int,
    device: str,
) -> int:
    """Goes on from the checkpoint until the time is out, and returns the steps done in all.

    It goes part by part, each to the step that by the speed of the part before comes in time. In
    `speed` it notes the seconds of a step in the longest part, without the part's start.
    """
    done = files.read(path)["step"] if path.exists() else 0
    count = FIRST
    while True:  # once in any case, which brings the parameters back
        goal = min(done + count, total)
        schedule = Schedule(-(-len(data) // BATCH), device, at=(done + SETTLED, goal))
        run = fit(
            objective,
            data,
            steps=goal,
            batch_size=BATCH,
            lr=1e-3,
            optimizer=ADAM,
            schedule=schedule,
            seed=seed,
            device=device,
            compile=total >= LONG,
            checkpoint=path,
            resume=True,
            progress=False,
        )
        if taken := run.steps - done:
            pace, over = run.seconds / taken, taken
            if taken > SETTLED:
                over = taken - SETTLED
                pace = (schedule.times[-1] - schedule.times[-2]) / over
            if over >= speed.get("measured over", 0):
                speed.update({"seconds a step": pace, "measured over": over})
            start = run.seconds - pace * taken
            done = run.steps
            print(
                f"  step {done:,} of {total:,}: training loss of this pass "
                f"{run.history['loss'][-1]:.2f} nats per row; {1e3 * pace:.3f} ms a step and "
                f"{start:.0f} s to start; {(total - done) * pace / 60:,.1f} minutes to come",
                flush=True,
            )
        if done >= total or clock.out:
            return done
        fits = (0.95 * clock.left - start) / pace
        count = total if math.isinf(fits) else max(FIRST, int(fits))


def evaluate(
    model: VAE,
    guide: AmortizedNormal,
    rows: Tensor,
    num_samples: int,
    path: Path,
    clock: Clock,
    *,
    seed: int,
    of: dict[str, Any],
) -> Evidence:
    """The evidence of the rows, of as many as the time allows; `of` says of which model."""
    of = {**of, "rows": len(rows), "samples": num_samples, "seed": seed}
    done: list[Evidence] = []
    if path.exists() and (tree := files.read(path))["of"] == of:
        done = [Evidence(**tree["evidence"])]
    while (start := sum(part.num_rows for part in done)) < len(rows):
        part = log_evidence(
            model,
            guide,
            rows[start : start + PART],
            num_samples=num_samples,
            batch_size=AT_ONCE.get(rows.device.type, AT_ONCE["cpu"]),
            seed=mix(seed, start),
        )
        done = [joined([*done, part])]
        files.write(path, {"of": of, "evidence": vars(done[0]) | {"tails": None}})
        if clock.out:
            break
    return done[0]


def joined(parts: list[Evidence]) -> Evidence:
    """The evidence of the rows of all parts."""
    return replace(
        parts[-1],
        value=torch.cat([part.value for part in parts]),
        row_variance=torch.cat([part.row_variance for part in parts]),
        num_rows=sum(part.num_rows for part in parts),
        tails=None,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--particles", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, help="when to end this call; default: when done")
    parser.add_argument("--steps", type=int, help="fewer than the protocol's, a shortened run")
    parser.add_argument("--test-rows", type=int, help="fewer than all, likewise")
    parser.add_argument("--samples", type=int, default=5000, help="importance samples a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("outputs/iwae_mnist"))
    args = parser.parse_args(argv)
    clock = Clock(args.minutes)

    data, test = datasets.mnist(args.data_root, binarize="fresh", seed=args.seed)
    protocol = ENDS[-1] * -(-len(data) // BATCH)
    total, rows = args.steps or protocol, test[: args.test_rows].to(args.device)
    whole = (total, len(rows), args.samples) == (protocol, len(test), 5000)
    print(
        f"MNIST, {len(data):,} rows, {args.particles} particle(s): "
        + ("the published protocol" if whole else "a SHORTENED run, not the published protocol")
        + f", {total:,} of {protocol:,} steps\n{heading(args.device)}",
        flush=True,
    )

    torch.manual_seed(args.seed)
    model, guide = programs(data.tensors[0])
    objective = elbo(model, guide) if args.particles == 1 else iwae(model, guide, args.particles)
    name = f"k{args.particles}-seed{args.seed}" + (f"-{total}-steps" if total < protocol else "")
    record = args.folder / f"{name}.json"
    speed = json.loads(record.read_text())["speed"] if record.exists() else {}
    state = args.folder / f"{name}.safetensors"
    options = {"seed": args.seed, "device": args.device}
    steps = train(objective, data, total, state, clock, speed, **options)
    evidence = None
    if steps == total:
        of = {"particles": args.particles, "steps": total}
        path = args.folder / f"{name}-evidence.safetensors"
        how = args.samples, path, clock
        evidence = evaluate(model, guide, rows, *how, seed=args.seed, of=of)
    finished = evidence is not None and evidence.num_rows == len(rows)
    report = {
        "protocol": whole,
        "finished": finished,
        "particles": args.particles,
        "steps": steps,
        "steps in all": total,
        "speed": speed,
        "seed": args.seed,
        **about(args.device),
        "binarisation": f"training rows anew in each batch, test rows once, seed {args.seed}",
        "published NLL": PUBLISHED.get(args.particles),
    }
    if evidence is not None:
        report |= {
            "NLL": -evidence.mean,
            "kind": f"minus a {evidence.kind} of the log evidence, nats per row",
            "standard error over rows": evidence.standard_error,
            "Monte Carlo error": evidence.monte_carlo_error,
            "test rows": evidence.num_rows,
            "samples": args.samples,
        }
    record.write_text(json.dumps(report, indent=1))
    if finished:
        print(table(report))
    elif evidence is None:
        print(f"not finished: {steps:,} of {total:,} steps; call again with the same arguments")
    else:
        print(
            f"not finished: trained, {evidence.num_rows:,} of {len(rows):,} test rows evaluated, "
            f"test NLL of these {-evidence.mean:.2f}; call again with the same arguments"
        )


def table(report: dict[str, Any]) -> str:
    """The row of a finished run, with its heading, in Markdown."""
    published = report["published NLL"]
    cells = {
        "particles": f"{report['particles']}",
        "test NLL, nats per row (an upper bound: minus a lower bound of the evidence)": (
            f"{report['NLL']:.2f}"
        ),
        "± over rows": f"{report['standard error over rows']:.2f}",
        "± of the draws": f"{report['Monte Carlo error']:.3f}",
        "published": ("none" if published is None else f"{published:.2f}")
        + ("" if report["protocol"] else " (of the whole protocol; this run is SHORTENED)"),
        "steps": f"{report['steps']:,}",
        "test rows x samples": f"{report['test rows']:,} x {report['samples']:,}",
        "binarisation": report["binarisation"],
        "ms a step": f"{1e3 * report['speed']['seconds a step']:.3f}",
        "device": f"{report['device']} ({report['machine']})",
    }
    lines = (cells, ["---"] * len(cells), cells.values())
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
