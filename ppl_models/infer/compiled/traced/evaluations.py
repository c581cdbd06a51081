"""Two evaluations of a loss, and whether they give the same numbers.

A graph is compared with its program by all that an evaluation gives: the loss, its gradient, and
what buffers and tensors hold afterwards, under the same random numbers. They may differ by the
rounding of their precision, or by what the last digits of the parameters make of a number.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ppl_models.infer.compiled.watch import Finder, Watch
from ppl_models.scoped import (
    get_host_rng_state,
    get_rng_state,
    set_host_rng_state,
    set_rng_state,
)

SMALL = 2**24  # numbers in a tensor that a program holds, and may change while it is looked at
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative, with parameters of that kind
HALVES = (torch.bfloat16, torch.float16)  # what autocast runs in
HALF = 3e-2  # relative, where some of it runs in half precision
NOISE = 30  # times what the last digits of the parameters make of a number
UNSTEADY = (
    "two runs of the program with the same random numbers of torch differ in the {}: it draws or "
    "counts outside of torch, and what it counts has gone on with these"
)
DRAWN = "state of torch's generator afterwards"

Numbers = list[tuple[str, Tensor | None]]  # by names


class Trainable(Protocol):
    """What is compiled: a part of `Objective`."""

    name: str
    eager_because: str | None

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]: ...

    def modules(self) -> dict[str, nn.Module]: ...


class Evaluations:
    """Evaluations of an objective's loss that leave all as it was.

    Arguments:
        objective: What is descended.
        stored: The names of parameters in Pyro's store that it reads, besides those that its
            programs have found there. Names may come and go.
    """

    def __init__(self, objective: Trainable, stored: Collection[str] = ()) -> None:
        self.objective, self.stored = objective, stored
        self.draws_on_host = False  # whether a run moved the generators of Python or NumPy
        self.halved = False  # whether some of it runs in half precision

    def difference(
        self,
        evaluate: Callable[..., Tensor],
        run: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
    ) -> str | None:
        """What differs between a graph and the eager loss, with the same random numbers."""
        ours, others = (self.numbers(loss, inputs) for loss in (evaluate, run))
        noise = partial(self._rounding, evaluate, inputs)
        return _far(ours, others, self.tolerance(ours), noise)

    def tolerance(self, numbers: Numbers) -> float:
        kinds = {x.dtype for _, x in numbers if x is not None and x.is_floating_point()}
        return HALF if self.halved else max(TOLERANCE.get(kind, HALF) for kind in kinds)

    def unsteady(self, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> str | None:
        """What differs between two runs of the program with the same random numbers of torch."""
        first, second = (self.numbers(evaluate, inputs) for _ in range(2))
        for (name, a), (_, b) in zip(first, second, strict=True):
            if a is not None and b is not None and not _is_repeated(a, b):
                return UNSTEADY.format(name)
        return None

    def numbers(self, loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Numbers:
        """All that a loss gives: itself, its gradient, and what is held, afterwards."""
        parameters = self.parameters()
        with self.untouched(inputs):
            value = loss(*inputs)
            slopes = torch.autograd.grad(value, parameters, allow_unused=True)
            held = self.held()
        return [("loss", value.detach()), *(("gradient", slope) for slope in slopes), *held]

    def held(self) -> Numbers:
        """What is held, besides parameters, as it is now."""
        found = self.found()
        small = [x for x in found.tensors if x.numel() <= SMALL]
        named = [*(("buffers", b) for b in found.buffers())]
        named += [("tensor that it holds", x) for x in small]
        drawn = [(DRAWN, torch.get_rng_state())]  # as many numbers are to be drawn
        return [*((name, x.detach().clone()) for name, x in named), *drawn]

    def _rounding(
        self,
        evaluate: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        numbers: Numbers,
    ) -> list[float]:
        """How far each number moves where the last digits of the parameters do."""
        parameters = self.parameters()
        kept = [p.detach().clone() for p in parameters]
        slopes = [x.norm().item() for name, x in numbers if name == "gradient" and x is not None]
        floor = torch.finfo(parameters[0].dtype).eps * math.hypot(*slopes)
        found = [floor] * len(numbers)
        for sign in (1, -1):
            try:
                for p in parameters:
                    p.data.add_(sign * torch.finfo(p.dtype).eps * (1 + p.data.abs()))
                moved = self.numbers(evaluate, inputs)
            finally:
                for p, before in zip(parameters, kept, strict=True):
                    p.data.copy_(before)
            for n, ((_, a), (_, b)) in enumerate(zip(numbers, moved, strict=True)):
                if a is not None and b is not None:
                    found[n] = max(found[n], _distance(a, b))
        return found

    def buffers(self) -> list[Tensor]:
        """The buffers of the modules that run."""
        return self.found().buffers()

    def parameters(self) -> list[Tensor]:
        return [p for _, p in self.objective.named_parameters() if p.requires_grad]

    @contextmanager
    def untouched(self, inputs: tuple[Tensor, ...]) -> Iterator[None]:
        """A context that leaves random numbers, buffers, what is held and inputs as they were."""
        device = self.device()
        rng, host = get_rng_state(device), get_host_rng_state()
        finder = self.found()
        small = (x for x in finder.tensors if x.numel() <= SMALL)
        others = [(x, x._version, x.detach().clone()) for x in (*inputs, *small)]
        kept = [(x, x.clone()) for x in finder.buffers()]
        try:
            yield
        finally:
            set_rng_state(rng, device)
            if get_host_rng_state() != host:
                self.draws_on_host = True
                set_host_rng_state(host)
            with torch.no_grad():
                for tensor, version, before in others:
                    if tensor._version != version:
                        tensor.copy_(before)
                for tensor, before in kept:
                    if not torch.equal(tensor, before):  # batch normalisation counts no version
                        tensor.copy_(before)

    def compared(
        self,
        found: Numbers,
        ours: Numbers,
        evaluate: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
    ) -> str | None:
        """What differs between numbers of a graph and those of a step of the program itself."""
        noise = partial(self._rounding, evaluate, inputs)
        return _far(ours, found, self.tolerance(ours), noise)

    def watch(self) -> Watch:
        """What a run of the program must leave as it is; nothing where that cannot be found out."""
        try:
            return self.found().watch
        except Exception:  # which a trace meets, too, and says
            return []

    def found(self) -> Finder:
        return Finder(self.objective, self.stored)

    def device(self) -> torch.device:
        return next(p.device for _, p in self.objective.named_parameters())


def _far(
    ours: Numbers, others: Numbers, tolerance: float, noise: Callable[[Numbers], list[float]]
) -> str | None:
    """What differs by more than rounding between a program and its graph."""
    pairs = [(name, a, b) for (name, a), (_, b) in zip(ours, others, strict=True)]
    if not all(x is None or x.isfinite().all() for _, x in (ours[0], others[0])):
        pairs = pairs[:1]  # the loss, which says so itself
    far = [n for n, (_, a, b) in enumerate(pairs) if not _close(a, b, tolerance)]
    moves = noise(ours) if far else []  # near an optimum a gradient is as small as its rounding
    for n in far:
        name, a, b = pairs[n]
        if a is None or b is None or not _distance(a, b) <= NOISE * moves[n]:
            return (
                f"its graph has another {name} than the program itself, with the same random "
                f"numbers"
            )
    return None


def _close(a: Tensor | None, b: Tensor | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    if not a.is_floating_point() and not a.is_complex():
        return torch.equal(a, b)
    if (found := finite(a, b)) is None:
        return False
    return _distance(*found) <= tolerance * (1e-3 + _double(found[0]).norm().item())


def finite(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """Two tensors without what is infinite or NaN in both; None where that differs."""
    odd = ~a.isfinite()
    if not odd.any():
        return a, b
    same = a.where(odd, 0).nan_to_num(7.0), b.where(~b.isfinite(), 0).nan_to_num(7.0)
    return (a.where(~odd, 0), b.where(~odd, 0)) if torch.equal(*same) else None


def _is_repeated(a: Tensor, b: Tensor) -> bool:
    """Whether a number has come twice, up to the last digits where a GPU adds in any order."""
    if a.device.type == "cpu" or not a.is_floating_point():
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(_distance(a, b) <= 1e3 * torch.finfo(a.dtype).eps * (1 + a.double().norm().item()))


def _distance(a: Tensor, b: Tensor) -> float:
    return (_double(a) - _double(b)).norm().item()


def _double(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
