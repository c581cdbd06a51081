r"""k-means with k-means++ seeding, for several restarts at once: where mixtures start from.

.. math:: \min_{c, l} \sum_n w_n \lVert x_n - c_{l_n} \rVert^2

Each new seed is the best of a few rows drawn with probability proportional to their weight and to
the squared distance to the nearest seed so far.

Shapes: `R` restarts, `K` clusters, `N` rows, `D` features.

References:
    | k-means++: The Advantages of Careful Seeding (Arthur & Vassilvitskii, 2007)
    | https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
"""

import math

import torch
from torch import Tensor


@torch.no_grad()
def kmeans(
    x: Tensor,
    num_clusters: int,
    restarts: int = 1,
    max_steps: int = 100,
    weight: Tensor | None = None,
) -> Tensor:
    """Returns the cluster of each row, from several seedings, with shape `(R, N)`.

    Arguments:
        x: Finite rows, with shape `(N, D)`.
        num_clusters: The number of clusters, `K`.
        restarts: The number of independent seedings, `R`, run at once.
        max_steps: The most steps of Lloyd's algorithm.
        weight: How many times each row counts, `(N,)`, more than 0. Default: all once.

    Raises:
        ValueError: If there are fewer distinct rows than clusters.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> labels = kmeans(x, num_clusters=2)
        >>> (labels[0, 0] == labels[0, 1]).item(), (labels[0, 0] == labels[0, 2]).item()
        (True, False)
    """
    x = x - x.mean(0)
    centers = _seeds(x, num_clusters, restarts, weight)  # (R, K, D)
    labels = _distances(x, centers).argmin(1)  # (R, N)
    for _ in range(max_steps):
        members = torch.nn.functional.one_hot(labels, num_clusters).to(x.dtype).mT  # (R, K, N)
        members = members if weight is None else members * weight
        counts = members.sum(2, keepdim=True)
        centers = torch.where(counts > 0, members @ x / counts.where(counts > 0, 1), centers)
        previous, labels = labels, _distances(x, centers).argmin(1)
        if torch.equal(previous, labels):
            break
    return labels


def _distances(x: Tensor, centers: Tensor) -> Tensor:
    """The squared distances of the rows to the centers, (R, K, N), up to rounding."""
    cross = centers @ x.mT  # (R, K, N)
    return ((x**2).sum(1) + (centers**2).sum(2, keepdim=True) - 2 * cross).clamp_(min=0)


def _seeds(x: Tensor, num_clusters: int, restarts: int, weight: Tensor | None) -> Tensor:
    """The rows that k-means++ chooses, (R, K, D)."""
    trials = 2 + int(math.log(num_clusters))
    if weight is None:
        chosen = torch.randint(len(x), (restarts, 1), device=x.device)
        weight = x.new_ones(())
    else:
        chosen = torch.multinomial(weight.expand(restarts, -1), 1)
    for k in range(num_clusters):
        if k == 0:
            seeds = x[chosen]  # (R, 1, D)
            nearest = (x - seeds).square().sum(2)  # exact, so that duplicates are at zero; (R, N)
            continue
        if not (nearest.sum(1) > 0).all():
            raise ValueError(
                f"kmeans: expected at least {num_clusters} distinct rows for {num_clusters} "
                f"clusters, got {k}. Try fewer components, or leaving duplicate rows out."
            )
        rows = torch.multinomial(nearest * weight, trials, replacement=True)  # (R, T)
        candidates = x[rows]  # (R, T, D)
        distances = torch.stack([(x - c[:, None]).square().sum(2) for c in candidates.unbind(1)], 1)
        distances = torch.minimum(distances, nearest[:, None])  # (R, T, N)
        best = (distances * weight).sum(2).argmin(1)  # (R,)
        pick = torch.arange(restarts, device=x.device)
        seeds = torch.cat([seeds, candidates[pick, best][:, None]], 1)
        nearest = distances[pick, best]
    return seeds
