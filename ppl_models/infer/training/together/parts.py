"""The parts of a batch: for the turns of an objective, and for the processes that share it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.training.batches import Batch
from ppl_models.processes import Share, sharing


def as_batch(given: Batch | Tensor | tuple[Tensor, ...]) -> Batch:
    """A batch; of rows by themselves one that is the whole data."""
    if isinstance(given, Batch):
        return given
    values = (given,) if isinstance(given, Tensor) else given
    rows = torch.arange(len(values[0]), device=values[0].device)
    return Batch(values, rows, len(rows))


@contextmanager
def placed(batch: Batch) -> Iterator[None]:
    """A context in which programs know where the rows of a batch are."""
    with Rows(batch.rows, batch.size, len(batch.values[0])), sharing(batch.share):
        yield


def some_of(batch: Batch, places: Tensor, total: int) -> Batch:
    """Some of the first rows of a batch, as a part of those."""
    rows = None if batch.rows is None else batch.rows[places]
    values = tuple(x[places] for x in batch.values)
    return Batch(values, rows, batch.size, Share(places, total))


def parts_of(batch: Batch, turns: int) -> list[Batch]:
    """A batch in as many parts as an objective takes turns on it, one if that is all its rows."""
    if turns == 1:
        return [batch]
    if batch.share is not None:
        return list(_parts_of_share(batch, batch.share, turns))
    values = zip(*(x.chunk(turns) for x in batch.values), strict=True)
    rows = [None] * turns if batch.rows is None else batch.rows.chunk(turns)
    return [Batch(x, r, batch.size) for x, r in zip(values, rows, strict=False)]


def _parts_of_share(batch: Batch, share: Share, turns: int) -> Iterator[Batch]:
    """What is here of the parts of a batch that several processes share."""
    width = -(-share.total // turns)
    for start in range(0, share.total, width):
        total = min(width, share.total - start)
        here = (share.places >= start) & (share.places < start + total)
        rows = None if batch.rows is None else batch.rows[here]
        values = tuple(x[here] for x in batch.values)
        yield Batch(values, rows, batch.size, Share(share.places[here] - start, total))
