"""Many steps of `SVI` in one call: in blocks of compiled code, as far as that is known to be right.

What comes between two steps of `SVI.step` may be anything, and a program may have read it; between
those of a run there is nothing but the run. So its steps may come in blocks, which are compared
with steps of Pyro's, as those of `fit` are with the programs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ppl_models.infer.compiled.graph import Compiled
from ppl_models.infer.compiled.steps.loop import PATIENCE, Kind, Loop, Use
from ppl_models.infer.compiled.steps.step import Feed

NONE = torch.arange(0)  # no rows


class SVIRun(NamedTuple):
    """What a run of `SVI` leaves behind.

    Attributes:
        params: The parameters that it moved, by their names, constrained.
        state: What the optimisers keep, as `PyroOptim.get_state` has it.
        losses: The loss before each step, `(num_steps,)`.
    """

    params: dict[str, Tensor]
    state: dict[str, Any]
    losses: Tensor


class SVIBlocks:
    """Takes steps in blocks.

    Arguments:
        compiled: The loss.
        evaluate: Gives the loss of the tensors among the arguments.
        tensors: These.
        optim: Pyro's optimisers, which have taken a step.
        parameters: What they move.
        step: Takes a step of Pyro's, and returns the loss before it.
    """

    def __init__(
        self,
        compiled: Compiled,
        evaluate: Callable[..., Tensor],
        tensors: tuple[Tensor, ...],
        optim: PyroOptim,
        parameters: Sequence[Tensor],
        step: Callable[[], float],
    ) -> None:
        self.compiled, self.step = compiled, step
        self.own = {p: optim.optim_objs[p] for p in parameters}
        self.joint = _joined(self.own)
        self.loop = Loop([compiled], [self.joint], [parameters], None, {})
        self.evaluate, self.tensors = evaluate, tensors
        self.losses: list[Tensor] = []

    def take(self, num_steps: int) -> None:
        """Takes steps, as many of them in blocks as are right, and no others."""
        found = self.loop.kind("run", lambda _: [Use(self._loss)], Feed(NONE, self.tensors))
        # Twice, as the first call of code is another one.
        if found is not None and self._agrees(found) and self._agrees(found):
            self._take(found, num_steps)
            for group in self.joint.param_groups:  # which ClippedAdam lowers
                for p in group["params"]:
                    self.own[p].param_groups[0]["lr"] = group["lr"]

    def _take(self, kind: Kind, num_steps: int) -> None:
        """Takes steps up to so many, to one that the code cannot take, or to where it was right."""
        patience, done = 1, True
        while done and self.taken < num_steps:
            mark, right = self.loop.snapshot(), len(self.losses)
            for _ in range(patience):
                times = min(num_steps - self.taken, kind.step.length)
                done = times > 0 and self._block(kind, times)
                if not done:
                    break
            if not self._agrees(kind):
                mark.restore()
                del self.losses[right:]
                return
            patience = min(2 * patience, PATIENCE)

    def _block(self, kind: Kind, times: int) -> bool:
        """Takes steps; returns whether it did: where one raises or is not finite, Pyro says it."""
        before = self.loop.snapshot()
        try:
            losses = self._run(kind, times)
        except RuntimeError:  # a matrix without a factor
            losses = torch.full((times,), torch.nan)
        if not losses.isfinite().all():
            before.restore()
            return False
        self.losses.append(losses)
        return True

    def _loss(self, rows: Tensor, *tensors: Tensor) -> Tensor:
        return self.evaluate(*tensors)

    @property
    def taken(self) -> int:
        return sum(map(len, self.losses))

    def _agrees(self, kind: Kind) -> bool:
        """Whether a step by the code is that of Pyro."""
        wrong = self.loop.difference(kind, self._pyros, lambda: [self._run(kind, 1)[0]])
        if wrong:
            self.compiled.give_up(wrong)
        return not wrong

    def _pyros(self) -> list[Tensor]:
        with self._own_rates():
            return [torch.tensor(self.step(), dtype=torch.float64)]

    @contextmanager
    def _own_rates(self) -> Iterator[None]:
        """A context with the learning rates of now in Pyro's optimisers, and those of before."""
        before = [(o.param_groups[0], o.param_groups[0]["lr"]) for o in self.own.values()]
        for group in self.joint.param_groups:
            for p in group["params"]:
                self.own[p].param_groups[0]["lr"] = group["lr"]
        try:
            yield
        finally:
            for group, rate in before:
                group["lr"] = rate

    def _run(self, kind: Kind, times: int) -> Tensor:
        """Takes steps by the code, and returns their losses."""
        groups = self.joint.param_groups
        rates, decays = (
            torch.tensor([group.get(name, 1.0) for group in groups], dtype=torch.float64)
            for name in ("lr", "lrd")
        )
        table = rates * decays ** torch.arange(1, times + 1, dtype=torch.float64)[:, None]
        (losses,) = self.loop.run([(kind, times)], [], [table], None)
        for group, rate in zip(groups, table[-1].tolist(), strict=True):
            group["lr"] = rate
        return losses


def _joined(own: dict[Tensor, torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One optimiser in place of many of a kind, whose states it shares.

    Raises:
        ValueError: If they are of different kinds.
    """
    kinds = {type(optimizer) for optimizer in own.values()}
    if len(kinds) > 1:
        raise ValueError("optimisers are of different kinds")
    groups: list[dict[str, Any]] = []
    for p, optimizer in own.items():
        settings = {n: x for n, x in optimizer.param_groups[0].items() if n != "params"}
        alike = [g for g in groups if {n: x for n, x in g.items() if n != "params"} == settings]
        if not alike:
            groups.append({**settings, "params": []})
        (alike[0] if alike else groups[-1])["params"].append(p)
    make: Any = kinds.pop()
    joint: torch.optim.Optimizer = make(groups)
    for p, optimizer in own.items():
        joint.state[p] = optimizer.state[p]
    return joint
