"""`SVI` as Pyro has it, and with compiled steps where these are asked for."""

import math
from collections.abc import Callable
from functools import partial
from operator import is_not
from typing import Any, Literal

import pyro
import pyro.infer
import pyro.optim
import torch
from pyro import poutine
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.compiled.graph import CHANGES, Graph
from ppl_models.infer.compiled.watch import holds
from ppl_models.infer.compiled.worth import LEAST, Operations, pays
from ppl_models.infer.drop_in.loss import Call, Loss, Supports
from ppl_models.infer.drop_in.optimizers import FusedOptimizer, TorchOptimizer
from ppl_models.infer.drop_in.run import SVIBlocks, SVIRun
from ppl_models.infer.objectives.estimators import direct
from ppl_models.prompt.lines import shortened
from ppl_models.scoped import get_rng_state, kept_rng, set_rng_state


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

    `run` compiles its steps by itself where that pays, by counts alone: see there.

    Arguments:
        model: The model.
        guide: The guide.
        optim: An optimiser of `pyro.optim`, or one of torch, made with the parameters.
        loss: An ELBO of Pyro.
        loss_and_grads: What takes its place and differentiates, too; such steps are Pyro's.
        compile: Whether steps may run as compiled code; with `"auto"` those of `step` do not, and
            those of `run` do where there are enough of them.
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
        compile: bool | Literal["auto"] = "auto",
        **kwargs: Any,
    ) -> None:
        if isinstance(optim, torch.optim.Optimizer):
            optim = TorchOptimizer(optim)
        super().__init__(model, guide, optim, loss, loss_and_grads, **kwargs)
        if not (isinstance(compile, bool) or compile == "auto"):
            raise ValueError(
                f"compile: expected True, False or 'auto', got {compile!r}. Try compile='auto'."
            )
        self._compile, self._decides = compile is True, compile == "auto"
        self._forget()

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__self__", self.loss)  # the estimator whose method it is
        said = {"model": self.model, "guide": self.guide, "loss": loss}
        return f"SVI({', '.join(f'{name}={shortened(x)}' for name, x in said.items())})"

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
        again = call is not None and call.key in loss.once
        before = loss.compiled.watch() if again else None
        with poutine.trace(param_only=True) as used, Supports() as checked:
            value = super().step(*args, **kwargs)
        if call is not None:
            values = {n: s["value"] for n, s in used.trace.nodes.items()}
            loss.note(call, values, checked.valid, before)
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

        Steps and parameters are those of `step`, with the same random numbers, up to rounding. They
        come in blocks of compiled code on the CPU where that is known to be right: a step of it is
        compared with one of Pyro's before the first block, at first after each, later more rarely,
        and after the last; where they differ, the run goes back to where they agreed, and on from
        there by Pyro's. An `SVI(..., compile=True)` always tries that, and warns where it cannot
        be; by default it is tried, without a word, where it pays from a cold start: from about
        10,000 steps of a small program on, by the number of steps and of the operations in the
        second one, whatever the time is that they take; never below 1,200.

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
        own = (
            getattr(self.step, "__func__", None) is not SVI.step
        )  # of a class or object that has one
        step = partial(self.step if own else super().step, *args, **kwargs)
        with poutine.trace(param_only=True) as used, Supports() as checked:
            losses = [torch.tensor([step()], dtype=torch.float64)]
        values = {name: site["value"] for name, site in used.trace.nodes.items()}
        free = not own and not _is_surrounded()
        pay = free and self._compile and num_steps > 1
        if free and self._decides and num_steps - 2 >= LEAST:
            with Operations() as found:
                losses.append(torch.tensor([step()], dtype=torch.float64))
            pay = pays(num_steps - 2, found.count, found.arithmetic)
        if pay:
            more = num_steps - len(losses)
            losses += self._in_blocks(more, step, values, checked.valid, args, kwargs)
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
        loss.compiled.quiet = self._decides
        loss.take(values)
        loss.supported = supported
        moved = list({id(p): p for p in loss.parameters.values()}.values())
        parts = loss.parts(args, kwargs)
        own = self.optim.optim_objs
        if parts is None or not moved or any(p not in own or not p.is_cpu for p in moved):
            return []
        evaluate, tensors, *_ = parts
        before = loss.compiled.watch()
        second = torch.tensor([step()], dtype=torch.float64)
        if not holds(before):  # nothing is tried with a program that counts
            loss.compiled.give_up(CHANGES)
        if num_steps == 1 or loss.compiled.reason is not None:
            return [second]
        blocks = SVIBlocks(loss.compiled, evaluate, tensors, self.optim, moved, step)
        blocks.take(num_steps - 1)
        return [second, *(x.double() for x in blocks.losses)]


def _is_surrounded() -> bool:
    """Whether handlers, or modes of torch, stand around, of which a graph knows nothing."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return am_i_wrapped() or modes > 0


def _slope(parameter: Tensor) -> Tensor | None:
    return None if parameter.grad is None else parameter.grad.clone()
