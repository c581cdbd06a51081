r"""k-means with k-means++ seeding, for several restarts at once: where mixtures start from.

.. math:: \min_{c, l} \sum_n w_n \lVert x_n - c_{l_n} \rVert^2

Each new seed is the best of a few rows drawn with probability proportional to their weight and to
the squared distance to the nearest seed so far.

Shapes: `R` restarts, `K` clusters, `N` rows, `D` features.

References:
    | k-means++: The Advantages of Careful Seeding (Arthur & Vassilvitskii, 2007)
    | https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    | Scalable k-Means Clustering via Lightweight Coresets (Bachem et al., 2018)
    | https://doi.org/10.1145/3219819.3219973
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
    return lloyd(x, seeds(x, num_clusters, restarts, weight), max_steps, weight)


def lloyd(x: Tensor, centers: Tensor, max_steps: int = 100, weight: Tensor | None = None) -> Tensor:
    """Returns the cluster of each row, (R, N), after steps from centers, (R, K, D).

    Rows that lie about zero keep most digits.
    """
    bordered = torch.nn.functional.pad(x, (0, 1), value=1.0)  # [x, 1], (N, D + 1)
    counted = bordered if weight is None else bordered * weight[:, None]
    distances = _comparable(bordered, centers)
    members = _members(distances)
    for _ in range(max_steps):
        means, counts = (members @ counted).split([x.shape[1], 1], 2)  # (R, K, D), (R, K, 1)
        centers = torch.where(counts > 0, means / counts, centers)
        distances = _comparable(bordered, centers)
        previous, members = members, _members(distances)
        if torch.equal(previous, members):
            break
    return distances.argmin(1)


def _comparable(bordered: Tensor, centers: Tensor) -> Tensor:
    """The squared distances of rows [x, 1] to centers, but for what all have alike, (R, K, N)."""
    linear = torch.cat([-2 * centers, centers.square().sum(2, keepdim=True)], 2)
    return linear @ bordered.mT


def _members(distances: Tensor) -> Tensor:
    """1 for the nearest center of a row (for each, where there are two), else 0, (R, K, N)."""
    return (distances == distances.amin(1, keepdim=True)).to(distances.dtype)


def seeds(x: Tensor, num_clusters: int, restarts: int, weight: Tensor | None) -> Tensor:
    """The rows that k-means++ chooses, (R, K, D)."""
    trials = 2 + int(math.log(num_clusters))
    first = torch.arange(0, restarts * trials, trials, device=x.device)  # of each, (R,)
    if weight is None:
        rows = torch.randint(len(x), (restarts, 1), device=x.device)[:, 0]
    else:
        rows = torch.multinomial(weight.expand(restarts, -1), 1)[:, 0]
    chosen = [x[rows]]  # (R, D) each
    nearest = _distances(chosen[0], x)  # (R, N)
    for k in range(1, num_clusters):
        chances = nearest if weight is None else nearest * weight
        if not chances.sum(1).amin().item() > 0:
            raise ValueError(
                f"kmeans: expected at least {num_clusters} distinct rows for {num_clusters} "
                f"clusters, got {k}. Try fewer components, or leaving duplicate rows out."
            )
        rows = torch.multinomial(chances, trials, replacement=True).flatten()  # (R T,)
        distances = _distances(x[rows], x).view(restarts, trials, -1)
        distances = distances.minimum(nearest[:, None])  # (R, T, N)
        best = (distances.sum(2) if weight is None else distances @ weight).argmin(1)  # (R,)
        best += first
        chosen.append(x[rows[best]])
        nearest = distances.flatten(0, 1)[best]
    return torch.stack(chosen, 1)


def draw(chances: Tensor, number: int) -> Tensor:
    """Draws with replacement by chances that are summed up, `(*, N)`: which, `(*, number)`.

    None whose chance is zero is drawn, and there may be any number of them.
    """
    size = (*chances.shape[:-1], number)
    level = torch.rand(size, dtype=chances.dtype, device=chances.device) * chances[..., -1:]
    return torch.searchsorted(chances, level, right=True).clamp_(max=chances.shape[-1] - 1)


def _distances(centers: Tensor, x: Tensor) -> Tensor:
    """Squared distances of rows to centers, (C, N), exact enough for duplicates to be at zero."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(centers, x, compute_mode=exact).square_()


def coreset(distance: Tensor, number: int, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns which rows stand for all of them, drawn with replacement, and how much each counts.

    Chances grow with the squared distance from the mean, so that clusters of few rows are there as
    well.

    Arguments:
        distance: The squared distance of each row from the mean, `(N,)`.
        number: How many to draw.
        weight: How many times each row counts, `(N,)`.

    Example:
        >>> x = torch.cat([torch.zeros(999), torch.full((1,), 9.0)])
        >>> rows, weight = coreset(x.square(), 100, None)
        >>> (x[rows] > 0).sum() > 25, (x[rows] * weight).mean() < 0.02
        (tensor(True), tensor(True))
    """
    every = distance if weight is None else distance * weight
    rows = len(distance) if weight is None else weight.sum()
    favour = 1 + distance * (rows / every.sum())  # (N,)
    chances = (favour if weight is None else favour * weight).cumsum(0)
    chosen = draw(chances, number)
    found = favour[chosen].reciprocal()
    return chosen, found / found.mean()
