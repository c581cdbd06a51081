"""Parameters that are a module's own, whoever calls it.

Pyro keys every parameter by name in one global store, so that a module that was fitted in a store
of its own would look its parameters up, called from outside, where they are not: they would be
made anew, or be those of another module of the class. A module whose parameters were handed out to
be moved, or loaded, therefore takes them with it: while it runs, they stand in Pyro's store under
their names, and what was there before stands there again afterwards.
"""

import types
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.effect import AutoMessenger
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_models.infer.programs.pyro_internals import (
    Context,
    Stored,
    context_of,
    forget_in_store,
    in_store,
    registered_parameters,
    stored,
)

_KEPT = "_own_params"  # in the `__dict__` of a module, so that copies and pickles have it, too


_METHODS = "_own_methods"  # those that made parameters by `pyro.param`, by their names


class Running(NamedTuple):
    """A module that runs as a program here, in a store of its own, and the store suspended."""

    module: nn.Module
    suspended: Any


running: list[Running] = []


def kept(module: nn.Module) -> dict[str, Any]:
    """The state of the store that `pyro.param` statements inside the module's `forward` filled."""
    return vars(module).get(_KEPT, {"params": {}, "constraints": {}})


def keep(module: nn.Module, state: dict[str, Any]) -> None:
    """Takes note of the state of that store."""
    vars(module)[_KEPT] = state


def own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """What `pyro.param` statements inside the module's `forward` created, unconstrained."""
    return kept(module)["params"]


def make_own(module: nn.Module) -> dict[str, Tensor]:
    """Makes the parameters of a module its own, also in calls from outside.

    Returns:
        By their names in the store, the parameters that are other tensors now: those of an
        autoguide that Pyro had it share by name with whatever it called so.
    """
    replaced: dict[str, Tensor] = {}
    seen: set[int] = set()
    for part in module.modules():
        if isinstance(part, PyroModule) and id(context_of(part)) not in seen:
            seen.add(id(context_of(part)))
            replaced |= _make_own(part)
    if not isinstance(module, PyroModule) and own_parameters(module):
        _hook(module)
    for name in vars(module).get(_METHODS, ()):
        vars(module)[name] = Method(module, name)
    return replaced


def _make_own(module: PyroModule) -> dict[str, Tensor]:
    context = context_of(module)
    if isinstance(context, _OwnContext) and module in context.owners:
        return {}
    if not isinstance(context, _OwnContext):
        context.__class__ = _OwnContext
        context.owners, context.open = [], []
    context.owners.append(module)
    return _unshared(module) if isinstance(module, (AutoGuide, AutoMessenger)) else {}


def _unshared(guide: PyroModule) -> dict[str, Tensor]:
    """Gives an autoguide copies of the parameters that it has in Pyro's store, and takes these out.

    It may be that another of its class has them, too. One that has only them puts them back.
    """
    replaced: dict[str, Tensor] = {}
    for name, entry in registered_parameters(guide).items():
        if stored(name) is entry.tensor:
            own = nn.Parameter(entry.tensor.detach().clone(), entry.tensor.requires_grad)
            entry.holder._parameters[entry.key] = own
            forget_in_store(name)
            replaced[name] = own
    return replaced


def _entries(owner: nn.Module) -> dict[str, Stored]:
    """All parameters of a module, by their names in the store."""
    state = kept(owner)
    found = {
        name: Stored(tensor, state["constraints"][name], owner, name)
        for name, tensor in state["params"].items()
    }
    return {**(registered_parameters(owner) if isinstance(owner, PyroModule) else {}), **found}


_AS_IT_IS = nullcontext()


def _taken_along(owners: list[nn.Module]) -> AbstractContextManager[None]:
    """A context in which the parameters of some modules stand in Pyro's store."""
    for each in running:
        if each.module in owners:  # a program here, whose store is its own already
            return _AS_IT_IS
    return in_store(lambda: {n: e for owner in owners for n, e in _entries(owner).items()})


class _OwnContext(Context):
    """What a `PyroModule` enters for each call, with its parameters taken along."""

    owners: list[nn.Module]
    open: list[AbstractContextManager[None]]

    def __enter__(self) -> None:
        if not self.active:
            self.open.append(_taken_along(self.owners))
            self.open[-1].__enter__()
        super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if not self.active:
            self.open.pop().__exit__(None, None, None)


def note_method(method: types.MethodType) -> None:
    """Takes note of a method, run as a program, that `pyro.param` made parameters in."""
    module, name = method.__self__, method.__name__
    plain = getattr(type(module), name, None) is method.__func__
    if plain and name not in ("forward", "__call__"):  # a call of the module takes them along
        vars(module).setdefault(_METHODS, set()).add(name)


class Method:
    """A method of a module that is no `forward`, with its parameters taken along.

    It stands in the module's `__dict__`, before that of the class, and is pickled with it.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    @property
    def plain(self) -> types.MethodType:
        """The method as the class has it."""
        return types.MethodType(getattr(type(self.module), self.name), self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _taken_along([self.module]):
            return self.plain(*args, **kwargs)


# Of a plain module: around its `forward`. Functions of this file, so that it can be pickled.


def _hook(module: nn.Module) -> None:
    if _enter not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_enter)
        module.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, _: Any) -> None:
    context = _taken_along([module])
    vars(module).setdefault("_own_open", []).append(context)
    context.__enter__()


def _leave(module: nn.Module, _: Any, __: Any) -> None:
    vars(module)["_own_open"].pop().__exit__(None, None, None)
