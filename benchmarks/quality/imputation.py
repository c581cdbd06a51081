"""Entries removed at random and filled in again, beside scikit-learn's imputers.

python -m benchmarks.quality.imputation    # a few minutes

The error is the root mean square over the removed entries, of posterior means; breast cancer
standardised, digits / 16 without their constant pixels. Above it: the evidence of the observed part
of some rows against sums and integrals by hand.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from scipy import integrate
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor

from benchmarks.speed.mixtures import KINDS, real_data
from ppl_models import FactorAnalysis, GaussianMixture, fit_em


def exact() -> None:
    print("evidence of the observed part less numerical marginalisation, largest of 200 rows of 4")
    print("features, 30 % missing, in nats; and less an integral over one missing entry")
    for kind in KINDS:
        torch.manual_seed(0)
        model = GaussianMixture(4, 3, kind, missing="marginalise").double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5)
        x = torch.randn(200, 4, dtype=torch.float64)
        x[torch.rand(x.shape) < 0.3] = torch.nan
        got = model.evidence().log_prob(x)
        worst = max(abs(a - _by_hand(model, row)) for a, row in zip(got.tolist(), x, strict=True))
        print(f"  {kind:10}{worst:.0e}, {abs(_integral(model)):.0e}")


def _by_hand(model: GaussianMixture, row: Tensor) -> float:
    o = ~row.isnan()
    joint = model.weights.log().clone()
    if o.any():
        for k, (loc, covariance) in enumerate(zip(model.locs, model.covariances, strict=True)):
            block = torch.distributions.MultivariateNormal(loc[o], covariance[o][:, o])
            joint[k] += block.log_prob(row[o])
    return joint.logsumexp(0).item()


def _integral(model: GaussianMixture) -> float:
    whole = GaussianMixture(4, 3, model.covariance).double()
    whole.load_state_dict(model.state_dict())
    density = whole.evidence()
    row = torch.tensor([0.5, -0.5, 0.2, torch.nan], dtype=torch.float64)

    def p(last: float) -> float:
        return density.log_prob(row.nan_to_num(last)).exp().item()

    value, _ = integrate.quad(p, -20, 20, epsabs=1e-13, epsrel=1e-13, limit=500)
    return model.evidence().log_prob(row[None]).item() - np.log(value)


def table(name: str, x: Tensor, seed: int, models: dict[str, tuple]) -> None:
    torch.manual_seed(seed)
    removed = torch.rand(x.shape) < 0.3
    holes = x.where(~removed, torch.nan)
    baseline = None
    print(
        f"\n{name}, {x.shape[0]} x {x.shape[1]}, {removed.double().mean():.0%} removed, seed {seed}"
    )
    imputers = {
        "column mean": SimpleImputer(),
        "IterativeImputer": IterativeImputer(random_state=seed),
        "5 nearest neighbours": KNNImputer(n_neighbors=5),
    }
    for how, method in [*imputers.items(), *models.items()]:
        began = time.perf_counter()
        if isinstance(method, tuple):
            kind, sizes, options = method
            model = kind(x.shape[1], *sizes, missing="marginalise", **options).double()
            fit_em(model, holes, seed=seed, tolerance=1e-3)
            filled = model.impute(holes)
        else:
            filled = torch.from_numpy(method.fit_transform(holes.numpy()))
        error = (filled - x)[removed].square().mean().sqrt().item()
        baseline = error if how == "IterativeImputer" else baseline
        ratio = "" if baseline is None else f"  {error / baseline:.2f} x IterativeImputer"
        seconds = time.perf_counter() - began
        print(f"  {how:44}{error:.4f}{ratio:28}{seconds:7.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    warnings.filterwarnings("ignore", message="GaussianMixture: component")
    exact()
    data = real_data()
    for seed in range(args.seeds):
        table(
            "breast cancer",
            data["breast cancer"][0],
            seed,
            {
                "FactorAnalysis, 5 factors": (FactorAnalysis, (5,), {}),
                "GaussianMixture, 1 component, full": (GaussianMixture, (1,), {}),
                "GaussianMixture, 3, full, min_scale 0.1": (
                    GaussianMixture,
                    (3,),
                    {"min_scale": 0.1},
                ),
            },
        )
    for seed in range(args.seeds):
        table(
            "digits",
            data["digits"][0],
            seed,
            {
                "FactorAnalysis, 20 factors": (FactorAnalysis, (20,), {}),
                "GaussianMixture, 1 component, full": (
                    GaussianMixture,
                    (1,),
                    {"min_scale": 0.01},
                ),
                "GaussianMixture, 10, full, min_scale 0.1": (
                    GaussianMixture,
                    (10,),
                    {"min_scale": 0.1},
                ),
            },
        )


if __name__ == "__main__":
    main()
