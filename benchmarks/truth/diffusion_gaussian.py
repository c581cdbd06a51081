"""Samplers and the variational bound on a Gaussian whose score is known, in the number of steps.

python -m benchmarks.truth.diffusion_gaussian

Everything is exact, with no draws: a sampler is a linear map of its noise there, and rows that hold
one unit of noise each read that map off. The rows are N(0, C), C diagonal with trace 0.7.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_models.diffusion.samplers import ancestral, ddim, heun, langevin
from ppl_models.diffusion.schedules import (
    Cosine,
    Linear,
    LogLinear,
    Schedule,
    alpha_sigma,
    log_snrs,
)

VARIANCES = torch.tensor([0.4, 0.2, 0.07, 0.03], dtype=torch.float64)  # C
SCHEDULES = {"linear": Linear(), "cosine": Cosine(), "linear in log-SNR": LogLinear(9.0, -9.0)}


def denoiser(z: Tensor, log_snr: Tensor) -> Tensor:
    """E[x | z]."""
    alpha, sigma = alpha_sigma(log_snr)
    return alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2) * z


def distance(sampler: Callable[..., Tensor], schedule: Schedule, num_steps: int) -> float:
    """The squared Frechet distance between the rows and what a sampler returns."""
    with_chance = sampler in (ancestral, langevin)
    units = torch.zeros(num_steps if with_chance else 1, 4, dtype=torch.float64)
    units[0] = 1.0  # the noise it starts from; each other row holds that of one draw
    drawn = 0

    def noise(like: Tensor) -> Tensor:
        nonlocal drawn
        drawn += 1
        unit = torch.zeros_like(like)
        unit[drawn] = 1.0
        return unit

    options = {"noise": noise} if with_chance else {}
    scales = sampler(denoiser, units, schedule, num_steps, **options).square().sum(0).sqrt()
    return (scales - VARIANCES.sqrt()).square().sum().item()


def bound(schedule: Schedule, num_steps: int) -> float:
    """The variational bound averaged over the rows, in nats."""
    log_snr = log_snrs(schedule, num_steps, like=VARIANCES)
    alpha, sigma = (a[:, None] for a in alpha_sigma(log_snr))
    left = VARIANCES * sigma**2 / (alpha**2 * VARIANCES + sigma**2)  # var(x | z), (T + 1, D)
    steps = -log_snr.exp().diff() @ left[1:] / 2  # (D,)
    prior = (alpha[-1] ** 2 * VARIANCES + sigma[-1] ** 2 - 1) / 2 - sigma[-1].log()
    reading = log_snr[0] / 2 - (2 * torch.pi * torch.e * torch.ones(())).log() / 2
    return (reading - prior - steps).sum().item()


def convergence() -> None:
    print("squared Frechet distance to the rows (exact), by network calls, and the steps taken")
    kinds = {ancestral: 1, ddim: 1, heun: 2, langevin: 2}  # calls for each step but the last
    for name, schedule in SCHEDULES.items():
        print(f"\n{name:20}" + "".join(f"{kind.__name__:>18}" for kind in kinds))
        for calls in (9, 17, 35, 71, 143, 199, 399, 799):
            cells = []
            for kind, cost in kinds.items():
                steps = (calls - 1) // cost + 1
                cells.append(f"{distance(kind, schedule, steps):11.1e} ({steps:3d})")
            print(f"{calls:11d} calls   " + "  ".join(cells))


def claims() -> None:
    print("\nHeun with 18 steps and ancestral with 35 make 35 calls each; Heun with 36 makes 71")
    for name, schedule in SCHEDULES.items():
        few, more = distance(heun, schedule, 18), distance(heun, schedule, 36)
        same, many = distance(ancestral, schedule, 35), distance(ancestral, schedule, 200)
        print(
            f"  {name:20}Heun-18 {few:.1e}, ancestral-35 {same:.1e} ({same / few:.0f} times); "
            f"Heun-36 {more:.1e}, ancestral-200 {many:.1e}"
        )


def bounds() -> None:
    evidence = -(2 * torch.pi * torch.e * VARIANCES).log().sum().item() / 2
    print("\nvariational bound below the evidence, nats per row (exact), by the number of steps T")
    steps = (3, 10, 30, 100, 300, 1000, 10_000)
    print(f"  {'T':20}" + "".join(f"{count:>11,}" for count in steps))
    for name, schedule in SCHEDULES.items():
        gaps = "".join(f"{evidence - bound(schedule, count):11.3f}" for count in steps)
        print(f"  {name:20}{gaps}")


def main() -> None:
    convergence()
    claims()
    bounds()


if __name__ == "__main__":
    main()
