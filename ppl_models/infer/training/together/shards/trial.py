"""Whether a sharded objective is the objective: its loss and its gradient, on a few rows."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ppl_models.infer.training.together.shards.networks import Networks
from ppl_models.infer.training.together.trial import ROWS, SINGLE, TOLERANCE, Numbers, evenly
from ppl_models.processes import Processes

if TYPE_CHECKING:
    from ppl_models.infer.training.together.shards.shards import Shards

NOISE = 1e-2  # of the tolerance, beside the largest gradient


class SameAsWhole:
    """The trial of an objective, before and after its networks are sharded.

    Arguments:
        name: That of the objective.
        modules: The modules of its programs.
        numbers: Its loss on some of the first rows of a batch, by their places, and how many these
            are of.
        rows: How many rows there are.
        processes: Those that hold the shards.
        device: Where they are.
    """

    def __init__(
        self,
        name: str,
        modules: list[nn.Module],
        numbers: Numbers,
        rows: int,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.name, self.modules, self.numbers = name, modules, numbers
        self.rows, self.processes = min(rows, ROWS * processes.count), processes
        self.device, self.every = device, torch.arange(self.rows, device=device)
        self.expected, self.close = 0.0, SINGLE

    def whole(self) -> Tensor:
        """The loss of all rows, not sharded."""
        loss = self.numbers(self.every, self.rows)[self.name]
        self.expected = loss.item()
        self.close = TOLERANCE.get(loss.dtype, SINGLE)
        return loss

    def slopes(self, networks: Networks) -> dict[int, Tensor | None]:
        """What each process will have of the gradient, one unit at a time."""
        found: dict[int, Tensor | None] = {}
        width, rank = self.processes.count, self.processes.rank
        for unit in (unit for units in networks.units for unit in units):
            parameters = [p for p in unit.parameters() if id(p) not in found and p.requires_grad]
            if not parameters:
                continue
            slopes = torch.autograd.grad(
                networks.loss, parameters, retain_graph=True, allow_unused=True
            )
            for p, slope in zip(parameters, slopes, strict=True):
                parts = None if slope is None else slope.split(-(-len(slope) // width))
                empty = None if slope is None else slope[:0].clone()
                own = parts[rank].clone() if parts and rank < len(parts) else empty
                found[id(p)] = own
        return found

    def check(self, shards: "Shards", slopes: dict[int, Tensor | None]) -> None:
        said: str | None = None
        own = self.every[self.processes.own(self.rows)]
        try:
            with evenly(self.modules, self.device):
                loss = self.numbers(own, self.rows)[self.name] * (len(own) / self.rows)
                torch.autograd.backward(loss)  # as a step will
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        self._refuse(said)
        found = self.processes.total(loss.detach().double()).item()
        if not abs(found - self.expected) <= self.close * (1 + abs(self.expected)):
            said = f"the loss of {self.rows} rows was {self.expected:.6g}, and is {found:.6g}"
        self._refuse(said or self._unlike(shards, slopes))
        shards.forget_slopes()

    def _unlike(self, shards: "Shards", slopes: dict[int, Tensor | None]) -> str | None:
        shards.take_slopes()
        expected = [slopes.get(id(part.whole.parameter)) for part in shards.parts]
        size = max((x.norm().item() for x in expected if x is not None), default=0.0)
        size = max(self.processes.gather_values(size))
        for part, slope in zip(shards.parts, expected, strict=True):
            found, none = part.here.grad, torch.zeros_like(part.here)
            a, b = (none if x is None else x for x in (slope, found))
            apart = (a - b).norm().item()
            if not apart <= self.close * (a.norm().item() + NOISE * size):
                return f"the gradient of {part.whole.name} differs by {apart:.3g}"
        return None

    def _refuse(self, said: str | None) -> None:
        texts = self.processes.gather_values(said)
        if text := next(filter(None, texts), None):
            raise ValueError(
                f"shard: {self.name}: a sharded network is not what it was: {text}. Expected one "
                f"whose parameters are used in calls of its forward alone. Try shard=False."
            )
