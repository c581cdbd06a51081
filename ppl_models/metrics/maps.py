r"""How well a map keeps the distances that it was made of, and its neighbourhoods.

.. math::
    \text{stress} &= \sqrt{\frac{\sum_{i<j} (d_{ij} - \lVert x_i - x_j \rVert)^2}
    {\sum_{i<j} \lVert x_i - x_j \rVert^2}} \\
    \text{trustworthiness} &= 1 - \frac{2}{n k (2 n - 3 k - 1)}
    \sum_i \sum_{j \in U_k(i)} (r(i, j) - k)

where :math:`U_k(i)` are the `k` nearest items of `i` in the map that are not so by the distances,
by which `j` is the :math:`r(i, j)`-th nearest.

Shapes: `n` items, `K` dimensions of the map.

References:
    | Multidimensional scaling by optimizing goodness of fit to a nonmetric hypothesis
    | (Kruskal, 1964), https://doi.org/10.1007/BF02289565: the first of its two formulas
    | Neighborhood preservation in nonlinear projection methods (Venna & Kaski, 2001)
    | https://doi.org/10.1007/3-540-44668-0_68
"""

import torch
from torch import Tensor

from ppl_models.checks import check_count


def stress(distances: Tensor, positions: Tensor) -> float:
    """Returns the stress of a map, 0 where it keeps all distances; about .1 is called fair.

    Arguments:
        distances: A table `(n, n)`; NaN where a distance is not known, and does not count.
        positions: The map, `(n, K)`, in the units of the distances.

    Raises:
        ValueError: If the shapes do not match, or nothing is known.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> round(stress(1.1 * torch.cdist(corners, corners), corners), 6)
        0.1
    """
    _check_map("stress", distances, positions)
    here = torch.cdist(positions.double(), positions.double())
    i, j = torch.triu_indices(len(positions), len(positions), 1)
    given, kept = distances[i, j].to(here), here[i, j]
    known = ~given.isnan()
    if not known.any():
        raise ValueError("stress: expected one distance that is known or more, got none.")
    error = (given - kept)[known].square().sum() / kept[known].square().sum()
    return error.sqrt().item()


def trustworthiness(distances: Tensor, positions: Tensor, k: int = 5) -> float:
    """Returns how far neighbours in a map are neighbours: 1 where all of them are.

    Arguments:
        distances: A table `(n, n)`, all of it known.
        positions: The map, `(n, K)`, in any units.
        k: How many neighbours are looked at, fewer than half of the items.

    Raises:
        ValueError: If the shapes do not match, a distance is missing, or `k` is too large.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [3.0, 4.0], [1.0, 1.0]])
        >>> trustworthiness(torch.cdist(corners, corners), corners, k=2)
        1.0
    """
    from sklearn.manifold import trustworthiness as of_distances  # here, because it is slow

    check_count(k=k)
    _check_map("trustworthiness", distances, positions)
    if not distances.isfinite().all():
        missing = int((~distances.isfinite()).sum())
        raise ValueError(
            f"trustworthiness: expected all distances, got {missing} that are not known, and their "
            f"items have no order of neighbours. Try the items whose distances are all known."
        )
    if k >= len(positions) / 2:
        raise ValueError(
            f"trustworthiness: expected k less than half of {len(positions)} items, got k={k}."
        )
    table, places = distances.double().cpu().numpy(), positions.double().cpu().numpy()
    return float(of_distances(table, places, n_neighbors=k, metric="precomputed"))


def _check_map(where: str, distances: Tensor, positions: Tensor) -> None:
    n = len(positions)
    if positions.ndim != 2 or distances.shape != (n, n) or not positions.isfinite().all():
        raise ValueError(
            f"{where}: expected a table (n, n) and finite positions (n, K) of the same items, got "
            f"{tuple(distances.shape)} and {tuple(positions.shape)}."
        )
