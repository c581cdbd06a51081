r"""A table of distances as pairs of items, each once, without those that are missing.

Shapes: `n` items, `B` pairs.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-6  # relative to the largest distance


def distance_pairs(table: Any) -> tuple[Tensor, Tensor]:
    """Returns the pairs `i < j` of a table of distances, `(B, 2)`, and their distances, `(B,)`.

    They are what `DistanceEmbedding` takes as rows and what it observes of them.

    Arguments:
        table: Distances, `(n, n)`: a tensor, an array or a data frame, symmetric, with zeros on the
            diagonal. NaN means that a distance is not known; its pair is left out.

    Raises:
        ValueError: If the table is not square, not symmetric, has a negative distance or one of an
            item to itself, or none that is known.

    Example:
        >>> pairs, distances = distance_pairs([[0, 3, 4], [3, 0, torch.nan], [4, torch.nan, 0]])
        >>> pairs.tolist(), distances.tolist()
        ([[0, 1], [0, 2]], [3.0, 4.0])
    """
    distances = check_table(table)
    i, j = torch.triu_indices(len(distances), len(distances), 1)
    known = ~distances[i, j].isnan()
    return torch.stack([i, j], 1)[known], distances[i, j][known]


def check_table(table: Any) -> Tensor:
    """Returns a table of distances as a tensor, after a look at it; NaN where one is not known."""
    distances = _tensor(table)
    n = len(distances)
    if distances.shape != (n, n) or n < 2:
        raise ValueError(
            f"distances: expected a square table of two items or more, got the shape "
            f"{tuple(distances.shape)}. Try scipy.spatial.distance.squareform for a list of pairs."
        )
    _check_entries(distances.isinf(), distances, "finite ones, and NaN where not known", "infinite")
    if not (~distances.isnan()).fill_diagonal_(False).any():
        raise ValueError("distances: expected one that is known or more, got a table without any.")
    _check_entries(distances < 0, distances, "none below zero", "negative")
    own = torch.eye(n, dtype=torch.bool, device=distances.device)
    with_itself = own & ~distances.isnan() & (distances != 0)
    _check_entries(with_itself, distances, "zeros on the diagonal", "of items to themselves")
    gap = (distances - distances.T).abs()
    most = ROUNDING * distances.nan_to_num(0).max()
    one_known = distances.isnan() != distances.T.isnan()
    odd = ((gap > most) | one_known).triu(1)
    _check_entries(odd, distances, "a symmetric table", "other than in the opposite direction")
    return distances


def _tensor(table: Any) -> Tensor:
    if isinstance(table, Tensor):
        return table if table.is_floating_point() else table.to(torch.get_default_dtype())
    values = table.to_numpy() if hasattr(table, "to_numpy") else np.asarray(table, dtype=float)
    return torch.tensor(values.astype(float), dtype=torch.get_default_dtype())


def _check_entries(wrong: Tensor, distances: Tensor, expected: str, got: str) -> None:
    if not wrong.any():
        return
    i, j = wrong.nonzero()[0].tolist()
    raise ValueError(
        f"distances: expected {expected}, got {int(wrong.sum())} {got}, such as "
        f"{distances[i, j].item():g} from {i} to {j} (and {distances[j, i].item():g} from {j} to "
        f"{i}). Try (table + table.T) / 2 where directions differ, table.fill_diagonal_(0), or "
        f"math.sqrt(2 - 2 s) for similarities s of unit vectors."
    )
