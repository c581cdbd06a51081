r"""
An ability behind the marks
===========================

Three hundred students have marks in mathematics, physics and history. What do the marks say of one
ability behind them all, and how sure may we be of it, student by student?

Factor analysis with a single factor: the ability :math:`z_n` of student :math:`n`, its loading
:math:`w_d` on subject :math:`d`, and the noise :math:`\sigma_d` of each subject.

.. math::
    z_n &\sim \mathcal{N}(0, 1) \\
    x_{nd} \mid z_n &\sim \mathcal{N}(\mu_d + w_d z_n, \sigma_d^2)

Evidence and posterior are Gaussian, and exact [1]_:

.. math::
    x_n &\sim \mathcal{N}(\mu, w w^\top + \Psi), \qquad \Psi = \mathrm{diag}(\sigma^2) \\
    z_n \mid x_n &\sim \mathcal{N}(s^2 \, w^\top \Psi^{-1} (x_n - \mu), \, s^2), \qquad
    s^{-2} = 1 + w^\top \Psi^{-1} w

The marks are simulated from this very model, so that we know what the fit should find.

Takes 5 seconds on two cores: ``python examples/factor_analysis_grades.py``. Pictures go into
``outputs/``.

.. [1] EM Algorithms for ML Factor Analysis (Rubin & Thayer, 1982),
       https://doi.org/10.1007/BF02293851
"""

# %%
# The data
# --------
# The true loadings are 10, 9 and 5 marks, the noise 6, 6 and 8. With fewer students the best fit
# may leave a subject no noise at all: a Heywood case.

import argparse
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import pyro.distributions as dist
import sklearn.decomposition
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import ExactPosterior
from ppl_models import FactorAnalysis, elbo, fit, from_pyro_svi, log_evidence

parser = argparse.ArgumentParser(description="A latent ability behind the marks.")
for name, default in {"--students": 300, "--epochs": 500, "--seed": 0}.items():
    parser.add_argument(name, type=int, default=default)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

SUBJECTS = ["mathematics", "physics", "history"]
MEANS = torch.tensor([62.0, 58.0, 65.0], dtype=torch.float64)  # mu, in marks
TRUTH = torch.tensor([[10.0, 9.0, 5.0], [6.0, 6.0, 8.0]], dtype=torch.float64)  # w, sigma

torch.manual_seed(args.seed)
ability = torch.randn(args.students)  # z, (N,)
marks = MEANS + TRUTH[0] * ability[:, None] + TRUTH[1] * torch.randn(args.students, 3)  # x
print(f"{len(marks)} students, their marks simulated, so that we know the truth")

# %%
# The fit
# -------
# With the exact posterior as guide the ELBO is the log evidence, and its maximum is that of the
# likelihood. Marks are standardised for the fit, because Adam's steps are as long for all
# parameters; afterwards the parameters go back to marks.

center, spread = marks.mean(0), marks.std(0)
rows = (marks - center) / spread
model = FactorAnalysis(num_features=3, num_factors=1).double()
guide = ExactPosterior(model)
run = fit(elbo(model, guide), rows, epochs=args.epochs, lr=0.1, schedule=CosineAnnealingLR)

with torch.no_grad():
    model.loc.mul_(spread).add_(center)
    # (-w, -z) fits as well as (w, z): by convention the mean loading is positive.
    model.loadings.mul_(spread[:, None] * model.loadings.mean().sign())
    model.log_scale.add_(spread.log())

evidence = log_evidence(model, None, marks)
peer = sklearn.decomposition.FactorAnalysis(1, tol=1e-12, max_iter=10_000, svd_method="lapack")
best = peer.fit(marks.numpy()).score(marks.numpy())
print(f"fitted in {run.seconds:.1f} s: {evidence}")
print(f"scikit-learn's maximum is {best:.3f}; ours differs by {evidence.mean - best:.0e}")

# %%
# Loadings and noise
# ------------------
# Standard errors come from the curvature of the log evidence at its maximum. The share of the
# variance of a subject that is due to ability is :math:`w_d^2 / (w_d^2 + \sigma_d^2)`.

found = torch.stack([model.loadings[:, 0], model.log_scale.exp()]).detach()  # w, sigma


