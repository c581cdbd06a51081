r"""Rows that processes share: each has a part of them, and sums over parts are added.

.. math:: \sum_n s(x_n) = \sum_p \sum_{n \in p} s(x_n)

What sums over rows is called with all of them, and exchanges nothing, or with a `Part`, and then
all processes call it together. So nothing is exchanged by surprise.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from ppl_models.processes.group import ALONE, Processes


class Part:
    """The rows that this process has, of batches that are shared out.

    Goes through them again and again.

    Arguments:
        batches: The rows of each batch that are here, and how many it has on all processes.
        processes: Those that have the others: `processes.own` of each batch.

    Example:
        >>> import torch
        >>> x, here = torch.arange(5.0), Processes(rank=1, count=2)
        >>> part = Part([(x[here.own(5)], 5)], here)
        >>> list(part), processes_of(part), processes_of(x)
        ([tensor([1., 3.])], Processes(rank=1, count=2), Processes(rank=0, count=1))
    """

    def __init__(self, batches: Iterable[tuple[Tensor, int]], processes: Processes) -> None:
        self.batches, self.processes = batches, processes

    def __iter__(self) -> Iterator[Tensor]:
        for rows, _ in self.batches:
            yield rows

    def with_places(self) -> Iterator[tuple[Tensor, slice]]:
        """The same, and which of all rows in a line they are."""
        start = 0
        for rows, size in self.batches:
            own = self.processes.own(size)
            yield rows, slice(start + own.start, start + size, own.step)
            start += size

    def through(self, function: Callable[[Iterator[Tensor]], Iterator[Tensor]]) -> "Part":
        """The same rows once more, each batch as a function of all of them yields it."""
        batches, again = itertools.tee(self.batches)
        rows = function(rows for rows, _ in batches)
        return Part(zip(rows, (size for _, size in again), strict=False), self.processes)

    @property
    def in_memory(self) -> bool:
        """Whether the rows are one tensor."""
        return isinstance(self.batches, list) and len(self.batches) == 1


def processes_of(x: Any) -> Processes:
    """The processes that have the other rows: this one alone, unless rows are a `Part`."""
    return x.processes if isinstance(x, Part) else ALONE


def by_parts(step: Callable[..., Any]) -> Callable[..., Any]:
    """Says of a method that sums over rows that it takes a `Part`, and adds over processes.

    One that does not say so is given all rows on each process. A subclass that writes the method
    anew says it anew.

    Example:
        >>> import torch
        >>> class Mean:
        ...     @by_parts
        ...     def em_step(self, x):
        ...         here = processes_of(x)
        ...         with here.all_or_none("Mean"):  # an error on one is one on all
        ...             batches = [x] if isinstance(x, torch.Tensor) else list(x)
        ...             total = sum(batch.sum() for batch in batches)
        ...             rows = sum(len(batch) for batch in batches)
        ...         total, rows = here.totals(total, rows)
        ...         return total / rows
        >>> Mean().em_step(torch.tensor([1.0, 3.0])), takes_parts(Mean().em_step)
        (tensor(2.), True)
    """
    vars(step)["by_parts"] = True
    return step


def takes_parts(step: Callable[..., Any]) -> bool:
    """Whether a method says that it takes a `Part`."""
    return getattr(step, "by_parts", False) is True
