"""What must be said of a fit of Gaussians: which components a floor keeps from collapsing."""

from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import listed


def caveat(model: Any) -> str | None:
    """What must be said of a fit: which components the floor keeps from collapsing.

    A floor that is given, and not small beside the spread of the rows, is there on purpose.
    """
    floor = model._floor()[0]  # (1, F)
    if _is_above(model, floor):
        return None
    units = floor[..., None] * floor[..., None, :]
    covariances, weights = model.covariances.double(), model.weights.double()
    variances = torch.linalg.eigvalsh(covariances / units)  # of floors, (K, D)
    center = weights @ model.locs.double()
    spread = covariances.diagonal(dim1=1, dim2=2) + (model.locs - center) ** 2
    share = 1 / (weights @ (spread / floor**2)).mean()
    at_floor = (variances[:, 0] <= 1 + 1e-3).nonzero().flatten().tolist()
    if not at_floor or 1e-4 < share < 0.25:
        return None
    what = "a thousandth of the standard deviation of each column"
    if model.min_scale is not None:
        what = f"min_scale ** 2 = {model.min_scale**2:.1e}"
    return (
        f"GaussianMixture: component(s) {listed(at_floor)} have no more variance in some "
        f"direction than the floor, {what}, on which the evidence depends. Try fewer "
        f"components, a covariance with fewer parameters (now {model.covariance!r}), or a "
        f"min_scale of your own."
    )


def _is_above(model: Any, floor: Tensor) -> bool:
    """Whether all variances are well above the floor, by a quick test that may miss it.

    The largest eigenvalue of a precision is no more than the sum of its diagonal.
    """
    scale = model.scale.double()
    if model.covariance in ("diag", "spherical"):
        return bool((scale > (1 + 1e-3) * floor).all())
    precision = torch.cholesky_inverse(scale).diagonal(dim1=-2, dim2=-1)
    return bool(((precision * floor.square()).sum(-1) < 1 - 1e-3).all())
