r"""Draws side by side: a function of one draw, run once for many, where that gives the same.

A draw of the latents that all rows share, and what a program says of it, is a run under Pyro's
handlers, most of whose time is Python's. `torch.vmap` runs it once on tensors of many draws, whose
dimension of draws no operation of the program can see: sums, products of matrices and indices mean
what they mean for one draw, and draws cannot mix. What it cannot run that way (an `if` on a value,
an operation without such a rule) it refuses, and so are programs that keep something from one run
to the next. They run draw by draw. (Restarts and candidates are not draws: models that have a way
to stack them do.)

That both ways agree is not assumed. A batch keeps the random numbers that it drew. With those of a
few of its draws the function is run once more, by itself, and all that it returns must be the same:
three draws of the first batch, one of each other.

Shapes: `S` draws.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from ppl_models.infer.compiled.replaced import replaced
from ppl_models.infer.compiled.traced.evaluations import HALF, TOLERANCE
from ppl_models.infer.compiled.watch import Watch, holds
from ppl_models.processes import Turns
from ppl_models.scoped import get_host_rng_state, get_rng_state, mix, own_draws

APPLY = Function.__dict__["apply"]  # unbound: torch's own, to be called for any function
FEW = 16  # draws that are not worth a second way
MANY = 64  # tensors as large as the largest, beyond which the number of tensors counts too
NARROW = 8  # draws at a time that cost no less than one by one: large ones, each batch with a check
Results = dict[Any, Tensor]  # each with the draws in front

# What a program draws from, in all of torch's ways that distributions use. Random numbers of other
# ways are not repeated, so that the comparison fails.
RANDOM = {
    *(getattr(torch, name) for name in ("normal", "rand", "randn", "rand_like", "randn_like")),
    *(getattr(torch, name) for name in ("randint", "randint_like", "randperm", "multinomial")),
    *(getattr(torch, name) for name in ("bernoulli", "poisson", "binomial")),
    *(getattr(torch, name) for name in ("_standard_gamma", "_sample_dirichlet")),
    *(getattr(Tensor, name) for name in ("bernoulli", "multinomial")),
}
RANDOM_IN_PLACE = {
    *(getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "exponential", "cauchy")),
    *(getattr(Tensor, f"{name}_") for name in ("geometric", "log_normal", "bernoulli", "random")),
}
# Programs write into these, and distributions draw in their place, in each draw another number.
MAKERS = {torch.empty, torch.empty_like, torch.zeros, torch.zeros_like}
MAKERS |= {Tensor.new, Tensor.new_empty, Tensor.new_zeros}


def side_by_side(
    run: Callable[[Tensor], Results],
    total: int,
    most: int,
    watch: Watch | None,
    turns: Turns,
    seed: int,
) -> Iterator[Results]:
    """Yields the results of `run(0), ..., run(total - 1)`, of many draws at a time where possible.

    Each batch draws from generators of its own, so that it is the same whichever process makes it.

    Arguments:
        run: What a draw gives, given its number, a tensor without dimensions. Each result has a
            first dimension of one.
        total: The number of draws.
        most: How many numbers the largest tensor of draws side by side may hold, and all the
            tensors that are made, one after the other, `MANY` times as many.
        watch: What the programs hold. Where a draw changes it, or where that is not known (None),
            all run one by one.
        turns: The processes that share the draws, and where these run.
        seed: Seeds all of them.
    """
    numbers = torch.arange(total, device=turns.device)

    def batch(step: int, start: int) -> Results | None:
        chosen = numbers[start : start + step]
        with own_draws("draws", mix(seed, start), turns.device):
            if len(chosen) == 1:
                return run(chosen[0])
            return _together(run, chosen, 3 if start == 1 else 1)

    done, step, alike = 0, 1, False
    if total > FEW and watch is not None:
        with _Sizes() as size:
            first = batch(1, 0)
        assert first is not None
        yield first
        done, step = 1, most // max(size.largest, size.total // MANY, 1)
        alike = step > NARROW and holds(watch)
    while done < total:
        step = step if alike else 1
        starts = range(done, total, step)[: turns.number]
        for start, results in zip(starts, turns.take(starts, partial(batch, step)), strict=True):
            if results is None:  # nor do those after it count, which another process may have made
                alike = False
                break
            yield results
            done = min(start + step, total)


def _together(run: Callable[[Tensor], Results], numbers: Tensor, checks: int) -> Results | None:
    """What the draws with these numbers give, or None where that is not what each gives alone."""

    modes: list[_NotedDraws] = []

    def record(number: Tensor) -> tuple[Results, list[Tensor]]:
        with _NotedDraws(number) as mode:
            modes.append(mode)
            return run(number), mode.drawn

    try:
        before = get_host_rng_state()
        with warnings.catch_warnings(), replaced(Function, "apply", classmethod(_apply_forward)):
            warnings.simplefilter("ignore")  # the program's own were seen before
            stacked, drawn = torch.vmap(record, randomness="different")(numbers)
        if any(mode.refused for mode in modes):
            return None
        if (
            get_host_rng_state() != before
        ):  # random numbers that are not torch's, the same for all draws
            return None
        results = {key: value.flatten(0, 1) for key, value in stacked.items()}
        for n in torch.linspace(len(numbers) - 1, 0, checks).long().tolist():
            if not _is_that_alone(run, numbers[n], n, results, drawn):
                return None
    except Exception:  # whatever a program does that can only be done for one draw
        return None
    return results


def _is_that_alone(
    run: Callable[[Tensor], Results],
    number: Tensor,
    place: int,
    results: Results,
    drawn: list[Tensor],
) -> bool:
    """Whether a draw gives the same by itself, with the same random numbers."""
    with _RepeatedDraws([values[place] for values in drawn]) as mode:
        alone = run(number)
    kinds = {x.dtype for x in (*drawn, *alone.values()) if x.is_floating_point()}
    tolerance = max((TOLERANCE.get(kind, HALF) for kind in kinds), default=0.0)
    return (
        mode.used == len(drawn)
        and alone.keys() == results.keys()
        and all(_same(results[k][place : place + 1], alone[k], tolerance) for k in alone)
    )


def _apply_forward(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """`Function.apply` of functions that only say how they are differentiated, which no draw is."""
    own = kind.setup_context is not Function.setup_context
    if own or not torch._C._are_functorch_transforms_active():  # in another thread
        return APPLY.__get__(None, kind)(*args, **kwargs)
    context: Any = FunctionCtx()
    context.needs_input_grad = (False,) * len(args)
    return kind.forward(context, *args, **kwargs)


class _NotedDraws(TorchFunctionMode):
    """Lets what is drawn or written in place belong to a draw of its own, and notes what is drawn.

    Refused are numbers that are random and yet the same for each draw, of a seed that the program
    sets or of a generator of its own, and errors, also those that the program goes on after.

    Arguments:
        number: The number of a draw, which differs between draws.
    """

    def __init__(self, number: Tensor) -> None:
        super().__init__()
        self.zero = number * 0
        self.drawn: list[Tensor] = []
        self.refused = False
        self.left = self._generators()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.clamp_:  # draw by draw, in torch's own loop
            return args[0].copy_(args[0].clamp(*args[1:], **(kwargs or {})))
        if getattr(func, "__self__", None) is Tensor.data:  # refused, and only looked at
            return args[0].detach()
        if func is Tensor.requires_grad_ and args[0].requires_grad:  # refused, though it is so
            return args[0]
        random = func in RANDOM or func in RANDOM_IN_PLACE
        try:
            if random and (self._generators() != self.left or (kwargs or {}).get("generator")):
                raise RuntimeError("random numbers that another draw would not have of its own")
            result = func(*args, **(kwargs or {}))
        except Exception:
            self.refused = True
            raise
        if func in MAKERS and not is_batchedtensor(result):
            result = result + self.zero.to(result.device, result.dtype)
        elif random:
            self.drawn.append(result.clone())
            self.left = self._generators()
        return result

    def _generators(self) -> dict[str, bytes]:
        """Where the last draw left torch's generators, if nothing else moved them."""
        states = get_rng_state(self.zero.device)
        return {kind: state.numpy().tobytes() for kind, state in states.items()}


class _RepeatedDraws(TorchFunctionMode):
    """Gives random numbers that were noted, in their order.

    Arguments:
        noted: What a draw is to draw.
    """

    def __init__(self, noted: list[Tensor]) -> None:
        super().__init__()
        self.noted = noted
        self.used = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in RANDOM or func in RANDOM_IN_PLACE:
            self.used += 1
            if self.used <= len(self.noted):
                result = self.noted[self.used - 1]
                return args[0].copy_(result) if func in RANDOM_IN_PLACE else result.clone()
        return func(*args, **(kwargs or {}))


class _Sizes(TorchFunctionMode):
    """Finds out how many numbers the tensors hold that are made: the largest, and all together."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
            self.total += result.numel()
        return result


def _same(value: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors are the same, up to rounding."""
    if (value.shape, value.dtype) != (other.shape, other.dtype):
        return False
    if not other.is_floating_point() or not other.numel():
        return torch.equal(value, other)
    value, other = value.cpu().double(), other.cpu().double()
    largest = other.where(other.isfinite(), 0).abs().max().item()
    return torch.allclose(value, other, tolerance, tolerance * (1 + largest), equal_nan=True)
