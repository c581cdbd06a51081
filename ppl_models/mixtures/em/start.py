"""Where EM of a mixture of Gaussians begins: the best of some candidates after a few steps.

Candidates are clusters of some of the rows: two of k-means, and two of its seeds alone, which
differ more.

References:
    | Choosing starting values for the EM algorithm (Biernacki et al., 2003)
    | https://doi.org/10.1016/S0167-9473(02)00163-9
"""

from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_finite, check_float64, check_resolution, check_rows
from ppl_models.mixtures.em.candidates import settled
from ppl_models.mixtures.em.climb import Rows, Steps
from ppl_models.mixtures.em.maximisation import moments
from ppl_models.mixtures.kmeans import coreset, lloyd, seeds
from ppl_models.row_weights import weighted_batches

MANY, FEW = 20_000, 2048  # rows that are enough to choose a start, at most and at least
EACH = 10  # rows for each parameter, which are enough too
CANDIDATES = 4  # for each start


def begin(model: Any, x: Tensor, sample_weight: Tensor | None) -> None:
    """Moves a mixture of Gaussians to where EM begins; takes what its `initialise` does."""
    ((x, weight),) = weighted_batches(x, sample_weight, "GaussianMixture")
    loc, spread = _check_fit(model, x)
    if weight is not None:
        loc, spread = moments([(x, weight)])
    # A sphere is one in the units of the data; other covariances have any for each feature.
    units = torch.ones_like(spread) if model.covariance == "spherical" else spread

    def scaled(rows: Tensor) -> Tensor:
        return (rows.double() - loc).div_(units).nan_to_num_()  # about zero

    few = max(FEW, min(MANY, EACH * model.num_parameters))
    chosen: Any = slice(None)
    share = weight
    if len(x) > few:
        distance = torch.cat([scaled(part).square_().sum(1) for part in x.split(MANY)])
        chosen, share = coreset(distance, few, weight)
    torch.randn(model.locs.shape[-2:])  # so that seeded starts stay those of earlier versions
    one, some = model._alone().to(x.device), scaled(x[chosen])
    try:
        labels = _candidates(model, some, share)
    except ValueError:  # of some rows fewer may be distinct than of all
        some, share = scaled(x), weight
        labels = _candidates(model, some, share)
    for own in dict.fromkeys((one, model)):
        own._set_floor(spread)
    rows = Rows(some * units + loc, share, model.covariance)
    found = [_after_some_steps(one, rows, own) for own in labels]
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.cat([of_start[name] for of_start in found]).view_as(parameter))


def _candidates(model: Any, x: Tensor, weight: Tensor | None) -> list[Tensor]:
    """The component of each row in the candidates of each start, (C, N)."""
    components, starts = model.locs.shape[-2], model.logits.shape[:-1].numel()  # K, R
    found = []
    for _ in range(starts):  # in turn, so that more starts begin as fewer do
        raw, refined = (seeds(x, components, CANDIDATES // 2, weight) for _ in range(2))
        found.append(torch.cat([lloyd(x, raw, 0, weight), lloyd(x, refined, 100, weight)]))
    return found


def _after_some_steps(model: Any, rows: Rows, labels: Tensor) -> dict[str, Tensor]:
    """The parameters of the best of some candidates after some steps, (1, *), by name."""
    sums = rows.labelled(labels, len(model.logits))
    steps = Steps(rows, model._floor())
    steps.begin_with(sums)
    best = settled(lambda: None if steps.now is None else steps.step()[0], steps.keep)
    if best is not None and steps.sums is not None:
        return model._best(rows.parted(steps.sums[best, None]), model._floor())
    candidates = model.stack(len(sums))
    candidates._maximise(rows.parted(sums))
    best = settled(lambda: candidates.em_step(*rows.batches[0]), candidates._keep)
    assert best is not None
    return {name: value[best, None] for name, value in candidates.named_parameters()}


def _check_fit(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The means and the spread of rows that can be fitted, (D,); an error where they cannot."""
    components, features = model.locs.shape[-2:]
    check_rows(x, features, "GaussianMixture")
    check_float64(x, "GaussianMixture")
    lenient = model.missing == "marginalise"
    check_finite(x, "GaussianMixture", minimum=max(2, components), missing=lenient)
    empty = x.isnan().all(0).nonzero().flatten().tolist() if lenient else []
    if empty:
        raise ValueError(f"GaussianMixture: nothing was observed of column(s) {empty}.")
    loc, scale = moments([(x, None)])
    _check_spread(model, scale)
    check_resolution(loc, scale, model.locs.dtype, "GaussianMixture")
    return loc, scale


def _check_spread(model: Any, scale: Tensor) -> None:
    """Raises where rows spread no more than the floor allows."""
    mean = scale.square().mean().sqrt().item()
    if mean == 0:
        raise ValueError(
            "GaussianMixture: all columns are constant, and say nothing of the components. "
            "Try rows that differ."
        )
    if model.min_scale is not None and model.min_scale >= mean:
        raise ValueError(
            f"GaussianMixture: expected min_scale ** 2, the smallest variance of a component, "
            f"to be less than that of the rows, {mean**2:.3g} (the mean of the columns'), got "
            f"{model.min_scale**2:.3g}. Try min_scale=None, a part of each column's own."
        )
