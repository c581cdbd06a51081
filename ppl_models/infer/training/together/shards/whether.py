"""Whether the networks of a run can be split over its processes: what is known before any is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.training.batches import Source
from ppl_models.infer.training.optimizers import Optimizer, make_optimizer
from ppl_models.processes import Processes

STEPS = 3  # of an optimiser that is tried


def check_can_shard(
    processes: Processes, objectives: list[Objective], sources: Sequence[Source], compile: Any
) -> None:
    """Raises where networks cannot be split over processes."""
    if processes.alone:
        return
    if compile is True:
        raise ValueError(
            "shard: expected steps that are not compiled, which gather networks on the way, got "
            "compile=True. Try compile=False."
        )
    if len(objectives) != 1:
        raise ValueError(
            f"shard: expected one objective, got {len(objectives)}, which take turns, and of which "
            f"each would gather the networks of the others. Try shard=False."
        )
    for source in sources:
        check_rows_for_all(min(source.batch_size, source.size), processes)
        check_rows_for_all(source.size % source.batch_size or source.batch_size, processes)


def check_rows_for_all(rows: int, processes: Processes) -> None:
    """Raises where a batch leaves a process without rows, which others would wait for."""
    if rows < processes.count:
        raise ValueError(
            f"shard: expected a row of each batch on each of {processes.count} processes, got a "
            f"batch of {rows}. Try a batch_size that divides the rows, of validation data too."
        )


def check_moves_each_alone(optimizer: Optimizer | None, lr: float) -> None:
    """Raises where an optimiser moves a number by what it knows of others, which may be elsewhere.

    Example:
        >>> check_moves_each_alone(torch.optim.AdamW, lr=0.1)
        >>> check_moves_each_alone(torch.optim.Adafactor, lr=0.1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: shard: expected an optimiser that moves each number by its own gradient...
    """
    whole = [_numbers(6, 4), _numbers(5)]
    parts = [p[rows].clone() for p in whole for rows in (slice(0, 3), slice(3, None))]
    slopes = [[_numbers(*p.shape) * (n - 1) for p in whole] for n in range(STEPS)]
    both = [
        _moved(optimizer, lr, whole, slopes),
        _moved(optimizer, lr, parts, [[*_halves(a), *_halves(b)] for a, b in slopes]),
    ]
    if not all(map(torch.allclose, [x for p in both[0] for x in _halves(p)], both[1])):
        raise ValueError(
            "shard: expected an optimiser that moves each number by its own gradient, of which a "
            "process can have a part, got one that moves it by others, too. Try torch.optim.AdamW."
        )


def _numbers(*shape: int) -> Tensor:
    """Some numbers that are not alike, and no random ones."""
    count = torch.Size(shape).numel()
    return torch.linspace(0.3, 7.9, count, dtype=torch.float64).sin().reshape(shape)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:3], x[3:]


def _moved(
    optimizer: Optimizer | None, lr: float, values: list[Tensor], slopes: list[list[Tensor]]
) -> list[Tensor]:
    parameters = [nn.Parameter(x.clone()) for x in values]
    made = make_optimizer(optimizer, list(parameters), lr)
    for each in slopes:
        for p, slope in zip(parameters, each, strict=True):
            p.grad = slope.clone()
        made.step()
    return [p.detach() for p in parameters]
