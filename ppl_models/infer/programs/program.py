"""A model or a guide, as it is called here.

A program is any callable with Pyro's primitives in it: a module, a function, a bound method, or
one of those wrapped in handlers. What must be known of it is found out: whether it
takes `size`, which module it belongs to, and which parameters it uses.

Parameters of modules are their own; those of plain functions are Pyro's. Pyro keys every parameter
by name in one global store, so that two `AutoNormal` of one shape would move together. A module
therefore runs in a store of its own, and takes its parameters along wherever it is called, see
`ppl_models.infer.programs.own`; a function in the global one, where its `pyro.param` statements
stay readable after the fit.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_models.infer.programs.messengers import Statements, guide_alone
from ppl_models.infer.programs.own import (
    Method,
    Running,
    keep,
    kept,
    make_own,
    note_method,
    own_parameters,
    running,
)
from ppl_models.infer.programs.pyro_internals import (
    is_made,
    mark_reparameterised,
    model_of,
    put_from,
    unhandled,
)
from ppl_models.infer.programs.rows import FollowingRows, rejoin

# What Pyro says of any discrete site that an autoguide would draw, be it a latent or not.
OF_DISCRETE = re.compile(r"Continuous inference cannot handle discrete sample site '(.*?)'")


class Program:
    """A callable `program(*batch, size=None)` around a model or guide of any Pyro style.

    Arguments:
        program: A callable with Pyro primitives.
        name: What to call it in errors: `"model"` or `"guide"`.
        model: Of a guide, the model: Pyro takes that of an autoguide away when it is pickled.

    Raises:
        TypeError: If `program` cannot be called, or is a class.
        ValueError: If it is an autoguide that lost its model before its first call.
    """

    def __init__(
        self, program: Callable[..., Any], name: str, model: "Program | None" = None
    ) -> None:
        if isinstance(program, type) or not callable(program):
            is_class = isinstance(program, type)
            kind = f"the class {program.__name__}" if is_class else repr(program)
            hint = "a function with pyro.sample in it, or a model, as in VAE(num_features=64, ...)"
            if is_class:
                hint = "an object, as in VAE(num_features=64, num_latents=8)"
            elif hasattr(program, "model_"):  # scikit-learn's way
                hint = "estimator.model_, the model inside of it"
            raise TypeError(
                f"{name}: expected a Pyro program (a function or a module), got {kind}. Try {hint}."
            )
        self.program = program
        self.name = name
        self.inner = _inner(program)
        self.owner = _owner(self.inner)
        self.found: dict[str, Tensor] = {}  # by name in the store, unconstrained
        self.noticed: list[nn.Module] = []  # that a function reaches on the way
        self._own: dict[int, Tensor] = {}  # those that its module holds itself, by `id`
        self.running = False
        self.is_evaluated = False
        self._scope = _Scope(self)
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext  # while it runs
        self._signature = _signature(program)
        self.takes_size = _takes_size(self._signature)
        if isinstance(self.inner, AutoGuide):
            self._follow_rows(self.inner, model)
        if isinstance(self.inner, EasyGuide):
            self._signature = _signature(self.inner.guide)
            self.takes_size = _takes_size(self._signature)
            self.around = functools.partial(_without_plates, self.inner)
        if isinstance(self.inner, GuideMessenger):
            self._show_alone(self.inner)

    def _follow_rows(self, guide: AutoGuide, model: "Program | None") -> None:
        """Has an autoguide, which hands its arguments on to its model, follow the rows."""
        its_model = model_of(guide) or (model and model.program)
        if its_model is not None:
            self.takes_size = _takes_size(_signature(its_model))
        following = FollowingRows(guide, self.takes_size, its_model)
        self.around = lambda: following
        _check_whole(guide)
        rejoin(guide)

    def _show_alone(self, guide: GuideMessenger) -> None:
        """Has a guide that runs its model show no more than what it says itself."""
        self.takes_size = _takes_size(_signature(guide.model))
        statements = Statements(guide, self.takes_size)
        replayed = Program(statements(guide.model), "model")
        self._signature, has_store = replayed._signature, self.owner is not None
        self.around = functools.partial(guide_alone, guide, replayed, statements, has_store)

    def check_arguments(self, count: int) -> None:
        """Raises a TypeError unless the program takes `count` tensors and, if at all, `size`."""
        size = {"size": 1} if self.takes_size else {}
        try:
            self._signature.bind(*range(count), **size)
        except TypeError as error:
            hint = "data without labels, or a program that takes them"
            if "missing" in str(error):
                hint = self._in_order(count)
            raise TypeError(
                f"{self.name}: each batch has {count} tensor(s), and {self.name}{self._signature} "
                f"cannot be called with them ({error}). Programs are called as "
                f"{self.name}(*batch, size=N). Try {hint}."
            ) from None

    def _in_order(self, count: int) -> str:
        """What data the program takes, where those given are too few."""
        names = self.argument_names
        hint = f"data=({', '.join(names)}), a tensor for each argument, in their order"
        if count == 1:
            columns = ", ".join(f"df.{name}" for name in names)
            hint += (
                f" (a data frame is one matrix, whose column names are not looked at: try "
                f"({columns}))"
            )
        return f"{hint}, or a program that takes fewer"

    @property
    def argument_names(self) -> list[str]:
        """The names of its positional arguments, `size` left out."""
        parameters = self._signature.parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [p.name for p in parameters if p.kind in kinds and p.name != "size"]

    def name_arguments(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Positional arguments under the names that the program gives them, if it does."""
        names = self.argument_names
        names += [f"argument_{i}" for i in range(len(names), len(values))]
        return dict(zip(names, values, strict=False))

    def __call__(self, *batch: Tensor, size: int | None = None) -> Any:
        self.running = True
        try:
            with self._scope, self.around():
                if self.takes_size:
                    return self.program(*batch, size=size)
                return self.program(*batch)
        except ValueError as error:
            if found := OF_DISCRETE.match(str(error)):
                raise ValueError(_of_discrete(type(self.inner).__name__, found[1])) from error
            raise
        finally:
            self.running = False

    @property
    def is_whole(self) -> bool:
        """Whether it is all that its module does, and no other method, of which there may be more.

        Each parameter of the module should then be of use here.
        """
        name = getattr(self.inner, "__name__", "forward")
        return not isinstance(self.inner, types.MethodType) or name in ("forward", "__call__")

    def modules(self) -> dict[str, nn.Module]:
        """The modules that the program runs: its owner, or those that a function refers to."""
        if self.owner is not None:
            return {"": self.owner}
        if inspect.isfunction(self.inner):
            outside = inspect.getclosurevars(self.inner)
            values = {**outside.globals, **outside.nonlocals}
        else:
            values = getattr(getattr(self.inner, "__self__", self.inner), "__dict__", {})
        named = {k: v for k, v in values.items() if isinstance(v, nn.Module)}
        return named | {f"module_{i}": module for i, module in enumerate(self.noticed)}

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Finds the modules that a function reaches on the way, such as one in a list.

        They are in evaluation mode meanwhile: this is for runs that look, and do not train.
        """
        if self.owner is not None:
            yield
            return
        known = {id(m) for root in self.modules().values() for m in root.modules()}
        called: dict[int, tuple[nn.Module, bool]] = {}

        def note(module: nn.Module, _: Any) -> None:
            if self.running and id(module) not in known and id(module) not in called:
                called[id(module)] = module, module.training
                module.training = False

        hook = register_module_forward_pre_hook(note)
        try:
            yield
        finally:
            hook.remove()
            inside: set[int] = set()
            for module, training in called.values():
                module.training = training
                inside |= {id(child) for child in module.modules() if child is not module}
            self.noticed += [m for m, _ in called.values() if id(m) not in inside]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters that the program owns or, once it has run, uses from the store.

        Constrained ones are given unconstrained, as the optimiser moves them. Whoever asks may
        move them: from then on a module takes them along, whoever calls it.
        """
        if self.owner is not None:
            replaced = make_own(self.owner)
            self.found |= {n: x for n, x in replaced.items() if n in self.found}
        seen: set[int] = set()
        if self.owner is not None:
            for name, parameter in self.owner.named_parameters():
                seen.add(id(parameter))
                yield name, parameter
        for name, tensor in self.found.items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def created(
        self, owner: nn.Module, params: dict[str, Tensor], outside: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Of what a call left in the owner's store, what `pyro.param` statements made.

        That is neither the module's own, which it holds itself, nor what stands in the store
        outside, nor what an autoguide's model created while the guide looked at it (hidden from
        the handler that notes the others).
        """
        known = self.found.keys() | own_parameters(owner).keys()
        strange = {n: p for n, p in params.items() if n in known and id(p) not in self._own}
        if strange:  # or the module's are others now; to go through them at each call is slow
            self._own = {id(p): p for p in [*owner.parameters(), *outside.values()]}
        return {n: p for n, p in strange.items() if id(p) not in self._own}


class _Scope(Messenger):
    """Runs a program with its owner's store in place, and notes the parameters it uses.

    Where it is evaluated and not trained, it finds what its statements made in Pyro's own training,
    or by MCMC, as in any other call. It marks what `poutine.reparam` may have made of sites, as
    long as that can be told.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def __enter__(self) -> "_Scope":
        owner = self.program.owner
        if owner is not None:
            store = pyro.get_param_store()
            running.append(Running(owner, store.get_state()))
            store.clear()
            if own_parameters(owner):
                store.set_state(kept(owner))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        owner = self.program.owner
        if owner is None:
            return
        store = pyro.get_param_store()
        if len(store):
            state = store.get_state()
            theirs = running[-1].suspended["params"]
            created = self.program.created(owner, state["params"], theirs)
            if created:
                constraints = {name: state["constraints"][name] for name in created}
                keep(owner, {"params": created, "constraints": constraints})
                if isinstance(self.program.inner, types.MethodType):
                    note_method(self.program.inner)
        store.clear()
        store.set_state(running[-1].suspended)
        running.pop()

    def _pyro_sample(self, message: dict) -> None:
        if message["is_observed"]:
            mark_reparameterised(message)

    def _pyro_param(self, message: dict) -> None:
        if self.program.is_evaluated and self.program.owner is not None and is_made(message):
            put_from(running[-1].suspended, message["name"])

    def _pyro_post_param(self, message: dict) -> None:
        self.program.found[message["name"]] = message["value"].unconstrained()


