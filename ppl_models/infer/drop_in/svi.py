"""`SVI` as Pyro has it, and with compiled steps where these are asked for."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import torch
from pyro import poutine
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_models.checks import check_count
from ppl_models.infer.compiled.graph import MOST_GRAPHS, Compiled
from ppl_models.infer.compiled.replay import Replay, recorder_for
from ppl_models.infer.drop_in.run import SVIBlocks, SVIRun
from ppl_models.infer.objectives.estimators import direct
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.pyro_internals import stored
from ppl_models.scoped import kept_rng

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # of these there is a fused step
WORTH = 2000  # steps of a run, from which on they are compiled
# Arguments that a graph can hold as constants.
PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


class SVI(pyro.infer.SVI):
    """Stochastic variational inference, with the arguments and results of `pyro.infer.SVI`.

    Its steps are Pyro's unless `compile=True`. Then, too, the first step with arguments of a kind
    is Pyro's own, with all its checks, and so is one after something changed that a graph holds
    fast, and one whose loss is not finite. The others run as compiled code if the estimator is
    `Trace_ELBO` or `TraceEnum_ELBO` and the programs can be traced, see
    `ppl_models.infer.compiled.graph`; else they are Pyro's. Compiled losses and gradients are
    Pyro's for the same random numbers, up to rounding, where the numbers of the programs come from
    tensors alone, and stay. Parameters are where Pyro has them.

    Arguments:
        model: The model.
        guide: The guide.
        optim: An optimiser of `pyro.optim`, or one of torch, made with the parameters.
        loss: An ELBO of Pyro.
        compile: Whether steps may run as compiled code. Data that a program draws by NumPy, reads
            from a loader or from an object that changes, and handlers around `step`, may then go
            unnoticed.
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
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(optim, torch.optim.Optimizer):
            optim = TorchOptimizer(optim)
        super().__init__(model, guide, optim, loss, **kwargs)
        self._estimator = direct(loss)
        self._loss: Loss | None = None
        if compile and self._estimator is not None:
            self._loss = Loss(model, guide, self._estimator)
        self._fused: FusedOptimizer | None = None

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes a step, and returns the loss before it, as `pyro.infer.SVI.step` does."""
        loss = self._loss
        if loss is None or loss.compiled.reason is not None:
            return super().step(*args, **kwargs)
        tensor = loss(args, kwargs)
        if tensor is None:  # what parameters there are shows in a step of Pyro's
            with poutine.trace(param_only=True) as used:
                value = super().step(*args, **kwargs)
            loss.take({n: s["value"] for n, s in used.trace.nodes.items()})
            self._fused = None
            return value
        value = tensor.item()
        if value - value != 0:  # Pyro's says where it comes from
            return super().step(*args, **kwargs)
        loss.backward(tensor)
        parameters = list(loss.parameters.values())
        if isinstance(self.optim, TorchOptimizer):
            self.optim(set(parameters))
        else:
            if self._fused is None or not self._fused.holds():
                self._fused = FusedOptimizer(self.optim, parameters)
            self._fused.step()
        zero_grads(parameters)
        return value

    def run(self, num_steps: int, *args: Any, **kwargs: Any) -> SVIRun:
        """Takes steps with the same arguments, and returns what they leave behind.

        Steps and parameters are those of `step`, with the same random numbers, up to rounding. From
        2,000 steps on, or with `compile=True`, they come in blocks of compiled code on the CPU
        where that is known to be right: a step of it is compared with one of Pyro's before the
        first block, about ten times a second, and after the last; where they differ, the run goes
        back to where they agreed, and on from there by Pyro's, with a warning.

        Arguments:
            num_steps: How many steps.
            args: The arguments of the model and the guide.
            kwargs: Those by name.

        Returns:
            `params` by name, the `state` of the optimisers, and the `losses` before each step.

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
        check_count(num_steps=num_steps)
        step = partial(super().step, *args, **kwargs)
        with poutine.trace(param_only=True) as used:
            losses = [torch.tensor([step()], dtype=torch.float64)]
        values = {name: site["value"] for name, site in used.trace.nodes.items()}
        if num_steps >= WORTH or (self._loss is not None and num_steps > 1):
            losses += self._in_blocks(num_steps - 1, step, values, args, kwargs)
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
        args: tuple,
        kwargs: dict[str, Any],
    ) -> list[Tensor]:
        """Takes steps in blocks, and returns their losses; none where that cannot be."""
        plain = type(self.optim) is PyroOptim and not self.optim.pt_clip_args
        if self._estimator is None or not plain:
            return []
        loss = Loss(self.model, self.guide, self._estimator)
        loss.take(values)
        parts, moved = loss.parts(args, kwargs), list(loss.parameters.values())
        own = self.optim.optim_objs
        if parts is None or not moved or any(p not in own or not p.is_cpu for p in moved):
            return []
        evaluate, tensors, *_ = parts
        blocks = SVIBlocks(loss.compiled, evaluate, tensors, self.optim, moved, step)
        blocks.take(num_steps)
        return [x.double() for x in blocks.losses]


class Loss:
    """The loss of Pyro's estimator, compiled."""

    name = "SVI"
    eager_because: str | None = None

    def __init__(self, model: Any, guide: Any, estimator: Any) -> None:
        self.model, self.guide, self.estimator = model, guide, estimator
        whole = Program(model, "model")
        self.programs = whole, Program(guide, "guide", whole)
        self.parameters: dict[str, Tensor] = {}
        self.stored: set[str] = set()  # the names of those that are in Pyro's store
        self.ready: set[Any] = set()  # kinds of calls of which the next may be traced
        self.compiled = Compiled(self, self.stored)
        self.replay: Replay | None = None  # on a GPU: the loss and its slopes, recorded
        self.slopes: dict[str, Tensor] = {}

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """The loss, with a gradient; None where the next step must be one of Pyro's."""
        parts = self.parts(args, kwargs)
        if parts is None:
            return None
        evaluate, tensors, rest, shape = parts
        constants = ((type(value), value) for value in rest)
        key = self.compiled.key(tensors, *constants, *shape)
        graph = self.compiled.current(key)
        if graph is None and key not in self.ready:
            self.ready.add(key)
            if len(self.ready) > MOST_GRAPHS:
                self.compiled.give_up("shapes or numbers among the arguments are ever new")
            return None
        self.ready.discard(key)
        if self.replay is None:
            return self.compiled.run(graph, key, evaluate, tensors)

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
            if not isinstance(value, PLAIN):
                self.compiled.reason = f"an argument is a {type(value).__name__}, which may change"
                return None

        def evaluate(*tensors: Tensor) -> Tensor:
            values = list(rest)
            for n, tensor in zip(places, tensors, strict=True):
                values[n] = tensor
            positional, named = tree_unflatten(values, form)
            return self.estimator.differentiable_loss(self.model, self.guide, *positional, **named)

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
        self.stored.clear()
        self.stored.update(n for n, v in used.items() if stored(n) is v)
        self.parameters = used
        if not used:
            self.compiled.reason = "there are no parameters"
            return
        recorder = recorder_for(next(iter(used.values())).device)
        if recorder is not None:
            self.replay = Replay(recorder, [self.compiled], [], list(used.values()))

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

    def holds(self) -> bool:
        """Whether Pyro's optimisers have the settings and states that they had."""
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
