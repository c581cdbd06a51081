"""What objectives report beside their loss, where compiled code can write it, too."""

import torch
from torch import Tensor

from ppl_models.infer.objectives.objective import Objective


class Reports:
    """The numbers that an objective reports, in tensors of their own.

    A loss that runs as code leaves nothing in Python: `note` is traced with it.

    Arguments:
        objective: What reports them, with its loss.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.tensors: dict[str, Tensor] | None = None  # by name, once the names are known

    def make_room(self) -> None:
        """Takes the names that there are now, before anything is traced."""
        if self.tensors is None:
            found = self.objective.reports.items()
            self.tensors = {name: torch.zeros_like(x.detach()) for name, x in found}

    def note(self) -> bool:
        """Keeps what the last loss came with; returns whether the names are those known."""
        assert self.tensors is not None
        found = self.objective.reports
        if list(found) != list(self.tensors):
            return False
        for name, number in found.items():
            self.tensors[name].copy_(number.detach())
        return True

    def now(self) -> dict[str, Tensor]:
        """What was kept, as it is now."""
        return {name: x.clone() for name, x in (self.tensors or {}).items()}
