r"""Ratings as rows: pairs of a user and an item, `(N, 2)`, and what each was given, `(N,)`.

Users and items are whole numbers from 0 on. A pair is rated once: a second time would count twice,
as if it were news.
"""

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F


def check_pairs(x: Tensor, num_users: int, num_items: int, where: str) -> None:
    """Raises unless `x` holds pairs of a known user and a known item.

    Raises:
        TypeError: If they are no whole numbers.
        ValueError: If the shape is not `(B, 2)`, or a user or an item is unknown.

    Example:
        >>> check_pairs(torch.tensor([[0, 3], [2, 1]]), num_users=3, num_items=4, where="model")
    """
    if not isinstance(x, Tensor) or x.is_floating_point() or x.dtype == torch.bool:
        kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{where}: expected pairs of a user and an item, as whole numbers, got {kind}. It is a "
            f"model of ratings y given pairs x: model(x) samples y, model(x, y) scores it. Try "
            f"torch.stack([users, items], 1).long()."
        )
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(
            f"{where}: expected pairs of a user and an item, with shape (B, 2), got "
            f"{tuple(x.shape)}. Try torch.stack([users, items], 1)."
        )
    if x.device.type == "cpu" and get_proxy_mode() is None and len(x):
        for column, (kind, count) in enumerate((("user", num_users), ("item", num_items))):
            _check_known(x[:, column], kind, count, where)


def _check_known(ids: Tensor, kind: str, count: int, where: str) -> None:
    """Raises a ValueError unless all are from 0 to `count - 1`."""
    low, high = ids.aminmax()
    if low < 0 or high >= count:
        unknown = ids[(ids < 0) | (ids >= count)].unique()
        raise ValueError(
            f"{where}: expected {kind}s from 0 to {count - 1}, got {len(unknown)} unknown, such as "
            f"{int(unknown[-1])}. Try num_{kind}s={int(high) + 1}, ids.unique(return_inverse="
            f"True)[1], which numbers them from 0 on, or guide.for_new_users(num_users)."
        )


def check_once(x: Tensor, where: str) -> None:
    """Raises a ValueError where a pair of a user and an item comes twice.

    Example:
        >>> check_once(torch.tensor([[0, 3], [2, 1]]), where="model")
    """
    found, counts = torch.unique(x, dim=0, return_counts=True)
    if len(found) < len(x):
        user, item = found[counts.argmax()].tolist()
        raise ValueError(
            f"{where}: expected one rating for each pair of a user and an item, got "
            f"{int((counts > 1).sum())} pairs twice or more, such as user {user} and item {item}, "
            f"{int(counts.max())} times. Try the last one, or their mean."
        )


def check_ratings(y: Tensor | None, num_rows: int, where: str) -> None:
    """Raises unless `y` is None or holds one number for each pair."""
    if y is None:
        return
    if not isinstance(y, Tensor) or not y.is_floating_point():
        kind = f"a tensor of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(
            f"{where}: expected a tensor of floating-point ratings, got {kind}. Try y.float()."
        )
    if y.shape != (num_rows,):
        raise ValueError(
            f"{where}: expected one rating for each pair, with shape ({num_rows},), got "
            f"{tuple(y.shape)}. Try y.flatten()."
        )


def total(
    table: Tensor, which: Tensor, owners: Tensor, num_owners: int, weight: Tensor | None = None
) -> Tensor:
    """Sums rows `table[which]`, `(N, *)`, by who owns each: `(num_owners, *)`.

    Arguments:
        table: The rows.
        which: Their numbers, `(N,)`.
        owners: Whose each is, `(N,)`.
        num_owners: The number of owners; those of nothing have zeros.
        weight: How many times each counts, `(N,)`. Default: once.

    Example:
        >>> table, which = torch.tensor([[1.0], [10.0]]), torch.tensor([0, 1, 1])
        >>> total(table, which, owners=torch.tensor([0, 2, 2]), num_owners=3)
        tensor([[ 1.],
                [ 0.],
                [20.]])
    """
    order = owners.argsort(stable=True)
    counts = torch.bincount(owners, minlength=num_owners)
    starts = counts.cumsum(0) - counts
    sums = F.embedding_bag(
        which[order],
        table.reshape(len(table), -1),
        starts,
        mode="sum",
        per_sample_weights=None if weight is None else weight[order],
    )
    return sums.reshape(num_owners, *table.shape[1:])
