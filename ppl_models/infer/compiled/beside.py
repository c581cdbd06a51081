"""Functions beside a loss as graphs: what is done with a batch before, and after a step.

Such a function may count in Python, which no graph does. It is therefore tried on a copy of all
that it holds, with the tensors themselves in it: what it does to the copy shows, and is no harm.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_models.infer.compiled.replaced import replaced
from ppl_models.infer.compiled.traced.evaluations import UNSTEADY
from ppl_models.infer.compiled.traced.tracing import Outside, Reads
from ppl_models.infer.compiled.waits import without_waits
from ppl_models.infer.compiled.watch import Finder, Watch, holds

Untouched = Callable[[], AbstractContextManager[Any]]


class Held(Finder):
    """What a function holds."""

    def _find(self, function: Any) -> None:
        self._visit(function)


def traced(
    name: str, function: Callable[..., Any], inputs: tuple[Tensor, ...], untouched: Untouched
) -> tuple[GraphModule, Watch]:
    """A function as a graph that draws afresh, and what must stay as it is.

    Arguments:
        name: What it is.
        function: Takes tensors, and returns one or more, or nothing; the graph returns all.
        inputs: Some tensors.
        untouched: A context after which tensors and random numbers are as before.

    Raises:
        ValueError: If no graph can stand for it.
    """
    apart = _apart(name, function)
    held = Held(apart)
    if held.moving:
        raise ValueError(f"{name}: {held.moving}")
    untouched = partial(_also, untouched, held.tensors)
    graphs = [_trace(name, apart, inputs, untouched, seed) for seed in range(2)]
    if graphs[0].code != graphs[1].code:
        raise ValueError(f"{name}: the graph is another with other draws")
    first, second, third = (_run(f, inputs, untouched) for f in (apart, apart, graphs[0]))
    for x, again, ours in zip(first, second, third, strict=True):
        if not torch.equal(x, again):
            raise ValueError(f"{name}: {UNSTEADY.format('result')}")
        if not torch.equal(x, ours):
            raise ValueError(f"{name}: its graph gives something else")
    if not holds(held.watch):
        raise ValueError(f"{name}: it changes what it holds, such as a count of calls")
    return graphs[0], Held(function).watch


@contextmanager
def _also(untouched: Untouched, tensors: Sequence[Tensor]) -> Iterator[None]:
    """A context that leaves some tensors as they were, too."""
    before = [(x, x.clone()) for x in tensors]
    with untouched():
        try:
            yield
        finally:
            for x, kept in before:
                if not torch.equal(x, kept):
                    x.copy_(kept)


def _apart(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with copies of all that it holds, tensors aside."""
    with ExitStack() as stack:
        for kind in (Tensor, nn.Parameter):
            stack.enter_context(replaced(kind, "__deepcopy__", lambda tensor, _: tensor))
        try:
            return copy.deepcopy(function)
        except Exception as error:  # whatever it holds
            raise ValueError(f"{name}: what it holds cannot be copied ({error})") from None


def _trace(
    name: str,
    function: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    untouched: Untouched,
    seed: int,
) -> GraphModule:
    reads = Reads()
    with untouched(), torch.no_grad(), without_waits(torch.device("cpu")), reads, Outside():
        torch.manual_seed(seed)
        # Of a method it would count the object as an argument.
        tracer = make_fx(
            lambda *given: _all(function(*given)), pre_dispatch=True, _allow_non_fake_inputs=True
        )
        graph = tracer(*(x.detach() for x in inputs))
    if reads.tensors:
        raise ValueError(f"{name}: it reads the values of a tensor as numbers")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _run(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], untouched: Untouched
) -> tuple[Tensor, ...]:
    with untouched(), torch.no_grad():
        torch.manual_seed(0)
        return _all(function(*(x.clone() for x in inputs)))


def _all(result: Any) -> tuple[Tensor, ...]:
    """What a function returns, which may be one tensor or nothing."""
    if result is None:
        return ()
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)
