"""From what users have to minibatches on the device.

Tensors stay in memory, on the device, and are batched by index: a `DataLoader` over small rows
costs more than the training. The order of an epoch depends on the seed and its number alone, so
that a run can be resumed in the middle of one.
"""

import itertools
from collections.abc import Callable, Iterator
from itertools import tee
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_models.checks import check_tensors
from ppl_models.infer.programs.tables import as_data, no_data
from ppl_models.infer.reading.arrays import Mapped, mapped
from ppl_models.infer.reading.arrow import Table, is_table
from ppl_models.infer.reading.columns import ANY, Taken
from ppl_models.infer.reading.items import (
    batches_of,
    check_length,
    check_not_split,
    is_read,
    length_of,
)
from ppl_models.infer.reading.position import Position, position
from ppl_models.infer.training.together.as_one import whole_draws
from ppl_models.processes import ALONE, Processes, Share
from ppl_models.prompt.lines import in_a_line
from ppl_models.scoped import get_rng_state, set_rng_state
from ppl_models.transformed import Transformed


class Batch(NamedTuple):
    """Some rows of the data.

    Example:
        >>> batch = Batch((torch.randn(2, 3),), rows=torch.tensor([4, 0]), size=10)
        >>> len(batch.values[0]), batch.rows.tolist(), batch.size  # of all data
        (2, [4, 0], 10)
    """

    values: tuple[Tensor, ...]
    rows: Tensor | None  # which rows, None where that is not known
    size: int  # the number of rows in all
    share: Share | None = None  # where they are in a batch that several processes share
    position: Position | None = None  # where the loader is after it, if it says so

    def __repr__(self) -> str:
        return in_a_line(self)


class Chosen(NamedTuple):
    """Some rows of tensors in memory, to be gathered as a part of the step."""

    tensors: tuple[Tensor, ...]
    rows: Tensor
    size: int
    transform: Callable[..., Any] | None = None
    share: Share | None = None

    def gathered(self, device: torch.device | None = None) -> Batch:
        """Those rows, on a device where they are to be moved."""
        if device is None or device == self.rows.device:
            return self._transformed(self._values(), self.rows)
        values = tuple(x.to(device, non_blocking=True) for x in self._values())
        return self._transformed(values, self.rows.to(device))

    def _values(self) -> tuple[Tensor, ...]:
        whole = len(self.rows) == self.size
        return tuple(x if whole else x.index_select(0, self.rows) for x in self.tensors)

    def _transformed(self, values: tuple[Tensor, ...], rows: Tensor) -> Batch:
        if self.transform is not None:
            with whole_draws(self.share):
                result = self.transform(*values)
            values = result if isinstance(result, tuple) else (result,)
        return Batch(values, rows, self.size, self.share)


