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
        chosen = getattr(table, "_indices", None) is not None  # rows are not where they seem to be
        self.columns: dict[str, _Column] | None = None
        if self.plain and not chosen and hasattr(table, "data"):
            names = table.column_names
            self.columns = {name: _Column(name, table.data.column(name)) for name in names}

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        together = rows[-1] - rows[0] == len(rows) - 1 and rows == list(
            range(rows[0], rows[-1] + 1)
        )
        if self.columns is not None:
            try:
                return {
                    name: column.between(rows[0], rows[-1] + 1)
                    if together
                    else column.gathered(rows)
                    for name, column in self.columns.items()
                }
            except _CopiedError:
                self.columns = None
        found = self.table[slice(rows[0], rows[-1] + 1) if together else rows]
        if not self.plain:
            return found
        return {name: _array(found[name].combine_chunks(), name) for name in found.column_names}


class _CopiedError(Exception):
    """Numbers are not in the file as they are in an array, as those of bits are."""


class _Column:
    """A column on disk in chunks, whose rows are where they are in the file.

    Arrow would make a table of each row, and one of all of these.
    """

    def __init__(self, name: str, column: Any) -> None:
        self.name, self.chunks = name, column.chunks
        self.starts = np.cumsum([0, *map(len, self.chunks)])
        self.views: dict[int, np.ndarray] = {}

    def gathered(self, rows: list[int]) -> np.ndarray:
        """Some rows, `(B, *)`."""
        chunks = np.searchsorted(self.starts, rows, side="right") - 1
        places = (np.asarray(rows) - self.starts[chunks]).tolist()
        views = self._seen(set(chunks.tolist()))
        first = views[int(chunks[0])]
        found = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for n, (chunk, place) in enumerate(zip(chunks.tolist(), places, strict=True)):
            found[n] = views[chunk][place]
        return found

    def between(self, first: int, stop: int) -> np.ndarray:
        """Rows that follow each other, `(B, *)`."""
        begin, end = np.searchsorted(self.starts, (first, stop - 1), side="right") - 1
        chunks = [n for n in range(begin, end + 1) if len(self.chunks[n])]
        views, starts = self._seen(set(chunks)), self.starts
        return np.concatenate(
            [views[n][max(0, first - starts[n]) : stop - starts[n]] for n in chunks]
        )

    def _seen(self, chunks: set[int]) -> dict[int, np.ndarray]:
        """The chunks that were read, these among them."""
        for chunk in chunks - self.views.keys():
            self.views[chunk] = self._view(chunk)
        return self.views

    def _view(self, chunk: int) -> np.ndarray:
        view = _array(self.chunks[chunk], self.name, copied=False)
        known = next(iter(self.views.values()), view)
        if view.shape[1:] != known.shape[1:]:
            raise ValueError(
                f"data: expected lists of as many numbers each in the column {self.name!r}, got "
                f"some of {view.shape[1:]} and some of {known.shape[1:]}. Try data.filter(...), "
                f"or data.map(...) to rows of one shape."
            )
        return view


def _array(values: Any, name: str, copied: bool = True) -> Any:
    """The numbers of a part of a column, `(B, *)`, as they are in the file unless copied."""
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
    try:
        return values.to_numpy(zero_copy_only=not copied).reshape(shape)
    except ValueError:
        raise _CopiedError from None


def _lengths(lengths: np.ndarray) -> str:
    return f"some of {lengths[0]:g} and some of {lengths[-1]:g}"
