"""Entries that rows lack, drawn from a mixture of Gaussians given the others.

Shapes: `B` rows, `D` features, `M` missing entries at most, `K` components, `S` draws.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models.checks import check_count, check_finite, check_rows
from ppl_models.missing import complete


def imputed(model: Any, x: Tensor, num_samples: int | None) -> Tensor:
    """Fills in rows, (S, B, D), or (B, D) with posterior means where there are no draws."""
    _check_imputable(model, x, num_samples)
    filled = []
    for part in x.split(256):
        weights = model.posterior(part).probs  # (B, K)
        given = complete(part, model.locs, model._factors())
        mean = given.shift + model.locs[:, given.places].transpose(0, 1)  # (B, K, M)
        if num_samples is None:
            drawn = (weights[..., None] * mean).sum(1)[None]  # (1, B, M)
        else:
            z = dist.Categorical(weights).sample((num_samples,))  # (S, B)
            pick = torch.arange(len(part), device=x.device)
            noise = mean.new_empty(*z.shape, mean.shape[2], 1).normal_()
            upper = given.factor[pick, z].mT  # (S, B, M, M)
            spread = torch.linalg.solve_triangular(upper, noise, upper=True)[..., 0]
            drawn = mean[pick, z] + spread
        whole = part.expand(len(drawn), -1, -1).clone()
        places = given.places.expand(len(drawn), -1, -1)
        kept = whole.gather(2, places)
        filled.append(whole.scatter(2, places, torch.where(given.present, drawn, kept)))
    result = torch.cat(filled, 1)
    return result[0] if num_samples is None else result


def _check_imputable(model: Any, x: Tensor, num_samples: int | None) -> None:
    if model.missing != "marginalise":
        raise ValueError(
            f"GaussianMixture.impute: NaN means missing only with missing='marginalise'; "
            f"got missing={model.missing!r}."
        )
    if num_samples is not None:
        check_count(num_samples=num_samples)
    check_rows(x, model.locs.shape[1], "GaussianMixture.impute", model)
    check_finite(x, "GaussianMixture.impute", minimum=0, missing=True)
