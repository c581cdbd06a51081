"""The private parts of Pyro that are used here: what each is, and why no public one would do.

`tests/infer/programs/test_internals.py` holds them to what is said here, and `pyproject.toml`
bounds the version. Not among them are the methods of a handler (`_pyro_sample`, `_pyro_param`,
...), by which Pyro is meant to be extended.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
from pyro import poutine
from pyro.infer import MCMC, trace_elbo, traceenum_elbo
from pyro.infer.autoguide import AutoGuide
from pyro.infer.elbo import ELBO
from pyro.nn import PyroModule
from pyro.nn.module import _Context
from pyro.params import param_with_module_name
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch import Tensor, nn
from torch.distributions import constraints

# log p - log q at each site, of all that depends on it. `Trace_ELBO` gives no more than the total.
log_ratios = trace_elbo._compute_log_r

# The terms of a model with enumerated sites before they are summed out, and the ELBO of such models
# with its gradient. `TraceEnum_ELBO` reads numbers from the device between these and its loss.
model_factors = traceenum_elbo._compute_model_factors
dice_elbo = traceenum_elbo._compute_dice_elbo


def active_handlers() -> list[Messenger]:
    """The handlers that a program runs under, from the outside in.

    There is a public `am_i_wrapped`, which says no more than whether there are any.
    """
    return _PYRO_STACK


def taken_dims() -> list[str | None]:
    """The dimensions that plates have taken, from the right: those whose `with` is entered.

    A plate that is left by an interrupt may keep its own. Nothing public shows or frees them.
    """
    return _DIM_ALLOCATOR._stack


def unhandled(program: Callable[..., Any]) -> Callable[..., Any]:
    """What is inside of handlers, `handler(program)`, with the arguments bound to it.

    Such a program is `partial(_context_wrap, handler, program)`, and nothing public looks inside.
    """
    while isinstance(program, functools.partial) and isinstance(
        next(iter(program.args), None), Messenger
    ):
        fn, *bound = program.args[1:]
        plain = not bound and not program.keywords
        program = fn if plain else functools.partial(fn, *bound, **program.keywords)
    return program


def model_of(guide: AutoGuide) -> Callable[..., Any] | None:
    """The model of an autoguide; None where it was taken away, as it is when the guide is pickled.

    The public `model` fails then, of the guide that was pickled and of what comes of the pickle.
    """
    return guide._model[0] if guide._model else None


def plate_frames(guide: AutoGuide) -> dict[str, CondIndepStackFrame]:
    """The plates that an autoguide found in its model, by name; empty before its first call.

    Its public `plates` are those of the call that runs, made from these.
    """
    return guide._prototype_frames


@contextmanager
def run_model_as(guide: GuideMessenger, program: Callable[..., Any]) -> Iterator[None]:
    """A context in which a messenger guide runs a program in place of its model.

    Its public `model` can be read, and not be set.
    """
    before = guide._model
    guide._model = (program,)
    try:
        yield
    finally:
        guide._model = before


def traces(
    estimator: ELBO, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
) -> Iterator[tuple[poutine.Trace, poutine.Trace]]:
    """The traces of the model and the guide of each particle, their log-densities computed.

    What an estimator does besides that is its own; to write one, Pyro has no public way to these.
    """
    return estimator._get_traces(model, guide, args, kwargs)


def is_deterministic(site: dict) -> bool:
    """Whether a site is a `pyro.deterministic`, which else looks like an observed `Delta`."""
    return bool(site["infer"].get("_deterministic"))


def mark_reparameterised(message: dict) -> None:
    """Marks a site that `poutine.reparam`, in force, may have made a function of others.

    Such a site looks observed, its distribution a `Delta` at its own value, whose density is what
    the reparameteriser says. Nothing else in a trace tells it from a likelihood written as one.
    """
    for handler in _PYRO_STACK:
        if isinstance(handler, ReparamMessenger):
            message["infer"] = {**(message["infer"] or {}), "_reparameterised": True}


def is_reparameterised(site: dict) -> bool:
    """Whether a site was marked by `mark_reparameterised`."""
    return bool(site["infer"].get("_reparameterised"))


def is_enumerated(site: dict) -> bool:
    """Whether a site was enumerated in this trace. That it is marked for it says only the wish."""
    return site["infer"].get("_enumerate_dim") is not None


def packed_dims(tensor: Tensor) -> str:
    """The names of the dimensions of a packed tensor, one letter each.

    `pyro.ops.packed` is public and works with them, but does not give them.
    """
    return tensor._pyro_dims  # type: ignore[attr-defined]


def stored(name: str) -> Tensor | None:
    """The unconstrained parameter of this name in Pyro's store, at the price of one look-up.

    The public `named_parameters` goes through all of them, `get_param` constrains.
    """
    return pyro.get_param_store()._params.get(name)


# What a `PyroModule` enters whenever it is called, one for a module and all within it. The public
# way to parameters of its own, the setting `module_local_params`, is one for all modules, and
# breaks those made before it.
Context = _Context


def context_of(module: PyroModule) -> _Context:
    """What a module, and all modules within it, enter when they are called."""
    return vars(module)["_pyro_context"]


class Stored(NamedTuple):
    """A parameter as it stands in Pyro's store, and the module that holds it under a key."""

    tensor: Tensor
    constraint: constraints.Constraint
    holder: nn.Module
    key: str


