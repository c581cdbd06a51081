r"""
Missing data
============

Three in ten numbers are lost. What do models say of them, beside other ways to fill them in, and
how sure are they?

A model of whole rows is a model of rows with holes: what is missing is integrated out, and drawn
given what was observed.

.. math::
    \log p(x_o) = \log \int p(x_o, x_m) \, dx_m, \qquad
    x_m \mid x_o \sim p(x_m \mid x_o)

where :math:`o` are the entries of a row that were observed and :math:`m` those that are missing. In
Gaussians, mixtures of them and factor analysis both are closed forms, and EM needs nothing else. It
is right where holes do not depend on the numbers that would be in them: missing at random [1]_.

Takes 20 seconds on two cores: ``python examples/missing_data.py``. Pictures go into ``outputs/``.

.. [1] Inference and Missing Data (Rubin, 1976), https://doi.org/10.1093/biomet/63.3.581
"""

# %%
# What is removed, and what is asked
# ----------------------------------
# Entries are removed at random, so that the truth is known. Each method fills them in, and its
# error is the root mean square of what it misses by. Models are asked for more: the log density of
# what was observed (nats per row) and that of what was removed given it (nats per entry), both
# exact, and how many of the removed entries lie in 90 % intervals from draws.

import argparse
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from ppl_models import FactorAnalysis, GaussianMixture, fit_em, log_evidence
from ppl_models.datasets import digits
from ppl_models.pictures import images

parser = argparse.ArgumentParser(description="Missing data, filled in by models and otherwise.")
parser.add_argument("--share", type=float, default=0.3, help="of the entries to remove")
parser.add_argument("--rows", type=int, default=1500, help="of the digits")
parser.add_argument("--components", type=int, default=10, help="of the mixture of digits")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

DRAWS = 39  # of 40 ranks that the truth may have among them, 36 are within their 90 % interval
SOME = 300  # rows whose gaps are filled with draws


def remove(x):
    """The rows, with NaN in the place of a share of the entries."""
    generator = torch.Generator().manual_seed(args.seed)
    return x.where(torch.rand(x.shape, generator=generator) >= args.share, torch.nan)


def held(model, x, holes):
    """The share of the missing entries within the 90 % intervals of draws."""
    draws = model.impute(holes[:SOME], num_samples=DRAWS).sort(0).values
    inside = (draws[1] <= x[:SOME]) & (x[:SOME] <= draws[-2])
    return inside[holes[:SOME].isnan()].double().mean().item()


def study(x, holes, models, **settings):
    """Returns the error of each method, and what each puts into the holes."""
    gone = holes.isnan()
    errors, filled = {}, {}
    print(f"{'':29}{'error':>7}{'seconds':>9}{'observed':>11}{'removed':>9}{'held':>8}")
    imputers = {
        "mean of the column": SimpleImputer(),
        "5 nearest neighbours": KNNImputer(n_neighbors=5),
        "iterative regression": IterativeImputer(random_state=args.seed),
    }
    for name, method in (imputers | models).items():
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            # Ten rounds are its default, after which scikit-learn says that more would help.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if name in imputers:
                filled[name] = torch.from_numpy(method.fit_transform(holes.numpy()))
            else:
                fit_em(method.double(), holes, seed=args.seed, **settings)
                filled[name] = method.impute(holes)
        seconds = time.perf_counter() - began
        errors[name] = (filled[name] - x)[gone].square().mean().sqrt().item()
        print(f"  {name:27}{errors[name]:7.3f}{seconds:9.1f}", end="")
        if name in models:
            seen, whole = (log_evidence(method, None, rows).value for rows in (holes, x))
            removed = (whole - seen).sum() / gone.sum()
            print(f"{seen.mean():11.2f}{removed:9.3f}{held(method, x, holes):8.0%}", end="")
        print()
        for warning in said:
            print(f"    {str(warning.message).partition(': the likelihood')[0]}")
    return errors, filled


print(f"{args.share:.0%} of the entries are removed at random")

# %%
# Tumours
# -------
# 30 measurements of each of 569 tumours. Nothing is told to the models but ``marginalise``: NaN is
# what is missing.

