"""Rows that are no tensors yet: arrays of NumPy, and data frames of whoever makes them.

Floating-point numbers take the precision of the model, and integers stay what they are, as do
truth values. What holds anything else is refused by its columns. Frames are known by what they can
do, so that no package for them is imported.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_models.transformed import Transformed


def as_rows(data: tuple[Any, ...], modules: Iterable[Any]) -> tuple[Any, ...]:
    """Returns data with tensors for arrays and data frames, where the modules are.

    Arguments:
        data: What programs take, one after the other. What is neither stays as it is.
        modules: Those whose precision and device are taken; without any, torch's default.

    Raises:
        TypeError: If an array or a frame holds other things than real numbers, or hides entries.

    Example:
        >>> as_rows((np.array([[1.0, 2.0]]), np.array([3])), [])
        (tensor([[1., 2.]]), tensor([3]))
    """
    if not any(map(_is_table, data)):
        return data
    like = numbers_of(modules)
    return tuple(_tensor(x, f"data[{n}]", like) if _is_table(x) else x for n, x in enumerate(data))


def numbers_of(modules: Iterable[Any]) -> Tensor:
    """Numbers in the precision of modules and where they are; in torch's without any."""
    found = (module for module in modules if isinstance(module, nn.Module))
    owned = (x for module in found for x in [*module.parameters(), *module.buffers()])
    return next(filter(torch.is_floating_point, owned), torch.zeros(()))


def as_data(data: Any, modules: Iterable[Any]) -> Any:
    """Returns what `fit` takes with tensors for arrays and data frames, alone, in tuples, or both.

    A `Dataset` or a `DataLoader` stays as it is, and so does what is no data.
    """
    if isinstance(data, Transformed):
        return Transformed(*as_rows(data.tensors, modules), transform=data.transform)
    if isinstance(data, tuple):
        return as_rows(data, modules)
    return as_rows((data,), modules)[0]


def no_data(data: Any, names: Sequence[str] = ()) -> str:
    """What is wrong with data that `fit` does not take, and what to try instead.

    Arguments:
        data: They, after `as_data`.
        names: The arguments of the program.

    Example:
        >>> no_data((torch.zeros(3), None))
        'got a tuple whose item 1 is None. Try leaving it out.'
    """
    got, culprit = type(data).__name__, data
    if isinstance(data, tuple):
        wrong = (n for n, x in enumerate(data) if not isinstance(x, Tensor))
        if (place := next(wrong, None)) is None:
            return "got tuple without an item. Try torch.as_tensor(data)."
        culprit = data[place]
        got = f"a tuple whose item {place} is {_kind(culprit)}"
    whole = f"the tuple ({', '.join(names or ('x', 'y'))}), in the order of the program's arguments"
    hint = "torch.as_tensor(data)" if data is None else _instead(culprit, whole)
    return f"got {got}. Try {hint}."


def no_rows(x: Any, names: Sequence[str] = ()) -> str:
    """The same of one of several arguments, such as those of `log_evidence(model, guide, *data)`.

    Example:
        >>> no_rows([torch.zeros(3), torch.zeros(3)], ["x", "y"])
        "got list. Try its tensors one by one, x, y, in the order of the program's arguments."
    """
    listed = ", ".join(names or ("x", "y"))
    each = f"its tensors one by one, {listed}, in the order of the program's arguments"
    return f"got {_kind(x)}. Try {_instead(x, each)}."


def _kind(x: Any) -> str:
    return "None" if x is None else type(x).__name__


def _instead(x: Any, several: str) -> str:
    """What to give in the place of something that is no tensor."""
    if x is None:
        return "leaving it out"
    if isinstance(x, Mapping) or (isinstance(x, Sequence) and any(map(_has_shape, x))):
        return several
    return "torch.as_tensor(x)"


def _has_shape(x: Any) -> bool:
    return x is None or hasattr(x, "shape")


def _is_table(x: Any) -> bool:
    return isinstance(x, np.ndarray) or (not isinstance(x, type) and hasattr(x, "to_numpy"))


def _tensor(x: Any, where: str, like: Tensor) -> Tensor:
    """A copy of an array or a data frame."""
    array = np.asarray(x) if isinstance(x, np.ndarray) else np.asarray(x.to_numpy())
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{where}: expected an array without a mask, got a masked one, whose hidden entries "
            f"would count. Try x.filled(np.nan), and a model with missing='marginalise'."
        )
    if array.dtype.kind == "O" and _are_floats(x):  # numbers of a frame, with its own missing ones
        array = np.asarray(x.to_numpy(dtype=np.float64, na_value=np.nan))
    check_numbers(x, array, where)
    if array.dtype.kind == "f":
        return torch.tensor(array.astype(np.float64), dtype=like.dtype, device=like.device)
    native = array.astype(array.dtype.newbyteorder("="))
    return torch.tensor(native, device=like.device)


def check_numbers(x: Any, array: np.ndarray, where: str) -> None:
    """Raises unless the array of a table holds real numbers."""
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{where}: expected real numbers, got {type(x).__name__} with {_contents(x, array)}. "
            f"Try x[[names]].astype(float) for columns of numbers, numbers in the place of words "
            f"(pandas.get_dummies), and data=(x, y) for columns of integers beside others."
        )


def _are_floats(x: Any) -> bool:
    """Whether all columns of a frame are of floating-point numbers that it keeps by itself."""
    kinds = getattr(x, "dtypes", None)
    kinds = kinds if isinstance(kinds, Iterable) else [kinds]
    return all(getattr(kind, "kind", "O") == "f" for kind in kinds)


def _contents(x: Any, array: np.ndarray) -> str:
    """Which columns of a frame hold what, or the type of an array."""
    columns, kinds = getattr(x, "columns", None), getattr(x, "dtypes", None)
    if columns is None or kinds is None:
        return f"entries of type {array.dtype}"
    found = [f"{name!r} of {kind}" for name, kind in zip(columns, kinds, strict=True)]
    return f"the columns {', '.join(found[:10])}" + (", ..." if len(found) > 10 else "")
