r"""Weighted rows: how many times each row counts.

.. math:: \sum_n w_n \log p(x_n)

A row with weight 2 is that row twice, one with weight 0 is left out. A constant factor of all
weights changes nothing but how many rows there seem to be, so that it is divided out.

Shapes: `N` rows in all, `B` rows of a batch.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from ppl_models.checks import check_no_array
from ppl_models.processes import Part


def check_sample_weight(weight: Tensor, num_rows: int | None, where: str) -> None:
    """Raises a ValueError unless there is a weight for each row, none of them negative.

    Example:
        >>> check_sample_weight(Tensor([1.0, 0.0, 2.0]), num_rows=3, where="model")
    """
    if weight.ndim != 1 or num_rows not in (None, len(weight)):
        raise ValueError(
            f"{where}: sample_weight: expected one number for each row, with shape "
            f"({'N' if num_rows is None else num_rows},), got {tuple(weight.shape)}. "
            f"Try sample_weight=None, where all rows count alike."
        )
    bad = ~((weight >= 0) & weight.isfinite())
    if bad.any() or not (weight > 0).any():
        found = f"such as {weight[bad][0].item():g}" if bad.any() else "all of them zero"
        raise ValueError(
            f"{where}: sample_weight: expected finite numbers, 0 or more, and one above 0, got "
            f"{int(bad.sum()) or len(weight)} of {len(weight)} others, {found}. "
            f"Try 0 for a row that is to be left out."
        )


def weighted_batches(
    x: Tensor | Iterable[Tensor], weight: Tensor | None, where: str
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields batches of rows, each with its weights, `(B,)`, or None where all rows count alike.

    Rows with weight 0 are left out. Weights are in float64, and their mean is 1.

    Arguments:
        x: All the rows, or batches of them, or a `Part` of either.
        weight: The weights of all rows, `(N,)`, in the order in which these come.
        where: The name of the model, for errors.

    Example:
        >>> x, weight = Tensor([[5.0], [6.0], [7.0]]), Tensor([1.0, 0.0, 3.0])
        >>> [(rows.shape, own) for rows, own in weighted_batches(x, weight, "model")]
        [(torch.Size([2, 1]), tensor([0.5000, 1.5000], dtype=torch.float64))]
    """
    check_no_array(x, where)
    if weight is None:
        yield from ((batch, None) for batch in ((x,) if isinstance(x, Tensor) else x))
        return
    check_sample_weight(weight, len(x) if isinstance(x, Tensor) else None, where)
    scaled = _with_mean_one(weight)
    start = 0
    for batch, places in _with_places(x):
        own = scaled[places].to(batch.device)
        start = places.stop
        if len(own) < len(batch):
            break
        if not (own > 0).all():
            batch, own = batch[own > 0], own[own > 0]
        if len(batch):
            yield batch, own
    if start != len(weight):
        raise ValueError(
            f"{where}: sample_weight: expected one number for each row, got {len(weight)} for "
            f"{start}{' rows' if start < len(weight) else ' rows or more'}. Try the weights of all "
            f"batches, one after the other."
        )


def _with_places(x: Tensor | Iterable[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    """Batches of rows, and which of all rows in a line they are."""
    if isinstance(x, Part):
        yield from x.with_places()
        return
    start = 0
    for batch in (x,) if isinstance(x, Tensor) else x:
        yield batch, slice(start, start + len(batch))
        start += len(batch)


def weight_of(rows: Tensor, weight: Tensor | None) -> float | Tensor:
    """How many rows these count as.

    Example:
        >>> rows = Tensor([[5.0], [6.0]])
        >>> weight_of(rows, None), weight_of(rows, Tensor([1.0, 3.0]))
        (2, tensor(4.))
    """
    return len(rows) if weight is None else weight.sum()


def _with_mean_one(weight: Tensor) -> Tensor:
    weight = weight.double()
    weight = weight / weight.max()  # first, lest a sum is infinite
    return weight * (int((weight > 0).sum()) / weight.sum())
