"""Optimisers of torch and schedules of their learning rates, made by what the user gave."""

import builtins
import dis
import inspect
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

# What a function of the user's may call that does nothing but compute.
COMPUTE = {getattr(builtins, name) for name in ("abs", "float", "int", "len", "max", "min", "pow")}
COMPUTE |= {builtins.round, builtins.sum, *filter(callable, vars(math).values())}
WRITES = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "STORE_SUBSCR", "IMPORT_NAME", "DELETE")

Optimizer = Callable[..., torch.optim.Optimizer]
LearningRateSchedule = Callable[..., LRScheduler]


def make_optimizer(
    optimizer: Optimizer | None, parameters: list[Tensor], lr: float
) -> torch.optim.Optimizer:
    """The optimiser of some parameters. Default: Adam, fused where it can be.

    Raises:
        TypeError: If it is no such callable, or returns something else.

    Example:
        >>> type(make_optimizer(None, [torch.zeros(2, requires_grad=True)], lr=0.1)).__name__
        'Adam'
    """
    _check_optimizer(optimizer)
    made = (optimizer or _adam)(parameters, lr=lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: expected a callable that returns an optimiser of torch, got "
            f"{type(made).__name__}. Try torch.optim.Adam, or "
            f"functools.partial(torch.optim.SGD, momentum=0.9)."
        )
    return made


def _check_optimizer(optimizer: Any) -> None:
    """Raises where it is one of Pyro's, or one that has its parameters already."""
    inner = getattr(optimizer, "func", optimizer)
    inside = isinstance(inner, type) and issubclass(inner, torch.optim.Optimizer)
    home = getattr(inner, "__module__", None) or ""
    if not inside and (isinstance(inner, PyroOptim) or home.startswith("pyro.optim")):
        name = _name_of_pyros(inner)
        options = getattr(inner, "pt_optim_args", None)
        lr = options.get("lr") if isinstance(options, dict) else None
        raise TypeError(
            f"optimizer: expected a callable that returns an optimiser of torch, got Pyro's "
            f"{name}, which is for SVI. Try "
            f"optimizer=torch.optim.Adam, lr={lr or 1e-3}; other settings by functools.partial, "
            f"clipping by clip=, and rates that fall by schedule=."
        )
    made = isinstance(optimizer, torch.optim.Optimizer)
    if made or not (optimizer is None or callable(optimizer)):
        name = type(optimizer).__name__
        got = f"{name}(...), which has its parameters already" if made else repr(optimizer)
        raise TypeError(
            f"optimizer: expected a callable that returns an optimiser of torch, got {got}. Try "
            f"torch.optim.Adam, or functools.partial(torch.optim.SGD, momentum=0.9)."
        )


def _name_of_pyros(optimizer: Any) -> str:
    if isinstance(optimizer, PyroLRScheduler):
        optimizer = optimizer.pt_scheduler_constructor
    elif isinstance(optimizer, PyroOptim):
        optimizer = optimizer.pt_optim_constructor
    return getattr(optimizer, "__name__", type(optimizer).__name__)


def make_scheduler(
    schedule: LearningRateSchedule | None, optimizer: torch.optim.Optimizer, steps: int | None
) -> LRScheduler | None:
    """The scheduler of an optimiser for a run of so many steps; None without a schedule.

    Raises:
        TypeError: If the callable given returns something else, or needs what it cannot have.
    """
    if schedule is None:
        return None
    made = schedule(optimizer, steps) if takes_steps(schedule) else schedule(optimizer)
    if isinstance(made, ReduceLROnPlateau) or not hasattr(made, "state_dict"):
        raise TypeError(
            f"schedule: expected a callable that returns a scheduler of torch moved by steps, "
            f"got {type(made).__name__}. Try lambda optimizer, steps: "
            f"torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)."
        )
    return made


def takes_steps(schedule: LearningRateSchedule) -> bool:
    """Whether a schedule is called with the number of steps in all, its horizon.

    Raises:
        TypeError: If it needs another second argument.

    Example:
        >>> takes_steps(torch.optim.lr_scheduler.CosineAnnealingLR)
        True
    """
    required = [
        p
        for p in inspect.signature(schedule).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) < 2:
        return False
    kind, name = getattr(schedule, "func", schedule), required[1].name
    if inspect.isclass(kind) and name not in ("T_max", "total_steps", "steps"):
        raise TypeError(
            f"schedule: {kind.__name__} needs {name}, which is not the number of steps. "
            f"Try functools.partial({kind.__name__}, {name}=...)."
        )
    return True


def only_schedules(scheduler: Any) -> bool:
    """Whether a scheduler is torch's own, and calls nothing of the user's that could do more.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> only_schedules(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)))
        True
    """
    parts = getattr(scheduler, "_schedulers", [])
    functions = [
        *getattr(scheduler, "lr_lambdas", []),
        getattr(scheduler, "_scale_fn_custom", None),
    ]
    return (
        type(scheduler).__module__ == torch.optim.lr_scheduler.__name__
        and all(map(only_schedules, parts))
        and all(f is None or _only_computes(f) for f in functions)
    )


def _only_computes(value: Any) -> bool:
    """Whether a function, or what one reads, does nothing but compute with numbers."""
    if isinstance(value, (bool, int, float, type(None))) or value is math:
        return True
    if not isinstance(value, FunctionType):
        return callable(value) and value in COMPUTE
    instructions = list(dis.get_instructions(value))
    scope = {**vars(builtins), **value.__globals__}
    names = [each.argval for each in instructions if each.opname.startswith("LOAD_GLOBAL")]
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    return not any(each.opname.startswith(WRITES) for each in instructions) and all(
        map(_only_computes, [*map(scope.get, names), *cells, *(value.__defaults__ or ())])
    )


def _adam(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=fused)
