"""Arrays of NumPy on disk, of which a batch is read at a time.

A tensor over the mapping of a file takes no memory of the process: its pages are those of the
file, which the system reads when rows are gathered, keeps as long as there is room, and drops.
"""

import mmap
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_models.checks import check_lengths
from ppl_models.infer.programs.tables import as_rows, check_numbers, numbers_of
from ppl_models.transformed import Transformed


class Mapped(NamedTuple):
    """Rows some of which are on disk."""

    tensors: tuple[Tensor, ...]
    transform: Callable[..., Any] | None  # what makes of a batch of them what programs take
    arrays: tuple[Any, ...]  # those on disk

    def expect(self, in_order: bool) -> None:
        """Tells the system how rows will be read, which else reads what follows each of them.

        In a shuffled order that would be thirty times as much as is asked for.
        """
        if hasattr(mmap, "MADV_RANDOM"):
            for array in self.arrays:
                advice = mmap.MADV_NORMAL if in_order else mmap.MADV_RANDOM
                array._mmap.madvise(advice)


def mapped(data: Any, modules: Iterable[Any]) -> Mapped | None:
    """Returns tensors over arrays on disk, where data have one; None where they have none.

    Arguments:
        data: A `numpy.memmap`, a tuple that has one, or a `Transformed` of them.
        modules: Those whose precision batches take.

    Raises:
        TypeError: If an array holds other things than real numbers.
        ValueError: If arrays are empty, or of different lengths.
    """
    if not is_on_disk(data):
        return None
    given = data.tensors if isinstance(data, Transformed) else data
    given = given if isinstance(given, tuple) else (given,)
    like = numbers_of(modules)
    tensors = as_rows(tuple(map(_tensor, given, range(len(given)))), [])
    check_lengths(tensors)
    other = [
        not isinstance(x, Tensor) and t.is_floating_point() and t.dtype != like.dtype
        for x, t in zip(given, tensors, strict=True)
    ]
    cast = partial(_cast, dtype=like.dtype, which=tuple(other)) if any(other) else None
    transform = data.transform if isinstance(data, Transformed) else None
    return Mapped(tensors, _after(cast, transform), tuple(x for x in given if _is_mapped(x)))


def is_on_disk(data: Any) -> bool:
    """Whether there is an array on disk among data."""
    if isinstance(data, Transformed):
        data = data.tensors
    return any(map(_is_mapped, data if isinstance(data, tuple) else (data,)))


def _is_mapped(x: Any) -> bool:
    """Whether it is an array over a file, and not one that was computed from such an array."""
    return isinstance(x, np.memmap) and getattr(x, "_mmap", None) is not None


def _tensor(x: Any, number: int) -> Any:
    """A tensor over the mapping of an array; all else as it is."""
    if not _is_mapped(x):
        return x
    where = f"data[{number}]"
    check_numbers(x, x, where)
    if not x.dtype.isnative or any(stride < 0 for stride in x.strides):
        raise ValueError(
            f"{where}: expected an array on disk in the order of this machine's bytes and of its "
            f"rows, got {x.dtype} with strides {x.strides}. Try to write it anew, by "
            f"numpy.lib.format.open_memmap, as {x.dtype.newbyteorder('=')}."
        )
    with warnings.catch_warnings():  # that it must not be written to, which nothing here does
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(x)


def _cast(*values: Tensor, dtype: torch.dtype, which: tuple[bool, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if far else x for x, far in zip(values, which, strict=True))


def _after(
    first: Callable[..., Any] | None, then: Callable[..., Any] | None
) -> Callable[..., Any] | None:
    """One function after the other, where there are any."""
    if first is None or then is None:
        return first or then
    return lambda *values: then(*first(*values))
