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
import inspect
import warnings
from collections.abc import Hashable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_models.checks import check_count
from ppl_models.infer.evidence.evidence import log_evidence
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.programs.tables import as_data
from ppl_models.infer.selection.evidences import EvidenceComparison
from ppl_models.infer.selection.table import Comparison, stacking
from ppl_models.infer.training.em import fit_em
from ppl_models.processes.jobs import side_by_side
from ppl_models.prompt.bars import is_watched
from ppl_models.scoped import mix, own_rng, seed_of

NEEDS = ("em_step", "initialise", "evidence", "num_parameters")


@overload
def compare(candidates: Mapping[Any, Evidence], x: None = None) -> EvidenceComparison: ...


@overload
def compare(
    candidates: Mapping[Any, Any],
    x: Any,
    *,
    folds: int = 5,
    restarts: int = 5,
    max_steps: int = 1000,
    tolerance: float = 1e-6,
    seed: int | None = None,
    progress: bool = True,
) -> Comparison: ...


def compare(
    candidates: Mapping[Any, Any],
    x: Any = None,
    *,
    folds: int = 5,
    restarts: int = 5,
    max_steps: int = 1000,
    tolerance: float = 1e-6,
    seed: int | None = None,
    progress: bool = True,
) -> Comparison | EvidenceComparison:
    r"""Compares evidences of the same rows, or fits models by EM and compares these.

    **Evidences**, `compare({"VAE": log_evidence(vae, guide, test), ...})`, may be of any models and
    kinds. Each is put beside the highest, row by row, and the table says which order the kinds
    prove: a lower bound that is above an exact number shows that its model is better, one below it
    shows nothing. That they are of the same rows, in the same units, is for the caller to know.

    **Models that** `fit_em` **fits**, `compare(models, x)`, are compared by BIC and by
    cross-validated evidence. That leaves each candidate fitted to all rows. The folds, drawn at
    random, are the same for all.

    Fits run one after the other, or side by side where `joblib.parallel_config` says so, here or on
    a cluster, with the same result to the last bit:

    .. code-block:: python

        with joblib.parallel_config(backend="loky", n_jobs=4):
            compare(candidates, x)

    Each has as many threads as `torch.get_num_threads()` says: several at once are fastest with
    `torch.set_num_threads(1)`.

    Arguments:
        candidates: Evidences by name; or models by name, such as
            `{k: GaussianMixture(2, k) for k in range(1, 8)}`, which have `em_step`, `initialise`,
            `evidence` and `num_parameters`.
        x: The rows that the models are fitted to, with shape `(N, D)`: a tensor, an array or a data
            frame. None, and no other argument, beside evidences.
        folds: The number of parts, each of which is left out once.
        restarts: The number of starts of each fit.
        max_steps: The largest number of steps of each fit.
        tolerance: Stop a fit when a step raises the evidence by no more, in nats per row.
        seed: Seeds draws of their own; by default they come from torch's generator.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        An `EvidenceComparison` of evidences, a `Comparison` of models. Both print as a table, and
        are a `pandas.DataFrame` by their method `dataframe`.

    Raises:
        TypeError: If a candidate is neither.
        ValueError: If there are none, the rows are too few, or a candidate cannot be fitted; if
            evidences cannot be compared: a pseudo-likelihood and others, densities and
            probabilities, other numbers of rows, of single rows and of the whole data.

    Example:
        >>> from ppl_models import GaussianMixture
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 9])
        >>> candidates = {k: GaussianMixture(2, k) for k in (1, 2, 3)}
        >>> compare(candidates, x, folds=2, restarts=1, seed=0).best("bic")
        2
        >>> exact = {k: log_evidence(model, None, x) for k, model in candidates.items()}
        >>> compare(exact).order
        {1: 'proven', 2: 'proven', 3: 'highest'}
    """
    if _are_evidences(candidates, x):
        numbers = {"restarts": restarts, "max_steps": max_steps, "tolerance": tolerance}
        _check_no_fits(folds=folds, **numbers, seed=seed)
        return EvidenceComparison(dict(candidates))
    x = as_data(x, candidates.values() if isinstance(candidates, Mapping) else ())
    _check(candidates, x, folds)
    check_count(restarts=restarts, max_steps=max_steps)
    seed = seed_of(seed)
    settings = {"restarts": restarts, "max_steps": max_steps, "tolerance": tolerance}
    with own_rng("folds", seed, x.device):
        fold = torch.randperm(len(x), device=x.device) % folds  # of each row, (N,)
    fitted = torch.empty(len(candidates), len(x), dtype=torch.float64)
    held_out = torch.empty_like(fitted)
    warned: dict[Hashable, list[str]] = {}
    places = [(c, f) for c in range(len(candidates)) for f in range(-1, folds)]
    fits = [
        (name, model if f < 0 else copy.deepcopy(model), x, fold, f, mix(seed, 2 + f), settings)
        for name, model in candidates.items()
        for f in range(-1, folds)
    ]
    names = [f"candidate {name!r}" for name, *_ in fits]
    ends = side_by_side(_fit, fits, "compare", names=names)
    hidden = not is_watched(progress)
    with tqdm(total=len(fits), disable=hidden, leave=False) as bar:
        for (c, f), (name, model, *_), (state, value, said) in zip(places, fits, ends, strict=True):
            if f < 0:
                model.load_state_dict(state)
                fitted[c] = value
            else:
                held_out[c, (fold == f).cpu()] = value
            if said:
                warned.setdefault(name, []).extend(said)
            bar.update()
    number = torch.tensor([model.num_parameters for model in candidates.values()])
    weight = stacking(held_out, fitted, folds)
    return Comparison(list(candidates), number, fitted, held_out, folds, weight, warned)


