"""The memory and the time of `log_evidence`, which must not grow with draws times rows.

python -m benchmarks.speed.evidence_memory
"""

import resource
import time

import torch

from guides import AmortizedNormal
from ppl_models import VAE, log_evidence


def main() -> None:
    torch.manual_seed(0)
    vae, guide = VAE(64, 8), AmortizedNormal(64, 8)
    rows = (torch.rand(10_000, 64) > 0.5).float()
    # Smallest first: the peak of a process never falls.
    for num_rows, num_samples in ((1000, 10), (10_000, 10), (1000, 5000), (10_000, 5000)):
        began = time.perf_counter()
        log_evidence(vae, guide, rows[:num_rows], num_samples=num_samples, seed=0)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{num_samples:5d} draws of {num_rows:6d} rows: {seconds:6.1f} s, "
            f"peak of the process so far {peak:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
