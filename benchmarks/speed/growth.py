"""How the time of a step and the memory grow: with rows, steps, latents, components and draws.

python -m benchmarks.speed.growth
python -m benchmarks.speed.growth --device cuda --json growth.json

Steps are those of `fit` on a small VAE, or on a mixture of so many components, compiled, in batches
of 64 rows of 64 binary features; the first hundred, in which all is compiled, do not count. Each
case runs in a process of its own, whose peak memory is beside its time: of the process, or on a
GPU of the tensors there, the rows with it. An evaluation comes after another of up to a hundred
draws.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks import measure
from guides import AmortizedNormal
from ppl_models import VAE, GaussianMixture, elbo, fit, log_evidence

CASES: dict[str, list[dict[str, int]]] = {
    "rows": [{"rows": 2**n} for n in (10, 13, 16, 20)],
    "steps": [{"steps": steps} for steps in (1000, 4000, 16_000)],
    "latents": [{"latents": latents} for latents in (2, 8, 32, 128)],
    "components": [{"components": components} for components in (2, 8, 32, 128)],
    "draws": [{"draws": draws} for draws in (10, 100, 1000, 10_000)],
}
WARM_UP = 100  # steps, or draws


def case(
    device: str,
    rows: int = 1024,
    steps: int = 1000,
    latents: int = 8,
    components: int = 0,
    draws: int = 0,
) -> tuple[float, float]:
    """The milliseconds of a step, or of the evaluation, and the MiB."""
    torch.manual_seed(0)
    x = (torch.rand(rows, 64) < 0.5).float().to(device)
    model, guide = VAE(64, latents).to(device), AmortizedNormal(64, latents).to(device)
    if draws:
        log_evidence(model, guide, x, num_samples=min(draws, WARM_UP))
        took = measure.seconds(lambda: log_evidence(model, guide, x, num_samples=draws), device)
    else:
        watch = measure.Stopwatch(device, every=WARM_UP)
        options = {"batch_size": 64, "schedule": watch, "compile": True, "progress": False}
        objective = elbo(model, guide)
        if components:
            objective = elbo(GaussianMixture(64, components, covariance="diag").to(device))
        fit(objective, x, steps=WARM_UP + steps, **options)
        took = sum(watch.seconds()) / steps
    return 1e3 * took, measure.peak(device)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args(argv)
    print(measure.heading(args.device))
    spawn = multiprocessing.get_context("spawn")
    found = []
    for name in args.only:
        what = "an evaluation of 1024 rows" if name == "draws" else "a step"
        print(f"\n{name}: {what}, and the peak memory")
        for options in CASES[name]:
            with ProcessPoolExecutor(1, mp_context=spawn) as alone:
                milliseconds, peak = alone.submit(case, args.device, **options).result()
            ((key, value),) = options.items()
            print(f"  {value:>9,} {key:8}{milliseconds:12.3f} ms {peak:8.0f} MiB", flush=True)
            found.append({**options, "milliseconds": milliseconds, "mebibytes": peak})
            measure.write(args.json, args.device, rows=found)


if __name__ == "__main__":
    main()
