"""The rows of a `Dataset` that are read for a batch: one by one, or all together.

A data set whose `__getitems__` gives a batch as it is, a tensor or an array, a tuple of them, or
columns by name, is not asked for its rows one by one, which takes longer than most steps.
"""

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from torch.utils.data.distributed import DistributedSampler

from ppl_models.checks import listed
from ppl_models.infer.reading.arrow import is_table


def is_read(data: Any) -> bool:
    """Whether data are a `Dataset` of any kind, or a loader, and not tensors in one."""
    known = isinstance(data, (Dataset, DataLoader)) and not isinstance(data, TensorDataset)
    return known or is_table(data) or hasattr(data, "__getitems__")


def length_of(dataset: Any) -> int:
    """The rows of a `Dataset`, one or more."""
    try:
        rows = len(dataset)
    except TypeError:
        raise TypeError(
            f"data: {type(dataset).__name__} has no length, and a loss per row needs the number "
            f"of rows. Try a Dataset with __len__ and __getitem__."
        ) from None
    if rows == 0:
        raise ValueError("data: expected at least one row, got an empty Dataset.")
    return rows


def check_not_split(loader: DataLoader) -> None:
    """Raises where a loader has only the rows of one process: `fit` splits rows by itself."""
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if isinstance(sampler, DistributedSampler):
            raise ValueError(
                "data: expected a DataLoader of all rows, got one with a DistributedSampler, which "
                "gives each process other rows. Under torchrun the rows of a batch are split over "
                "the processes here. Try the DataLoader with shuffle=True in its place, or the "
                "Dataset with a batch_size."
            )


def batches_of(
    dataset: Dataset, parts: Iterable[Tensor], seed: int
) -> Iterator[tuple[Tensor, Any]]:
    """Yields each part with its rows, which are put together where they came one by one."""
    asked, parts = tee(parts)  # no more than one ahead of the other
    loader = DataLoader(
        dataset,
        batch_sampler=(part.tolist() for part in asked),
        collate_fn=_as_they_came,
        generator=torch.Generator().manual_seed(seed),
    )
    for rows, items in zip(parts, loader, strict=True):
        yield rows, _together(items, rows)


def _as_they_came(items: Any) -> Any:
    return items


def _together(items: Any, rows: Tensor) -> Any:
    """Rows that came one by one as a batch; a batch as it is."""
    if not isinstance(items, list):
        return items
    try:
        return default_collate(items)
    except RuntimeError:
        if (found := _unlike(items)) is None:
            raise
        n, here, first = found
        raise ValueError(
            f"data: expected rows of one shape, got {first} in row {int(rows[0])} and {here} in "
            f"row {int(rows[n])}. Try a Dataset that pads or crops its rows."
        ) from None


def _unlike(items: list[Any]) -> tuple[int, Any, Any] | None:
    """The first item of another shape than the first one, and both shapes."""
    shapes = [_shape(item) for item in items]
    return next(((n, s, shapes[0]) for n, s in enumerate(shapes) if s != shapes[0]), None)


def _shape(item: Any) -> Any:
    if isinstance(item, (tuple, list)):
        return tuple(map(_shape, item))
    if isinstance(item, dict):
        return {name: _shape(x) for name, x in item.items()}
    return tuple(getattr(item, "shape", ()))


def check_length(values: tuple[Tensor, ...], rows: Tensor) -> None:
    """Raises where a batch does not hold the rows that were asked for."""
    lengths = [len(x) if x.ndim else 0 for x in values]
    if set(lengths) != {len(rows)}:
        raise ValueError(
            f"data: asked for {len(rows)} rows ({listed(rows.tolist())}), the Dataset gave "
            f"tensors with {', '.join(map(str, lengths))}. Expected __getitems__(rows) to give a "
            f"list of so many items, or a batch: a tensor, a tuple of them, or columns by name."
        )
