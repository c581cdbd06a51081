r"""Which of several models describes rows best: by BIC, and by rows that it was not fitted to.

.. math::
    \text{held-out} = \frac{1}{N} \sum_n \log p(x_n \mid \hat\theta_{-f(n)})

where :math:`\hat\theta_{-f(n)}` is fitted to all folds but the one that row `n` is in.

References:
    | Cross-Validatory Choice and Assessment of Statistical Predictions (Stone, 1974)
    | https://doi.org/10.1111/j.2517-6161.1974.tb00994.x
    | Model Selection for Probabilistic Clustering Using Cross-Validated Likelihood (Smyth, 2000)
    | https://doi.org/10.1023/A:1008940618127
"""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_models.checks import check_count
from ppl_models.infer.evidence.evidence import log_evidence
from ppl_models.infer.programs.tables import as_data
from ppl_models.infer.selection.table import Comparison, stacking
from ppl_models.infer.training.em import fit_em
from ppl_models.scoped import mix, own_rng, seed_of

NEEDS = ("em_step", "initialise", "evidence", "num_parameters")


def compare(
    candidates: Mapping[Any, Any],
    x: Tensor,
    *,
    folds: int = 5,
    restarts: int = 5,
    max_steps: int = 1000,
    tolerance: float = 1e-6,
    seed: int | None = None,
    progress: bool = True,
) -> Comparison:
    r"""Compares models that `fit_em` fits, by BIC and by cross-validated evidence.

    Leaves each candidate fitted to all rows. The folds, drawn at random, are the same for all.

    Arguments:
        candidates: The models by name, such as `{k: GaussianMixture(2, k) for k in range(1, 8)}`.
            They have `em_step`, `initialise`, `evidence` and `num_parameters`.
        x: The rows, with shape `(N, D)`: a tensor, an array or a data frame.
        folds: The number of parts, each of which is left out once.
        restarts: The number of starts of each fit.
        max_steps: The largest number of steps of each fit.
        tolerance: Stop a fit when a step raises the evidence by no more, in nats per row.
        seed: Seeds draws of their own; by default they come from torch's generator.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        A `Comparison`, which prints as a table.

    Raises:
        TypeError: If a candidate is not such a model.
        ValueError: If there are none, the rows are too few, or a candidate cannot be fitted.

    Example:
        >>> from ppl_models import GaussianMixture
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 9])
        >>> candidates = {k: GaussianMixture(2, k) for k in (1, 2, 3)}
        >>> compare(candidates, x, folds=2, restarts=1, seed=0).best("bic")
        2
    """
    x = as_data(x, candidates.values() if isinstance(candidates, Mapping) else ())
    _check(candidates, x, folds)
    check_count(restarts=restarts, max_steps=max_steps)
    seed = seed_of(seed)
    settings = {"restarts": restarts, "max_steps": max_steps, "tolerance": tolerance}
    with own_rng(mix(seed, 0), x.device):
        fold = torch.randperm(len(x), device=x.device) % folds  # of each row, (N,)
    fitted = torch.empty(len(candidates), len(x), dtype=torch.float64)
    held_out = torch.empty_like(fitted)
    warned = {}
    with tqdm(total=len(candidates) * (folds + 1), disable=None if progress else True) as bar:
        for c, (name, model) in enumerate(candidates.items()):
            parts = [copy.deepcopy(model) for _ in range(folds)]
            said = _fit(model, x, f"candidate {name!r}, all rows", mix(seed, 1), settings)
            fitted[c] = log_evidence(model, None, x).value
            bar.update()
            for f, part in enumerate(parts):
                where = f"candidate {name!r}, fold {f + 1}"
                said += _fit(part, x[fold != f], where, mix(seed, 2 + f), settings)
                held_out[c, (fold == f).cpu()] = log_evidence(part, None, x[fold == f]).value
                bar.update()
            if said:
                warned[name] = said
    number = torch.tensor([model.num_parameters for model in candidates.values()])
    weight = stacking(held_out, fitted, folds)
    return Comparison(list(candidates), number, fitted, held_out, folds, weight, warned)


def _fit(model: Any, x: Tensor, where: str, seed: int, settings: dict[str, Any]) -> list[str]:
    """Fits a model by EM, and returns what was warned of."""
    with own_rng(seed, x.device), warnings.catch_warnings(record=True) as new:
        warnings.simplefilter("always")
        try:
            fit_em(model, x, progress=False, **settings)
        except (ValueError, RuntimeError, FloatingPointError) as error:
            raise type(error)(f"compare: {where}: {error}") from None
    return [f"{where.partition(', ')[2]}: {warning.message}" for warning in new]


def _check(candidates: Mapping[Any, Any], x: Tensor, folds: int) -> None:
    if not isinstance(candidates, Mapping) or not candidates:
        raise ValueError(
            f"compare: expected candidates by name, got {candidates!r}. "
            f"Try {{k: GaussianMixture(num_features, k) for k in (1, 2, 3)}}."
        )
    for name, model in candidates.items():
        lacks = [attribute for attribute in NEEDS if not hasattr(model, attribute)]
        if lacks:
            raise TypeError(
                f"compare: candidate {name!r}, {type(model).__name__}, has no {', '.join(lacks)}. "
                f"Expected a model that fit_em fits and whose evidence is exact; for programs with "
                f"shared latents try az.compare on from_pyro_svi(...) of each."
            )
    if len({id(model) for model in candidates.values()}) < len(candidates):
        raise ValueError("compare: expected a model of its own for each name, got one twice.")
    if not isinstance(x, Tensor) or x.ndim < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected a tensor of rows, (N, D), got {got}.")
    if not isinstance(folds, int) or not 2 <= folds <= len(x):
        raise ValueError(f"folds: expected 2 to {len(x)}, the number of rows, got {folds!r}.")
