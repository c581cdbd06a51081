"""The steps of a run in blocks of compiled code, as far as that is known to be right.

A block crosses epochs; validation, a checkpoint or an interrupt come between blocks. From time to
time a step of the code is compared with one of the programs. Where they differ, the run goes back
to where they last agreed, and on from there by the programs themselves.
"""

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ppl_models.infer.compiled.graph import CHANGES
from ppl_models.infer.compiled.loop import PATIENCE, Kind, Loop, Snapshot
from ppl_models.infer.compiled.watch import Watch, holds
from ppl_models.infer.objectives.objective import Objective, nothing
from ppl_models.infer.training.batches import Chosen, InMemory, Source
from ppl_models.infer.training.optimizers import only_schedules
from ppl_models.infer.training.progress import Progress
from ppl_models.scoped import mix

BETWEEN = "a validation, or what else came between its steps, changed numbers that it reads"


class Mark(NamedTuple):
    """A place to which a run can go back."""

    snapshot: Snapshot
    schedulers: list[tuple[LRScheduler, dict[str, Any]]]
    progress: dict[str, Any]
    step_number: int


def blocks_of(progress: Progress, train: Source, whole_epochs: bool) -> "Blocks | None":
    """What takes the steps in blocks: compiled ones on the CPU, of rows in memory, else nothing."""
    descent = progress.descent
    on_cpu = descent.compile and descent.device.type == "cpu" and descent.replay is None
    if on_cpu and isinstance(train, InMemory) and all(map(_is_plain, descent.objectives)):
        return Blocks(progress, train, whole_epochs)
    return None


