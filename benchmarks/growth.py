"""How the time of a step and the memory of a process grow: with rows, steps, latents and draws.

python -m benchmarks.growth
python -m benchmarks.growth --device cuda --json growth.json

Steps are those of a small VAE, compiled, on batches of 64 rows of 64 binary features, after a
warm-up. Each case runs in a process of its own, whose peak memory is beside its time.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import torch

from guides import AmortizedNormal
from ppl_models import VAE, elbo, log_evidence
from ppl_models.engine.data import source
from ppl_models.engine.descend import Descent

CASES: dict[str, list[dict[str, int]]] = {
    "rows": [{"rows": 2**n} for n in (10, 13, 16, 20)],
    "steps": [{"steps": steps} for steps in (1000, 4000, 16_000)],
    "latents": [{"latents": latents} for latents in (2, 8, 32, 128)],
    "draws": [{"draws": draws} for draws in (10, 100, 1000, 10_000)],
}


def case(
    results: Any,
    device: str,
    rows: int = 1024,
    steps: int = 1000,
    latents: int = 8,
    draws: int = 0,
) -> None:
    """Runs a case, and puts the milliseconds of a step, or of the evaluation, and the MiB."""
    torch.manual_seed(0)
    x = (torch.rand(rows, 64) < 0.5).float().to(device)
    model, guide = VAE(64, latents).to(device), AmortizedNormal(64, latents).to(device)
    if draws:
        began = time.perf_counter()
        log_evidence(model, guide, x, num_samples=draws)
        took = time.perf_counter() - began
    else:
        data = source(x, 64, None, False)
        descent = Descent(elbo(model, guide), compile=True)
        descent.start(next(data.epoch(0)), (x,))
        batches = itertools.chain.from_iterable(data.epoch(n) for n in itertools.count())
        for batch in itertools.islice(batches, 30):
            descent.step(batch)
        began = time.perf_counter()
        for batch in itertools.islice(batches, steps):
            descent.step(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        took = (time.perf_counter() - began) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    results.put((1e3 * took, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = []
    for name in args.only:
        what = "an evaluation of 1024 rows" if name == "draws" else "a step"
        print(f"\n{name}: {what}, and the peak of the process")
        for options in CASES[name]:
            results = context.Queue()
            process = context.Process(target=case, args=(results, args.device), kwargs=options)
            process.start()
            milliseconds, peak = results.get()
            process.join()
            ((key, value),) = options.items()
            print(f"  {value:>9,} {key:8}{milliseconds:12.3f} ms {peak:8.0f} MiB", flush=True)
            found.append({**options, "milliseconds": milliseconds, "mebibytes": peak})
    if args.json:
        args.json.write_text(json.dumps({"device": args.device, "rows": found}))


if __name__ == "__main__":
    main()
