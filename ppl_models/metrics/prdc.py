r"""Precision, recall, density and coverage: fidelity and diversity of samples, apart.

With balls :math:`B(x_i)` around each real row, whose radius is the distance to its `k`-th nearest
other real row, and likewise :math:`B(y_j)` around generated rows:

.. math::
    \text{precision} &= \frac{1}{M} \sum_j 1[y_j \in \cup_i B(x_i)], &
    \text{recall} &= \frac{1}{N} \sum_i 1[x_i \in \cup_j B(y_j)] \\
    \text{density} &= \frac{1}{k M} \sum_j \sum_i 1[y_j \in B(x_i)], &
    \text{coverage} &= \frac{1}{N} \sum_i 1[\exists j: y_j \in B(x_i)]

Shapes: `N` real rows, `M` generated rows, `D` features.

References:
    | Improved Precision and Recall Metric for Assessing Generative Models
    | (Kynkäänniemi et al., 2019), https://arxiv.org/abs/1904.06991
    | Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020)
    | https://arxiv.org/abs/2002.09797
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.metrics.rows import check_pair
from ppl_models.prompt.lines import in_words


@dataclass(frozen=True)
class PRDC:
    """Four numbers about generated rows beside real ones.

    Attributes:
        precision: The share of generated rows among the real ones, 0 to 1.
        recall: The share of real rows among the generated ones, 0 to 1.
        density: How many balls of real rows hold a generated row, over `k`: 1 on average where
            both come from one distribution.
        coverage: The share of real rows with a generated row nearby, 0 to 1: about
            `1 - 2 ** -k` where both have as many rows and come from one distribution.
        k: The neighbours that make a radius.

    Example:
        >>> print(PRDC(precision=0.9, recall=0.6, density=1.1, coverage=0.7, k=5))
        precision 0.9000, recall 0.6000, density 1.1000, coverage 0.7000 (k = 5 neighbours)
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int

    __repr__ = in_words

    def __str__(self) -> str:
        return (
            f"precision {self.precision:.4f}, recall {self.recall:.4f}, density "
            f"{self.density:.4f}, coverage {self.coverage:.4f} (k = {self.k} neighbours)"
        )


@torch.no_grad()
def prdc(real: Tensor, generated: Tensor, k: int = 5, chunk: int = 1000) -> PRDC:
    """Returns precision, recall, density and coverage of generated rows.

    Arguments:
        real: Rows of data, or their features, `(N, D)`.
        generated: Rows of a model, `(M, D)`.
        k: The neighbours that make a radius.
        chunk: How many rows are compared with all others at once: distances take
            `chunk * max(N, M)` numbers.

    Raises:
        TypeError: If they are no tensors of floating-point numbers.
        ValueError: If there are not more than `k` rows, or the rows differ in shape.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> result = prdc(torch.randn(1000, 2), torch.randn(1000, 2))
        >>> abs(result.density - 1) < 0.1, abs(result.coverage - (1 - 2**-5)) < 0.03
        (True, True)
    """
    check_count(k=k, chunk=chunk)
    x, y = check_pair("prdc", k + 1, real=real, generated=generated)
    center = x.mean(0)  # distances by products lose digits far from 0
    x, y = x - center, y - center
    # Copies of a row lie in each other's balls, also where more than k of them make a point of it.
    x_radius, y_radius = (  # squared, (N,) and (M,)
        torch.maximum(_radii(rows, k, chunk), _rounding(rows)) for rows in (x, y)
    )

    inside = torch.zeros(len(y), dtype=torch.int64, device=x.device)  # balls of x around each y
    recalled, covered = [], []
    for rows, radius in zip(x.split(chunk), x_radius.split(chunk), strict=True):
        distance = _squared(rows, y)  # (C, M)
        near = distance < radius[:, None]
        inside += near.sum(0)
        covered.append(near.any(1))
        recalled.append((distance < y_radius).any(1))
    return PRDC(
        precision=(inside > 0).double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=inside.double().mean().item() / k,
        coverage=torch.cat(covered).double().mean().item(),
        k=k,
    )


def _radii(x: Tensor, k: int, chunk: int) -> Tensor:
    """The squared distance from each row to its `k`-th nearest other row."""
    radii = []
    for start in range(0, len(x), chunk):
        distance = _squared(x[start : start + chunk], x)  # (C, N)
        distance.diagonal(start).fill_(torch.inf)  # a row is no neighbour of itself
        radii.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _rounding(x: Tensor) -> Tensor:
    """More than the squared distance of a row to a copy of it comes out as, and next to nothing."""
    return (1e-13 * x.square().sum(1)).clamp(min=torch.finfo(x.dtype).tiny)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_(min=0)
