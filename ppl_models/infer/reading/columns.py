"""What a batch is made of, tensors, arrays or columns by name, as programs take them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_models.infer.programs.tables import as_rows, check_numbers, numbers_of


class Taken(NamedTuple):
    """What programs take.

    Attributes:
        names: Their arguments in order, as columns are called.
        modules: Those whose precision arrays take.
    """

    names: Sequence[str] = ("x", "y")
    modules: Sequence[Any] = ()

    def tensors(self, values: Any, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors of a batch, in the order of the arguments.

        Raises:
            TypeError: If it holds anything but numbers.
            ValueError: If columns are not those of the arguments.
        """
        if isinstance(values, Mapping):
            values = self._in_order(values)
        values = tuple(values) if isinstance(values, (tuple, list)) else (values,)
        if any(isinstance(x, np.ndarray) for x in values):
            like = numbers_of(self.modules)
            values = tuple(_array(x, n, like) for n, x in enumerate(values))
        for value in values:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"data: expected batches of tensors or tuples of them, got {type(value)}. "
                    f"Try a Dataset whose items are tensors, such as TensorDataset(x)."
                )
        return tuple(value.to(device, non_blocking=True) for value in values)

    def _in_order(self, columns: Mapping[str, Any]) -> tuple[Any, ...]:
        """Columns as arguments: by their names."""
        extra = [name for name in columns if name not in self.names]
        found = [name for name in self.names if name in columns]
        missing = [name for name in self.names[: len(found)] if name not in columns]
        if not (extra or missing) and found:
            return tuple(columns[name] for name in found)
        known = ", ".join(map(repr, self.names)) or "none by name"
        wrong = f"{_listed(extra)} no argument of it" if extra else f"{_listed(missing)} missing"
        raise ValueError(
            f"data: expected columns that are called as the arguments of the program ({known}), "
            f"got {', '.join(map(repr, columns))}: {wrong}. Try "
            f"data.rename_column(old, new), data.select_columns([...]), or rows as a tuple (x, y)."
        )


ANY = Taken()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) + (" is" if len(names) == 1 else " are")


def _array(x: Any, number: int, like: Tensor) -> Any:
    """A tensor of an array in a batch: of numbers in the precision of the modules."""
    if not isinstance(x, np.ndarray):
        return x
    if isinstance(x, np.ma.MaskedArray) or not x.dtype.isnative:
        return as_rows((x,), [])[0].to(like.dtype)
    check_numbers(x, x, f"data[{number}]")
    rows = torch.from_numpy(np.require(x, requirements=["C", "W"]))
    return rows.to(like.dtype) if rows.is_floating_point() else rows
