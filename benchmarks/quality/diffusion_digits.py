"""A convolutional diffusion model of digits, 8 x 8 in 17 levels: its bound in bits per dimension.

python -m benchmarks.quality.diffusion_digits                     # minutes on two cores
python -m benchmarks.quality.diffusion_digits --epochs 3 --steps 1 10
python -m benchmarks.quality.diffusion_digits --device cuda --json diffusion_digits.json

scikit-learn's digits / 16: of the first 1500 rows 1350 train, and 150 choose the epoch; the last
297 are the test. Independent pixels reach 2.366 bits/dim. The bound is that of the Pyro program
with T steps, all Gaussian integrals done, 200 of its terms drawn for each row.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks import measure
from ppl_models import fit
from ppl_models.datasets import digits
from ppl_models.diffusion.bound import variational_bound
from ppl_models.diffusion.denoising import denoising
from ppl_models.diffusion.flow import probability_flow
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.schedules import LogLinear
from ppl_models.likelihoods import Categorical
from ppl_models.nn import ResNet


def warm_up_and_cool_down(optimizer: torch.optim.Optimizer, steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=optimizer.defaults["lr"], total_steps=steps, pct_start=0.1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3, 10, 30, 100, 300, 1000])
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    arguments = parser.parse_args(argv)
    print(measure.heading(arguments.device))

    data, test = digits()
    train, chosen_on = data[:1350], data[1350:]
    torch.manual_seed(arguments.seed)
    network = ResNet(
        (8, 8), 17, arguments.channels, num_blocks=arguments.blocks, dropout=arguments.dropout
    )
    diffusion = Diffusion(
        64, network, LogLinear(8.5, -5.0), "levels", num_steps=1000, likelihood=Categorical(17)
    )
    count = sum(p.numel() for p in diffusion.parameters())
    began = time.perf_counter()
    run = fit(
        denoising(diffusion),
        train,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        schedule=warm_up_and_cool_down,
        clip=1000.0,
        ema=0.995,
        # Ten draws of the held-out rows: one would choose the epoch by its noise.
        validation=chosen_on.repeat(10, 1),
        patience=arguments.epochs,
        seed=arguments.seed,
        device=arguments.device,
        checkpoint=arguments.checkpoint,
        resume=arguments.checkpoint is not None,
    )
    best = min(run.history["validation"])
    found: dict[str, Any] = {"training seconds": run.seconds, "bound": [], "flow": []}
    print(
        f"{count:,} parameters, {len(run.history['loss'])} epochs, "
        f"{time.perf_counter() - began:.0f} s; "
        f"held-out loss of the best epoch {best:.2f} nats per row"
    )
    print("bound in bits per dimension on the 297 test rows, and its Monte Carlo error in nats")
    x = test.to(arguments.device)
    for steps in arguments.steps:
        began = time.perf_counter()
        bound = variational_bound(diffusion, x, num_steps=steps, num_samples=200, seed=0)
        print(
            f"T = {steps:4d}  {bound.bits_per_dim:.4f}  ({bound.mean:.2f} ± "
            f"{bound.standard_error:.2f} nats per row, Monte Carlo error "
            f"{bound.monte_carlo_error:.3f}; {time.perf_counter() - began:.0f} s)",
            flush=True,
        )
        found["bound"].append(
            {
                "steps": steps,
                "bits/dim": bound.bits_per_dim,
                "nats per row": bound.mean,
                "standard error": bound.standard_error,
                "Monte Carlo error": bound.monte_carlo_error,
                "seconds": time.perf_counter() - began,
            }
        )
    print("by the probability flow, dequantised by the noise at time 0 (an estimate, no bound)")
    for steps in (25, 50):
        flow = probability_flow(diffusion, x, num_steps=steps, seed=0)
        print(f"{steps} steps  {flow.bits_per_dim:.4f}  ({flow.mean:.2f} nats per row)", flush=True)
        found["flow"].append({"steps": steps, "bits/dim": flow.bits_per_dim})
    measure.write(arguments.json, arguments.device, **found)


if __name__ == "__main__":
    main()
