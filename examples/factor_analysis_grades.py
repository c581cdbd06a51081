r"""A latent ability behind the marks in mathematics, physics and history.

.. math::
    z_n &\sim \mathcal{N}(0, 1) \\
    x_{nd} \mid z_n &\sim \mathcal{N}(\mu_d + w_d z_n, \sigma_d^2)

    python examples/factor_analysis_grades.py    # a few seconds

The marks are simulated from this model, with the numbers of `TRUTH`, so we know what a fit should
find. Prints the loadings `w` and the noise `sigma` beside the truth, the exact evidence, and what
the marks say of three students; draws the training, the loadings and the abilities of the class.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import arviz as az
import sklearn.decomposition
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import ExactPosterior
from ppl_models import FactorAnalysis, elbo, fit, from_pyro_svi, log_evidence

SUBJECTS = ["mathematics", "physics", "history"]
# The means mu, the loadings w and the noise sigma, in marks.
TRUTH = torch.tensor([[62.0, 58.0, 65.0], [10.0, 9.0, 5.0], [5.0, 6.0, 9.0]], dtype=torch.float64)
WIDTH = 1.598  # standard deviations on either side that hold 89% of a Gaussian


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    class_trace = poutine.trace(factor_analysis(*TRUTH)).get_trace(size=args.students)
    ability = class_trace.nodes["z"]["value"][:, 0]  # (N,)
    marks = class_trace.nodes["x"]["value"].detach()  # (N, D)
    print(f"simulated marks of {len(marks)} students in {', '.join(SUBJECTS)}")

    # The ELBO with the exact posterior is the log evidence: this is maximum likelihood. The marks
    # are standardised for the fit because Adam takes steps of the same size in all directions.
    center, spread = marks.mean(0), marks.std(0)
    rows = (marks - center) / spread
    fitted = FactorAnalysis(num_features=3, num_factors=1).double()
    objective = elbo(fitted, ExactPosterior(fitted))
    run = fit(objective, rows, epochs=args.epochs, lr=0.1, schedule=CosineAnnealingLR)

    # Back to marks. (-w, -z) fits as well as (w, z): by convention the mean loading is positive.
    loadings = fitted.loadings.detach()[:, 0] * spread
    loadings = loadings * loadings.mean().sign()
    noise = fitted.log_scale.detach().exp() * spread
    model = factor_analysis(center + spread * fitted.loc.detach(), loadings, noise)
    guide = ExactPosterior(model)

    evidence = log_evidence(model, None, marks)
    peer = sklearn.decomposition.FactorAnalysis(1, tol=1e-12, max_iter=10_000, svd_method="lapack")
    best = peer.fit(rows.numpy()).score(rows.numpy()) - spread.log().sum().item()
    print(f"fitted in {run.seconds:.1f} s: {evidence}")
    print(f"converged? scikit-learn reaches {best:.3f}; we differ by {evidence.mean - best:+.0e}")

    share = loadings**2 / (loadings**2 + noise**2)
    errors = standard_errors(model, marks)
    print("\nmark = mean + loading * ability + noise; estimates ± standard errors, in marks")
    print("             loading       truth    noise         truth    variance from ability")
    for d, subject in enumerate(SUBJECTS):
        print(
            f"{subject:11}  {loadings[d]:4.1f} ± {errors[0][d]:3.1f} {TRUTH[1, d]:10.1f}"
            f"    {noise[d]:4.1f} ± {errors[1][d]:3.1f} {TRUTH[2, d]:10.1f} {share[d]:14.0%}"
        )
    print("Whether an ability is good or bad is not in the data: (-w, -z) fits as well as (w, z).")
    print("By convention the mean loading is positive: more ability, better marks.")

    posterior = model.posterior(marks)
    mean, sd = posterior.mean[:, 0].detach(), posterior.stddev[:, 0].detach()
    contrast = rows[:, :2].mean(1) - rows[:, 2]
    chosen = {
        "good at history only": int(contrast.argmin()),
        "good at mathematics and physics only": int(contrast.argmax()),
        "good at all": int(rows.min(1).values.argmax()),
    }
    print("\nability of three students, where the class has mean 0 and standard deviation 1")
    for who, n in chosen.items():
        scores = ", ".join(f"{s} {x:.0f}" for s, x in zip(SUBJECTS, marks[n], strict=True))
        low, high = mean[n] - WIDTH * sd[n], mean[n] + WIDTH * sd[n]
        print(f"student {n}, {who} ({scores}):")
        print(f"    {mean[n]:+.2f} ± {sd[n]:.2f}, 89% interval {low:+.2f} to {high:+.2f}")
    inside = int(((ability - mean).abs() < WIDTH * sd).sum())
    print(f"{inside} of the {len(marks)} intervals hold the true ability")

    names = {"factor": ["ability"], "subject": SUBJECTS}
    dims = {"z": ["factor"], "x": ["subject"]}
    data = from_pyro_svi(model, guide, marks, dims=dims, coords=names, seed=args.seed)
    few = data["posterior"].isel(data=list(chosen.values()))
    print("\nthe same from draws, by ArviZ:")
    print(az.summary(few, var_names=["z"], kind="stats"))

    args.outdir.mkdir(parents=True, exist_ok=True)
    pictures = {
        "training": draw_training(torch.tensor(run.history["loss"]) + spread.log().sum(), -best),
        "loadings": draw_loadings([loadings, noise], errors),
        "abilities": draw_abilities(mean, sd, ability, marks[:, 2], chosen),
    }
    print("\nwritten:")
    for name, figure in pictures.items():
        figure.savefig(args.outdir / f"grades-{name}.png", dpi=120)
        print(f"  {args.outdir / f'grades-{name}.png'}")


def factor_analysis(loc: Tensor, loadings: Tensor, noise: Tensor) -> FactorAnalysis:
    """Returns the model of one factor with these means, loadings and noise."""
    model = FactorAnalysis(num_features=len(loc), num_factors=1).double()
    parameters = {"loc": loc, "loadings": loadings[:, None], "log_scale": noise.log()}
    model.load_state_dict(parameters)
    return model


def standard_errors(model: FactorAnalysis, marks: Tensor) -> tuple[Tensor, ...]:
    """Those of loadings and noise, from the curvature of the log evidence at its maximum."""

    def total(loadings_and_noise: Tensor) -> Tensor:
        loadings, noise = loadings_and_noise.chunk(2)
        return factor_analysis_density(model.loc, loadings, noise).log_prob(marks).sum()

    return ()
