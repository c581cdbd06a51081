r"""What the processes of a run tell each other in each step, in one sum over all of them.

.. math::
    g = \sum_r \frac{B_r}{B} \, g_r

where :math:`g_r` is the gradient of the loss per row on the :math:`B_r` rows of process `r`: that
on the whole batch, however uneven the parts are. Beside it go the loss, what was reported, which
parameters have a gradient at all, and whether the run is to stop or to be written.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.processes import ProcessError, Processes

EXACT = (torch.float32, torch.float64)  # types in which a loss and counts keep their digits
ALIGNED = 16  # numbers after which a gradient may begin, where a processor reads them at once


class Exchange:
    """The sums of the steps of a run.

    Arguments:
        processes: Those that take the steps.

    Attributes:
        stop: Whether a process wants the run to end: what this one wants before a step, and
            whether any does after it.
        due: Whether the run is to be written after a step, alike.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.stop = self.due = False
        self.names: dict[str, list[str]] = {}  # of the numbers of each objective
        self.rows: dict[str, _Rows] = {}

    def average(
        self,
        name: str,
        parameters: list[Tensor],
        numbers: dict[str, Tensor],
        weight: float,
        error: Exception | None,
    ) -> dict[str, Tensor]:
        """Gives parameters the gradients on the whole batch, and returns the numbers on it.

        Arguments:
            name: That of the objective.
            parameters: What is trained along it; its gradients are those of the loss on the rows
                that are here, times `weight`.
            numbers: The loss and what is reported, means over the rows that are here; none where
                no row is.
            weight: The share of the rows of the batch that are here.
            error: What went wrong here, if anything.

        Raises:
            FloatingPointError: On all processes, where a number is not finite on one.
            ProcessError: Where something else went wrong on another one.
            Exception: What went wrong here.
        """
        fault = None if error is None else [type(error).__name__, str(error)]
        if numbers and self.names.setdefault(name, list(numbers)) != list(numbers):
            fault = fault or [_ERROR, f"{name}: the names of what it reports are not always alike"]
        if any(p.grad is not None and p.grad.layout != torch.strided for p in parameters):
            fault = fault or [_ERROR, f"{name}: a gradient is sparse. Try layers with sparse=False"]
        names = self.names[name]
        if name not in self.rows:
            place = next((x.device for x in (*parameters, *numbers.values())), torch.device("cpu"))
            self.rows[name] = _Rows(parameters, len(_SAID) + len(parameters) + len(names), place)
        rows, here = self.rows[name], fault is None and bool(numbers)

        slopes = [p.grad if here else None for p in parameters]
        said = [fault is not None, self.stop, self.due, *(slope is not None for slope in slopes)]
        values = [weight * float(numbers[n]) if here else 0.0 for n in names]
        tail = torch.tensor([*map(float, said), *values], dtype=torch.float64)
        found = rows.summed(self.processes, slopes, tail)

        wrong, stop, due, *rest = found.tolist()
        self.stop, self.due = stop > 0, due > 0
        if wrong:
            raise self._first_error(fault, error)
        for p, view, count in zip(parameters, rows.views, rest, strict=False):
            p.grad = view if count else None
        return dict(zip(names, found[len(said) :], strict=True))

    def _first_error(self, fault: list[str] | None, error: Exception | None) -> Exception:
        """What to raise where something went wrong, here or elsewhere."""
        faults = self.processes.gather_values(fault)
        rank = next(n for n, one in enumerate(faults) if one is not None)
        kind, text = faults[rank]
        if kind == FloatingPointError.__name__:
            return FloatingPointError(f"on process {rank} of {len(faults)}, {text}")
        if error is not None:
            return error
        return ProcessError(f"a step failed on process {rank} of {len(faults)}: {kind}: {text}")


_SAID = ("fault", "stop", "due")
_ERROR = "RuntimeError"


class _Part(NamedTuple):
    """Where the gradient of a parameter lies in a row, in the order of memory of that."""

    kind: torch.dtype
    start: int
    shape: torch.Size
    stride: tuple[int, ...]

    def of(self, row: Tensor) -> Tensor:
        return row.as_strided(self.shape, self.stride, row.storage_offset() + self.start)


class _Rows:
    """The gradients of parameters, in a row for each type, and a tail at the end of one.

    Arguments:
        parameters: The parameters.
        tail: How many numbers go beside the gradients.
        place: Where they are.
    """

    def __init__(self, parameters: list[Tensor], tail: int, place: torch.device) -> None:
        lengths: dict[torch.dtype, int] = {}
        self.parts: list[_Part] = []
        for p in parameters:
            start = lengths.get(p.dtype, 0)
            dense = torch.empty_like(p).stride()
            self.parts.append(_Part(p.dtype, start, p.shape, dense))
            lengths[p.dtype] = start + -(-p.numel() // ALIGNED) * ALIGNED
        self.carrier = next((kind for kind in EXACT if kind in lengths), torch.float64)
        end = lengths.get(self.carrier, 0)
        lengths[self.carrier] = end + tail
        self.sums = {n: torch.zeros(size, dtype=n, device=place) for n, size in lengths.items()}
        self.views = [part.of(self.sums[part.kind]) for part in self.parts]
        self.tail = slice(end, end + tail)

    def summed(self, processes: Processes, slopes: list[Tensor | None], tail: Tensor) -> Tensor:
        """Sums gradients over processes into `views`, and returns the sum of the tail."""
        for kind, into in self.sums.items():
            processes.sum_written(partial(self._write, kind, slopes, tail), into)
        return self.sums[self.carrier][self.tail].to("cpu", torch.float64, copy=True)

    def _write(
        self, kind: torch.dtype, slopes: list[Tensor | None], tail: Tensor, row: Tensor
    ) -> None:
        """Writes the gradients of a type, and the tail where it belongs, into a row."""
        views, found = [], []
        for part, slope in zip(self.parts, slopes, strict=True):
            if part.kind != kind:
                continue
            view = part.of(row)
            if slope is None:
                view.zero_()
            else:
                views.append(view)
                found.append(slope)
        if found:
            torch._foreach_copy_(views, found)
        if kind == self.carrier:
            row[self.tail].copy_(tail)
