"""The checks that data in memory have before a fit, of all rows of any data, gone through once."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppl_models.checks import allows_missing, check_devices, check_tensors
from ppl_models.infer.objectives.elbo import EvidenceLowerBound
from ppl_models.infer.objectives.objective import as_objectives, modules_of
from ppl_models.infer.objectives.weighted import Weighted
from ppl_models.infer.programs.checks import check_support, noting_batch
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.programs.tables import as_data, no_data, numbers_of
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.reading.in_order import Part, Parts, in_order
from ppl_models.infer.training.batches import in_memory
from ppl_models.prompt.bars import is_watched
from ppl_models.scoped import kept_rng, modes

FEW = 256  # rows on which programs run; all others are compared with what is seen there


def check_data(objective: Any, data: Any, *, progress: bool = True) -> None:
    """Goes through all rows once, and raises at the first one that cannot be fitted.

    Tensors are checked before each fit, rows that are read are not: of them `fit` sees the first
    batch. Here all must be finite (but where NaN is what was not observed), of the shape and the
    type of the first one, and in the support of the site that observes them.

    Arguments:
        objective: What is to be descended, such as `elbo(model, guide)`, or the model by itself.
        data: As `fit` takes them.
        progress: Whether to show a progress bar (on a terminal).

    Raises:
        ValueError: If a row does not fit, with its number, counted from 0 in the order of the data.
        TypeError: If the data are of another type than the programs take.

    Example:
        >>> from ppl_models import FactorAnalysis
        >>> x = torch.randn(100, 5)
        >>> check_data(FactorAnalysis(5, 2), x)
        >>> x[7, 1] = torch.nan
        >>> check_data(FactorAnalysis(5, 2), x)
        Traceback (most recent call last):
        ValueError: data[0]: 1 of 100 rows hold NaN or infinity (row 7). Try leaving them out, ...
    """
    objectives, modules = _looked_at(objective)
    taken, device = Taken(objectives[0].arguments, modules), numbers_of(modules).device
    missing, hidden = allows_missing(modules), not is_watched(progress)
    parts, size = _in_order(data, taken, device, missing)
    bar = tqdm(desc="rows", unit="", total=size, disable=hidden, leave=False)
    with bar, kept_rng(device):
        look: _Look | None = None
        for part in parts:
            look = look or _Look(objectives, part, size, missing)
            look(part)
            bar.update(len(part[0]))


def _looked_at(given: Any) -> tuple[list[Any], list[nn.Module]]:
    """The objectives, or what stands for them where it is a model by itself, and their modules."""
    if callable(given) and not hasattr(given, "prepare"):
        model = _Model(given)
        return [model], list(model.modules().values())
    objectives = as_objectives(given)
    return [part for o in objectives for part in _terms(o)], modules_of(objectives)


def _terms(objective: Any) -> list[Any]:
    """What stands for an objective: the model of a bound, the terms of a sum."""
    if isinstance(objective, Weighted):
        return [part for term, _ in objective.parts for part in _terms(term)]
    return [_Model(objective.model) if isinstance(objective, EvidenceLowerBound) else objective]


def _in_order(data: Any, taken: Taken, device: torch.device, missing: bool) -> Parts:
    """All rows, a part at a time; those in memory are one."""
    if (parts := in_order(data, device, taken)) is not None:
        return parts
    found = as_data(data, taken.modules)
    rows = in_memory(found, None, missing)
    if rows is None:
        raise TypeError(
            f"data: expected what fit takes, tensors, arrays, a Dataset or a DataLoader, "
            f"{no_data(found, taken.names)}"
        )
    return Parts((batch.values for batch in rows.epoch(0)), rows.size)


class _Model:
    """A program, in the place of an objective."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.program = Program(model, "model")
        self.arguments = self.program.argument_names
        self.modules = self.program.modules
        self.trace: poutine.Trace | None = None  # of the first rows

    def prepare(self, *few: Tensor, size: int, data: tuple[Tensor, ...]) -> None:
        """Raises unless the sites that observe rows could have given all of some data."""
        if self.trace is None:
            self.program.check_arguments(len(few))
            with noting_batch(few), pyro.validation_enabled(False):
                self.trace = poutine.trace(self.program).get_trace(*few, size=size)
        check_support(self.trace, few, data)


class _Look:
    """What objectives say of rows, by a few of the first ones."""

    def __init__(self, objectives: list[Any], part: Part, size: int, missing: bool) -> None:
        self.objectives, self.missing, self.size = objectives, missing, size
        self.few = tuple(x[:FEW] for x in part)
        self.start = 0  # the number of the first row of a part
        for objective in objectives:
            check_devices(objective.modules(), self.few)

    def __call__(self, part: Part) -> None:
        """Raises at the first row that does not fit, of the next part."""
        self._check_alike(part)
        check_tensors(part, self.missing, torch.arange(self.start, self.start + len(part[0])))
        with warnings.catch_warnings():
            if self.start:
                warnings.simplefilter("ignore")  # what was said of the first part
            if (error := self._error(part)) is not None:
                self._name_row(part, error)
        self.start += len(part[0])

    def _check_alike(self, part: Part) -> None:
        """Raises where rows are of another shape or type than the first ones."""
        expected = [(tuple(x.shape[1:]), x.dtype) for x in self.few]
        found = [(tuple(x.shape[1:]), x.dtype) for x in part]
        if found != expected:
            last = self.start + len(part[0]) - 1
            raise ValueError(
                f"data: expected rows like the first ones, {_kinds(expected)}, got "
                f"{_kinds(found)} in rows {self.start} to {last}. Try a Dataset that gives all of "
                f"one shape and type."
            )

    def _name_row(self, part: Part, error: Exception) -> None:
        """Raises the error of the first row that has one, found by halves."""
        least, most = 0, len(part[0])
        while most - least > 1:
            middle = (least + most) // 2
            bad = self._error(tuple(x[least:middle] for x in part)) is not None
            least, most = (least, middle) if bad else (middle, most)
        alone = self._error(tuple(x[least:most] for x in part))
        if alone is None:  # it is of no row
            raise error
        raise type(alone)(f"row {self.start + least}: {alone}") from None

    def _error(self, part: Part) -> ValueError | None:
        """What is wrong with some rows, if anything."""
        rows = torch.arange(len(self.few[0]), device=self.few[0].device)
        try:
            for objective in self.objectives:
                with (
                    modes(objective.modules().values(), training=False),
                    Rows(rows, self.size, len(rows)),
                    torch.no_grad(),
                ):
                    objective.prepare(*self.few, size=self.size, data=part)
        except ValueError as error:
            return error
        return None


def _kinds(found: list[tuple[Any, ...]]) -> str:
    return " and ".join(f"{shape} {dtype}" for shape, dtype in found)
