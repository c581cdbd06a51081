"""Where a mixture begins, in the words of scikit-learn: `init_params`, `means_init`, ...

Shapes: `N` rows, `K` components, `D` features.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_models.checks import check_choice
from ppl_models.missing import observed_mean
from ppl_models.mixtures.em.expectation import from_labels
from ppl_models.mixtures.em.maximisation import floored_factor
from ppl_models.mixtures.kmeans import kmeans

KINDS = ("kmeans", "k-means++", "random", "random_from_data")


class Start(NamedTuple):
    """What users say of a start, None where they say nothing."""

    kind: str
    weights: Any  # (K,)
    means: Any  # (K, D)
    precisions: Any  # full (K, D, D), tied (D, D), diag (K, D), spherical (K,)

    @property
    def is_the_models_own(self) -> bool:
        given = (self.weights, self.means, self.precisions)
        return self.kind == "kmeans" and all(value is None for value in given)

    @torch.no_grad()
    def begin(self, model: Any, x: Tensor, weight: Tensor | None) -> None:
        """Sets the parameters of a `ppl_models.GaussianMixture` for rows with weights."""
        model.initialise(x, weight)
        rows = x.where(~x.isnan(), observed_mean(x, weight))
        labels = self.labels(rows, weight, len(model.locs))
        if labels is not None:
            sums = from_labels(rows, labels[None], len(model.locs), model.covariance, weight)
            model._maximise(sums)
        if self.weights is not None:
            model.logits.copy_(_tensor(self.weights).log().clamp(min=-100))
        if self.means is not None:
            model.locs.copy_(_tensor(self.means))
        if self.precisions is not None:
            _set_precisions(model, _tensor(self.precisions))

    def labels(self, rows: Tensor, weight: Tensor | None, components: int) -> Tensor | None:
        """The component of each row, None where the model has found them."""
        if self.means is not None:
            return torch.cdist(rows, _tensor(self.means)).argmin(1)
        if self.kind == "k-means++":
            return kmeans(rows, components, max_steps=0, weight=weight)[0]
        if self.kind == "random_from_data":
            chances = torch.ones(len(rows)) if weight is None else weight
            return torch.cdist(rows, rows[torch.multinomial(chances, components)]).argmin(1)
        return torch.randint(components, (len(rows),)) if self.kind == "random" else None


def _set_precisions(model: Any, precisions: Tensor) -> None:
    """Sets covariances to the inverses of precisions, none below the floor of the model."""
    floor = model._floor()  # (1, 1, F)
    if model.covariance in ("full", "tied"):
        root = floored_factor(torch.linalg.inv(precisions), floor[0, 0])
        model.log_scale.copy_(root.diagonal(dim1=-2, dim2=-1).log())
        model.lower.copy_(root.tril(-1))
    else:
        variances = (1 / precisions).view_as(model.log_scale).maximum(floor[0] ** 2)
        model.log_scale.copy_(variances.log().div(2))


def _tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float64))


def check_start(start: Start, model: Any) -> None:
    """Raises a ValueError where a start does not fit the model."""
    check_choice("init_params", start.kind, KINDS)
    components, features = model.locs.shape
    shapes = {
        "full": (components, features, features),
        "tied": (features, features),
        "diag": (components, features),
        "spherical": (components,),
    }
    _check_shape("weights_init", start.weights, (components,))
    _check_shape("means_init", start.means, (components, features))
    _check_shape("precisions_init", start.precisions, shapes[model.covariance])
    if start.weights is not None:
        weights = _tensor(start.weights)
        if (weights < 0).any() or abs(weights.sum().item() - 1) > 1e-6:
            raise ValueError(
                f"weights_init: expected probabilities that sum to 1, got {weights.tolist()} with "
                f"sum {weights.sum().item():.5f}. Try weights_init / weights_init.sum()."
            )
    if start.precisions is not None and not _is_positive(_tensor(start.precisions), model):
        what = (
            "symmetric, positive-definite" if model.covariance in ("full", "tied") else "positive"
        )
        raise ValueError(
            f"precisions_init: expected {what} precisions for covariance_type="
            f"{model.covariance!r}, got others. Try np.linalg.inv of covariances."
        )


def _check_shape(name: str, values: Any, shape: tuple[int, ...]) -> None:
    if values is None:
        return
    found = _tensor(values)
    if tuple(found.shape) != shape or not found.isfinite().all():
        raise ValueError(
            f"{name}: expected finite numbers with shape {shape}, got {tuple(found.shape)} with "
            f"{int((~found.isfinite()).sum())} that are not finite."
        )


def _is_positive(precisions: Tensor, model: Any) -> bool:
    if model.covariance not in ("full", "tied"):
        return bool((precisions > 0).all())
    symmetric = torch.allclose(precisions, precisions.mT)
    return symmetric and not torch.linalg.cholesky_ex(precisions).info.any()