class Blocks:
    """Takes the steps of a run in blocks.

    Arguments:
        progress: Where the run is.
        train: Its rows, in memory.
        whole_epochs: Whether a block must end with an epoch, as there is something to do then.
    """

    def __init__(self, progress: Progress, train: InMemory, whole_epochs: bool) -> None:
        self.progress, self.descent, self.train = progress, progress.descent, train
        self.whole_epochs = whole_epochs
        descent = self.descent
        averages = {}
        if descent.average is not None:
            pairs = zip(descent.average.parameters, descent.average.tensors, strict=True)
            averages = {id(p): x for p, x in pairs}
        self.loop = Loop(
            descent.compiled, descent.optimizers, descent.parameters, descent.clip, averages
        )
        self.evaluates = [partial(self._loss, objective) for objective in descent.objectives]
        self.mark: Mark | None = None
        self.unchecked = 0.0  # blocks since the code was last compared
        self.patience = 1  # blocks until it is compared again: twice as many each time
        self.used: dict[int, Kind] = {}  # in these, by their numbers of rows
        self.even, self.uneven = divmod(train.size, train.batch_size)  # batches, and rows left
        self._order: tuple[int, Tensor] | None = None
        for compiled in descent.compiled:
            compiled.also = [train.transform]
        self.before: Watch = []  # what programs keep, before the first steps
        self.tries = 0
        descent.by_blocks = True

    @property
    def open(self) -> bool:
        """Whether the next steps may come as a block: the first one is the programs' own."""
        closed = self.loop.refused is not None or any(
            c.reason is not None for c in self.descent.compiled
        )
        self.descent.by_blocks = not closed
        if self.descent.step_number == 0 and self.tries == 0:
            self._watch()
        return not closed and self.descent.step_number > 0

    def take(self, total: int) -> bool:
        """Takes a block of steps, up to `total` in all; returns whether it did."""
        width = self._width()
        if self._counts():
            return False
        kind = self._kind(width)
        if kind is None or self._has_changed():
            return False
        new = self.used.get(width) is not kind
        self.used[width] = kind
        self.patience = 1 if new else self.patience
        if (new or self.unchecked >= self.patience) and not self.settle():
            return False
        if new and not self.settle():  # again, as the first call of code is another one
            return False
        self._run(kind, min(self._ahead(), total - self.descent.step_number, kind.step.length))
        return True

    def settle(self) -> bool:
        """Compares the code with the programs, and goes back to where they agreed if they do not.

        Returns:
            Whether they agree.
        """
        if self._has_changed():
            return False
        for width, kind in self.used.items():
            # Other rows than those that were traced: what was read from these shows.
            rows = self._order_of(self.progress.epoch).flip(0)[:width]
            rows = rows if width < self.train.size else rows.flip(0)
            wrong = self.loop.difference(
                kind, partial(self._eager, rows), partial(self._compiled, kind, rows)
            )
            if wrong:
                self._go_back(wrong)
                return False
        if self.used:
            self.patience = min(2 * self.patience, PATIENCE) if self.unchecked else 1
            self.mark, self.unchecked = self._mark(), 0.0
        return True

    def _watch(self) -> None:
        """Looks at what programs keep, before a step of theirs that may change it."""
        self.before = [entry for compiled in self.descent.compiled for entry in compiled.watch()]
        self.tries += 1

    def _counts(self) -> bool:
        """Whether the last steps changed what programs keep: then none is taken to try them.

        The first may also have made what stays, so that a second one is asked.
        """
        changed, self.before = not holds(self.before), []
        if changed and self.tries == 1:
            self._watch()
        elif changed:
            self._end(CHANGES)
        return changed

    def _has_changed(self) -> bool:
        """Whether something has changed between blocks, such as by a validation: no way back."""
        changed = not all(holds(kind.watch) for kind in self.used.values())
        if changed:
            self._end(BETWEEN)
        return changed

    def _kind(self, width: int) -> Kind | None:
        """The code for steps on so many rows."""
        tensors = self.train.tensors
        rows = self._order_of(self.progress.epoch)[:width]
        chooses = width < self.train.size
        return self.loop.kind((width, *map(id, tensors)), self.evaluates, rows, tensors, chooses)

    def _loss(self, objective: Objective, rows: Tensor, *tensors: Tensor) -> Tensor:
        chosen = Chosen(tensors, rows, self.train.size, self.train.transform)
        return self.descent.evaluate(objective, chosen.gathered())

    def _eager(self, rows: Tensor) -> list[Tensor]:
        """A step of the programs on some rows."""
        chosen = Chosen(self.train.tensors, rows, self.train.size, self.train.transform)
        return list(self.descent.moved(chosen).values())

    def _compiled(self, kind: Kind, rows: Tensor) -> list[Tensor]:
        """The same step by the code."""
        rates = [_table([_rates(o)]) for o in self.descent.optimizers]
        return [x[0] for x in self.loop.run(kind, 1, rows[None], rates, self._weights(1))]

    def _run(self, kind: Kind, times: int) -> None:
        start = self._mark()
        rows, rates = self._table(times), self._all_rates(times)
        if rates is None:  # a schedule of something else
            self._return_to(start)
            if self.settle():
                self.used.clear()
                self.loop.refused = "the schedule may do more than move the learning rate"
            return
        try:
            losses = self.loop.run(kind, times, rows, rates, self._weights(times))
        except RuntimeError as error:  # a matrix without a factor: the program says it better
            self._return_to(start)
            if self.settle():
                self._go_back(f"its code raised an error ({error})")
            return
        table = torch.stack([x.double() for x in losses])
        bad = (~table.isfinite().all(0)).nonzero()
        if len(bad):
            self._blame(kind, start, int(bad[0]))
            return
        self.descent.step_number += times
        self.unchecked += times / kind.step.length
        names = [objective.name for objective in self.descent.objectives]
        self.progress.record_block(
            dict(zip(names, table.tolist(), strict=True)), self.train.batches
        )

    def _blame(self, kind: Kind, start: Mark, good: int) -> None:
        """Takes the steps up to one whose loss is not finite, and that by the programs."""
        self._return_to(start)
        rows = self._table(good + 1)[-1]
        if good:
            self._run(kind, good)
        if self.progress.batch == self.train.batches:
            self.progress.end_epoch(None, None)
        state = self._mark()
        train = self.train
        self.descent.step(Chosen(train.tensors, rows, train.size, train.transform))  # raises
        self._return_to(state)
        self._go_back("a loss is not finite that is finite by the program itself")

    def _go_back(self, reason: str) -> None:
        if self.mark is not None:
            self._return_to(self.mark)
        self._end(reason)

    def _end(self, reason: str) -> None:
        """Goes on by the programs themselves."""
        self.used.clear()
        self.loop.refused = reason
        self.descent.compiled[0].give_up(reason)
        for compiled in self.descent.compiled[1:]:
            compiled.reason = reason

    def _mark(self) -> Mark:
        descent, progress = self.descent, self.progress
        schedules = [s for s in descent.schedulers if s is not None]
        schedulers = [(s, copy.deepcopy(s.state_dict())) for s in schedules]
        return Mark(self.loop.snapshot(), schedulers, progress.mark(), descent.step_number)

    def _return_to(self, mark: Mark) -> None:
        descent = self.descent
        for scheduler, state in mark.schedulers:
            scheduler.load_state_dict(state)
        mark.snapshot.restore()
        self.progress.return_to(mark.progress)
        descent.step_number = mark.step_number

    def _width(self) -> int:
        """How many rows the next step takes."""
        return self.uneven if self.progress.batch == self.even else self.train.batch_size

    def _ahead(self) -> int:
        """How many steps of the same width come next, to the end of an epoch where it must be."""
        if self.progress.batch == self.even:
            return 1
        cut = self.uneven or self.whole_epochs
        return self.even - self.progress.batch if cut else 2**62

    def _order_of(self, epoch: int) -> Tensor:
        """The rows of an epoch in their order."""
        if self._order is None or self._order[0] != epoch:
            order = self.train.order(mix(self.progress.order_seed, epoch))
            self._order = epoch, order
        return self._order[1]

    def _table(self, times: int) -> Tensor:
        """The rows of the next steps, all of one width; of whole data those of one step."""
        size, width = self.train.batch_size, self._width()
        if width == self.train.size:
            return self._order_of(0)[None]
        parts, epoch, batch = [], self.progress.epoch, self.progress.batch
        while times > 0:
            most = max(self.even - batch, 1)  # one of another width stands for itself
            taken = min(times, most)
            rows = self._order_of(epoch)[batch * size :][: taken * width]
            parts.append(rows.view(taken, width))
            times, epoch, batch = times - taken, epoch + 1, 0
        return torch.cat(parts)

    def _weights(self, times: int) -> Tensor | None:
        """What is new in an average after each of the next steps."""
        if self.descent.average is None:
            return None
        numbers = torch.arange(1, times + 1, dtype=torch.float64) + self.descent.step_number
        return 1 - ((1 + numbers) / (10 + numbers)).clamp(max=self.descent.average.decay)

    def _all_rates(self, times: int) -> list[Tensor] | None:
        """The learning rates of the next steps, for which the schedules go on."""
        descent = self.descent
        if not any(descent.schedulers) and not any(map(_decays, descent.optimizers)):
            return [_table([_rates(o)]).expand(times, -1) for o in descent.optimizers]
        if not all(s is None or only_schedules(s) for s in descent.schedulers):
            return None
        others = [_others(o) for o in descent.optimizers]
        rates: list[list[list[float]]] = [[] for _ in descent.optimizers]
        for _ in range(times):
            for optimizer, found in zip(descent.optimizers, rates, strict=True):
                found.append(_rates(optimizer))
                if _decays(optimizer):
                    for group, rate in zip(optimizer.param_groups, found[-1], strict=True):
                        group["lr"] = rate
            for scheduler in descent.schedulers:
                if scheduler is not None:
                    scheduler.step()
        if [_others(o) for o in descent.optimizers] != others:
            return None
        return [_table(found) for found in rates]


def _is_plain(objective: Objective) -> bool:
    """Whether an objective has a loss alone: no count of its own, and nothing to report."""
    keeps = getattr(type(objective), "stepped", nothing) not in (nothing, Objective.stepped)
    return not keeps and objective.turns == 1 and not objective.reports


def _table(rates: list[list[float]]) -> Tensor:
    return torch.tensor(rates, dtype=torch.float64)


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rates of the next step, which ClippedAdam lowers first."""
    return [float(group["lr"]) * group.get("lrd", 1.0) for group in optimizer.param_groups]


def _decays(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("lrd", 1.0) != 1.0 for group in optimizer.param_groups)


def _others(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The settings of an optimiser, the learning rates aside."""
    names = ("params", "lr")
    return [{k: v for k, v in g.items() if k not in names} for g in optimizer.param_groups]
