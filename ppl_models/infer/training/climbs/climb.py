"""Steps of EM one after the other, with leaps, until all restarts have converged."""

import math
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_models.infer.training.climbs.protocols import Climber, HasClimb
from ppl_models.processes import Processes

LEFT = 4  # steps that would be left, of which a leap may save some
SLACK = {torch.float64: 1e-9, torch.float32: 1e-5}  # what rounding may lower, relative to 1 nat


def _of_first(model: Any, found: Tensor, here: Processes) -> Tensor:
    """The objective that the first process has found, on all, which then have its parameters.

    All have found the same but for a last bit, on which what is done next must not depend.
    """
    if here.alone:
        return found
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    found, *values = here.first_of(found, *state)
    for value, of_first in zip(state, values, strict=True):
        value.copy_(of_first)
    return found


class _Steps:
    """Steps by `em_step`, as any module takes them."""

    def __init__(self, model: Any, x: tuple[Any, ...]) -> None:
        self.model, self.x = model, x

    def __call__(self) -> Tensor:
        return self.model.em_step(*self.x)

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def leap(self, factor: float, least: float) -> bool:
        return False  # what may be extrapolated is not known

    def parameters(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state


@torch.no_grad()
def climb(
    model: Any, x: tuple[Any, ...], max_steps: int, tolerance: float, bar: tqdm, here: Processes
) -> tuple[list[float], dict[str, Tensor]]:
    """Steps until all restarts have converged; the objectives of the best, and its parameters.

    The parameters are those of the last objective, which is known only once a step has gone
    through the rows; so the parameters before each step are kept.
    """
    fast = isinstance(model, HasClimb) and model.climbs(*x)
    step: Climber = model.climb(*x) if fast else _Steps(model, x)
    values: list[list[float]] = []  # of each restart
    state = step.state()
    leaps = _Leaps(step, tolerance)
    try:
        while True:
            before, state = state, step.state()
            found = _of_first(model, step(), here)
            value = found.reshape(-1).tolist()  # one read for each step
            if error := _fault(model, value, values):
                state = before
                raise error
            gains = (
                [new - old for new, old in zip(value, values[-1], strict=True)] if values else []
            )
            if any(gain < 0 for gain in gains):  # what rounding took back is not accepted
                falls = torch.tensor([gain < 0 for gain in gains], device=found.device)
                state = _kept(step, falls.view_as(found), before, state)
                value = list(map(max, value, values[-1]))
            values.append(value)
            bar.update()
            if not bar.disable:
                bar.set_postfix(loss=f"{-max(value):.4f}", refresh=False)
            if (gains and max(gains) <= tolerance) or len(values) == max_steps:
                break
            if len(gains) == 1:
                leaps.after(value[0], gains[0])
    except BaseException:  # Ctrl-C as well
        model.load_state_dict(step.parameters(state))
        raise
    best = max(range(len(value)), key=value.__getitem__)
    final = {k: v[best] for k, v in state.items()} if found.ndim == 1 else state
    return [value[best] for value in values], step.parameters(final)


class _Leaps:
    r"""Leaps between steps that gain little less each time, to where they would end.

    Near an optimum what is left to go shrinks by a rate :math:`\rho` in each step, and what is left
    to gain by its square; so the end is :math:`1 / (1 - \rho)` times the step away. Where that
    gains less than the step before, the way goes on as if it had not been tried.

    | Acceleration of the EM Algorithm by Using Quasi-Newton Methods (Jamshidian & Jennrich, 1997)
    | https://doi.org/10.1111/1467-9868.00083
    """

    def __init__(self, step: Climber, tolerance: float) -> None:
        self.step, self.tolerance = step, tolerance
        self.gains: list[float] = []  # of steps since the last leap
        self.wait, self.leapt = 2, False

    def after(self, value: float, gain: float) -> None:
        """Takes note of a step, and leaps where that saves some."""
        if self.leapt:  # it was no step of EM that gained this
            self.leapt = False
            return
        self.gains.append(gain)
        if len(self.gains) < self.wait or not 0 < self.gains[-1] < self.gains[-2]:
            return
        shrinks = self.gains[-1] / self.gains[-2]  # rho squared
        if gain * shrinks**LEFT <= self.tolerance:
            return
        self.gains.clear()
        self.leapt = self.step.leap(1 / (1 - math.sqrt(shrinks)), value + gain)
        self.wait = 2 if self.leapt else min(2 * self.wait, 16)


def _fault(model: Any, value: list[float], values: list[list[float]]) -> Exception | None:
    """What is wrong with the objectives of a step after others, if anything."""
    number, name = len(values), type(model).__name__
    if not all(map(math.isfinite, value)):
        return FloatingPointError(
            f"EM step {number + 1}: the objective of {name} is "
            f"{value if len(value) > 1 else value[0]}. The parameters are those before it. Try "
            f"standardised data."
        )
    slack = SLACK.get(next(model.parameters()).dtype, 1e-2)
    losses = [old - new for new, old in zip(value, values[-1], strict=True)] if values else []
    if any(loss > slack * (1 + abs(new)) for loss, new in zip(losses, value, strict=False)):
        return RuntimeError(
            f"EM step {number} lowered the objective of {name} by {max(losses):.1e} nats per row, "
            f"which no step of EM does: see its em_step. The parameters are those before it."
        )
    return None


def _kept(
    step: Climber, back: Tensor, before: dict[str, Tensor], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state, with that before it in the restarts that go back."""
    if before.keys() != state.keys():
        before, state = step.parameters(before), step.parameters(state)
    return {name: _choose(back, before[name], state[name]) for name in state}


def _choose(back: Tensor, old: Tensor, new: Tensor) -> Tensor:
    back = back.reshape(back.shape + (1,) * (new.ndim - back.ndim)).to(new.device)
    return torch.where(back, old, new)
