"""The loss of held-out data: from draws of its own, so that training is the same without it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor

from ppl_models.infer.training.batches import Batch, Source, in_memory_rows
from ppl_models.infer.training.descent import Descent
from ppl_models.infer.training.together.as_one import is_as_one
from ppl_models.processes import ALONE, Processes
from ppl_models.scoped import get_rng_state, mix, modes, own_rng, set_rng_state


class HeldOut:
    """Rows whose loss says how good a fit is, and which it does not learn from.

    Arguments:
        source: The rows.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def check(self, descent: Descent, seed: int) -> None:
        """Raises where the objective cannot take them, before the first step."""
        if len(descent.objectives) != 1:
            raise ValueError(
                f"validation: expected one objective, got {len(descent.objectives)}. "
                f"Try validation=None, and metrics after the fit."
            )
        with _evaluating(descent, seed):
            descent.check(next(self._batches(ALONE)), in_memory_rows(self.source))

    @torch.no_grad()
    def loss(self, descent: Descent, seed: int) -> float:
        """Their loss in nats per row, with the same draws each time."""
        processes, own_seed = descent.processes, mix(seed, -1)
        if processes.rank and not is_as_one():
            own_seed = mix(own_seed, processes.rank)
        with _evaluating(descent, own_seed):
            losses, counts = [torch.zeros((), device=descent.device)], [0]
            for loss, batch in self._losses(descent):
                losses.append(loss)
                counts.append(len(batch.values[0]))
            values = torch.stack(losses).tolist()  # read at once, from a GPU
            total = sum(v * n for v, n in zip(values, counts, strict=True))
            both = torch.tensor([total, sum(counts)], dtype=torch.float64)
            total, count = processes.total(both).tolist()
        # With shards it takes all processes to find the place.
        if not math.isfinite(total) and descent.shards is not None:
            raise FloatingPointError(
                f"on the validation data after step {descent.step_number}, the loss is {total}. "
                f"Try the run without shard=True, which names the site."
            )
        if not math.isfinite(total):
            with (
                processes.all_or_none("fit: the validation loss"),
                _evaluating(descent, own_seed),
            ):
                self._find_fault(descent)
        return total / count

    def _losses(self, descent: Descent) -> Iterator[tuple[Tensor, Batch]]:
        (objective,) = descent.objectives
        for batch in self._batches(descent.processes):
            if not len(batch.values[0]):  # of few rows, none of which is here
                continue
            with pyro.validation_enabled(False):
                loss = descent.evaluate(objective, batch)
            yield loss, batch

    def _find_fault(self, descent: Descent) -> None:
        """Raises at the batch whose loss is not finite, with the same draws."""
        rng = get_rng_state(descent.device)
        for loss, batch in self._losses(descent):
            if not torch.isfinite(loss):
                set_rng_state(rng, descent.device)
                when = f"on the validation data after step {descent.step_number}"
                raise FloatingPointError(descent.blame(descent.objectives[0], batch, loss, when))
            rng = get_rng_state(descent.device)

    def _batches(self, processes: Processes) -> Iterator[Batch]:
        """Batches without their rows' places, for which no guide could have parameters."""
        batches = self.source.epoch(0, shuffle=False, processes=processes)
        return (batch._replace(rows=None) for batch in batches)


@contextmanager
def _evaluating(descent: Descent, seed: int) -> Iterator[None]:
    with modes(descent.modules(), training=False), own_rng("validation", seed, descent.device):
        yield
