r"""Annealed importance sampling: from the guide to the posterior by many small steps.

.. math::
    f_t(z) = q(z \mid x)^{1 - \beta_t} \, p(x, z)^{\beta_t}, \qquad
    w = \prod_{t=1}^{T} \frac{f_t(z_{t-1})}{f_{t-1}(z_{t-1})}, \qquad
    0 = \beta_0 < \dots < \beta_T = 1

where :math:`z_0` is a draw of the guide and :math:`z_t` comes from :math:`z_{t-1}` by a transition
that leaves :math:`f_t` as it is: of Hamiltonian Monte Carlo, accepted or not. Then
:math:`\mathbb{E}[w] = p(x)`. Backwards, from an exact draw of the posterior, it is
:math:`\mathbb{E}[1 / w] = 1 / p(x)`.

The steps of the transitions are found in a run before, of chains of its own, for each row and each
of the temperatures: what adapts within a run that counts would bias it.

Shapes: `K` chains of `R` rows, `T` temperatures, `D` real numbers.

References:
    | Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
    | Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse et al., 2015)
    | https://arxiv.org/abs/1511.02543
    | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
    | https://arxiv.org/abs/1611.04273
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.infer.sampling.slopes import Slopes

LEAPS = 4  # of each transition
TARGET = 0.65  # the share of transitions that are accepted
PACE = 0.2  # of the logarithm of a step, for each transition
FIRST = 30  # transitions at the first temperature by which a step is found
CLIP = 4.0  # how far beyond the half the sigmoid of the temperatures goes


def temperatures(number: int) -> Tensor:
    r"""Returns :math:`\beta_0, \dots, \beta_T`, closer to each other at both ends."""
    sigmoid = torch.linspace(-CLIP, CLIP, number + 1, dtype=torch.float64).sigmoid()
    return (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])


@dataclass(frozen=True)
class Transitions:
    """How chains move.

    Attributes:
        betas: The temperatures, `(T + 1,)`.
        scales: Of the latents of each row, `(R, D)`.
        steps: In units of these, for each temperature and row, `(T, R)`.
    """

    betas: Tensor
    scales: Tensor
    steps: Tensor


class Weights(NamedTuple):
    """What chains weigh, `(K * R,)`, and the share of their transitions that were accepted."""

    log_weight: Tensor
    accepted: float


class _Moved(NamedTuple):
    """A transition.

    Attributes:
        position: Where it ends, `(K * R, D)`.
        accepted: With which probability it was accepted, `(K * R,)`.
        log_ratio: Of both densities where it began, `(K * R,)`.
    """

    position: Tensor
    accepted: Tensor
    log_ratio: Tensor


def prepare(rows: Slopes, start: Tensor, num_rows: int, num_steps: int) -> Transitions:
    """Finds how chains are to move, by a run that counts for nothing.

    Arguments:
        rows: The densities of several chains of each row.
        start: Draws of the guide, `(K * R, D)`.
        num_rows: How many rows there are, `R`.
        num_steps: How many temperatures, `T`.
    """
    betas, position = temperatures(num_steps), start
    scales = position.unflatten(0, (-1, num_rows)).std(0).clamp(min=1e-6)
    log_step = torch.full((num_rows,), -0.7, dtype=position.dtype, device=position.device)
    found = []
    for t in [*[1] * FIRST, *range(1, num_steps)]:
        step = log_step.exp()
        position, accepted, _ = _transition(rows, position, betas[t], scales, step)
        found.append(step)
        log_step = log_step + PACE * (accepted.unflatten(0, (-1, num_rows)).mean(0) - TARGET)
    return Transitions(betas, scales, torch.stack(found[FIRST - 1 :]))  # the first is of t = 0


def forward(rows: Slopes, how: Transitions, start: Tensor) -> Weights:
    """Anneals draws of the guide towards the posterior."""
    return _run(rows, how, start, range(1, len(how.betas)), 0)


def backward(rows: Slopes, how: Transitions, start: Tensor) -> Weights:
    """Anneals exact draws of the posterior towards the guide: the same path, the other way."""
    return _run(rows, how, start, range(len(how.betas) - 1, 0, -1), -1)


def _run(rows: Slopes, how: Transitions, position: Tensor, path: range, ahead: int) -> Weights:
    """Weighs chains from each temperature to the next one, `ahead` of which they then move at."""
    log_weight, accepted = torch.zeros_like(position[:, 0]), []
    for t in path:
        width = how.betas[t] - how.betas[t - 1]
        if t == path[-1]:  # the end, from which no chain moves on
            log_weight += width * rows(position, how.betas[t]).log_ratio
            continue
        at = t + ahead
        moved = _transition(rows, position, how.betas[at], how.scales, how.steps[at])
        log_weight += width * moved.log_ratio
        accepted.append(moved.accepted.mean().item())
        position = moved.position
    return Weights(log_weight, sum(accepted) / len(accepted) if accepted else 1.0)


def _transition(
    rows: Slopes, position: Tensor, beta: Tensor, scales: Tensor, step: Tensor
) -> _Moved:
    """One of Hamiltonian Monte Carlo, which leaves the density at a temperature as it is.

    Arguments:
        rows: The densities.
        position: Where chains are, `(K * R, D)`.
        beta: The temperature.
        scales: Of each row, `(R, D)`.
        step: Of each row, `(R,)`.
    """
    length = (scales * step.unsqueeze(1)).repeat(len(position) // len(scales), 1)  # (K * R, D)
    momentum = torch.randn_like(position)
    log_ratio, density, slope = rows(position, beta)
    before = density - momentum.square().sum(1) / 2
    moved = position
    for _ in range(LEAPS):
        momentum = momentum + length * slope / 2
        moved = moved + length * momentum
        _, density, slope = rows(moved, beta)
        momentum = momentum + length * slope / 2
    chance = (density - momentum.square().sum(1) / 2 - before).exp().clamp(max=1).nan_to_num(0.0)
    taken = torch.rand_like(chance) < chance
    return _Moved(torch.where(taken.unsqueeze(1), moved, position), chance, log_ratio)
