"""What a step has changed, of the programs or of code, and how far apart two of them may be."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.infer.compiled.steps.packs import Pack
from ppl_models.infer.compiled.traced.evaluations import finite


class Move(NamedTuple):
    """A number that a step has changed."""

    name: str
    after: Tensor
    before: Tensor
    tolerance: float
    of: Tensor | None = None  # the live tensor

    def is_near(self, other: "Move") -> bool:
        if not self.after.is_floating_point():
            return torch.equal(self.after, other.after)
        found = finite(self.after, other.after)
        if found is None:
            return False
        after, before = found[0], self.before.where(self.before.isfinite(), 0)
        size, rounding = _norm(after - before), 8 * torch.finfo(after.dtype).eps
        allowed = self.tolerance * size + rounding * (_norm(after) + _norm(before))
        return _norm(after - found[1]) <= allowed

    def allows(self, strays: Tensor, other: "Move") -> bool:
        """Whether so much may be the rounding of two steps, for each number by itself."""
        size = torch.maximum((self.after - self.before).abs(), (other.after - self.before).abs())
        rounding = 8 * torch.finfo(self.after.dtype).eps
        allowed = self.tolerance * size + rounding * (self.after.abs() + self.before.abs())
        return bool((strays.nan_to_num().abs() <= allowed.nan_to_num()).all())

    def distance(self, other: "Move") -> float:
        found = finite(_number(self.after), _number(other.after))
        return math.inf if found is None else _norm(found[0] - found[1])

    def change(self, other: "Move") -> float:
        """How far a step from other parameters changes it otherwise."""
        first, second = (_number(x.after) - _number(x.before) for x in (self, other))
        return _norm(first - second)


Derived = dict[int, Callable[[Move, dict[int, Move]], Tensor]]  # of a move, and of all by their id


def by_moments(
    pack: Pack, p: Tensor, numbers: Sequence[Tensor], move: Move, step: dict[int, Move]
) -> Tensor:
    """Where the rule of an optimiser says that a parameter goes."""
    state = pack.optimizer.state[p]
    kept = {name: step[id(state[name])].after for name in pack.rule.slots}
    return pack.rule.moved(move.before, kept, numbers, pack.group)  # type: ignore[misc]


def by_average(p: Tensor, weight: float, move: Move, step: dict[int, Move]) -> Tensor:
    return move.before.lerp(step[id(p)].after.to(move.before.dtype), weight)


def _number(x: Tensor) -> Tensor:
    """Counts, and what is true or false, as numbers that can be subtracted."""
    return x if x.is_floating_point() else x.double()


def _norm(x: Tensor) -> float:
    """Its norm, summed in double precision."""
    return torch.linalg.vector_norm(x, dtype=torch.float64).item()
