r"""The steps of optimisers as operations on tensors, to be a part of a compiled step.

With the gradient :math:`g`, its number :math:`t` and the learning rate :math:`\eta`, Adam moves

.. math::
    m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
    v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
    \theta \leftarrow \theta -
    \frac{\eta}{1 - \beta_1^t} \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

each as the optimiser of the same name does. What is the same for all parameters, such as
:math:`\eta / (1 - \beta_1^t)`, is reckoned ahead for all steps of a block, and is an input; all
other settings are constants of the code.

References:
    | Adam (Kingma & Ba, 2015), https://arxiv.org/abs/1412.6980
    | Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019)
    | https://arxiv.org/abs/1711.05101
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

ALIGNED = 64  # numbers, a multiple of what a processor takes at once
GLOBAL_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
Slots = dict[str, Tensor]  # what an optimiser keeps of a parameter, by its name there
Settings = dict[str, Any]  # those of a group of parameters


class Rule(NamedTuple):
    """How an optimiser moves a parameter."""

    slots: tuple[str, ...]  # names of the tensors that it keeps
    counts: bool  # whether it counts its steps
    # What is one number for all parameters, for steps with these rates and counts, each `(T,)`.
    numbers: Callable[[Tensor, Tensor, Settings], list[Tensor]]
    move: Callable[[Tensor, Slots, Tensor, Sequence[Tensor], Settings], None]
    # Where a parameter goes by what is kept then; None where that is no function of it alone.
    moved: Callable[[Tensor, Slots, Sequence[Tensor], Settings], Tensor] | None = None


def rule_of(optimizer: torch.optim.Optimizer, group: Settings) -> Rule | None:
    """The rule of an optimiser for a group of its parameters; None where it is not known here."""
    if not all(_is_plain(value) for name, value in group.items() if name != "params"):
        return None
    if not is_as_its_class(optimizer):
        return None
    kind = type(optimizer)
    if kind in (torch.optim.Adam, torch.optim.AdamW) and not group["amsgrad"]:
        return Rule(("exp_avg", "exp_avg_sq"), True, _adam_numbers, _adam, _adam_moved)
    if kind is ClippedAdam:
        slots, numbers = ("exp_avg", "exp_avg_sq"), _clipped_adam_numbers
        return Rule(slots, True, numbers, _clipped_adam, _clipped_adam_moved)
    if kind is torch.optim.SGD:
        return Rule(("momentum_buffer",) if group["momentum"] else (), False, _sgd_numbers, _sgd)
    return None


def is_as_its_class(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimiser does what its class does: no hooks, and no step of its own."""
    kept = vars(optimizer)
    step = kept.get("step")  # a scheduler wraps it, to count the calls
    known = step is None or getattr(step, "__wrapped__", None) is type(optimizer).step
    hooks = [kept["_optimizer_step_pre_hooks"], kept["_optimizer_step_post_hooks"], *GLOBAL_HOOKS]
    return known and "zero_grad" not in kept and not any(hooks)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float))


def _powers(base: float, counts: Tensor) -> Tensor:
    """Powers, each the same to the last digit in whatever block it comes.

    Torch reckons the last few of a tensor, or of a thread's part of it, another way.
    """
    whole = torch.nn.functional.pad(counts, (0, -len(counts) % ALIGNED))
    return torch.cat([base**part for part in whole.split(2**14)])[: len(counts)]


def _adam_numbers(rates: Tensor, counts: Tensor, settings: Settings) -> list[Tensor]:
    one, two = settings["betas"]
    decays = 1 - rates * settings["weight_decay"]
    return [rates / (1 - _powers(one, counts)), (1 - _powers(two, counts)).rsqrt(), decays]


def _adam(
    p: Tensor, kept: Slots, slope: Tensor, numbers: Sequence[Tensor], settings: Settings
) -> None:
    mean, square = kept["exp_avg"], kept["exp_avg_sq"]
    one, two = settings["betas"]
    slope = -slope if settings["maximize"] else slope
    decay = settings["weight_decay"]
    if decay and not settings.get("decoupled_weight_decay"):
        slope = slope + decay * p
    mean.lerp_(slope, 1 - one)
    square.mul_(two).addcmul_(slope, slope, value=1 - two)
    p.copy_(_adam_moved(p, kept, numbers, settings))


def _adam_moved(p: Tensor, kept: Slots, numbers: Sequence[Tensor], settings: Settings) -> Tensor:
    size, root, decays = numbers
    p = p * decays if settings.get("decoupled_weight_decay") else p
    return p - size * kept["exp_avg"] / (kept["exp_avg_sq"].sqrt() * root + settings["eps"])


def _clipped_adam_numbers(rates: Tensor, counts: Tensor, settings: Settings) -> list[Tensor]:
    one, two = settings["betas"]
    return [rates * (1 - _powers(two, counts)).sqrt() / (1 - _powers(one, counts))]


def _clipped_adam(
    p: Tensor, kept: Slots, slope: Tensor, numbers: Sequence[Tensor], settings: Settings
) -> None:
    """Pyro's, whose learning rate has been lowered before."""
    mean, square = kept["exp_avg"], kept["exp_avg_sq"]
    one, two = settings["betas"]
    slope = slope.clamp(-settings["clip_norm"], settings["clip_norm"])
    if settings["weight_decay"]:
        slope = slope + settings["weight_decay"] * p
    mean.mul_(one).add_(slope, alpha=1 - one)
    spread = slope - mean if settings["centered_variance"] else slope
    square.mul_(two).addcmul_(spread, spread, value=1 - two)
    p.copy_(_clipped_adam_moved(p, kept, numbers, settings))


def _clipped_adam_moved(
    p: Tensor, kept: Slots, numbers: Sequence[Tensor], settings: Settings
) -> Tensor:
    (size,) = numbers
    return p - size * kept["exp_avg"] / (kept["exp_avg_sq"].sqrt() + settings["eps"])


def _sgd_numbers(rates: Tensor, counts: Tensor, settings: Settings) -> list[Tensor]:
    return [rates]


def _sgd(
    p: Tensor, kept: Slots, slope: Tensor, numbers: Sequence[Tensor], settings: Settings
) -> None:
    (rate,) = numbers
    slope = -slope if settings["maximize"] else slope
    if settings["weight_decay"]:
        slope = slope + settings["weight_decay"] * p
    if momentum := settings["momentum"]:
        buffer = kept["momentum_buffer"]
        buffer.mul_(momentum).add_(slope, alpha=1 - settings["dampening"])
        slope = slope + momentum * buffer if settings["nesterov"] else buffer
    p.sub_(rate * slope)
