r"""A step on tensors that is repeated many times in one call, as machine code.

A draw that goes step by step, such as that of a diffusion model or of an image pixel by pixel,
takes some dozens of small operations a step, each of which costs Python and torch a microsecond or
two besides its arithmetic. Here a step is a function of a place, the number of the step, and of
tensors, into which it writes what it changes. It is traced once for tensors of a kind, and the code
is repeated by a loop in C++ (`native`), with the random numbers of the step itself in their order.

What the step reads besides its tensors, such as the parameters of a network, stays live. Numbers
that it reads from Python are held fast; therefore code is compared with the step itself, from the
same tensors and with the same random numbers, in each run: `Repeat.compared`.
"""

import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import pyro
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ppl_models.infer.compiled.code.flat import closed, make_ready, written
from ppl_models.infer.compiled.code.native import Native
from ppl_models.infer.compiled.waits import without_waits
from ppl_models.scoped import kept_rng
from ppl_models.user_line import warn

Tensors = Any  # a tree of them: tuples, lists and dictionaries
Step = Callable[[Tensor, Tensors], None]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative, of a step
MOST = 8  # codes that are kept of an owner
CPU = torch.device("cpu")

T = TypeVar("T")

_kept: WeakKeyDictionary[nn.Module, dict[Hashable, "Repeat"]] = WeakKeyDictionary()
_refused: WeakKeyDictionary[nn.Module, set[Hashable]] = WeakKeyDictionary()


class Differs(Exception):
    """Code gives other numbers than the step that it was made from."""


class Repeat:
    """A step as code.

    Arguments:
        step: A function of a place, a whole number `()`, and of tensors, into which it writes.
        tensors: Those that it is first run on.

    Example:
        >>> def double(place, tensors):
        ...     tensors["x"].mul_(2)
        ...     tensors["seen"].index_copy_(0, place.view(1), tensors["x"].sum().view(1))
        >>> tensors = {"x": torch.ones(3), "seen": torch.zeros(4)}
        >>> Repeat(double, tensors)(4, 0, tensors)  # four times, from place 0
        >>> tensors["seen"]
        tensor([ 6., 12., 24., 48.])
    """

    def __init__(self, step: Step, tensors: Tensors) -> None:
        flat, form = tree_flatten(tensors)
        self._place = torch.zeros((), dtype=torch.int64)

        def once(place: Tensor, *given: Tensor) -> tuple[()]:
            step(place, tree_unflatten(given, form))
            place.add_(1)
            return ()

        with (
            torch.no_grad(),
            kept_rng(CPU),
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of the compiler
            with without_waits(CPU):
                trace: Any = make_fx(once, tracing_mode="fake", _allow_non_fake_inputs=True)
                graph = trace(self._place, *flat)
            self._read = closed(graph)  # parameters, and what else the step knows
            self._written = [n - 1 for n in written(graph) if n > 0]
            if any(n >= len(flat) for n in self._written):
                raise ValueError("it writes into tensors of its own")
            make_ready(graph)
            self._kinds = self._of(flat)
            self._native = Native(graph, [self._place, *flat, *self._read])

    def fits(self, tensors: Tensors) -> bool:
        """Whether tensors, and those that the step reads, are of the kind that it was made for."""
        return self._kinds == self._of(tree_leaves(tensors))

    def __call__(self, times: int, place: int, tensors: Tensors) -> None:
        """Takes so many steps, the first at a place."""
        self._place.fill_(place)
        if times:
            self._native(times, [self._place, *tree_leaves(tensors), *self._read])

    def compared(self, step: Step, place: int, tensors: Tensors) -> None:
        """Takes a step by the code and by itself, and keeps what it is by itself.

        Raises:
            Differs: If the two are not the same to rounding, in numbers or in draws; tensors and
                random numbers are then as before.
        """
        flat, rng = tree_leaves(tensors), torch.get_rng_state()
        changed = [flat[n] for n in self._written]
        others = [x for n, x in enumerate(flat) if n not in self._written]
        before, versions = [x.clone() for x in changed], [x._version for x in others]
        self(1, place, tensors)
        ours, drawn = [x.clone() for x in changed], torch.get_rng_state()
        _restore(changed, before, rng)
        step(torch.tensor(place), tensors)
        same = torch.equal(drawn, torch.get_rng_state())
        same = same and versions == [x._version for x in others]
        if not (same and all(map(_is_close, ours, changed))):
            _restore(changed, before, rng)
            raise Differs("compiled, a step gives other numbers than by itself")

    def _of(self, flat: list[Tensor]) -> list[Any]:
        return [(x.shape, x.stride(), x.dtype, x.device) for x in (*flat, *self._read)]


def repeat_of(owner: nn.Module, key: Hashable, step: Step, place: int, tensors: Tensors) -> Repeat:
    """Code for a step, which is taken once, at a place, by code that was shown to be the same.

    Arguments:
        owner: A module: code is kept for as long as it is.
        key: What the code depends on, besides the tensors.
        step: As `Repeat` takes it.
        place: That of the step.
        tensors: Those of the step.

    Raises:
        Exception: If there is no compiler, the step cannot be traced, or its code is not the same.
    """
    codes = _kept.setdefault(owner, {})
    whole = (key, tuple((x.shape, x.stride(), x.dtype) for x in tree_leaves(tensors)))
    code = codes.pop(whole, None)
    if code is not None and code.fits(tensors):
        try:
            code.compared(step, place, tensors)
            codes[whole] = code  # the last one used
            return code
        except Differs:
            pass  # something that is held fast has changed, or a parameter was replaced
    code = Repeat(step, tensors)
    code.compared(step, place, tensors)
    codes[whole] = code
    while len(codes) > MOST:
        codes.pop(next(iter(codes)))
    return code


def by_code(owner: nn.Module, key: Hashable, like: Tensor, work: Callable[[], T]) -> T | None:
    """Returns what comes of work with code of an owner, or None, with a warning that says why.

    Random numbers are then as before, and other work of that key is not tried again.

    Arguments:
        owner: A module.
        key: What kind of work it is.
        like: A tensor where the work is done.
        work: What is done, by codes of `repeat_of`.
    """
    refused = _refused.setdefault(owner, set())
    if key in refused:
        return None
    rng = torch.get_rng_state()
    try:
        if not like.is_cpu:
            raise ValueError(f"code is made for the CPU, and this is on {like.device}")
        return work()
    except Exception as error:  # no compiler, or what a trace cannot hold
        torch.set_rng_state(rng)
        refused.add(key)
        why = str(error).strip().splitlines()[0] if str(error).strip() else ""
        warn(
            f"{type(owner).__name__}: draws are not compiled, but go step by step: "
            f"{type(error).__name__}: {why}. They are right, only slower. Try compile=False, "
            f"which says nothing."
        )
        return None


def _restore(flat: list[Tensor], before: list[Tensor], rng: Tensor) -> None:
    for x, old in zip(flat, before, strict=True):
        x.copy_(old)
    torch.set_rng_state(rng)


def _is_close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are the same to rounding, in which NaN is like NaN."""
    if torch.equal(ours, theirs):
        return True
    if not ours.is_floating_point() or not torch.equal(ours.isfinite(), theirs.isfinite()):
        return False
    a, b = (x.double().nan_to_num(posinf=0.0, neginf=0.0) for x in (ours, theirs))
    return bool((a - b).norm() <= TOLERANCE.get(ours.dtype, 1e-5) * b.norm())
