"""Tables of Arrow on disk, as `datasets` of Hugging Face keeps them: a batch as arrays.

They are known by what they can do, so that no package for them is imported.
"""

from typing import Any

import numpy as np
from torch.utils.data import Dataset


def is_table(data: Any) -> bool:
    """Whether data are such a data set.

    Raises:
        TypeError: If they are several of them, or a stream without a length.
    """
    if isinstance(data, type) or not hasattr(data, "with_format"):
        return False
    if isinstance(data, dict):
        raise TypeError(
            f"data: expected one data set, got several: {', '.join(map(repr, data))}. "
            f"Try data[{next(iter(data), 'train')!r}]."
        )
    if not hasattr(data, "__len__"):
        raise TypeError(
            f"data: {type(data).__name__} has no length, and a loss per row needs the number of "
            f"rows. Try load_dataset(..., streaming=False), which reads from the disk as well."
        )
    return hasattr(data, "column_names")


class Table(Dataset):
    """A data set of Hugging Face, of which rows are read together.

    A format that it was given (`set_format`, `set_transform`) is kept. Without one, columns of
    numbers, or of lists of as many numbers each, come as arrays straight from the file.
    """

    def __init__(self, table: Any) -> None:
        self.plain = (getattr(table, "format", None) or {}).get("type") is None
        self.table = table.with_format("arrow") if self.plain else table

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        together = rows[-1] - rows[0] == len(rows) - 1 and rows == list(
            range(rows[0], rows[-1] + 1)
        )
        found = self.table[slice(rows[0], rows[-1] + 1) if together else rows]
        if not self.plain:
            return found
        return {name: _array(found[name], name) for name in found.column_names}


def _array(column: Any, name: str) -> Any:
    """The numbers of a column, `(B, *)`."""
    values = column.combine_chunks()
    shape = [len(values)]
    values = getattr(values, "storage", values)  # of a column of arrays
    while "list" in str(values.type).partition("<")[0]:
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if values.null_count or len(lengths) != 1:
            got = f"{values.null_count} without any" if values.null_count else _lengths(lengths)
            raise ValueError(
                f"data: expected lists of as many numbers each in the column {name!r}, got "
                f"{got}. Try data.filter(...), or data.map(...) to rows of one shape."
            )
        shape.append(int(lengths[0]))
        values = values.flatten()
    if values.null_count and not str(values.type).startswith(("float", "double")):
        raise ValueError(
            f"data: the column {name!r} of {values.type} has {values.null_count} empty entries in "
            f"a batch. Try data.filter(lambda row: row[{name!r}] is not None), or floating-point "
            f"numbers and a model with missing='marginalise'."
        )
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _lengths(lengths: np.ndarray) -> str:
    return f"some of {lengths[0]:g} and some of {lengths[-1]:g}"
