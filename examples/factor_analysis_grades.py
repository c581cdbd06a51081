r"""A latent ability behind the marks in mathematics, physics and history.

.. math::
    z_n &\sim \mathcal{N}(0, 1) \\
    x_{nd} \mid z_n &\sim \mathcal{N}(\mu_d + w_d z_n, \sigma_d^2)

    python examples/factor_analysis_grades.py    # a few seconds

The marks are simulated from this very model, so we know what the fit should find: loadings `w` of
10, 9 and 5 marks, noise `sigma` of 6, 6 and 8. Prints what it finds, the exact evidence, and what
the marks of three students say of their ability; draws the fit, and the abilities of the class.
(With fewer students the best fit may leave a subject no noise at all: a Heywood case.)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import arviz as az
import pyro.distributions as dist
import sklearn.decomposition
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import ExactPosterior
from ppl_models import FactorAnalysis, elbo, fit, from_pyro_svi, log_evidence

SUBJECTS = ["mathematics", "physics", "history"]
MEANS = torch.tensor([62.0, 58.0, 65.0], dtype=torch.float64)  # mu, in marks
TRUTH = torch.tensor([[10.0, 9.0, 5.0], [6.0, 6.0, 8.0]], dtype=torch.float64)  # w, sigma
WIDTH = 1.598  # so many standard deviations on either side hold 89% of a Gaussian


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"--students": 300, "--epochs": 500, "--seed": 0}.items():
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    ability = torch.randn(args.students)  # z, (N,)
    marks = MEANS + TRUTH[0] * ability[:, None] + TRUTH[1] * torch.randn(args.students, 3)  # x
    print(f"{len(marks)} students, their marks simulated, so that we know the truth")

    # With the exact posterior as guide the ELBO is the log evidence: this is maximum likelihood.
    # Marks are standardised for the fit because Adam's steps are as long for all parameters.
    center, spread = marks.mean(0), marks.std(0)
    rows = (marks - center) / spread
    model = FactorAnalysis(num_features=3, num_factors=1).double()
    guide = ExactPosterior(model)
    run = fit(elbo(model, guide), rows, epochs=args.epochs, lr=0.1, schedule=CosineAnnealingLR)

    with torch.no_grad():  # back to marks
        model.loc.mul_(spread).add_(center)
        # (-w, -z) fits as well as (w, z): by convention the mean loading is positive.
        model.loadings.mul_(spread[:, None] * model.loadings.mean().sign())
        model.log_scale.add_(spread.log())
    found = torch.stack([model.loadings[:, 0], model.log_scale.exp()]).detach()  # w, sigma
    errors = standard_errors(model.loc.detach(), found, marks)

    evidence = log_evidence(model, None, marks)
    peer = sklearn.decomposition.FactorAnalysis(1, tol=1e-12, max_iter=10_000, svd_method="lapack")
    best = peer.fit(marks.numpy()).score(marks.numpy())
    print(f"fitted in {run.seconds:.1f} s: {evidence}")
    print(f"scikit-learn's maximum is {best:.3f}; ours differs by {evidence.mean - best:.0e}\n")

    print("mark = mean + loading * ability + noise, in marks ± standard errors, and the truth:")
    print(f"{'':14}{'loading':15}{'truth':8}{'noise':14}{'truth':8}variance due to ability")
    for d, subject in enumerate(SUBJECTS):
        cells = [f"{found[i, d]:5.1f} ± {errors[i, d]:.1f}{TRUTH[i, d]:10.1f}    " for i in (0, 1)]
        share = found[0, d] ** 2 / (found[:, d] ** 2).sum()
        print(f"{subject:12}{cells[0]}{cells[1]}{share:9.0%}")
    print("(the data do not tell w, z from -w, -z: by convention the mean loading is positive)\n")

    posterior = model.posterior(marks)
    mean, sd = posterior.mean[:, 0].detach(), posterior.stddev[:, 0].detach()
    low, high = mean - WIDTH * sd, mean + WIDTH * sd
    signs = torch.tensor([[-1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
    names = ["good at history only", "good at the sciences only", "good at all three"]
    numbers = (rows[:, None] * signs).amin(2).argmax(0)  # of the students most like that, (3,)
    chosen = dict(zip(names, numbers.tolist(), strict=True))
    print("ability, which has mean 0 and standard deviation 1 among all students:")
    for who, n in chosen.items():
        scores = ", ".join(f"{s} {x:.0f}" for s, x in zip(SUBJECTS, marks[n], strict=True))
        print(f"  student {n}, {who} ({scores})")
        print(f"    {mean[n]:+.2f} ± {sd[n]:.2f}, 89% interval {low[n]:+.2f} to {high[n]:+.2f}")
    inside = int(((low < ability) & (ability < high)).sum())
    print(f"{inside} of {len(marks)} intervals hold the true ability ({inside / len(marks):.0%})\n")

    dims = {"z": ["factor"], "x": ["subject"]}
    coords = {"factor": ["ability"], "subject": SUBJECTS}
    data = from_pyro_svi(model, guide, marks, dims=dims, coords=coords, seed=args.seed)
    few = data["posterior"].isel(data=list(chosen.values()))
    print("the same students, from draws that ArviZ summarises:")
    print(az.summary(few, var_names=["z"], kind="stats"))

    files = [args.outdir / f"grades-{name}.png" for name in ("fit", "abilities")]
    below = torch.tensor(run.history["loss"], dtype=torch.float64) + spread.log().sum() + best
    draw_fit(below, found, errors).savefig(files[0], dpi=120)
    draw_abilities(low, high, ability, marks[:, 2], chosen).savefig(files[1], dpi=120)
    print("\nwritten:", *files, sep="\n  ")


def standard_errors(loc: Tensor, found: Tensor, marks: Tensor) -> Tensor:
    """Those of `w` and `sigma`, (2, D), from the curvature of the log evidence at its maximum."""

    def total(w_and_sigma: Tensor) -> Tensor:
        w, sigma = w_and_sigma.chunk(2)
        return dist.LowRankMultivariateNormal(loc, w[:, None], sigma**2).log_prob(marks).sum()

    curvature = torch.autograd.functional.hessian(total, found.flatten())
    return (-curvature).inverse().diagonal().sqrt().reshape(2, -1)


def draw_fit(below: Tensor, found: Tensor, errors: Tensor) -> Figure:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    training, *panels = figure.subplots(1, 3)
    training.semilogy(range(1, len(below) + 1), below.clamp(min=1e-14))
    training.set(title="Training", xlabel="epoch", ylabel="nats per student below the best")
    titles = ["Loadings (per sd of ability)", "Noise (sd)"]
    for axes, title, x, error, truth in zip(panels, titles, found, errors, TRUTH, strict=True):
        axes.errorbar(SUBJECTS, x, WIDTH * error, fmt="o", capsize=4, label="fit, 89% interval")
        axes.plot(SUBJECTS, truth, "kx", markersize=9, label="truth")
        axes.set(title=title, ylabel="marks", xlim=(-0.5, 2.5), ylim=(0, 15))
        axes.legend(loc="upper right")
    return figure


def draw_abilities(low: Tensor, high: Tensor, z: Tensor, history: Tensor, chosen: dict) -> Figure:
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots()
    rank = low.argsort().argsort()
    bars = axes.vlines(rank, low, high, array=history.float(), cmap="coolwarm", linewidth=2)
    figure.colorbar(bars, label="history mark", pad=0.01)
    axes.plot(rank, z, "k.", markersize=4, label="true ability")
    for who, n in chosen.items():
        place = (0.9 * rank[n] + 0.03 * len(z), 0.5 * low[n] - 2.5)
        axes.annotate(who, (rank[n], low[n]), place, ha="center", arrowprops={"arrowstyle": "->"})
    axes.set(xlabel="students, sorted by estimate", ylabel="ability (89% interval)", ylim=(-4.5, 4))
    axes.legend(loc="upper left")
    return figure


if __name__ == "__main__":
    main()
