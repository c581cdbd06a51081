"""The private parts of Pyro that are used here: what each is, and why no public one would do.

`tests/infer/programs/test_internals.py` holds them to what is said here, and `pyproject.toml`
bounds the version. Not among them are the methods of a handler (`_pyro_sample`, `_pyro_param`,
...), by which Pyro is meant to be extended.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
from pyro import poutine
from pyro.infer import MCMC, trace_elbo, traceenum_elbo
from pyro.infer.autoguide import AutoGuide
from pyro.infer.elbo import ELBO
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

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


def plate_frames(guide: AutoGuide) -> dict[str, CondIndepStackFrame]:
    """The plates that an autoguide found in its model, by name; empty before its first call.

    Its public `plates` are those of the call that runs, made from these.
    """
    return guide._prototype_frames


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
    if any(isinstance(handler, ReparamMessenger) for handler in _PYRO_STACK):
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
