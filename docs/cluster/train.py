"""A fit that one process makes, or many on many machines, and that goes on where it was.

python docs/cluster/train.py
torchrun --nproc-per-node 2 docs/cluster/train.py
"""

import argparse
from pathlib import Path

import torch

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit, log_evidence, save
from ppl_models.datasets import digits
from ppl_models.processes import together


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs"), help="that all machines see"
    )
    parser.add_argument("--shard", action="store_true", help="split the networks, too")
    args = parser.parse_args()

    here = together()  # this process, of those that torchrun started
    torch.manual_seed(0)  # before anything is drawn: all processes make the same model
    model, guide = VAE(64, 8), AmortizedNormal(64, 8)
    x = digits(binary=True)[0]  # all rows, on each of them
    run = fit(
        elbo(model, guide),
        x,
        epochs=args.epochs,
        batch_size=200,
        seed=0,
        checkpoint=args.folder / "run.safetensors",
        resume=True,
        shard=args.shard,
    )
    evidence = log_evidence(model, guide, x[:100], num_samples=100, seed=0)
    if here.is_first:
        save(args.folder / "weights.safetensors", model=model, guide=guide)
        print(f"{here.count} processes, {run.steps} steps, {evidence.mean:.2f} nats per row")


if __name__ == "__main__":
    main()