class InMemory:
    """Minibatches of tensors by index, shuffled anew each epoch.

    The whole data as one batch keep their order.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        batch_size: int | None,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        self.tensors, self.transform = tensors, transform
        self.size = len(tensors[0])
        self.batch_size = min(batch_size or self.size, self.size)
        self.batches = -(-self.size // self.batch_size)

    def to(self, device: torch.device) -> "InMemory":
        """The same rows on a device."""
        tensors = tuple(x.to(device) for x in self.tensors)
        return InMemory(tensors, self.batch_size, self.transform)

    def epoch(
        self, seed: int, start: int = 0, shuffle: bool = True, processes: Processes = ALONE
    ) -> Iterator[Batch]:
        """Yields the batches of one epoch from number `start` on, or the part that is here."""
        for chosen in self.choices(seed, start, shuffle, processes):
            yield chosen.gathered()

    def choices(
        self, seed: int, start: int = 0, shuffle: bool = True, processes: Processes = ALONE
    ) -> Iterator[Chosen]:
        """Yields the rows of those batches, not yet gathered."""
        device = self.tensors[0].device
        for rows in _split(self.size, self.batch_size, seed, start, shuffle, device):
            own, share = shared(rows, processes)
            yield Chosen(self.tensors, own, self.size, self.transform, share)

    def order(self, seed: int) -> Tensor:
        """The rows of an epoch in their order."""
        return _order(self.size, self.batch_size, seed, True)

    @property
    def recordable(self) -> bool:
        """Whether gathering is the work of torch alone, and not of a function that may change."""
        name = getattr(self.transform, "__name__", "")
        return self.transform is None or getattr(torch, name, None) is self.transform


class OnDisk(InMemory):
    """Minibatches of arrays on disk, by index: what is gathered is read, and moved to a device."""

    def __init__(self, found: Mapped, batch_size: int, device: torch.device | None = None) -> None:
        super().__init__(found.tensors, batch_size, found.transform)
        self.found, self.device = found, device or torch.device("cpu")

    def to(self, device: torch.device) -> "OnDisk":
        """The same rows, whose batches come on a device."""
        return OnDisk(self.found, self.batch_size, device)

    def epoch(
        self, seed: int, start: int = 0, shuffle: bool = True, processes: Processes = ALONE
    ) -> Iterator[Batch]:
        """Yields the batches of one epoch from number `start` on, or the part that is here."""
        for chosen in self.choices(seed, start, shuffle, processes):
            yield chosen.gathered(self.device)

    def choices(
        self, seed: int, start: int = 0, shuffle: bool = True, processes: Processes = ALONE
    ) -> Iterator[Chosen]:
        """Yields the rows of those batches, not yet read."""
        self.found.expect(in_order=not shuffle)
        yield from super().choices(seed, start, shuffle, processes)

    def order(self, seed: int) -> Tensor:
        """The rows of an epoch in their order."""
        self.found.expect(in_order=False)
        return super().order(seed)

    @property
    def recordable(self) -> bool:
        """Whether gathering is the work of the device."""
        return self.device.type == "cpu" and super().recordable


class ByIndex:
    """Minibatches of a `Dataset`, by index."""

    def __init__(
        self, dataset: Dataset, batch_size: int | None, device: torch.device, taken: Taken
    ) -> None:
        self.dataset, self.device, self.taken = dataset, device, taken
        self.size = length_of(dataset)
        self.batch_size = min(batch_size or self.size, self.size)
        self.batches = -(-self.size // self.batch_size)

    def epoch(
        self, seed: int, start: int = 0, shuffle: bool = True, processes: Processes = ALONE
    ) -> Iterator[Batch]:
        """Yields the batches of one epoch from number `start` on, or the part that is here."""
        parts = _split(self.size, self.batch_size, seed, start, shuffle, torch.device("cpu"))
        own, asked = tee((*shared(part, processes), part) for part in parts)
        # Where no row is here, one is read for its shape.
        read = (rows if len(rows) else part[:1] for rows, _, part in asked)
        for (rows, share, _), (there, values) in zip(
            own, batches_of(self.dataset, read, seed), strict=True
        ):
            tensors = self.taken.tensors(values, self.device)
            check_length(tensors, there)
            tensors = tuple(x[: len(rows)] for x in tensors)
            yield Batch(tensors, rows.to(self.device), self.size, share)


class Loaded:
    """Minibatches of a `DataLoader`, in its own order. Which rows they hold is not known."""

    def __init__(self, loader: DataLoader, device: torch.device, taken: Taken) -> None:
        self.loader, self.device, self.taken = loader, device, taken
        self.resumed: tuple[int, Position] | None = None
        check_not_split(loader)
        length_of(loader.dataset)
        self.size = length_of(loader.sampler) if loader.batch_size else length_of(loader.dataset)
        self.batch_size = loader.batch_size or self.size
        self.batches = len(loader)
        if self.batches == 0:
            raise ValueError(
                f"data: expected a batch or more, got none from a DataLoader that drops the last, "
                f"uneven one: {self.size} rows, batch_size={self.batch_size}. "
                f"Try drop_last=False."
            )

    def epoch(
        self, seed: int, start: int = 0, shuffle: bool = True, processes: Processes = ALONE
    ) -> Iterator[Batch]:
        """Yields the batches of one epoch from number `start` on, or the part that is here."""
        if start >= self.batches:
            return
        # The loader draws its order from torch at its first batch: from this epoch's seed.
        state = get_rng_state(self.device)
        torch.manual_seed(seed)
        inner = getattr(self.loader.batch_sampler, "sampler", None)
        for owner in (self.loader, self.loader.sampler, inner):
            generator = getattr(owner, "generator", None)
            if generator is not None:
                generator.manual_seed(seed)
        batches, again = self._begin(start)
        set_rng_state(state, self.device)
        for values in itertools.chain(again, batches):
            read = self.taken.tensors(values, self.device)
            own, share = shared(torch.arange(len(read[0]), device=self.device), processes)
            part = read if share is None else tuple(x[own] for x in read)
            yield Batch(part, None, self.size, share, position(self.loader))

    def resume(self, start: int, found: Position | None) -> None:
        """Goes on from where a loader was after `start` batches of an epoch, if it said so."""
        self.resumed = (start, found) if found is not None and start else None

    def _begin(self, start: int) -> tuple[Iterator[Any], list[Any]]:
        """The batches after so many, and the first of them, which has drawn the order."""
        found, self.resumed = self.resumed, None
        if found is not None and found[0] == start:
            self.loader.load_state_dict(found[1]["state"])  # type: ignore[attr-defined]
            start = 0
        batches = iter(self.loader)
        skipped = [next(batches) for _ in range(start or 1)]
        return batches, [] if start else skipped


Source = InMemory | ByIndex | Loaded


def shared(rows: Tensor, processes: Processes) -> tuple[Tensor, Share | None]:
    """The rows of a batch that this process takes, and where they are in it."""
    if processes.alone:
        return rows, None
    places = torch.arange(len(rows), device=rows.device)[processes.own(len(rows))]
    return rows[places], Share(places, len(rows))


def source(
    data: Any,
    batch_size: int | None,
    device: torch.device | None,
    missing: bool = False,
    taken: Taken = ANY,
) -> Source:
    """Returns the minibatches of tensors, a `Dataset` or a `DataLoader`, after checking them.

    Arguments:
        data: As `fit` takes them.
        batch_size: The rows of a minibatch. Default: all, or what the `DataLoader` gives.
        device: Where the minibatches go. Default: tensors stay, streamed rows come on the CPU.
        missing: Whether NaN stands for what was not observed.
        taken: What programs take: the names of their arguments, and their precision.
    """
    _check_batch_size(batch_size)
    found: InMemory | None = on_disk(data, batch_size, taken)
    if found is None:
        found = in_memory(as_data(data, taken.modules), batch_size, missing)
    if found is None:
        return streamed(data, batch_size, device or torch.device("cpu"), taken)
    return found if device is None else found.to(device)


def on_disk(data: Any, batch_size: int | None, taken: Taken) -> OnDisk | None:
    """Returns the minibatches of arrays on disk; None where there are none, or all is one batch."""
    rows = mapped(data, taken.modules) if batch_size is not None else None
    if rows is None or batch_size is None or batch_size >= len(rows.tensors[0]):
        return None
    return OnDisk(rows, batch_size)


def in_memory(data: Any, batch_size: int | None, missing: bool = False) -> InMemory | None:
    """Returns the minibatches of tensors, where they are; None where the data are none."""
    _check_batch_size(batch_size)
    if isinstance(data, TensorDataset):
        data = data.tensors
    transform = data.transform if isinstance(data, Transformed) else None
    tensors = data.tensors if isinstance(data, Transformed) else data
    if isinstance(tensors, Tensor):
        tensors = (tensors,)
    if isinstance(tensors, tuple) and tensors and all(isinstance(x, Tensor) for x in tensors):
        check_tensors(tensors, missing)
        return InMemory(tensors, batch_size, transform)
    return None


def streamed(
    data: Any, batch_size: int | None, device: torch.device, taken: Taken = ANY
) -> ByIndex | Loaded:
    """Returns the minibatches of a `Dataset` or a `DataLoader`, moved to a device one by one."""
    if isinstance(data, DataLoader):
        if batch_size is not None:
            raise ValueError(
                f"batch_size: the DataLoader has one of its own ({data.batch_size}); "
                f"got {batch_size}. Try batch_size=None."
            )
        return Loaded(data, device, taken)
    if is_table(data):
        data = Table(data)
    if is_read(data):
        return ByIndex(data, batch_size, device, taken)
    raise TypeError(
        f"data: expected a tensor, a tuple of tensors (x, y), a Dataset or a DataLoader, "
        f"{no_data(data, taken.names)}"
    )


def in_memory_rows(source: Source) -> tuple[Tensor, ...] | None:
    """All the rows as programs get them, where they are in memory."""
    if type(source) is InMemory and source.transform is None:
        return source.tensors
    return None


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"batch_size: expected a positive number of rows, got {batch_size!r}. "
            f"Try 64, or None for the whole data as one batch."
        )


def _split(
    size: int, batch_size: int, seed: int, start: int, shuffle: bool, device: torch.device
) -> Iterator[Tensor]:
    """The rows of each batch of an epoch from number `start` on."""
    starts = range(start * batch_size, size, batch_size)
    if not shuffle or batch_size >= size:  # without a list of all of them
        stops = (min(first + batch_size, size) for first in starts)
        pairs = zip(starts, stops, strict=True)
        return (torch.arange(first, stop, device=device) for first, stop in pairs)
    order = _order(size, batch_size, seed, True).to(device)
    return (order[first : first + batch_size] for first in starts)


def _order(size: int, batch_size: int, seed: int, shuffle: bool) -> Tensor:
    """The order of the rows in an epoch. The whole data as one batch keep theirs."""
    if shuffle and batch_size < size:
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return torch.arange(size)
