r"""Objectives as compiled code: the same loss and the same gradient, without Pyro's handlers.

Of a small program most of a step is the work of effect handlers, in Python. The loss of a batch is
therefore traced once into a flat graph of tensor operations, which draws afresh at each call, and
the graph is compiled. Parameters stay live: it reads the tensors that the optimiser moves.

What a trace holds fast, and would go wrong in silence, is watched. A new graph is traced where the
shapes, dtypes or mode of a batch are new, or where one of the numbers that the program keeps in its
attributes, in its closure or among its globals has changed, or a parameter was replaced. Where it
is the graph that is known but for constants, these become inputs (`traced.traced`), and no further
value needs a compilation. Programs whose graph is another with other draws (an `if` on a value, a
random number of sites) run eagerly, and so does all that cannot be traced. Where there is no
compiler, the graph runs as it was traced, with the same numbers bit for bit. Loss and gradient of
a graph are compared with the eager ones under the same random numbers before it is first used, and
again at random moments.
"""

import random
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx import GraphModule

from ppl_models.infer.compiled.traced.constants import Anatomy
from ppl_models.infer.compiled.traced.evaluations import Evaluations, Trainable
from ppl_models.infer.compiled.traced.traced import Traced
from ppl_models.infer.compiled.traced.tracing import (
    first_line,
    held,
    line_of,
    read_by,
    trace,
    trace_again,
    value_watch,
)
from ppl_models.infer.compiled.waits import varies_on_host
from ppl_models.infer.compiled.watch import holds
from ppl_models.user_line import warn

CHECK_EVERY = 1000  # steps between two comparisons with the eager loss, in the mean
OFTEN = 200  # where anything may happen between two steps
MOST_GRAPHS = 8  # of one objective; more mean that something changes at every step
WORTH = 128  # steps that pay for tracing a program again, about
CHANGES = "it changes numbers or tensors of its own while it runs, such as a count of calls"
HOST = "it draws random numbers from the generator of Python or NumPy, which code would hold fast"


class Graph(NamedTuple):
    """A compiled loss, and what must still be as it was."""

    run: Callable[..., Tensor]
    traced: Traced
    calls: list[int]  # one number: how often it ran
    moments: "Moments"  # of comparisons
    tensors: list[Tensor] = []  # which it reads besides its inputs
    on_host: bool = False  # whether something on the host differs from call to call

    def holds(self) -> bool:
        """Whether it stands for the program as it is now; takes numbers that changed."""
        return self.traced.holds()

    def due(self) -> bool:
        """Whether it is time to compare it with the eager loss."""
        return self.traced.untried or self.calls[0] >= self.moments.next


