"""The loss of an estimator of Pyro as compiled code, for each kind of calls."""

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_models.infer.compiled.graph import CHANGES, MOST_GRAPHS, Compiled, Graph
from ppl_models.infer.compiled.replay import Replay, recorder_for
from ppl_models.infer.compiled.watch import Watch, holds
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.pyro_internals import stored

# Arguments that a graph can hold as constants.
TENSORS = {Tensor, nn.Parameter}  # of strides alone
PLAIN = {bool, int, float, complex, str, type(None), torch.dtype, torch.device}


def _may_vary(value: Any) -> bool:
    """Whether an argument is a number that can be an input of a graph."""
    return type(value) is float and math.isfinite(value)


class Call(NamedTuple):
    """A call of a step."""

    key: Hashable  # its kind
    evaluate: Callable[..., Tensor]  # gives the loss of the tensors
    tensors: tuple[Tensor, ...]


class Supports(Messenger):
    """Notes which observed sites have values that they may have, as Pyro's checks ask.

    Arguments:
        names: The sites to look at; None for all, which `valid` then has.
    """

    def __init__(self, names: set[str] | None = None) -> None:
        super().__init__()
        self.names = names
        self.valid: set[str] = set()
        self.holds: Tensor | None = None  # whether all of them are valid

    def _pyro_post_sample(self, message: dict[str, Any]) -> None:
        looked_at = self.names is None or message["name"] in self.names
        if not (message["is_observed"] and looked_at) or site_is_subsample(message):
            return
        try:
            found = message["fn"].support.check(message["value"]).all()
        except Exception:  # there is no support, as of a factor
            return
        if self.names is None and found:
            self.valid.add(message["name"])
        elif self.names is not None:
            self.holds = found if self.holds is None else self.holds & found


def _settings() -> tuple[Any, ...]:
    """Settings of torch that a graph has written into it."""
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.is_inference_mode_enabled(),
    )


