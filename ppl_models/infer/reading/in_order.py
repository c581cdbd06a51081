"""Rows that are read, in their order, in parts of many."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_models.infer.reading.arrays import Mapped, mapped
from ppl_models.infer.reading.arrow import Table, is_table
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.reading.items import batches_of, check_not_split, is_read, length_of

AT_ONCE = 2**16  # rows of a part, at most
ROOM = 2**26  # ... and their bytes
Part = tuple[Tensor, ...]


class Parts(NamedTuple):
    """Rows in parts, which can be gone through once."""

    parts: Iterator[Part]
    size: int  # the number of rows in all


def in_order(data: Any, device: torch.device, taken: Taken) -> Parts | None:
    """Returns rows that are read in parts; None for rows in memory.

    Arguments:
        data: As `fit` takes them.
        device: Where parts go.
        taken: What programs take.

    Raises:
        ValueError: If they are a loader that gives them in another order.
    """
    if (found := mapped(data, taken.modules)) is not None:
        return _of_arrays(found, device)
    if isinstance(data, DataLoader):
        check_not_split(data)
        if not gives_in_order(data):
            raise ValueError(
                "data: expected rows in their order, got a DataLoader that chooses its own. Try "
                "shuffle=False, or the Dataset itself."
            )
        size = length_of(data.dataset)
        return Parts((taken.tensors(values, device) for values in data), size)
    if is_read(data):
        return _of_items(Table(data) if is_table(data) else data, device, taken)
    return None


def gives_in_order(loader: DataLoader) -> bool:
    """Whether a loader gives the rows of its data set in their order."""
    batches = loader.batch_sampler
    order = loader.sampler if batches is None else getattr(batches, "sampler", None)
    names = {type(order).__name__, type(batches).__name__}  # torchdata has its own of both
    return names <= {"SequentialSampler", "BatchSampler", "NoneType"}


def _of_arrays(found: Mapped, device: torch.device) -> Parts:
    def read(rows: Tensor) -> Part:
        first, last = int(rows[0]), int(rows[-1])
        part = tuple(x[first : last + 1].clone().to(device) for x in found.tensors)
        result = part if found.transform is None else found.transform(*part)
        return result if isinstance(result, tuple) else (result,)

    found.expect(in_order=True)
    size = len(found.tensors[0])
    return Parts(map(read, _parts(size, tuple(x[0] for x in found.tensors))), size)


def _of_items(data: Any, device: torch.device, taken: Taken) -> Parts:
    def read(parts: Iterator[Tensor]) -> Iterator[Part]:
        return (taken.tensors(values, device) for _, values in batches_of(data, parts, 0))

    size = length_of(data)
    (row,) = read(iter([torch.zeros(1, dtype=torch.int64)]))
    return Parts(read(_parts(size, row)), size)


def _parts(size: int, row: Part) -> Iterator[Tensor]:
    """The numbers of the rows of each part, as many as there is room for."""
    width = sum(x.numel() * x.element_size() for x in row)
    many = max(1, min(AT_ONCE, ROOM // max(width, 1)))
    return (torch.arange(start, min(start + many, size)) for start in range(0, size, many))