class Moments:
    """When code is compared with its program: a generator of its own says it, from torch's seed.

    Arguments:
        often: Whether to begin at the second step, and to go on once in `OFTEN` steps at last.
    """

    def __init__(self, often: bool) -> None:
        self.often, self.random = often, random.Random(torch.initial_seed())
        self.last = 0  # by the number of steps
        self.next = 1 if often else self._later()

    def passed(self, steps: int) -> None:
        """Takes note of a comparison that was right, after so many steps."""
        self.last = steps
        if self.often:
            self.next = steps + self.random.randint(1, 2 * min(max(steps, 1), OFTEN))
        else:
            self.next = steps + self._later()

    def _later(self) -> int:
        return self.random.randint(CHECK_EVERY // 2, 3 * CHECK_EVERY // 2)


class Compiled(Evaluations):
    """The loss of an objective, by compiled code where that gives the same.

    Arguments:
        objective: What is descended.
        stored: The names of parameters in Pyro's store that it reads, besides those that its
            programs have found there. Names may come and go.
        often: Whether anything may happen between two calls, so that comparisons come often.
    """

    def __init__(
        self, objective: Trainable, stored: Collection[str] = (), often: bool = False
    ) -> None:
        super().__init__(objective, stored)
        self.often = often
        self.graphs: dict[Any, Graph] = {}
        self.used: dict[int, Graph] = {}  # since it was last cleared
        self.known: dict[Any, list[Traced]] = {}  # what was traced, the last used last
        self.code: dict[int, Graph] = {}  # of what was traced, by its id
        self.traced = self.retraced = 0
        self.steps = 0  # that were taken in blocks
        self.quiet = False  # whether nobody asked for compiled code
        self.without_compiler = False
        # Why it runs eagerly, if it does; an objective may say so of itself.
        self.reason: str | None = objective.eager_because

    def __call__(
        self, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...], *constants: Hashable
    ) -> Tensor:
        """Returns the loss.

        Arguments:
            evaluate: Gives the loss of the inputs, eagerly.
            inputs: The tensors that change from call to call.
            constants: What else the loss depends on.
        """
        if self.reason is not None:
            return evaluate(*inputs)
        key = self.key(inputs, *constants)
        return self.run(self.current(key), key, evaluate, inputs)

    def key(self, inputs: tuple[Tensor, ...], *constants: Hashable) -> Hashable:
        """What one graph stands for."""
        kinds = tuple(
            (x.shape, x.stride(), x.dtype, x.device, x.requires_grad, type(x)) for x in inputs
        )
        ids = [id(x) for x in inputs]
        same = len(set(ids)) == len(ids) or tuple(map(ids.index, ids))  # which are one tensor
        return (kinds, same, torch.is_grad_enabled(), *constants)

    def current(self, key: Hashable) -> Graph | None:
        """The graph of a key, if there is one that stands for the program as it is now."""
        graph = self.graphs.get(key)
        if graph is None or graph.holds():
            return graph
        for traced in reversed(self.known[key]):
            other = self.code.get(id(traced))
            if other is not None and other is not graph and other.holds():
                self.graphs[key] = other
                return other
        return None

    def run(
        self,
        graph: Graph | None,
        key: Hashable,
        evaluate: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
    ) -> Tensor:
        """Returns the loss by a graph, by a new one where there is none."""
        if graph is None:
            graph = self.new_graph(key, evaluate, inputs)
        elif graph.due():
            self.judge(graph, self.difference(evaluate, graph.run, inputs))
        if self.reason is not None or graph is None:
            return evaluate(*inputs)
        graph.calls[0] += 1
        self.used[id(graph)] = graph
        return graph.run(*inputs)

    def trace(
        self, key: Any, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Traced | None:
        """Returns the loss as a graph, one that is there already if it can; None without one."""
        known = self.known.setdefault(key, [])
        if self.reason is None and known:
            found = self._trace_again(known, evaluate, inputs)
            if found is not None:
                return found
        if self.reason is not None:
            return None
        self.traced += 1
        if self.traced > MOST_GRAPHS:
            self.give_up(
                f"batches or constants of {MOST_GRAPHS} kinds were compiled already: the shape of "
                f"a batch, or a number that the program keeps, changes again and again"
            )
            return None
        with warnings.catch_warnings(), _validation_kept():
            warnings.simplefilter("ignore")  # of the compiler; the program's own were seen before
            try:
                finder = self.found()
                watch = finder.watch
                if refused := finder.moving or (finder.too_long if self.often else None):
                    raise ValueError(refused)
                graph, read = trace(self, evaluate, inputs)
                watch += [entry for x in read for entry in value_watch(x)]
                traced = Traced(graph, watch, Anatomy(graph, held(self)))
                wrong = self.unsteady(evaluate, inputs)
                wrong = wrong or self.difference(evaluate, graph, inputs)
            except Exception as error:  # whatever a program does that a trace cannot hold
                wrong = f"it cannot be traced{line_of(error)} ({first_line(error)})"
        if not wrong and not holds(watch):
            wrong = CHANGES
        if self.draws_on_host:
            wrong = HOST
        if wrong:
            self.give_up(wrong)
            return None
        known.append(traced)
        return traced

    def _trace_again(
        self, known: list[Traced], evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Traced | None:
        """Returns what was traced with the constants of now; None where the graph is another."""
        self.retraced += 1
        steps = self.steps + sum(graph.calls[0] for graph in self.code.values())
        if self.retraced > MOST_GRAPHS and steps < WORTH * self.retraced:
            self.give_up(
                f"a number that the program keeps changes more often than once in {WORTH} steps, "
                f"and is not one of floating point that is computed with alone"
            )
            return None
        with warnings.catch_warnings(), _validation_kept():
            warnings.simplefilter("ignore")
            try:
                again = trace_again(known[-1].changed(), self, evaluate, inputs)
                if not holds(again.watch):
                    return None
                for traced in reversed(known):
                    places = traced.anatomy.differing(again.anatomy)
                    if places is not None and places <= traced.inputs.keys():
                        traced.renew(again)
                        known.remove(traced)
                    elif places is None or self.traced == MOST_GRAPHS:
                        continue
                    else:
                        traced = traced.opened(again, places)
                        if self.difference(evaluate, traced.graph, inputs):
                            continue
                        self.traced += 1
                    known.append(traced)
                    return traced
            except Exception:  # which is said where it is traced as a new one
                return None
        return None

    def used_by(
        self, graph: GraphModule, inputs: tuple[Tensor, ...], parameters: Sequence[Tensor]
    ) -> list[Tensor]:
        """The parameters that a loss has a gradient for."""
        with self.untouched(inputs):
            slopes = torch.autograd.grad(graph(*inputs), list(parameters), allow_unused=True)
        return [p for p, slope in zip(parameters, slopes, strict=True) if slope is not None]

    def judge(self, graph: Graph, wrong: str | None) -> None:
        """Goes on with a graph that was compared, or gives up."""
        graph.traced.untried = False
        if not wrong:
            graph.moments.passed(graph.calls[0])
            return
        right = graph.moments.last
        self.reason = f"after {graph.calls[0]} steps {wrong}"
        self.graphs.clear()
        warn(
            f"{self.objective.name}: it runs eagerly, not compiled, from now on: {self.reason}. "
            f"The two agreed after {right} steps; those since then may have been wrong: something "
            f"that the program depends on has changed unseen. Try compile=False."
        )

    def new_graph(
        self, key: Any, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Graph | None:
        """The loss as code; None where that cannot be."""
        found = self.trace(key, evaluate, inputs)
        if found is None:
            return None
        if id(found) in self.code:
            return self._known_graph(key, self.code[id(found)], evaluate, inputs)
        traced = found.graph
        with warnings.catch_warnings(), _validation_kept():
            warnings.simplefilter("ignore")
            run, why = self._compile(traced, evaluate, inputs)
        if why and not self.without_compiler:
            self.without_compiler = True
            warn(
                f"{self.objective.name}: its graph runs as it was traced, not compiled: {why}. The "
                f"numbers are right, only slower. Try compile=False, which says nothing."
            )
        on_host = varies_on_host(traced, self.device(), self.found().tensors)
        moments = Moments(self.often)
        graph = self.graphs[key] = Graph(run, found, [0], moments, read_by(traced), on_host)
        self.code[id(found)] = graph
        return graph

    def _known_graph(
        self, key: Any, graph: Graph, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Graph | None:
        """A graph with other constants, which is compared before it is used."""
        wrong = self.difference(evaluate, graph.run, inputs)
        if wrong:
            self.give_up(f"with other constants {wrong}")
            return None
        self.graphs[key] = graph
        return graph

    def _compile(
        self, traced: GraphModule, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> tuple[Callable[..., Tensor], str | None]:
        """Returns the graph as compiled code, or as it is and why."""
        if self.without_compiler:
            return traced, "as before"
        try:
            run = torch.compile(traced, dynamic=False, options={"fallback_random": True})
            wrong = self.difference(evaluate, run, inputs)
        except Exception as error:  # no compiler, or an operation that it does not know
            return traced, f"it cannot be compiled ({first_line(error)})"
        return (traced, f"the code of the compiler is wrong: {wrong}") if wrong else (run, None)

    def give_up(self, reason: str) -> None:
        """Runs eagerly from now on, and says why."""
        self.reason = reason
        self.graphs.clear()
        if self.quiet:
            return
        warn(
            f"{self.objective.name}: it runs eagerly, not compiled: {reason}. The numbers are "
            f"right, only slower. Try compile=False, which says nothing."
        )


@contextmanager
def _validation_kept() -> Iterator[None]:
    """A context after which distributions check values as before: the compiler switches it off."""
    before = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
