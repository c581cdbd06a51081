"""Where a gradient comes from that is not finite: the step again, and then fewer and fewer rows."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress

import pyro
import torch
from torch import Tensor

from ppl_models.infer.programs.not_finite import named
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.training.batches import Batch
from ppl_models.scoped import own_rng
from ppl_models.user_line import statement_in

SHOWN = 6  # rows, of which the last is not named

Loss = Callable[[Batch], Tensor]


def are_finite(parameters: list[Tensor]) -> bool:
    """Whether the gradients of some parameters are finite, by one look at them all."""
    slopes = [p.grad for p in parameters if p.grad is not None and p.grad.layout == torch.strided]
    if not slopes:
        return True
    size = torch.stack(torch._foreach_norm(slopes)).sum()
    return bool(torch.isfinite(size)) or all(bool(torch.isfinite(x).all()) for x in slopes)


def origin(loss: Loss, batch: Batch, parameters: list[Tensor]) -> str:
    """Says at which line, and by which rows, a gradient becomes what it is.

    Arguments:
        loss: The loss of a batch, with the draws that it had.
        batch: The batch.
        parameters: Those that are trained.
    """
    found = _statement(loss, batch, parameters)
    with Rows(batch.rows, batch.size, len(batch.values[0])), suppress(Exception):
        found += named(torch.tensor(list(_rows(loss, batch, parameters))))
    return found


def _statement(loss: Loss, batch: Batch, parameters: list[Tensor]) -> str:
    """The line of the operation whose derivative is undefined."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True):
                _slopes(loss, batch, parameters)
        except RuntimeError:
            lines = filter(None, (statement_in(str(warning.message)) for warning in caught))
            return "".join(f"; it comes from {line}" for line in list(lines)[:1])
    return ""


def _rows(loss: Loss, batch: Batch, parameters: list[Tensor]) -> Iterator[int]:
    """The places of some rows that have no finite gradient by themselves, with draws of their own.

    Raises:
        Exception: Whatever a program raises that does not take fewer rows.
    """
    left, shown = [torch.arange(len(batch.values[0]), device=batch.values[0].device)], 0
    while left and shown < SHOWN:
        places = left.pop()
        if _is_fine(loss, _part(batch, places), parameters):
            continue
        if len(places) == 1:
            shown += 1
            yield int(places)
        else:
            left += reversed(places.tensor_split(2))


def _is_fine(loss: Loss, batch: Batch, parameters: list[Tensor]) -> bool:
    with own_rng("slopes", 0, batch.values[0].device):
        slopes = _slopes(loss, batch, parameters)
    return all(bool(slope.isfinite().all()) for slope in slopes if slope is not None)


def _part(batch: Batch, places: Tensor) -> Batch:
    rows = None if batch.rows is None else batch.rows[places]
    return Batch(tuple(x[places] for x in batch.values), rows, batch.size)


def _slopes(loss: Loss, batch: Batch, parameters: list[Tensor]) -> tuple[Tensor | None, ...]:
    with pyro.validation_enabled(False):
        return torch.autograd.grad(loss(batch), parameters, allow_unused=True)
