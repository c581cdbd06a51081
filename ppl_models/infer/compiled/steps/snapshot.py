"""What steps move, kept, so that a run can go back."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Snapshot:
    """What steps move, as it was at a time.

    Arguments:
        named: The parameters.
        optimizers: What moves them, with all that they keep.
        averages: Averages of parameters.
        buffers: Those of the modules that run.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        optimizers: Sequence[torch.optim.Optimizer],
        averages: Sequence[Tensor],
        buffers: Sequence[Tensor],
    ) -> None:
        live = [*named, *(("average", x) for x in averages), *(("buffer", x) for x in buffers)]
        states = [state for o in optimizers for state in o.state.values()]
        live += [(n, x) for s in states for n, x in s.items() if isinstance(x, Tensor)]
        self.tensors = [(name, x, x.detach().clone()) for name, x in live]
        plain = (bool, int, float)
        self.numbers = [(s, n, x) for s in states for n, x in s.items() if isinstance(x, plain)]
        groups = [group for o in optimizers for group in o.param_groups]
        self.settings = [(g, {n: x for n, x in g.items() if n != "params"}) for g in groups]
        self.rng = torch.get_rng_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Makes all what it was."""
        for _, tensor, before in self.tensors:
            tensor.copy_(before)
        for state, name, number in self.numbers:
            state[name] = number
        for group, settings in self.settings:
            group.update(settings)
        torch.set_rng_state(self.rng)
