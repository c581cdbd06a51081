"""Parameters that are moved as one tensor, with all that an optimiser keeps of them.

A small program has many small parameters, and an operation for each would take longer than the
mathematics. Small ones of a kind are therefore copied into one vector for a block of steps, and
back at its end; large ones are moved where they are.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from ppl_models.infer.compiled.steps.updates import Rule

SMALL = 4096  # numbers of a parameter that is packed
WHOLE = 64  # numbers in some whole vectors of a processor
PARAMETER, AVERAGE = "parameter", "average"


class Pack:
    """Parameters of a group of an optimiser, as one tensor for each thing that is kept of them.

    Arguments:
        parameters: The live parameters, of one dtype.
        optimizer: What moves them.
        group: The group of its parameters that they are of.
        rule: How it moves them.
        averages: Their moving averages; none where nothing is averaged.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        optimizer: torch.optim.Optimizer,
        group: dict[str, Any],
        rule: Rule,
        averages: list[Tensor],
    ) -> None:
        self.parameters, self.optimizer = parameters, optimizer
        self.group, self.rule, self.averages = group, rule, averages
        self.names = [PARAMETER, *rule.slots, *([AVERAGE] if averages else [])]
        self.shapes = [p.shape for p in parameters]
        self.sizes = [p.numel() for p in parameters]
        self._flat: list[Tensor] = []
        if not self._is_in_place():
            first = (self.live(name)[0] for name in self.names)
            self._flat = [x.detach().new_empty(sum(self.sizes)) for x in first]
            self._parts = [self.split(x) for x in self._flat]

    def _is_in_place(self) -> bool:
        """Whether it is one tensor, which is moved where it is."""
        return len(self.parameters) == 1 and all(
            self.live(name)[0].is_contiguous() for name in self.names
        )

    def live(self, name: str) -> list[Tensor]:
        """The tensors of a name where the modules, the optimiser and the averages have them."""
        if name == PARAMETER:
            return [p.detach() for p in self.parameters]  # which counts changes as its own
        if name == AVERAGE:
            return self.averages
        return [self.optimizer.state[p][name] for p in self.parameters]

    def split(self, flat: Tensor) -> list[Tensor]:
        """A vector as tensors of the shapes of the parameters."""
        parts = flat.split(self.sizes) if len(self.sizes) > 1 else [flat]
        return [x.view(shape) for x, shape in zip(parts, self.shapes, strict=True)]

    def tensors(self) -> list[Tensor]:
        """The tensors of all names."""
        return self._flat or [self.live(name)[0] for name in self.names]

    def load(self) -> None:
        """Gives them what the live ones hold."""
        if self._flat:
            for parts, name in zip(self._parts, self.names, strict=True):
                torch._foreach_copy_(parts, self.live(name))

    def store(self) -> None:
        """Gives the live ones what the tensors hold."""
        for n, name in enumerate(self.names):
            if self._flat:
                torch._foreach_copy_(self.live(name), self._parts[n])
            else:  # of what code writes in place, torch does not know
                torch.autograd.graph.increment_version(self.live(name))

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype

    def numbers(self, rates: Tensor) -> Tensor:
        """What the rule reads in the next steps, from their learning rates, `(T,)`: `(T, N)`."""
        steps, start = len(rates), self.count if self.rule.counts else None
        # The last few of a tensor are reckoned one by one, and a power then rounds otherwise: a
        # step has the same numbers wherever its block ends.
        rates = torch.nn.functional.pad(rates.double(), (0, -len(rates) % WHOLE))
        counts = torch.arange(1, len(rates) + 1, dtype=torch.float64) + (start or 0.0)
        return torch.stack(self.rule.numbers(rates, counts, self.group), -1)[:steps]

    @property
    def count(self) -> float | None:
        """How many steps were taken; None where that differs between parameters."""
        counts = [self.optimizer.state[p]["step"] for p in self.parameters]
        first = float(counts[0])
        return first if all(float(c) == first for c in counts) else None

    def counted(self, steps: int) -> None:
        """Takes note of steps that were taken."""
        if self.rule.counts:
            for p in self.parameters:  # of ClippedAdam a number, of others a tensor
                self.optimizer.state[p]["step"] += steps


def packed(
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    rules: Sequence[Rule],
    averages: dict[int, Tensor],
) -> list[Pack]:
    """The parameters of an optimiser in packs.

    Arguments:
        parameters: Those that are moved.
        optimizer: What moves them.
        rules: How, for each group.
        averages: Their averages by the id of the parameter.
    """
    moved = {id(p) for p in parameters}
    packs = []
    for group, rule in zip(optimizer.param_groups, rules, strict=True):
        kinds: dict[Any, list[Tensor]] = {}
        for p in group["params"]:
            if id(p) in moved:
                kind = (p.dtype,) if p.numel() < SMALL else (p.dtype, id(p))
                kinds.setdefault(kind, []).append(p)
        for members in kinds.values():
            own = [averages[id(p)] for p in members if id(p) in averages]
            packs.append(Pack(members, optimizer, group, rule, own))
    return packs


def all_tensors(packs: Sequence[Pack]) -> list[Tensor]:
    """All the live tensors of packs, and the counts of steps, which are moved at its end."""
    live = chain.from_iterable(pack.live(name) for pack in packs for name in pack.names)
    states = [pack.optimizer.state[p] for pack in packs for p in pack.parameters]
    counts = [s["step"] for s in states if isinstance(s.get("step"), Tensor)]
    return [*live, *counts]


def overlap(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors share memory with one another, or with others.

    Example:
        >>> x = torch.zeros(4)
        >>> overlap([x[:2]], [x[1:]]), overlap([x[:2], x[2:]], [torch.zeros(1)])
        (True, False)
    """
    owned = sorted(_span(x) for x in tensors if x.numel())
    starts = [start for start, _ in owned]
    last = [(bisect_left(starts, end) - 1, start) for start, end in map(_span, others)]
    return any(first[1] > second[0] for first, second in pairwise(owned)) or any(
        n >= 0 and owned[n][1] > start for n, start in last
    )


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where it begins and ends in memory."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    size = 1 + sum((length - 1) * stride for length, stride in pairs) if tensor.numel() else 0
    return tensor.data_ptr(), tensor.data_ptr() + size * tensor.element_size()
