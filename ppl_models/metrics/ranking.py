r"""How many of the items that a user goes on to pick lead a ranking of all.

.. math::
    \mathrm{recall@}k &= \frac{\#\{\text{held out among the first } k\}}{\min(k, H)} \\
    \mathrm{NDCG@}k &= \sum_{r \le k} \frac{[\text{rank } r \text{ held out}]}{\log_2(r + 1)}
    \Big/ \sum_{r \le \min(k, H)} \frac{1}{\log_2(r + 1)}

for a user with `H` items held out. Both are 1 where all of these lead; a ranking at random has a
recall of `k` over the number of items. Items known of a user must not be ranked: give them a score
of minus infinity.

Shapes: `U` users, `I` items.

References:
    | Variational Autoencoders for Collaborative Filtering (Liang et al., 2018), whose definitions
    | these are, https://arxiv.org/abs/1802.05814
"""

import torch
from torch import Tensor

from ppl_models.checks import check_count


def recall_at(k: int, scores: Tensor, held_out: Tensor) -> Tensor:
    """Returns the recall among the first `k` items, for each user, `(U,)`.

    Arguments:
        k: How many items are looked at.
        scores: What the model thinks of items, `(U, I)`; minus infinity for known ones.
        held_out: Whether a user has picked them, `(U, I)`: ones and zeros, or truth values.

    Raises:
        ValueError: If shapes differ, a score is NaN, or a user has no item held out.

    Example:
        >>> recall_at(2, torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 1]]))
        tensor([0.5000])
    """
    hits, picked = _hits("recall_at", k, scores, held_out)
    return hits.sum(1) / picked.clamp(max=hits.shape[1])


def ndcg_at(k: int, scores: Tensor, held_out: Tensor) -> Tensor:
    """Returns the normalised discounted gain of the first `k` items, for each user, `(U,)`.

    Arguments and errors are those of `recall_at`.

    Example:
        >>> ndcg_at(2, torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 1]]))
        tensor([0.6131])
    """
    hits, picked = _hits("ndcg_at", k, scores, held_out)
    gains = 1 / torch.arange(2, hits.shape[1] + 2, device=hits.device).to(hits).log2()
    best = gains.cumsum(0)[picked.clamp(max=len(gains)).long() - 1]
    return (hits * gains).sum(1) / best


def _hits(where: str, k: int, scores: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each of the first `k` items is held out, (U, k), and how many are in all, (U,)."""
    check_count(k=k)
    if scores.ndim != 2 or scores.shape != held_out.shape:
        raise ValueError(
            f"{where}: expected scores and held_out of the same shape (U, I), got "
            f"{tuple(scores.shape)} and {tuple(held_out.shape)}."
        )
    if scores.isnan().any():
        raise ValueError(f"{where}: expected scores, got NaN. Try -torch.inf for known items.")
    held_out = held_out.to(scores)
    picked = held_out.sum(1)
    if not (picked > 0).all():
        raise ValueError(
            f"{where}: {int((picked == 0).sum())} of {len(picked)} users have no item held out. "
            f"Try leaving them out: scores[held_out.any(1)]."
        )
    first = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return held_out.gather(1, first), picked