def registered_parameters(module: PyroModule) -> dict[str, Stored]:
    """The parameters of a module by the names that Pyro's store has for them.

    The public `named_pyro_params` has other names, and leaves plain modules out.
    """
    found: dict[str, Stored] = {}
    for part in module.modules():
        if not isinstance(part, PyroModule):
            continue
        prefix = f"{part._pyro_name}." if part._pyro_name else ""
        kinds = {f"{name}_unconstrained": (name, kind) for name, (kind, _) in _kinds(part).items()}
        for key, tensor in part._parameters.items():
            if tensor is not None:
                name, kind = kinds.get(key, (key, constraints.real))
                found[prefix + name] = Stored(tensor, kind, part, key)
        for child, plain in part._modules.items():
            if plain is not None and not isinstance(plain, PyroModule):
                for holder_name, holder in plain.named_modules():
                    inner = f"{holder_name}." if holder_name else ""
                    for key, tensor in holder._parameters.items():
                        if tensor is not None and not isinstance(holder, PyroModule):
                            name = param_with_module_name(prefix + child, inner + key)
                            found[name] = Stored(tensor, constraints.real, holder, key)
    return found


def _kinds(module: PyroModule) -> dict[str, tuple[constraints.Constraint, int | None]]:
    return vars(module)["_pyro_params"]


def forget_in_store(name: str) -> None:
    """Takes a parameter out of Pyro's store."""
    store = pyro.get_param_store()
    tensor = store._params.pop(name, None)
    store._constraints.pop(name, None)
    if tensor is not None:
        store._param_to_name.pop(tensor, None)


@contextmanager
def in_store(entries: Callable[[], dict[str, Stored]]) -> Iterator[None]:
    """A context in which parameters stand in Pyro's store, and then those of before again.

    The public `get_state` would copy it, and take from its parameters what Pyro's `SVI` reads.
    """
    store = pyro.get_param_store()
    inside = entries()
    before = {n: (store._params.get(n), store._constraints.get(n)) for n in inside}
    for name, entry in inside.items():
        _put(name, entry.tensor, entry.constraint)
    try:
        yield
    finally:
        for name in {**inside, **entries()}:
            forget_in_store(name)
        for name, (tensor, constraint) in before.items():
            if tensor is not None and constraint is not None:
                _put(name, tensor, constraint)


def _put(name: str, tensor: Tensor, constraint: constraints.Constraint) -> None:
    store = pyro.get_param_store()
    store._params[name], store._constraints[name] = tensor, constraint
    store._param_to_name[tensor] = name


def is_made(message: dict) -> bool:
    """Whether a `pyro.param` statement, about to run, makes a parameter that is in no store.

    Those of modules, which `pyro.module` registers, are made before.
    """
    init = message["args"][1] if len(message["args"]) > 1 else message["kwargs"].get("init_tensor")
    return message["name"] not in pyro.get_param_store() and not isinstance(init, nn.Parameter)


def put_from(state: Any, name: str) -> None:
    """Puts a parameter of some state of Pyro's store into it, if that has one of the name."""
    if name in state["params"]:
        _put(name, state["params"][name], state["constraints"][name])


class Run(NamedTuple):
    """What `MCMC` keeps of a run: its draws by site, `(chains, draws, *)`, and its arguments."""

    samples: dict[str, Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def run_of(mcmc: MCMC) -> Run:
    """The last run of a sampler; without draws, if there was none.

    The arguments have no public name, and `get_samples` is not there in every sampler.
    """
    if getattr(mcmc, "_samples", None) is None:
        return Run({}, (), {})
    return Run(mcmc._samples, mcmc._args, mcmc._kwargs)