def _check_no_fits(**given: Any) -> None:
    """Raises where evidences come with an argument of fits, other than its default."""
    defaults = inspect.signature(compare).parameters
    if others := [name for name, value in given.items() if value != defaults[name].default]:
        raise TypeError(
            f"compare: evidences are ready, and {', '.join(others)} of fits, got both. Try "
            f"compare(evidences), or models and their rows: compare(models, x, ...)."
        )


def _are_evidences(candidates: Mapping[Any, Any], x: Any) -> bool:
    """Whether candidates are evidences, of which there are some, and rows are not given."""
    values = list(candidates.values()) if isinstance(candidates, Mapping) else []
    if x is not None and any(isinstance(value, Evidence) for value in values):
        raise TypeError(
            "compare: expected evidences alone, or models and the rows that they are fitted to, "
            "got evidences and rows. Try compare(evidences)."
        )
    return x is None and bool(values)


def _fit(
    name: Hashable,
    model: Any,
    x: Tensor,
    fold: Tensor,
    left_out: int,
    seed: int,
    settings: dict[str, Any],
) -> tuple[dict[str, Tensor], Tensor, list[str]]:
    """Fits a model by EM to all folds but one, or to all rows if that is -1.

    Returns its parameters, the log evidence of the rows left out, or of all, and what it warned of.
    """
    whole = left_out < 0
    which = "all rows" if whole else f"fold {left_out + 1}"
    with own_rng("compare", seed, x.device), warnings.catch_warnings(record=True) as new:
        warnings.simplefilter("always")
        try:
            fit_em(model, x if whole else x[fold != left_out], progress=False, **settings)
        except (ValueError, RuntimeError, FloatingPointError) as error:
            raise type(error)(f"compare: candidate {name!r}, {which}: {error}") from None
    said = [f"{which}: {warning.message}" for warning in new]
    value = log_evidence(model, None, x if whole else x[fold == left_out]).value
    return dict(model.state_dict()), value, said


def _check(candidates: Mapping[Any, Any], x: Tensor, folds: int) -> None:
    if not isinstance(candidates, Mapping) or not candidates:
        raise ValueError(
            f"compare: expected candidates by name, got {candidates!r}. "
            f"Try {{k: GaussianMixture(num_features, k) for k in (1, 2, 3)}} and rows, or the "
            f"evidences of models by name."
        )
    for name, model in candidates.items():
        lacks = [attribute for attribute in NEEDS if not hasattr(model, attribute)]
        if lacks:
            raise TypeError(
                f"compare: candidate {name!r}, {type(model).__name__}, has no {', '.join(lacks)}. "
                f"Expected a model that fit_em fits and whose evidence is exact. Try, for programs "
                f"with guides, compare({{{name!r}: log_evidence(model, guide, x), ...}}), without "
                f"rows."
            )
    if len({id(model) for model in candidates.values()}) < len(candidates):
        raise ValueError("compare: expected a model of its own for each name, got one twice.")
    if not isinstance(x, Tensor) or x.ndim < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected a tensor of rows, (N, D), got {got}.")
    if not isinstance(folds, int) or not 2 <= folds <= len(x):
        raise ValueError(f"folds: expected 2 to {len(x)}, the number of rows, got {folds!r}.")
