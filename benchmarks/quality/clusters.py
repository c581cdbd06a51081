"""Digits in ten clusters that nobody named: a VAE with a cluster at its top, beside a mixture.

python -m benchmarks.quality.clusters

Protocol: scikit-learn's digits, 8 x 8 pixels, 1500 rows to learn from, 297 to test. The VAEs see
them binary (levels >= 8 of 16). One is fitted without clusters; these start at a mixture of its
draws of latents, and all is fitted further. The other has such a prior from the start, and no
cluster to read. The mixtures see 17 grey levels with uniform noise of one level, so that their
densities do not compare with probabilities of binary rows. Labels are used for the adjusted Rand
index alone (of test rows; 1 where clusters are the classes, 0 by chance).
"""

import argparse

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    ClusteredVAE,
    GaussianMixture,
    MixturePrior,
    elbo,
    fit,
    fit_em,
    log_evidence,
    warm_start,
)
from ppl_models.datasets import digits

PIXELS, CLUSTERS, LATENTS = 64, 10, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=120)
    args = parser.parse_args()
    (x, _), (x_test, y_test) = digits(labels=True)
    binary, binary_test = digits(binary=True)
    print("digits, 10 clusters: log evidence of test rows (nats), adjusted Rand index")
    for seed in range(args.seeds):
        generator = torch.Generator().manual_seed(seed)
        rows, test = (
            (16 * part + torch.rand(part.shape, generator=generator)) / 17 for part in (x, x_test)
        )
        for covariance in ("diag", "full"):
            mixture(rows, test, y_test, covariance, seed)
        clustered(binary, binary_test, y_test, args.epochs, seed)


def mixture(x: Tensor, test: Tensor, y_test: Tensor, covariance: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = GaussianMixture(PIXELS, CLUSTERS, covariance).double()
    fit_em(model, x.double(), restarts=5)
    found = model.posterior(test.double()).probs.argmax(1)
    evidence = log_evidence(model, None, test.double())
    show(seed, f"GaussianMixture, {covariance}", str(evidence), y_test, found)


def clustered(x: Tensor, test: Tensor, y_test: Tensor, epochs: int, seed: int) -> None:
    options = {"batch_size": 64, "lr": 2e-3, "schedule": CosineAnnealingLR, "seed": seed}
    torch.manual_seed(seed)
    guide = AmortizedNormal(PIXELS, LATENTS)
    vae = VAE(PIXELS, LATENTS, prior=MixturePrior(LATENTS, CLUSTERS))
    fit(elbo(vae, guide), x, epochs=epochs, progress=False, **options)
    evidence = log_evidence(vae, guide, test, num_samples=1000, seed=seed)
    print(f"{seed}  {'VAE, mixture prior':24}{evidence}", flush=True)

    plain, guide = VAE(PIXELS, LATENTS), AmortizedNormal(PIXELS, LATENTS)
    fit(elbo(plain, guide), x, epochs=2 * epochs // 3, progress=False, **options)
    model = ClusteredVAE(PIXELS, CLUSTERS, LATENTS)
    warm_start(model, from_=plain)
    with torch.no_grad():
        model.initialise(guide.posterior(x).sample(), seed=seed)
    fit(elbo(model, guide), x, epochs=epochs - 2 * epochs // 3, progress=False, **options)
    evidence = log_evidence(model, guide, test, num_samples=1000, seed=seed)
    found = model.assignments(guide, test).argmax(1)
    show(seed, "ClusteredVAE", str(evidence), y_test, found)


def show(seed: int, name: str, evidence: str, y: Tensor, found: Tensor) -> None:
    index = adjusted_rand_score(y.numpy(), found.numpy())
    print(f"{seed}  {name:24}{evidence}, Rand {index:.3f}", flush=True)


if __name__ == "__main__":
    main()
