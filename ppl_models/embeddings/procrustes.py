r"""Draws of a map that are turned alike.

Distances do not tell how a map is turned, reflected or moved, so that the mean of its draws, as
they come, means nothing. Each draw is brought as near to a reference as a rigid motion does,

.. math::
    R_s = \arg\min_{R^\top R = I} \lVert \bar Z_s R - \bar M \rVert, \qquad
    M = \frac{1}{S} \sum_s \bar Z_s R_s

in turns with the mean of the aligned draws: generalised Procrustes analysis. A bar is for positions
around zero.

Shapes: `S` draws, `n` items, `K` dimensions.

References:
    | A Generalized Solution of the Orthogonal Procrustes Problem (Schoenemann, 1966)
    | https://doi.org/10.1007/BF02289451
    | Generalized Procrustes Analysis (Gower, 1975), https://doi.org/10.1007/BF02291478
"""

from typing import Any

import torch
from torch import Tensor

from ppl_models.infer.evidence.groups import draws_of, groups_of, rebuilt

MOST_ROUNDS = 100


def align_positions(positions: Tensor, reference: Tensor) -> Tensor:
    """Returns positions `(*, n, K)` as near to a reference `(n, K)` as a rigid motion brings them.

    They are around zero, and of the size that they had; reflections are rigid motions, too.

    Raises:
        ValueError: If the shapes do not match, or numbers are not finite.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> turned = corners.flip(1) + 5
        >>> torch.allclose(align_positions(turned, corners), corners - corners.mean(0), atol=1e-5)
        True
    """
    if positions.ndim < 2 or positions.shape[-2:] != reference.shape:
        raise ValueError(
            f"align_positions: expected positions (*, n, K) and a reference (n, K), got "
            f"{tuple(positions.shape)} and {tuple(reference.shape)}. Try the same items in both, "
            f"and zeros in the place of dimensions that one of them lacks."
        )
    if not (positions.isfinite().all() and reference.isfinite().all()):
        raise ValueError("align_positions: expected finite positions, got NaN or infinity.")
    centered = positions - positions.mean(-2, keepdim=True)
    target = (reference - reference.mean(0)).to(centered)
    u, _, vh = torch.linalg.svd(centered.mT @ target)  # (*, K, K)
    return centered @ (u @ vh)


def procrustes(
    data: Any, variable: str = "z", dim: str = "item", reference: Tensor | None = None
) -> Any:
    """Returns a posterior in which all draws of a map are turned alike, around zero.

    Arguments:
        data: What `from_pyro_svi` or `from_pyro_mcmc` gave, or several of them along `chain`.
        variable: The positions, with one dimension beside that of the items.
        dim: The dimension of the items.
        reference: Positions to turn the map to, `(n, K)`, such as north up. Default: its principal
            axes, the longest first.

    Returns:
        An object of the same kind; the other variables and groups are as before.

    Raises:
        ValueError: If the posterior has no such positions.

    Example:
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from ppl_models import from_pyro_svi
        >>> from ppl_models.embeddings.distances import DistanceEmbedding
        >>> model = DistanceEmbedding(num_items=4)
        >>> pairs, distances = torch.tensor([[0, 1], [1, 2], [2, 3]]), torch.ones(3)
        >>> found = from_pyro_svi(model, AutoNormal(model), pairs, distances, num_samples=5)
        >>> dict(procrustes(found)["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 5, 'item': 4, 'axis': 2}
    """
    groups = groups_of(data)
    posterior: Any = groups.get("posterior", {})
    if variable not in posterior or posterior[variable].ndim != 4:
        raise ValueError(
            f"procrustes: expected a posterior with {variable!r} along chain, draw, {dim!r} and "
            f"one dimension of positions, got {sorted(map(str, posterior))}. Try variable=..., "
            f"dim=..., and the draws of a DistanceEmbedding."
        )
    given = posterior[variable].transpose("chain", "draw", dim, ...)
    draws = torch.tensor(draws_of(posterior[variable], dim))  # (S, n, K)
    aligned = _aligned(draws.double(), reference)
    changed = given.copy(data=aligned.to(draws).reshape(given.shape).numpy())
    groups["posterior"] = groups["posterior"].assign({variable: changed})
    return rebuilt(data, groups)


def _aligned(draws: Tensor, reference: Tensor | None) -> Tensor:
    """All draws turned to their mean, and this to the reference, or to its principal axes."""
    mean = draws[0]
    for _ in range(MOST_ROUNDS):
        aligned = align_positions(draws, mean)
        before, mean = mean, aligned.mean(0)
        if (mean - before).abs().max() < 1e-10:
            break
    target = _along_axes(mean) if reference is None else align_positions(mean, reference.to(mean))
    return align_positions(draws, target)


def _along_axes(positions: Tensor) -> Tensor:
    """Positions along their principal axes, the item farthest out on each at a positive place."""
    turned = positions @ torch.linalg.svd(positions, full_matrices=False).Vh.mT
    farthest = turned.gather(0, turned.abs().argmax(0, keepdim=True))  # (1, K)
    return turned * farthest.sign()