def modules_of_programs(*programs: Any) -> list[nn.Module]:
    """The modules of models and guides; what is no program has none."""
    there = [Program(p, "program") for p in programs if callable(p) and not isinstance(p, type)]
    return [module for program in there for module in program.modules().values()]


def _inner(program: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, method or module inside of handlers, partials and decorators."""
    program = unhandled(program)
    if isinstance(program, Method):
        program = program.plain
    if isinstance(program, functools.partial):
        first = next(iter(program.args), None)
        method = getattr(type(first), getattr(program.func, "__name__", ""), None)
        if isinstance(first, nn.Module) and method and unhandled(method) is program.func:
            return types.MethodType(program.func, first)  # a handler decorates the method
        return _inner(program.func)
    if inspect.isfunction(program) and hasattr(program, "__wrapped__"):
        return _inner(program.__wrapped__)
    return program


def _owner(inner: Callable[..., Any]) -> nn.Module | None:
    candidate = getattr(inner, "__self__", inner)  # a bound method belongs to its module
    return candidate if isinstance(candidate, nn.Module) else None


def _signature(program: Callable[..., Any]) -> inspect.Signature:
    program = unhandled(program)
    if isinstance(program, Method):
        return _signature(program.plain)
    if isinstance(program, nn.Module):
        return _signature(program.forward)
    if isinstance(program, functools.partial) and isinstance(program.func, nn.Module):
        bound = functools.partial(program.func.forward, *program.args, **program.keywords)
        return _signature(bound)
    return inspect.signature(program)


def _check_whole(guide: AutoGuide) -> None:
    """Raises where a guide cannot be made any more, as it was copied before its first call."""
    if model_of(guide) is None and guide.prototype_trace is None:
        kind = type(guide).__name__
        raise ValueError(
            f"guide: {kind} was copied or pickled before its first call, by which it lost its "
            f"model, and it has no parameters yet. Expected one that was called or fitted before. "
            f"Try {kind}(model), made anew."
        )


def _without_plates(guide: EasyGuide) -> AbstractContextManager[None]:
    """A context for a guide without the plates of a call that ended in an error."""
    guide.plates.clear()
    return nullcontext()


def _takes_size(signature: inspect.Signature) -> bool:
    parameters = signature.parameters.values()
    return any(p.name == "size" or p.kind is p.VAR_KEYWORD for p in parameters)


def _of_discrete(guide: str, site: str) -> str:
    return (
        f"guide: {guide} draws continuous latents, and the site {site!r} of the model is discrete "
        f"and not observed. Try pyro.sample({site!r}, ..., obs=...) where it is data, or "
        f"infer={{'enumerate': 'parallel'}} in the model, where it is a latent that is summed out."
    )


def no_latents(*batch: Tensor, size: int | None = None) -> None:
    """The guide of a model without latents, or with enumerated ones."""
