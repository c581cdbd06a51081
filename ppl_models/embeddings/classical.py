r"""Classical scaling: the positions of items, where their distances are Euclidean.

.. math:: -\tfrac{1}{2} J D^{(2)} J = X X^\top, \qquad J = I - \tfrac{1}{n} 1 1^\top

with the squared distances :math:`D^{(2)}`. The first eigenvectors, times the roots of their
eigenvalues, are the positions: exactly those that the distances are of, up to a rotation, and the
place to start from where distances are not Euclidean.

Shapes: `n` items, `K` dimensions.

References:
    | Multidimensional scaling: I. Theory and method (Torgerson, 1952)
    | https://doi.org/10.1007/BF02288916
    | A Global Geometric Framework for Nonlinear Dimensionality Reduction (Tenenbaum et al., 2000),
    | on the shortest paths in the place of what is not known
    | https://doi.org/10.1126/science.290.5500.2319
"""

from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.embeddings.tables import check_table


def classical_scaling(table: Any, num_dims: int = 2) -> Tensor:
    """Returns positions, `(n, K)`, around zero and along their principal axes.

    Distances that are not known (NaN) are taken as those of the shortest path over others; between
    items that no path connects, as the longest of those.

    Arguments:
        table: Distances, `(n, n)`, as `distance_pairs` takes them.
        num_dims: The number of dimensions, `K`, fewer than items.

    Raises:
        ValueError: If the table is none of distances, or has not more items than dimensions.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [3.0, 4.0]])
        >>> positions = classical_scaling(torch.cdist(corners, corners))
        >>> torch.allclose(torch.cdist(positions, positions), torch.cdist(corners, corners))
        True
    """
    distances = check_table(table)
    check_count(num_dims=num_dims)
    if num_dims >= len(distances):
        raise ValueError(
            f"classical_scaling: expected fewer dimensions than the {len(distances)} items, got "
            f"num_dims={num_dims}. Try num_dims=2."
        )
    squares = _completed(distances.double()).square()
    centered = squares - squares.mean(0) - squares.mean(1, keepdim=True) + squares.mean()
    values, vectors = torch.linalg.eigh(-centered / 2)  # ascending
    values, vectors = values.flip(0)[:num_dims], vectors.flip(1)[:, :num_dims]
    return (vectors * values.clamp(min=0).sqrt()).to(distances)


def _completed(distances: Tensor) -> Tensor:
    """Distances with the shortest path where one is not known."""
    missing = distances.isnan().fill_diagonal_(False)
    if not missing.any():
        return distances.nan_to_num(0)
    from scipy.sparse.csgraph import shortest_path  # here, because it is slow to import

    edges = distances.nan_to_num(torch.inf).fill_diagonal_(torch.inf)
    paths = torch.as_tensor(shortest_path(edges.cpu().numpy(), directed=False)).to(distances)
    longest = paths[paths.isfinite()].max()
    return distances.nan_to_num(0).where(~missing, paths.clamp(max=longest))
