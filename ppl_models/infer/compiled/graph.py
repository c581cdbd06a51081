r"""Objectives as compiled code: the same loss and the same gradient, without Pyro's handlers.

Of a small program most of a step is the work of effect handlers, in Python. The loss of a batch is
therefore traced once into a flat graph of tensor operations, which draws afresh at each call, and
the graph is compiled. Parameters stay live: it reads the tensors that the optimiser moves.

What a trace holds fast, and would go wrong in silence, is watched. A new graph is traced where the
shapes, dtypes or mode of a batch are new, or where one of the numbers that the program keeps in its
attributes, in its closure or among its globals has changed, or a parameter was replaced. Programs
whose graph is another with other draws (an `if` on a value, a random number of sites) run eagerly,
and so does all that cannot be traced. Where there is no compiler, the graph runs as it was traced,
with the same numbers bit for bit. Loss and gradient of a graph are compared with the eager ones
under the same random numbers before it is first used, and again at random moments.
"""

import math
import random
import traceback
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Function
from torch.distributions import Distribution
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_models.infer.compiled.replaced import replaced
from ppl_models.infer.compiled.waits import tidy, varies_on_host, without_waits
from ppl_models.infer.compiled.watch import Finder, Watch, holds, of_library
from ppl_models.scoped import (
    get_host_rng_state,
    get_rng_state,
    set_host_rng_state,
    set_rng_state,
)
from ppl_models.user_line import warn

CHECK_EVERY = 1000  # steps between two comparisons with the eager loss, in the mean
OFTEN = 200  # where anything may happen between two steps
SMALL = 2**24  # numbers in a tensor that a program holds, and may change while it is looked at
MOST_GRAPHS = 8  # of one objective; more mean that something changes at every step
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative, with parameters of that kind
HALVES = (torch.bfloat16, torch.float16)  # what autocast runs in
HALF = 3e-2  # relative, where some of it runs in half precision
NOISE = 30  # times what the last digits of the parameters make of a number
UNSTEADY = (
    "two runs of the program with the same random numbers of torch differ in the {}: it draws or "
    "counts outside of torch, and what it counts has gone on with these"
)
CHANGES = "it changes numbers or tensors of its own while it runs, such as a count of calls"
DRAWN = "state of torch's generator afterwards"
HOST = "it draws random numbers from the generator of Python or NumPy, which code would hold fast"
OUTSIDE = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}
APPLY = Function.__dict__["apply"]  # unbound: torch's own, to be called for any function
HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}
# Folders whose lines are not the user's.
OWN = (
    *(str(Path(str(library.__file__)).parent) for library in (torch, pyro)),
    str(Path(__file__).parents[1]),  # all of `infer`
)


class Graph(NamedTuple):
    """A compiled loss, and what must still be as it was."""

    run: Callable[..., Tensor]
    watch: Watch
    calls: list[int]  # one number: how often it ran
    moments: "Moments"  # of comparisons
    tensors: list[Tensor] = []  # which it reads besides its inputs
    on_host: bool = False  # whether something on the host differs from call to call

    def holds(self) -> bool:
        """Whether all that was traced as a constant is still what it was."""
        return holds(self.watch)

    def due(self) -> bool:
        """Whether it is time to compare it with the eager loss."""
        return self.calls[0] >= self.moments.next


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


Numbers = list[tuple[str, Tensor | None]]  # by names


class Trainable(Protocol):
    """What is compiled: a part of `Objective`."""

    name: str
    eager_because: str | None

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]: ...

    def modules(self) -> dict[str, nn.Module]: ...