def total(w_and_sigma):
    """The log evidence of all marks."""
    w, sigma = w_and_sigma.chunk(2)
    density = dist.LowRankMultivariateNormal(model.loc.detach(), w[:, None], sigma**2)
    return density.log_prob(marks).sum()


curvature = torch.autograd.functional.hessian(total, found.flatten())
errors = (-curvature).inverse().diagonal().sqrt().reshape(2, -1)

print("mark = mean + loading * ability + noise, in marks ± standard errors, and the truth:")
print(f"{'':14}{'loading':15}{'truth':8}{'noise':14}{'truth':8}variance due to ability")
for d, subject in enumerate(SUBJECTS):
    cells = [f"{found[i, d]:5.1f} ± {errors[i, d]:.1f}{TRUTH[i, d]:10.1f}    " for i in (0, 1)]
    share = found[0, d] ** 2 / (found[:, d] ** 2).sum()
    print(f"{subject:12}{cells[0]}{cells[1]}{share:9.0%}")
print("(the data do not tell w, z from -w, -z: by convention the mean loading is positive)")

# %%
# Left, how the fit nears the maximum that scikit-learn's EM finds. The other panels have the truth
# beside the estimates.

WIDTH = 1.598  # so many standard deviations on either side hold 89% of a Gaussian
figure, (training, *panels) = plt.subplots(1, 3, figsize=(9, 3.4))
below = torch.tensor(run.history["loss"], dtype=torch.float64) + spread.log().sum() + best
training.semilogy(range(1, len(below) + 1), below.clamp(min=1e-14))
training.set(title="Training", xlabel="epoch", ylabel="nats per student below the best")
titles = ["Loadings (per sd of ability)", "Noise (sd)"]
for axes, title, x, error, truth in zip(panels, titles, found, errors, TRUTH, strict=True):
    axes.errorbar(SUBJECTS, x, WIDTH * error, fmt="o", capsize=4, label="fit, 89% interval")
    axes.plot(SUBJECTS, truth, "kx", markersize=9, label="truth")
    axes.set(title=title, ylabel="marks", xlim=(-0.5, 2.5), ylim=(0, 15))
    axes.legend(loc="upper right")
figure.savefig(args.outdir / "grades-fit.png")

# %%
# What the marks say of a student
# -------------------------------
# The posterior of each ability is a Gaussian. Three students are picked: who is good at history
# only, at the sciences only, and at all three.

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
print(f"{inside} of {len(marks)} intervals hold the true ability ({inside / len(marks):.0%})")

# %%
# A good mark in history counts for little: much of it is noise. So who is good at history only is
# thought below the mean, and who is good at the sciences only above. All intervals are equally
# wide: the width depends on the loadings and the noise, and not on the marks.

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(figsize=(9, 4.8))
rank = low.argsort().argsort()
bars = axes.vlines(rank, low, high, array=marks[:, 2].float(), cmap="coolwarm", linewidth=1.6)
figure.colorbar(bars, label="mark in history", pad=0.01)
axes.plot(rank, ability, "k.", markersize=4, label="true ability")
for who, n in chosen.items():
    place = (0.9 * rank[n] + 0.03 * len(ability), 0.5 * low[n] - 2.5)
    axes.annotate(who, (rank[n], low[n]), place, ha="center", arrowprops={"arrowstyle": "->"})
axes.set(xlabel="students, sorted by estimate", ylabel="ability (89% interval)", ylim=(-4.5, 4.5))
axes.legend(loc="upper left")
figure.savefig(args.outdir / "grades-abilities.png")

# %%
# The same from draws
# -------------------
# The closed form is there to be checked against. Draws from the guide, as ArviZ summarises them,
# agree with it up to their Monte Carlo error.

dims, coords = {"z": ["factor"], "x": ["subject"]}, {"factor": ["ability"], "subject": SUBJECTS}
data = from_pyro_svi(model, guide, marks, dims=dims, coords=coords, seed=args.seed)
few = data["posterior"].isel(data=list(chosen.values()))
print(az.summary(few, var_names=["z"], kind="stats"))

# %%
# To try next
# -----------
# - ``--students 3000``: the standard errors shrink about threefold. Do the intervals of abilities?
# - A network as guide, :class:`guides.AmortizedNormal`: how many nats does it lose?
# - How many factors there are, if that is not known: :doc:`/gallery/factor_analysis_ard`.
# - :doc:`/families/factors` derives the posterior and the evidence.