tumours = torch.from_numpy(load_breast_cancer().data)
tumours = (tumours - tumours.mean(0)) / tumours.std(0)
observed = {"missing": "marginalise"}
models = {
    "factor analysis, 10 factors": FactorAnalysis(30, 10, **observed),
    "one Gaussian": GaussianMixture(30, 1, min_scale=0.05, **observed),
    "mixture of 3 Gaussians": GaussianMixture(30, 3, min_scale=0.2, **observed),
}
print(f"Tumours: {len(tumours)} rows of 30 features, standardised")
errors, _ = study(tumours, remove(tumours), models, tolerance=1e-3, restarts=3)
tables = {"tumours (standardised)": errors}

# %%
# Measurements of tumours are nearly sums of others: one Gaussian, whose conditional means are
# linear regressions on whatever was observed, has the smallest error. And it knows how far it may
# be off: its 90 % intervals hold about nine in ten of the numbers that were removed.
#
# Digits
# ------
# Pixels are no Gaussians, but digits come in kinds, which a mixture finds behind the holes too.

digit = digits()[0][: args.rows].double()
holes = remove(digit)
varies = holes.nan_to_num(nan=2).amin(0) < holes.nan_to_num(nan=-1).amax(0)  # (64,)
digit, holes, size = digit[:, varies], holes[:, varies], int(varies.sum())
mixture = GaussianMixture(size, args.components, min_scale=0.1, **observed)
models = {
    "factor analysis, 20 factors": FactorAnalysis(size, 20, **observed),
    "one Gaussian": GaussianMixture(size, 1, min_scale=0.01, **observed),
    f"mixture of {args.components} Gaussians": mixture,
}
print(f"Digits: {len(digit)} rows of {size} pixels that vary, grey levels from 0 to 1")
tables["digits (grey levels)"], filled = study(digit, holes, models, tolerance=0.03, restarts=1)

# %%
# Ten digits, and what the methods make of their holes. The mean that a method fills in is a little
# blurred; draws of the mixture are not, and differ where it is not sure.

lines = {"truth": digit[:10], "observed (holes in orange)": holes[:10]}
lines |= {name: rows[:10] for name, rows in list(filled.items())[2:]}
draws = mixture.impute(holes[:10], num_samples=3)
lines |= {f"draw {s + 1} of the mixture": rows for s, rows in enumerate(draws)}
rows = torch.cat(list(lines.values()))
whole = rows.new_zeros(len(rows), len(varies))  # pixels that never vary are white
whole[:, varies] = rows

# sphinx_gallery_thumbnail_number = 1
figure, axes = plt.subplots(figsize=(8.5, 5.4), layout="compressed")
images(whole, axes, columns=10)
axes.images[0].set_cmap(plt.get_cmap("gray_r").with_extremes(bad="C1"))  # NaN
axes.axis("on")  # for the names of the lines
axes.set(xticks=[], yticks=[9 * i + 3.5 for i in range(len(lines))], yticklabels=list(lines))
axes.tick_params(length=0)
axes.spines[:].set_visible(False)
figure.savefig(args.outdir / "missing-data-digits.png")

# %%
# The errors of all methods, those of models in blue:

figure, panels = plt.subplots(1, 2, figsize=(10, 3))
for axes, (title, errors) in zip(panels, tables.items(), strict=True):
    names, values = list(errors)[::-1], list(errors.values())[::-1]
    colors = ["C0"] * (len(names) - 3) + ["0.6"] * 3
    axes.bar_label(axes.barh(names, values, color=colors), fmt="%.3f", padding=3)
    axes.set(xlabel="root mean square error", xlim=(0, 1.25 * max(values)), title=title)
figure.savefig(args.outdir / "missing-data-errors.png")

# %%
# A small error is not all. Of digits the mixture has the smallest of all methods, and yet one
# Gaussian gives what was removed the greater density: where pixels hardly vary it may be ten times
# as narrow. Held to the least width of the mixture, ``min_scale=0.1``, it has about 0.6 nats per
# entry, less than the mixture.
#
# To try next
# -----------
# - ``--share 0.6``: which method suffers most?
# - ``--components 40``: a mixture of many Gaussians may know what it has seen by heart. The density
#   of what was removed tells.
# - Holes that depend on the numbers, such as ``x.where(x < 1, torch.nan)``: are the intervals still
#   right?
# - :doc:`/use/missing` has the same for VAEs and for your own model,
#   :doc:`/gallery/inpainting` for half an image.