class Compiled:
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
        self.objective, self.stored, self.often = objective, stored, often
        self.also: list[Any] = []  # what runs with it, such as a transform of its rows
        self.graphs: dict[Any, Graph] = {}
        self.used: dict[int, Graph] = {}  # since it was last cleared
        self.traced = 0
        self.without_compiler = False
        self.draws_on_host = False  # whether a run moved the generators of Python or NumPy
        self.halved = False  # whether some of it runs in half precision
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
        """The graph of a key, if there is one and all that it holds fast is as it was."""
        graph = self.graphs.get(key)
        return graph if graph is not None and graph.holds() else None

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
            self.judge(graph, self._difference(evaluate, graph.run, inputs))
        if self.reason is not None or graph is None:
            return evaluate(*inputs)
        graph.calls[0] += 1
        self.used[id(graph)] = graph
        return graph.run(*inputs)

    def trace(
        self, key: Any, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> tuple[GraphModule, Watch] | None:
        """Returns the loss as a graph, and what must stay as it is; None where there is none."""
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
                finder = self._found()
                watch = finder.watch
                if refused := finder.moving or (finder.too_long if self.often else None):
                    raise ValueError(refused)
                traced, read = self._trace(evaluate, inputs)
                watch += [entry for x in read for entry in _value(x)]
                wrong = self._unsteady(evaluate, inputs)
                wrong = wrong or self._difference(evaluate, traced, inputs)
            except Exception as error:  # whatever a program does that a trace cannot hold
                wrong = f"it cannot be traced{_line(error)} ({_first_line(error)})"
        if not wrong and not holds(watch):
            wrong = CHANGES
        if self.draws_on_host:
            wrong = HOST
        if wrong:
            self.give_up(wrong)
            return None
        return traced, watch

    def used_by(
        self, graph: GraphModule, inputs: tuple[Tensor, ...], parameters: Sequence[Tensor]
    ) -> list[Tensor]:
        """The parameters that a loss has a gradient for."""
        with self.untouched(inputs):
            slopes = torch.autograd.grad(graph(*inputs), list(parameters), allow_unused=True)
        return [p for p, slope in zip(parameters, slopes, strict=True) if slope is not None]

    def judge(self, graph: Graph, wrong: str | None) -> None:
        """Goes on with a graph that was compared, or gives up."""
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

    def compared(
        self,
        found: Numbers,
        ours: Numbers,
        evaluate: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
    ) -> str | None:
        """What differs between numbers of a graph and those of a step of the program itself."""
        noise = partial(self._rounding, evaluate, inputs)
        return _far(ours, found, self._tolerance(ours), noise)

    def new_graph(
        self, key: Any, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Graph | None:
        """The loss as code; None where that cannot be."""
        found = self.trace(key, evaluate, inputs)
        if found is None:
            return None
        traced, watch = found
        with warnings.catch_warnings(), _validation_kept():
            warnings.simplefilter("ignore")
            run, why = self._compile(traced, evaluate, inputs)
        if why and not self.without_compiler:
            self.without_compiler = True
            warn(
                f"{self.objective.name}: its graph runs as it was traced, not compiled: {why}. The "
                f"numbers are right, only slower. Try compile=False, which says nothing."
            )
        on_host = varies_on_host(traced, self._device(), self._found().tensors)
        moments = Moments(self.often)
        graph = self.graphs[key] = Graph(run, watch, [0], moments, _held(traced), on_host)
        return graph

    def _compile(
        self, traced: GraphModule, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> tuple[Callable[..., Tensor], str | None]:
        """Returns the graph as compiled code, or as it is and why."""
        if self.without_compiler:
            return traced, "as before"
        try:
            run = torch.compile(traced, dynamic=False, options={"fallback_random": True})
            wrong = self._difference(evaluate, run, inputs)
        except Exception as error:  # no compiler, or an operation that it does not know
            return traced, f"it cannot be compiled ({_first_line(error)})"
        return (traced, f"the code of the compiler is wrong: {wrong}") if wrong else (run, None)

    def _trace(
        self, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> tuple[GraphModule, list[Tensor]]:
        """Returns the graph of the loss, the same for other draws, and the tensors it has read."""
        graphs, reads = [], _Reads()
        device = self._device()
        for seed in range(2):
            with pyro.validation_enabled(False), without_waits(device), self.untouched(inputs):
                torch.manual_seed(seed)
                tracer = make_fx(evaluate, pre_dispatch=True, _allow_non_fake_inputs=True)
                # Tensors of their own: one that comes twice, or that the program also knows by
                # another way, would be taken for the same in the calls to come.
                # One mode for the shapes of all operations: one for each, with the lines of Python
                # that led there, would take half of the time.
                own = replaced(Function, "apply", classmethod(_apply))
                with reads, _Outside(), own, tracing(TracingContext(FakeTensorMode())):
                    graphs.append(tracer(*(x.detach() for x in inputs)))
        first, second = graphs
        if first.code != second.code:
            raise ValueError(
                "the graph is another with other draws: control flow, the number or the shapes of "
                "sites, depend on values" + _where_they_part(first, second)
            )
        if any(x.grad_fn is not None for x in _held(first)):
            raise ValueError("a part of it was computed where a trace does not see it")
        if sized := next((n for n in first.graph.nodes if _is_sized_by_values(n)), None):
            raise ValueError(f"the shape of {sized.name!r} depends on values")
        self.halved = any(_dtype(node) in HALVES for node in first.graph.nodes)
        tidy(first, device, self._found().tensors)
        return first, reads.tensors

    def watch(self) -> Watch:
        """What a run of the program must leave as it is; nothing where that cannot be found out."""
        try:
            return self._found().watch
        except Exception:  # which a trace meets, too, and says
            return []

    def _found(self) -> Finder:
        return Finder(self.objective, self.stored, self.also)

    def _device(self) -> torch.device:
        return next(p.device for _, p in self.objective.named_parameters())

    def _difference(
        self,
        evaluate: Callable[..., Tensor],
        run: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
    ) -> str | None:
        """What differs between a graph and the eager loss, with the same random numbers."""
        ours, others = (self.numbers(loss, inputs) for loss in (evaluate, run))
        noise = partial(self._rounding, evaluate, inputs)
        return _far(ours, others, self._tolerance(ours), noise)

    def _tolerance(self, numbers: Numbers) -> float:
        kinds = {x.dtype for _, x in numbers if x is not None and x.is_floating_point()}
        return HALF if self.halved else max(TOLERANCE.get(kind, HALF) for kind in kinds)

    def _unsteady(self, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> str | None:
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
        found = self._found()
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
        return self._found().buffers()

    def parameters(self) -> list[Tensor]:
        return [p for _, p in self.objective.named_parameters() if p.requires_grad]

    @contextmanager
    def untouched(self, inputs: tuple[Tensor, ...]) -> Iterator[None]:
        """A context that leaves random numbers, buffers, what is held and inputs as they were."""
        device = self._device()
        rng, host = get_rng_state(device), get_host_rng_state()
        finder = self._found()
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

    def give_up(self, reason: str) -> None:
        """Runs eagerly from now on, and says why."""
        self.reason = reason
        self.graphs.clear()
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


class _Reads(TorchDispatchMode):
    """Notes the tensors whose values a program reads as numbers, which a trace then holds fast."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.data_dependent_output in func.tags:  # such as `item`, or `torch.equal`
            self.tensors += [x for x in args if isinstance(x, Tensor)]
        return func(*args, **(kwargs or {}))


class _Outside(TorchFunctionMode):
    """Raises where a program does what a trace knows nothing of.

    That is to take numbers out of torch, or to say itself what a gradient is.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in OUTSIDE:
            raise ValueError(f"Tensor.{func.__name__} reads the values of a tensor outside torch")
        if func in HOOKS:
            raise ValueError(
                f"Tensor.{func.__name__} changes a gradient, of which a graph knows none"
            )
        return func(*args, **(kwargs or {}))


def _apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """`Function.apply` while a program is traced, which keeps the values of a function alone."""
    if not of_library(kind):
        raise ValueError(f"{kind.__name__} has a gradient of its own, of which a graph knows none")
    return APPLY.__get__(None, kind)(*args, **kwargs)


def _value(tensor: Tensor) -> Watch:
    """What must stay as it is of a tensor that was read as a number."""
    watch: Watch = [(partial(getattr, tensor, "_version"), tensor._version)]
    if tensor.is_cpu:  # which `tensor.data.fill_` changes unseen
        watch.append((partial(torch.equal, tensor, tensor.detach().clone()), True))
    return watch


def _held(graph: GraphModule) -> list[Tensor]:
    """The tensors that a graph reads besides its inputs."""
    nodes = graph.graph.find_nodes(op="get_attr")
    return [x for n in nodes if isinstance(x := getattr(graph, str(n.target)), Tensor)]


def _is_sized_by_values(node: Node) -> bool:
    """Whether an operation gives as many numbers as values say, such as `x[mask]`."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    indices: Any = node.args[1]
    return any(_dtype(n) in (torch.bool, torch.uint8) for n in indices if isinstance(n, Node))


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


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


def _where_they_part(first: GraphModule, second: GraphModule) -> str:
    for a, b in zip(first.code.splitlines(), second.code.splitlines(), strict=False):
        if a != b:
            return f" (first in {a.split(';')[0].strip()!r})"
    return ""


def _line(error: BaseException) -> str:
    """The line of the user's that an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*OWN, "<"))]
    if not own:
        return ""
    return f" at {own[-1].filename}:{own[-1].lineno}, {own[-1].line!r}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
