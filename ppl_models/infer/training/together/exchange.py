r"""What the processes of a run tell each other in each step, in one sum over all of them.

.. math::
    g = \sum_r \frac{B_r}{B} \, g_r

where :math:`g_r` is the gradient of the loss per row on the :math:`B_r` rows of process `r`: that
on the whole batch, however uneven the parts are. Beside it go the loss, what was reported, which
parameters have a gradient at all, and whether the run is to stop or to be written.
"""

import torch
from torch import Tensor

from ppl_models.processes import ProcessError, Processes

EXACT = (torch.float32, torch.float64)  # types in which a loss and counts keep their digits


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
        self.rooms: dict[str, _Room] = {}

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
            parameters: What is trained along it.
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
        if name not in self.rooms:
            self.rooms[name] = _Room(parameters, len(_SAID) + len(parameters) + len(names))
        room, here = self.rooms[name], fault is None and bool(numbers)

        slopes = [p.grad if here else None for p in parameters]
        said = [fault is not None, self.stop, self.due, *(slope is not None for slope in slopes)]
        values = [numbers[n].detach().double() * weight if here else 0.0 for n in names]
        tail = torch.tensor([*map(float, said), *map(float, values)], dtype=torch.float64)
        room.fill(slopes, weight, tail)
        for buffer in room.buffers.values():
            self.processes.sum_into(buffer)
        found = room.tail.to("cpu", torch.float64, copy=True)

        wrong, stop, due, *rest = found.tolist()
        self.stop, self.due = stop > 0, due > 0
        if wrong:
            raise self._first_error(fault, error)
        for p, slope, count in zip(parameters, room.views, rest, strict=False):
            p.grad = slope if count else None
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


class _Room:
    """Room for the gradients of parameters, those of a type one after the other, and for a tail.

    Arguments:
        parameters: The parameters.
        tail: How many numbers go beside the gradients.
    """

    def __init__(self, parameters: list[Tensor], tail: int) -> None:
        sizes: dict[torch.dtype, int] = {}
        starts = []
        for p in parameters:
            starts.append(sizes.get(p.dtype, 0))
            sizes[p.dtype] = starts[-1] + p.numel()
        carrier = next((kind for kind in EXACT if kind in sizes), torch.float64)
        end = sizes.get(carrier, 0)
        sizes[carrier] = end + tail
        place = parameters[0].device
        self.buffers = {kind: torch.zeros(n, dtype=kind, device=place) for kind, n in sizes.items()}
        self.tail = self.buffers[carrier][end:]
        self.views = [
            _laid_out(self.buffers[p.dtype][start : start + p.numel()], p)
            for p, start in zip(parameters, starts, strict=True)
        ]

    def fill(self, slopes: list[Tensor | None], weight: float, tail: Tensor) -> None:
        """Takes weighted gradients, and what goes beside them."""
        if any(slope is None for slope in slopes):
            for buffer in self.buffers.values():
                buffer.zero_()
        there = [(v, g) for v, g in zip(self.views, slopes, strict=True) if g is not None]
        if there:
            views, found = map(list, zip(*there, strict=True))
            torch._foreach_copy_(views, found)
        for buffer in self.buffers.values():
            buffer.mul_(weight)
        self.tail.copy_(tail)


def _laid_out(part: Tensor, p: Tensor) -> Tensor:
    """A part of a buffer in the order of memory of a parameter, where that is dense."""
    strides = torch.empty_like(p).stride()
    return part.as_strided(p.shape, strides)
