"""Digits in ten clusters that nobody named: a VAE with a cluster at its top, beside a mixture.

python -m benchmarks.quality.clusters

Protocol: scikit-learn's digits, 8 x 8 pixels with 17 grey levels, made continuous by uniform noise
of one level, in units of all levels, so that both densities are of the same rows. 1500 rows to
learn from, 297 to test. The VAE is fitted without clusters, these start at a mixture of its
guide's means, and both are fitted further. The mixtures are of the pixels. Labels are used for the
adjusted Rand index alone (of test rows; 1 where clusters are the classes, 0 by chance).
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
from ppl_models.likelihoods import Normal
from ppl_models.nn import MLP

PIXELS, CLUSTERS, LATENTS = 64, 10, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=150)
    args = parser.parse_args()
    (x, _), (x_test, y_test) = digits(labels=True)
    print("digits, 10 clusters: log evidence of test rows (nats), adjusted Rand index")
    for seed in range(args.seeds):
        generator = torch.Generator().manual_seed(seed)
        rows, test = (
            (16 * part + torch.rand(part.shape, generator=generator)) / 17 for part in (x, x_test)
        )
        for covariance in ("diag", "full"):
            mixture(rows, test, y_test, covariance, seed)
        clustered(rows, test, y_test, args.epochs, seed)


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
    vae = VAE(PIXELS, LATENTS, Normal(), MLP(LATENTS, PIXELS), MixturePrior(LATENTS, CLUSTERS))
    fit(elbo(vae, guide), x, epochs=epochs, progress=False, **options)
    evidence = log_evidence(vae, guide, test, num_samples=1000, seed=seed)
    print(f"{seed}  {'VAE, mixture prior':24}{evidence}", flush=True)

    plain, guide = VAE(PIXELS, LATENTS, Normal()), AmortizedNormal(PIXELS, LATENTS)
    fit(elbo(plain, guide), x, epochs=epochs // 2, progress=False, **options)
    model = ClusteredVAE(PIXELS, CLUSTERS, LATENTS, Normal())
    warm_start(model, from_=plain)
    with torch.no_grad():
        model.initialise(guide.posterior(x).mean, seed=seed)
    fit(elbo(model, guide), x, epochs=epochs - epochs // 2, progress=False, **options)
    evidence = log_evidence(model, guide, test, num_samples=1000, seed=seed)
    found = model.assignments(guide, test).argmax(1)
    show(seed, "ClusteredVAE", str(evidence), y_test, found)


def show(seed: int, name: str, evidence: str, y: Tensor, found: Tensor) -> None:
    index = adjusted_rand_score(y.numpy(), found.numpy())
    print(f"{seed}  {name:24}{evidence}, Rand {index:.3f}", flush=True)


if __name__ == "__main__":
    main()