class Loss:
    """The loss of Pyro's estimator, compiled."""

    name = "SVI"
    eager_because: str | None = None

    def __init__(self, model: Any, guide: Any, estimator: Any, often: bool = True) -> None:
        self.model, self.guide, self.estimator = model, guide, estimator
        whole = Program(model, "model")
        self.programs = whole, Program(guide, "guide", whole)
        self.parameters: dict[str, Tensor] = {}
        self.stored: set[str] = set()  # the names of those that are in Pyro's store
        self.supported: set[str] = set()  # observed sites whose values are what they may be
        self.kinds: dict[Any, tuple[dict[str, Tensor], set[str]]] = {}  # these, by kinds of calls
        self.known: dict[int, tuple[dict[str, Tensor], set[str]]] = {}  # and by graphs
        self.numbers: dict[int, float] = {}  # floats among the arguments, by their places
        self.given: dict[Any, dict[int, float]] = {}  # these, by kinds of calls
        self.once: set[Any] = set()  # kinds of calls of which there was one
        self.steady: set[Any] = set()  # kinds of calls that change nothing that is kept
        self.ready: set[Any] = set()  # kinds of calls of which the next may be traced
        self.compiled = Compiled(self, self.stored, often)
        self.replay: Replay | None = None  # on a GPU: the loss and its slopes, recorded
        self.slopes: dict[str, Tensor] = {}

    def call(self, args: tuple, kwargs: dict[str, Any]) -> "Call | None":
        """A call, with the parameters of its kind; None where an argument may change."""
        parts = self.parts(args, kwargs)
        if parts is None:
            return None
        evaluate, tensors, rest, shape = parts
        constants = (float if _may_vary(value) else (type(value), repr(value)) for value in rest)
        key = self.compiled.key(tensors, *constants, *shape, *_settings())
        if key in self.kinds:
            self.parameters, self.supported = self.kinds[key]
        numbers = {n: value for n, value in enumerate(rest) if _may_vary(value)}
        self.numbers = self.given.setdefault(key, {})
        self.numbers.update(numbers)
        return Call(key, evaluate, tensors)

    def graph(self, call: "Call") -> Graph | None:
        """The code for a call: None where the next step must be one of Pyro's."""
        graph = self.compiled.current(call.key)
        if graph is None and call.key in self.ready:
            self.ready.discard(call.key)
            graph = self.compiled.new_graph(call.key, call.evaluate, call.tensors)
            if graph is not None:
                self.known[id(graph)] = self.parameters, self.supported
        elif graph is not None:
            self.parameters, self.supported = self.known[id(graph)]
        return graph

    def note(
        self,
        call: "Call",
        values: dict[str, Tensor | None],
        supported: set[str],
        before: Watch | None,
    ) -> None:
        """Takes note of what a step of Pyro's used, for a kind of calls.

        Nothing is tried with a program that counts: a second step has shown that it does not.

        Arguments:
            call: The call.
            values: The parameters by their names.
            supported: The observed sites whose values are what they may be.
            before: What the program kept before that step; None at the first one of a kind.
        """
        if self.compiled.reason is not None:
            return
        self.take(values)
        self.supported = supported
        self.kinds[call.key] = self.parameters, supported
        if before is None and call.key not in self.steady:
            self.once.add(call.key)
        elif before is not None and not holds(before):
            self.compiled.give_up(CHANGES)
        else:
            self.once.discard(call.key)
            self.steady.add(call.key)
            self.ready.add(call.key)
        if len(self.once | self.ready) > MOST_GRAPHS:
            self.compiled.give_up("shapes or numbers among the arguments are ever new")

    def __call__(self, call: "Call", graph: Graph) -> Tensor:
        """The loss, with a gradient."""
        key, evaluate, tensors = call
        if self.replay is None:
            graph.calls[0] += 1
            return graph.run(*tensors)

        def differentiate(*tensors: Tensor) -> dict[str, Tensor]:
            loss = self.compiled.run(self.compiled.current(key), key, evaluate, tensors)
            slopes = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
            named = zip(self.parameters, slopes, strict=True)
            return {"": loss.detach(), **{n: x for n, x in named if x is not None}}

        self.slopes = dict(self.replay(differentiate, tensors, key))
        return self.slopes.pop("")

    def parts(
        self, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], list[Any], tuple] | None:
        """The arguments apart: None where one of them may change.

        Returns:
            The loss as a function of the tensors among them, these, the others, and their form.
        """
        given, form = tree_flatten((args, kwargs))
        places = [n for n, value in enumerate(given) if isinstance(value, Tensor)]
        tensors = tuple(given[n] for n in places)
        rest = [None if n in places else value for n, value in enumerate(given)]
        if any(type(x) not in TENSORS or x.layout is not torch.strided for x in tensors):
            self.compiled.give_up("an argument is sparse, or a tensor of a class of its own")
            return None
        for value in rest:
            if type(value) not in PLAIN:
                kind = type(value).__name__
                self.compiled.give_up(f"an argument is of the type {kind}, which may change")
                return None

        def evaluate(*tensors: Tensor) -> Tensor:
            values = [self.numbers.get(n, value) for n, value in enumerate(rest)]
            for n, tensor in zip(places, tensors, strict=True):
                values[n] = tensor
            positional, named = tree_unflatten(values, form)
            with Supports(self.supported) as found:
                loss = self.estimator.differentiable_loss(
                    self.model, self.guide, *positional, **named
                )
            return loss if found.holds is None else loss + torch.where(found.holds, 0.0, torch.nan)

        flat = len(given) == len(args) + len(kwargs)
        return evaluate, tensors, rest, (len(args), *kwargs) if flat else (repr(form),)

    def backward(self, loss: Tensor) -> None:
        """Adds the slopes of the loss just taken to those that the parameters have."""
        if self.replay is None:
            loss.backward()
            return
        for name, slope in self.slopes.items():
            parameter = self.parameters[name]
            parameter.grad = slope if parameter.grad is None else parameter.grad + slope

    def take(self, values: dict[str, Tensor | None]) -> None:
        """Takes note of the parameters that a step of Pyro's used."""
        kept = {n: v for n, v in values.items() if v is not None}
        used = {n: v.unconstrained() for n, v in kept.items()}  # type: ignore[attr-defined]
        self.stored.update(n for n, v in used.items() if stored(n) is v)
        self.parameters = used
        if not used:
            self.compiled.reason = "there are no parameters"
            return
        recorder = recorder_for(next(iter(used.values())).device)
        if recorder is not None:
            self.replay = Replay(recorder, [self.compiled], [], list(used.values()))

    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.parameters.items()

    def modules(self) -> dict[str, nn.Module]:
        return {
            f"{program.name}.{name}": module
            for program in self.programs
            for name, module in program.modules().items()
        }
