"""`SVI` as Pyro has it, and with compiled steps where these are asked for."""

import math
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from operator import is_not
from typing import Any, NamedTuple

import pyro
import pyro.infer
import pyro.optim
import torch
from pyro import poutine
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_models.checks import check_count
from ppl_models.infer.compiled.graph import MOST_GRAPHS, Compiled, Graph
from ppl_models.infer.compiled.replay import Replay, recorder_for
from ppl_models.infer.drop_in.run import SVIBlocks, SVIRun
from ppl_models.infer.objectives.estimators import direct
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.pyro_internals import stored
from ppl_models.scoped import get_rng_state, kept_rng, set_rng_state

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # of these there is a fused step
WORTH = 2000  # steps of a run, from which on they are compiled
# Arguments that a graph can hold as constants.
PLAIN = {bool, int, float, complex, str, type(None), torch.dtype, torch.device}


class SVI(pyro.infer.SVI):
    """Stochastic variational inference, with the arguments and results of `pyro.infer.SVI`.

    Its steps are Pyro's unless `compile=True`. Then they run as compiled code if the estimator is
    `Trace_ELBO` or `TraceEnum_ELBO` and the programs can be traced, see
    `ppl_models.infer.compiled.graph`. Pyro's own are those, too, with all their checks: the first
    ones with arguments of a kind, those after something changed that a graph holds fast, under
    handlers that stand around, and where a loss is not finite or data are not what a distribution
    allows. Parameters are where Pyro has them.

    That the code is right is tried, not known, as anything may happen between two steps. At random
    moments, often at first and later once in some 200 steps, a step is Pyro's own, and the loss and
    the gradient of the code are compared with it, for the same random numbers. Where they differ,
    all steps from then on are Pyro's, with a warning that says when they last agreed. So what a
    program does seldom, such as a branch that it takes once in ten thousand steps, may never be
    seen, and what it reads from where nobody looks (a file, a library that changes) is seen late.
    For steps that cannot be wrong leave `compile=False`, or use `run`, which goes back to where
    the code was right.

    Arguments:
        model: The model.
        guide: The guide.
        optim: An optimiser of `pyro.optim`, or one of torch, made with the parameters.
        loss: An ELBO of Pyro.
        loss_and_grads: What takes its place and differentiates, too; such steps are Pyro's.
        compile: Whether steps may run as compiled code.
        kwargs: What else `pyro.infer.SVI` takes.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> pyro.clear_param_store()
        >>> guide = pyro.infer.autoguide.AutoNormal(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        >>> svi.step(torch.ones(10)) > 0
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | torch.optim.Optimizer,
        loss: Any,
        loss_and_grads: Callable[..., Any] | None = None,
        *,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(optim, torch.optim.Optimizer):
            optim = TorchOptimizer(optim)
        super().__init__(model, guide, optim, loss, loss_and_grads, **kwargs)
        self._compile = compile
        self._forget()

    def _now(self) -> tuple[Any, ...]:
        return self.model, self.guide, self.loss, getattr(self, "loss_and_grads")  # noqa: B009

    def _forget(self) -> None:
        """Takes model, guide and loss as they are now, with nothing compiled."""
        self._parts = self._now()
        given = getattr(self.loss, "__self__", None)  # the estimator whose method it is
        plain = self._parts[-1] == getattr(given, "loss_and_grads", None)
        self._estimator = direct(given) if plain else None
        self._loss: Loss | None = None
        self._fused: dict[Any, FusedOptimizer] = {}
        if self._compile and self._estimator is not None:
            self._loss = Loss(self.model, self.guide, self._estimator)

    def _look(self) -> None:
        """Begins anew where model, guide or loss are others."""
        now = self._now()
        if len(self._parts) != len(now) or any(map(is_not, now, self._parts)):
            self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along, which has code of its own, from its first step on."""
        own: dict[str, Any] = {"_parts": (), "_loss": None, "_fused": {}, "_estimator": None}
        return {**vars(self), **own}

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes a step, and returns the loss before it, as `pyro.infer.SVI.step` does."""
        if not self._compile:
            return super().step(*args, **kwargs)
        self._look()
        loss = self._loss
        if loss is None or loss.compiled.reason is not None or _is_surrounded():
            return super().step(*args, **kwargs)
        call = loss.call(args, kwargs)
        graph = None if call is None else loss.graph(call)
        if call is None or graph is None:
            return self._pyros(loss, call, args, kwargs)
        if loss.replay is None and graph.due():
            return self._checked(loss, call, graph, args, kwargs)
        return self._compiled(loss, call, graph, args, kwargs)

    def _pyros(self, loss: "Loss", call: "Call | None", args: tuple, kwargs: dict[str, Any]) -> Any:
        """Takes a step of Pyro's, in which it shows what parameters there are."""
        with poutine.trace(param_only=True) as used, Supports() as checked:
            value = super().step(*args, **kwargs)
        if call is not None:
            loss.note(call, {n: s["value"] for n, s in used.trace.nodes.items()}, checked.valid)
        return value

    def _checked(
        self, loss: "Loss", call: "Call", graph: Graph, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Takes a step of Pyro's, to which the code is compared."""
        compiled, inner = loss.compiled, self._parts[-1]
        wrong: list[str | None] = []
        parameters, device = compiled.parameters(), loss.device()
        found = compiled.numbers(graph.run, call.tensors)

        def noted(*args: Any, **kwargs: Any) -> Any:
            before = [_slope(p) for p in parameters]
            value = inner(*args, **kwargs)
            ours = [("loss", torch.as_tensor(value, device=device)), *compiled.held()]
            held = len(ours) - 1
            for old, p in zip(before, parameters, strict=True):
                new = _slope(p)
                new = new if old is None or new is None else new - old
                ours.insert(len(ours) - held, ("gradient", new))
            wrong.append(compiled.compared(found, ours, call.evaluate, call.tensors))
            return value

        self.loss_and_grads = noted
        try:
            value = super().step(*args, **kwargs)
        finally:
            self.loss_and_grads = inner
        compiled.judge(graph, wrong[0])
        return value

    def _compiled(
        self,
        loss: "Loss",
        call: "Call",
        graph: Graph,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Any:
        """Takes a step by the code; one of Pyro's, which says more, where it has no number."""
        rng = get_rng_state(loss.device())
        try:
            tensor = loss(call, graph)
            value = tensor.item()
        except RuntimeError:  # a matrix without a factor
            value = math.nan
        if not math.isfinite(value):
            set_rng_state(rng, loss.device())
            return super().step(*args, **kwargs)
        loss.backward(tensor)
        parameters = list({id(p): p for p in loss.parameters.values()}.values())
        if isinstance(self.optim, TorchOptimizer):
            self.optim(set(parameters))
        else:
            fused = self._fused.get(call.key)
            if fused is None or not fused.holds(self.optim, parameters):
                fused = self._fused[call.key] = FusedOptimizer(self.optim, parameters)
            fused.step()
        zero_grads(parameters)
        return value

    def run(self, num_steps: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Takes steps with the same arguments, and returns what they leave behind.

        Steps and parameters are those of `step`, with the same random numbers, up to rounding. From
        2,000 steps on, or with `compile=True`, they come in blocks of compiled code on the CPU
        where that is known to be right: a step of it is compared with one of Pyro's before the
        first block, at first after each, later more rarely, and after the last; where they differ,
        the run goes back to where they agreed, and on from there by Pyro's, with a warning.

        Arguments:
            num_steps: How many steps.
            args: The arguments of the model and the guide.
            kwargs: Those by name.

        Returns:
            An `SVIRun`: `params` by name, the `state` of the optimisers, and the `losses` before
            each step. With `num_samples` or `num_steps` among the arguments of `SVI` it is what
            Pyro's `run` returns, which is deprecated.

        Example:
            >>> import pyro.distributions as dist
            >>> def model(x):
            ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            >>> pyro.clear_param_store()
            >>> guide = pyro.infer.autoguide.AutoNormal(model)
            >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
            >>> svi.run(20, torch.ones(10)).losses.shape
            torch.Size([20])
        """
        if self.num_samples or self.num_steps:  # which only that of Pyro has a use for
            given = () if num_steps is None else (num_steps,)
            return super().run(*given, *args, **kwargs)
        check_count(num_steps=num_steps)
        step = partial(super().step, *args, **kwargs)
        with poutine.trace(param_only=True) as used, Supports() as checked:
            losses = [torch.tensor([step()], dtype=torch.float64)]
        values = {name: site["value"] for name, site in used.trace.nodes.items()}
        if num_steps >= WORTH or (self._loss is not None and num_steps > 1):
            losses += self._in_blocks(num_steps - 1, step, values, checked.valid, args, kwargs)
        rest = [step() for _ in range(num_steps - sum(map(len, losses)))]
        losses.append(torch.tensor(rest, dtype=torch.float64))
        params = self._parameters(list(values), args, kwargs)
        return SVIRun(params, self.optim.get_state(), torch.cat(losses))

    def _parameters(
        self, names: list[str], args: tuple, kwargs: dict[str, Any]
    ) -> dict[str, Tensor]:
        """The parameters of now: of those that modules keep for themselves a run of them tells."""
        store = pyro.get_param_store()
        found = {name: store[name] for name in names if name in store}
        if len(found) < len(names):
            used = poutine.trace(param_only=True)
            with torch.no_grad(), kept_rng(torch.device("cpu")), used:
                self.evaluate_loss(*args, **kwargs)
            found |= {n: s["value"] for n, s in used.trace.nodes.items() if n not in found}
        return {n: v.detach().clone() for n, v in found.items() if v is not None}

    def _in_blocks(
        self,
        num_steps: int,
        step: Callable[[], float],
        values: dict[str, Any],
        supported: set[str],
        args: tuple,
        kwargs: dict[str, Any],
    ) -> list[Tensor]:
        """Takes steps in blocks, and returns their losses; none where that cannot be."""
        plain = type(self.optim) is PyroOptim and not self.optim.pt_clip_args
        self._look()
        if self._estimator is None or not plain:
            return []
        loss = Loss(self.model, self.guide, self._estimator, often=False)
        loss.take(values)
        loss.supported = supported
        moved = list({id(p): p for p in loss.parameters.values()}.values())
        parts = loss.parts(args, kwargs)
        own = self.optim.optim_objs
        if parts is None or not moved or any(p not in own or not p.is_cpu for p in moved):
            return []
        evaluate, tensors, *_ = parts
        blocks = SVIBlocks(loss.compiled, evaluate, tensors, self.optim, moved, step)
        blocks.take(num_steps)
        return [x.double() for x in blocks.losses]


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


def _is_surrounded() -> bool:
    """Whether handlers, or modes of torch, stand around, of which a graph knows nothing."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return am_i_wrapped() or modes > 0


def _slope(parameter: Tensor) -> Tensor | None:
    return None if parameter.grad is None else parameter.grad.clone()


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
        constants = ((type(value), repr(value)) for value in rest)
        key = self.compiled.key(tensors, *constants, *shape, *_settings())
        if key in self.kinds:
            self.parameters, self.supported = self.kinds[key]
        return Call(key, evaluate, tensors)

    def graph(self, call: "Call") -> Graph | None:
        """The code for a call: None where the next step must be one of Pyro's."""
        graph = self.compiled.current(call.key)
        if graph is not None or call.key not in self.ready:
            return graph
        self.ready.discard(call.key)
        return self.compiled.new_graph(call.key, call.evaluate, call.tensors)

    def note(self, call: "Call", values: dict[str, Tensor | None], supported: set[str]) -> None:
        """Takes note of what a step of Pyro's used, for a kind of calls."""
        if self.compiled.reason is not None:
            return
        self.take(values)
        self.supported = supported
        self.kinds[call.key] = self.parameters, supported
        self.ready.add(call.key)
        if len(self.ready) > MOST_GRAPHS:
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
        for value in rest:
            if type(value) not in PLAIN:
                kind = type(value).__name__
                self.compiled.give_up(f"an argument is of the type {kind}, which may change")
                return None

        def evaluate(*tensors: Tensor) -> Tensor:
            values = list(rest)
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


class TorchOptimizer(PyroOptim):
    """An optimiser of torch that was made with its parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(type(optimizer), {})
        self.optimizer = optimizer

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.optimizer.step()


class FusedOptimizer:
    """One optimiser for all parameters, where Pyro has an equal one for each; else Pyro's own.

    It shares their state, which Pyro can still read and save.
    """

    def __init__(self, optim: PyroOptim, parameters: list[Tensor]) -> None:
        self.optim, self.parameters = optim, parameters
        self.each = [optim.optim_objs.get(p) for p in parameters]
        plain = type(optim) is PyroOptim and not optim.pt_clip_args
        known = plain and all(type(o) in FUSED for o in self.each)
        # With all settings and states, so that one changed by hand is seen.
        self.groups = [dict(o.param_groups[0]) for o in self.each] if known else []
        self.settings = [{k: v for k, v in g.items() if k != "params"} for g in self.groups]
        self.optimizer = self._fuse() if known and self._are_equal() else None

    def _are_equal(self) -> bool:
        """Whether Pyro's are of one kind with equal settings, on a device that has a fused step."""
        kind, first = type(self.each[0]), self.settings[0]
        return (
            not any(isinstance(v, Tensor) for g in self.settings for v in g.values())
            and all(type(o) is kind for o in self.each)
            and all(g == first for g in self.settings)
            and all(p.device.type in ("cpu", "cuda") for p in self.parameters)
        )

    def _fuse(self) -> torch.optim.Optimizer:
        first = self.settings[0]
        optimizer: torch.optim.Optimizer
        optimizer = type(self.each[0])(self.parameters, lr=first["lr"], fused=True)
        chosen = {k: v for k, v in first.items() if k not in ("foreach", "fused")}
        optimizer.param_groups[0].update(chosen)
        for p, own in zip(self.parameters, self.each, strict=True):
            if "step" in own.state[p]:  # which a fused step counts on the device
                own.state[p]["step"] = own.state[p]["step"].to(p.device)
            optimizer.state[p] = own.state[p]
        return optimizer

    def holds(self, optim: PyroOptim, parameters: list[Tensor]) -> bool:
        """Whether Pyro's optimisers have the settings and states that they had."""
        if optim is not self.optim or list(map(id, parameters)) != list(map(id, self.parameters)):
            return False
        if self.optimizer is None:
            return True
        state = self.optimizer.state
        return all(
            self.optim.optim_objs.get(p) is own
            and own.param_groups[0] == group
            and own.state.get(p) is state[p]
            for p, own, group in zip(self.parameters, self.each, self.groups, strict=True)
        )

    def step(self) -> None:
        if self.optimizer is None:
            self.optim(set(self.parameters))
        else:
            self.optimizer.step()
