r"""Three in ten numbers are lost: what models say of them, beside other ways to fill them in.

.. math::
    \log p(x_o) = \log \int p(x_o, x_m) \, dx_m, \qquad
    x_m \mid x_o \sim p(x_m \mid x_o)

where :math:`o` are the entries of a row that were observed and :math:`m` those that are missing.

    python examples/missing_data.py    # half a minute

Removes 30 % of the entries of two data sets at random, fits models to what is left, and compares
what they put in the gaps with the truth. A model does more than fill in: it gives the density of
what it has seen and of what it has not, and draws that show how sure it is. (A mixture of many
Gaussians may know what it has seen by heart: what was removed tells.)
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor

from ppl_models import FactorAnalysis, GaussianMixture, fit_em, log_evidence
from ppl_models.datasets import digits

DRAWS = 39  # of 40 ranks that the truth may have among them, 36 are within their 90 % interval
SOME = 300  # rows whose gaps are filled with draws


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.3, help="of the entries to remove")
    parser.add_argument("--rows", type=int, default=1500, help="of the digits")
    parser.add_argument("--components", type=int, default=10, help="of the mixture of digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    print(
        f"{args.share:.0%} of the entries are removed at random. Errors are root mean squares over "
        f"the\nremoved entries, and densities are exact: of the entries that were observed, in "
        f"nats per\nrow, and of the removed ones given those, in nats per entry. 90 % intervals "
        f"come from\n{DRAWS} draws; the last column is how many removed entries they hold."
    )

    tumours = torch.from_numpy(load_breast_cancer().data)
    tumours = (tumours - tumours.mean(0)) / tumours.std(0)
    holes = remove(tumours, args)
    observed = {"missing": "marginalise"}
    models = {
        "factor analysis, 10 factors": FactorAnalysis(30, 10, **observed),
        "one Gaussian": GaussianMixture(30, 1, min_scale=0.05, **observed),
        "mixture of 3 Gaussians": GaussianMixture(30, 3, min_scale=0.2, **observed),
    }
    print(f"\nTumours: {len(tumours)} rows of 30 features, standardised")
    errors, _ = study(tumours, holes, models, args.seed, tolerance=1e-3, restarts=3)
    tables = {"tumours (standardised)": errors}

    digit = digits()[0][: args.rows].double()
    holes = remove(digit, args)
    varies = holes.nan_to_num(nan=2).amin(0) < holes.nan_to_num(nan=-1).amax(0)  # (64,)
    digit, holes, size = digit[:, varies], holes[:, varies], int(varies.sum())
    models = {
        "factor analysis, 20 factors": FactorAnalysis(size, 20, **observed),
        "one Gaussian": GaussianMixture(size, 1, min_scale=0.01, **observed),
        f"mixture of {args.components} Gaussians": GaussianMixture(
            size, args.components, min_scale=0.1, **observed
        ),
    }
    print(f"\nDigits: {len(digit)} rows of {size} pixels that vary, grey levels from 0 to 1")
    errors, filled = study(digit, holes, models, args.seed, tolerance=0.03, restarts=1)
    tables["digits (grey levels)"] = errors

    figures = {
        "errors": draw_errors(tables),
        "digits": draw_digits(digit, holes, filled, models[list(models)[-1]], varies),
    }
    print("\nwritten:")
    for name, figure in figures.items():
        file = args.outdir / f"missing-data-{name}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def remove(x: Tensor, args: argparse.Namespace) -> Tensor:
    """The rows, with NaN in the place of a share of the entries."""
    generator = torch.Generator().manual_seed(args.seed)
    return x.where(torch.rand(x.shape, generator=generator) >= args.share, torch.nan)


def study(
    x: Tensor, holes: Tensor, models: dict[str, Any], seed: int, **settings: Any
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Returns the error of each method, and what each puts into the holes."""
    gone = holes.isnan()
    errors, filled = {}, {}
    print(f"{'':29}{'error':>7}{'seconds':>9}{'observed':>11}{'removed':>9}{'held':>8}")
    imputers = {
        "mean of the column": SimpleImputer(),
        "5 nearest neighbours": KNNImputer(n_neighbors=5),
        "iterative regression": IterativeImputer(random_state=seed),
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
                fit_em(method.double(), holes, seed=seed, **settings)
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


def held(model: Any, x: Tensor, holes: Tensor) -> float:
    """The share of the missing entries within the 90 % intervals of draws."""
    draws = model.impute(holes[:SOME], num_samples=DRAWS).sort(0).values
    inside = (draws[1] <= x[:SOME]) & (x[:SOME] <= draws[-2])
    return inside[holes[:SOME].isnan()].double().mean().item()


def draw_errors(tables: dict[str, dict[str, float]]) -> Figure:
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (title, errors) in zip(figure.subplots(1, 2), tables.items(), strict=True):
        names, values = list(errors)[::-1], list(errors.values())[::-1]
        colors = ["tab:blue"] * (len(names) - 3) + ["tab:gray"] * 3
        axes.bar_label(axes.barh(names, values, color=colors), fmt="%.3f", padding=3)
        axes.set(
            title=title,
            xlabel="root mean square error (models in blue)",
            xlim=(0, 1.25 * max(values)),
        )
    return figure


def draw_digits(
    x: Tensor, holes: Tensor, filled: dict[str, Tensor], model: Any, varies: Tensor
) -> Figure:
    chosen = slice(0, 10)
    draws = model.impute(holes[chosen], num_samples=3)
    lines = {"truth": x[chosen], "observed": holes[chosen]}
    lines |= {name: rows[chosen] for name, rows in list(filled.items())[2:]}
    lines |= {f"draw {s + 1} of the mixture": rows for s, rows in enumerate(draws)}
    figure = Figure(figsize=(9, 0.78 * len(lines) + 0.2), layout="constrained")
    grid = figure.subplots(len(lines), 10, squeeze=False)
    for panels, (name, rows) in zip(grid, lines.items(), strict=True):
        whole = rows.new_zeros(len(rows), len(varies))  # pixels that never vary are black
        whole[:, varies] = rows
        for axes, image in zip(panels, whole.unflatten(1, (8, 8)), strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], facecolor="tab:red")  # seen through the holes
        label = {"rotation": 0, "horizontalalignment": "right", "verticalalignment": "center"}
        panels[0].set_ylabel(name, **label)
    return figure


if __name__ == "__main__":
    main()
