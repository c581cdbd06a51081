"""The rows that steps of EM go through again and again, and those that a start is chosen from."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_models.checks import check_tensors
from ppl_models.infer.programs.tables import as_data
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.reading.in_order import gives_in_order
from ppl_models.infer.training.batches import (
    InMemory,
    Loaded,
    OnDisk,
    Source,
    in_memory,
    on_disk,
    streamed,
)
from ppl_models.processes import Part, Processes
from ppl_models.row_weights import check_sample_weight

AT_ONCE = 4096  # rows of a batch that is read, where nothing else is said
MANY = 20_000  # rows from which a start is chosen, where the data are not in memory


def rows_of(
    model: Any, data: Any, batch_size: int | None, place: torch.device, missing: bool
) -> Source:
    """Where the rows are: in memory, or where they are read in each step, a batch at a time."""
    taken, at_once = Taken(_names(model), [model]), batch_size or AT_ONCE
    disk = on_disk(data, at_once, taken)
    if disk is not None and len(disk.tensors) == 1:
        return disk.to(place)
    rows = in_memory(as_data(data, [model]), batch_size, missing)
    if rows is None:
        own = isinstance(data, DataLoader)
        return streamed(data, batch_size if own else at_once, place, taken)
    return rows


def rows_and_start(
    model: Any,
    rows: Source,
    weight: Tensor | None,
    batch_size: int | None,
    place: torch.device,
    missing: bool,
    here: Processes,
) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """What each step goes through, and rows to choose a start from; each with its weights."""
    if not isinstance(rows, InMemory) or isinstance(rows, OnDisk):
        batches = Part(_Streamed(rows, missing, here), here)
        return _with(batches, weight), _first_rows(model, rows, weight, missing)
    tensors = whole(rows)
    if weight is not None and not (weight > 0).all():  # what is left out is so once for all
        keep = weight > 0
        tensors, weight = tuple(x[keep.to(x.device)] for x in tensors), weight[keep]
    x = tensors[0]
    if batch_size is not None and x.device.type == "cpu" != place.type:
        _check_alone(tensors)
        some = _random_rows(x)
        start = _with(x[some].to(place), None if weight is None else weight[some])
        return _with(Part(_Moved(x, rows.batch_size, place, here), here), weight), start
    if here.alone:
        return _with(tensors, weight), _with(tensors, weight)
    parts = tuple(Part([(x[here.own(len(x))], len(x))], here) for x in tensors)
    return _with(parts, weight), _with(tensors, weight)


def _with(x: Any, weight: Tensor | None) -> tuple[Any, ...]:
    """What steps are called with: a model need not know of weights where there are none."""
    tensors = x if isinstance(x, tuple) else (x,)
    return tensors if weight is None else (*tensors, weight)


def weight_of(model: Any, rows: Source, sample_weight: Any) -> Tensor | None:
    """The weights of all rows, on the CPU, after checking that they can be used."""
    if sample_weight is None:
        return None
    name = type(model).__name__
    for method in ("em_step", "initialise"):
        if "sample_weight" not in inspect.signature(getattr(model, method)).parameters:
            raise TypeError(
                f"fit_em: {name}.{method} takes no weights of rows, got sample_weight. Try rows "
                f"that are repeated, or def {method}(self, x, sample_weight=None) in {name}."
            )
    if isinstance(rows, Loaded) and not gives_in_order(rows.loader):
        raise ValueError(
            "sample_weight: expected rows in an order that is known, got a DataLoader that "
            "chooses its own. Try shuffle=False, or the Dataset with a batch_size."
        )
    weight = torch.as_tensor(sample_weight).double().cpu()
    check_sample_weight(weight, rows.size, "fit_em")
    return weight


class _Streamed:
    """Rows that are streamed: each time it is gone through, all of them once, or those here."""

    def __init__(self, rows: Source, missing: bool, here: Processes) -> None:
        self.rows, self.missing, self.here, self.checked = rows, missing, here, False

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        start = 0
        for batch in self.rows.epoch(0, shuffle=False, processes=self.here):
            own, share = batch.values[0], batch.share
            total = len(own) if share is None else share.total
            if not self.checked and (len(own) or share is None):
                places = torch.arange(total) if share is None else share.places.cpu()
                check_tensors(batch.values, self.missing, start + places)
            yield own, total
            start += total
        self.checked = True


class _Moved:
    """A tensor of rows on the CPU, of which parts are moved to where the model is."""

    def __init__(self, x: Tensor, batch_size: int, place: torch.device, here: Processes) -> None:
        self.x, self.batch_size, self.place, self.here = x, batch_size, place, here

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for part in self.x.split(self.batch_size):
            own = part[self.here.own(len(part))]
            yield own.to(self.place, non_blocking=True), len(part)  # it stays as it is


def _random_rows(x: Tensor) -> Tensor | slice:
    """Which rows to choose a start from, where not all may be moved at once."""
    return slice(None) if len(x) <= MANY else torch.randperm(len(x))[:MANY]


def whole(rows: InMemory) -> tuple[Tensor, ...]:
    if rows.transform is not None:
        raise ValueError(
            "data: EM goes through the same rows again and again; got a transform. Try fit."
        )
    return rows.tensors


def check_takes(model: Any, count: int) -> None:
    """Raises unless a step is one on so many tensors: another would be taken for weights."""
    names = _names(model)
    if len(names) != count:
        wanted = "rows alone" if len(names) == 1 else f"({', '.join(names)})"
        raise ValueError(
            f"data: expected {len(names)} tensor(s), as {type(model).__name__}.em_step takes, got "
            f"{count}. Try {wanted}; weights of rows are sample_weight, and labels are not taken."
        )


def _names(model: Any) -> list[str]:
    """What a step takes, the weights aside."""
    step = model.em_step
    names = list(_arguments(getattr(step, "__func__", step))[inspect.ismethod(step) :])
    return [name for name in names if name != "sample_weight"]


@functools.lru_cache(maxsize=64)  # a look at a signature takes longer than a step of few rows
def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _check_alone(tensors: tuple[Tensor, ...]) -> None:
    if len(tensors) > 1:
        raise ValueError(
            f"batch_size: parts of one tensor of rows are moved, got {len(tensors)} tensors. Try "
            f"batch_size=None, and the data where the model is."
        )


def _first_rows(
    model: Any, rows: Source, weight: Tensor | None, missing: bool
) -> tuple[Tensor, ...]:
    """Rows to choose a start from, where the data are streamed, with their weights."""
    found, which, count = [], [], 0
    for batch in rows.epoch(0):
        check_takes(model, len(batch.values))
        check_tensors(batch.values, missing, batch.rows)
        found.append(batch.values[0])
        order = torch.arange(count, count + len(found[-1]))
        which.append(order if batch.rows is None else batch.rows.cpu())
        count += len(found[-1])
        if count >= MANY:
            break
    return _with(torch.cat(found), None if weight is None else weight[torch.cat(which)])
