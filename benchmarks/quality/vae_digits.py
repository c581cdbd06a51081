"""Variational autoencoders of digits beside one another: test bits/dim, lower bounds.

python -m benchmarks.quality.vae_digits
python -m benchmarks.quality.vae_digits --only "standard normal"   # the plain one alone, a minute
python -m benchmarks.quality.vae_digits --device cuda --json vae_digits.json

Protocol: scikit-learn's digits, 8 x 8 pixels, of 17 levels or binary (levels >= 8 of 16); of
the first 1500 rows the last 150 stop the training early (the parameters of the best epoch are
kept), the last 297 rows are the test. Evidences are importance-weighted lower bounds; the ELBO
beside them tells how much the guide leaves of the gap to the truth. One seed.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks import measure
from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit, log_evidence
from ppl_models.datasets import digits
from ppl_models.likelihoods import Bernoulli, Likelihood, LogisticMixture
from ppl_models.nn import MLP
from ppl_models.priors import FlowPrior, MixturePrior, VampPrior

LATENTS = 16


class Data(NamedTuple):
    """Digits, and what their pixels are."""

    rows: Tensor
    test: Tensor
    likelihood: Callable[[], Likelihood]


PRIORS: dict[str, Callable[[Tensor, AmortizedNormal], nn.Module | None]] = {
    "standard normal": lambda x, guide: None,
    "mixture of 30": lambda x, guide: MixturePrior(LATENTS, 30),
    "VampPrior of 100": lambda x, guide: VampPrior(x[torch.randperm(len(x))[:100]], guide),
    "flow": lambda x, guide: FlowPrior(LATENTS),
}


def network(inputs: int, outputs: int) -> MLP:
    return MLP(inputs, outputs, (200, 200), nn.ELU, dropout=0.1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names of priors")
    parser.add_argument("--data", nargs="*", default=["17 levels", "binary"])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args(argv)

    sets = {
        "17 levels": Data(*digits(), lambda: LogisticMixture(levels=17, num_components=3)),
        "binary": Data(*digits(binary=True), Bernoulli),
    }
    print(measure.heading(args.device))
    print("VAEs of digits: test rows, by lower bounds of the evidence (less is better)")
    print(f"{'pixels':11}{'prior':18}{'-ELBO':>9}{'NLL, nats':>11}{'±':>6}{'bits/dim':>10}", end="")
    print(f"{'parameters':>12}{'best epoch':>12}{'seconds':>9}")
    rows = []
    for name in args.data:
        for prior, make in PRIORS.items():
            if prior.startswith(tuple(args.only)):
                line, numbers = row(sets[name], make, args)
                print(f"{name:11}{prior:18}{line}", flush=True)
                rows.append({"pixels": name, "prior": prior, **numbers})
                measure.write(args.json, args.device, rows=rows)


def row(
    data: Data,
    make: Callable[[Tensor, AmortizedNormal], nn.Module | None],
    args: argparse.Namespace,
) -> tuple[str, dict[str, Any]]:
    """The end of a line of the table, and its numbers."""
    train, held_out = data.rows[:1350], data.rows[1350:]
    torch.manual_seed(args.seed)
    likelihood = data.likelihood()
    guide = AmortizedNormal(64, LATENTS, network(64, 2 * LATENTS))
    decoder = network(LATENTS, 64 * likelihood.num_outputs)
    vae = VAE(64, LATENTS, likelihood, decoder, prior=make(train, guide))
    run = fit(
        elbo(vae, guide),
        train,
        epochs=args.epochs,
        batch_size=64,
        lr=2e-3,
        clip=5.0,
        schedule=CosineAnnealingLR,
        validation=held_out,
        patience=args.epochs,  # the best epoch is kept, the schedule is run to its end
        seed=args.seed,
        device=args.device,
        progress=False,
    )
    test = data.test.to(args.device)
    evidence = log_evidence(vae, guide, test, num_samples=args.samples, seed=args.seed)
    bound = log_evidence(vae, guide, test, num_samples=1, seed=args.seed)
    validation = run.history["validation"]
    best = 1 + min(range(len(validation)), key=validation.__getitem__)
    unique = {id(p): p.numel() for m in (vae, guide) for p in m.parameters()}
    assert math.isclose(evidence.bits_per_dim, -evidence.mean / (64 * math.log(2)))
    line = (
        f"{-bound.mean:9.3f}{-evidence.mean:11.3f}{evidence.standard_error:6.2f}"
        f"{evidence.bits_per_dim:10.4f}{sum(unique.values()):12,}{f'{best} of {args.epochs}':>12}"
        f"{run.seconds:9.0f}"
    )
    return line, {
        "ELBO": bound.mean,
        "log evidence, lower bound": evidence.mean,
        "standard error": evidence.standard_error,
        "bits/dim": evidence.bits_per_dim,
        "best epoch": best,
        "seconds": run.seconds,
    }


if __name__ == "__main__":
    main()
