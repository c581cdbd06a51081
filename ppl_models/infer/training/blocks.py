"""The steps of a run in blocks of compiled code, as far as that is known to be right.

A block crosses epochs; validation, a checkpoint or an interrupt come between blocks. From time to
time a step of the code is compared with one of the programs. Where they differ, the run goes back
to where they last agreed, and on from there by the programs themselves.
"""

import copy
import time
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ppl_models.infer.compiled.beside import Held
from ppl_models.infer.compiled.graph import CHANGES
from ppl_models.infer.compiled.steps.loop import PATIENCE, Kind, Loop, Plan, Use
from ppl_models.infer.compiled.steps.snapshot import Snapshot
from ppl_models.infer.compiled.watch import Watch, as_it_was, holds
from ppl_models.infer.objectives.objective import Objective, nothing
from ppl_models.infer.training.ahead.in_memory import RowsAhead
from ppl_models.infer.training.ahead.protocol import Ahead
from ppl_models.infer.training.ahead.streamed import BatchesAhead
from ppl_models.infer.training.batches import Batch, Chosen, InMemory, Source
from ppl_models.infer.training.optimizers import only_schedules
from ppl_models.infer.training.progress import Progress
from ppl_models.infer.training.together.parts import parts_of


class Mark(NamedTuple):
    """A place to which a run can go back."""

    snapshot: Snapshot
    schedulers: list[tuple[LRScheduler, dict[str, Any]]]
    progress: dict[str, Any]
    step_number: int


class RenamedError(Exception):
    """What is reported has other names than before."""


def blocks_of(progress: Progress, train: Source, whole_epochs: bool) -> "Blocks | None":
    """What takes the steps in blocks: compiled ones on the CPU, else nothing."""
    descent = progress.descent
    on_cpu = descent.compile and descent.device.type == "cpu" and descent.replay is None
    if not on_cpu or descent.exchange is not None:
        return None
    ahead: Ahead
    if isinstance(train, InMemory):
        ahead = RowsAhead(progress, train, whole_epochs)
    else:
        ahead = BatchesAhead(progress, train, whole_epochs)
    return Blocks(progress, ahead, train.batches)


class Blocks:
    """Takes the steps of a run in blocks.

    Arguments:
        progress: Where the run is.
        ahead: The batches of its next steps.
        batches: How many there are in an epoch.
    """

    def __init__(self, progress: Progress, ahead: Ahead, batches: int) -> None:
        self.progress, self.descent, self.ahead = progress, progress.descent, ahead
        self.batches = batches
        descent = self.descent
        averages = {}
        if descent.average is not None:
            pairs = zip(descent.average.parameters, descent.average.tensors, strict=True)
            averages = {id(p): x for p, x in pairs}
        self.loop = Loop(
            descent.compiled, descent.optimizers, descent.parameters, descent.clip, averages
        )
        self.uses: list[Use] = []
        self.names: list[str] = []  # of what is recorded
        self.mark: Mark | None = None
        self.unchecked = 0.0  # blocks since the code was last compared
        self.patience = 1  # blocks until it is compared again: twice as many each time
        self.used: dict[Hashable, Kind] = {}  # in these
        self.before: Watch = []  # what programs keep, before the first steps
        self.beside: Watch = []  # and what is done with a batch
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
        if self._counts():
            return False
        key = self.ahead.kind
        stale = any(not holds(kind.watch) for kind in self.used.values())
        if stale and not ((self.unchecked == 0.0 or self.settle()) and self._renew()):
            return False
        kind = self._kind(key)
        if kind is None:
            return False
        new = self.used.get(key) is not kind
        self.used[key] = kind
        self.patience = 1 if new else self.patience
        if (new or self.unchecked >= self.patience) and not self.settle():
            return False
        if new and not self.settle():  # again, as the first call of code is another one
            return False
        together = {k: x.step.length for k, x in self.used.items() if self.loop.mixes(kind, x)}
        most = min(total - self.descent.step_number, kind.step.length)
        self._run(self.ahead.plan(most, together))
        return True

    def settle(self) -> bool:
        """Compares the code with the programs, and goes back to where they agreed if they do not.

        Returns:
            Whether they agree.
        """
        for key, kind in self.used.items():
            batch, rows = self.ahead.other(key)
            eager, compiled = partial(self._eager, batch), partial(self._compiled, kind, rows)
            try:
                with as_it_was(kind.watch):  # where a number changed since
                    wrong = self.loop.difference(kind, eager, compiled)
            except RenamedError:
                wrong = "the names of what it reports are not always the same"
            if wrong:
                self._go_back(wrong)
                return False
        if self.used:
            self.patience = min(2 * self.patience, PATIENCE) if self.unchecked else 1
            self.mark, self.unchecked = self._mark(), 0.0
            self.ahead.forget()
        return True

    def _renew(self) -> bool:
        """Takes numbers of the programs that changed; returns whether the code can."""
        found = {key: self._kind(key) for key in self.used}
        self.used = {key: kind for key, kind in found.items() if kind is not None}
        return len(self.used) == len(found) and self.settle()

    def _watch(self) -> None:
        """Looks at what programs and transforms keep, before a step that may change it."""
        self.before = [entry for compiled in self.descent.compiled for entry in compiled.watch()]
        self.beside = Held(self.ahead.transform).watch
        self.tries += 1

    def _counts(self) -> bool:
        """Whether the last steps changed what is kept: then none is taken to try them.

        The first may also have made what stays, so that a second one is asked.
        """
        changed, beside = not holds(self.before), not holds(self.beside)
        self.before, self.beside = [], []
        if (changed or beside) and self.tries == 1:
            self._watch()
        elif changed:
            self._end(CHANGES)
        elif beside:  # the losses may still be compiled
            self.loop.refused = CHANGES
        return changed or beside

    def _kind(self, key: Hashable) -> Kind | None:
        """The code for steps of a kind."""
        feed = self.ahead.feed(key)
        if self.ahead.refused is not None:
            self.loop.refused = self.ahead.refused
            return None
        moving = [compiled.found().moving for compiled in self.descent.compiled]
        if any(moving):  # before anything is tried, which would move it
            self._end(next(filter(None, moving)))
            return None
        began = time.perf_counter()
        kind = self.loop.kind((key, *map(id, feed.data)), self._look, feed)
        self.descent.seconds_compiling += time.perf_counter() - began
        return kind

    def _look(self, batch: tuple[Tensor, ...]) -> list[Use]:
        """Finds what objectives do, and makes room for what they report."""
        if self.uses:
            return self.uses
        descent, now = self.descent, self.ahead.now()
        known = now.rows is not None
        values = tuple(x.clone() for x in batch[1:])
        with self.loop.untouched():
            first = Batch(values, batch[0] if known else None, now.size)
            for n, objective in enumerate(descent.objectives):
                descent.evaluate(objective, parts_of(first, objective.turns)[0])
                descent.reports[n].make_room()
                room = descent.reports[n].tensors or {}
                loss = partial(self._loss, n, now.size, known)
                stepped = _stepped(objective)
                self.uses.append(Use(loss, objective.turns, tuple(room.values()), stepped))
                self.names += [objective.name, *room]
        return self.uses

    def _loss(self, n: int, size: int, known: bool, rows: Tensor, *values: Tensor) -> Tensor:
        """The loss of an objective on a batch, of which rows may be known."""
        return self.descent.noted(n, Batch(values, rows if known else None, size))

    def _eager(self, batch: Batch | Chosen) -> list[Tensor]:
        """A step of the programs."""
        found = self.descent.moved(batch)
        if list(found) != self.names:
            raise RenamedError
        return list(found.values())

    def _compiled(self, kind: Kind, rows: Tensor) -> list[Tensor]:
        """The same step by the code."""
        plan = [(kind, 1)]
        rates = self._same_rates(plan)
        return [x[0] for x in self.loop.run(plan, [rows], rates, self._weights(1))]

    def _run(self, planned: Sequence[tuple[Hashable, int]]) -> None:
        start, times = self._mark(), sum(times for _, times in planned)
        plan = [(self.used[key], times) for key, times in planned]
        rates = self._all_rates(plan)
        if rates is None:  # a schedule of something else
            self._return_to(start)
            if self.settle():
                self.used.clear()
                self.loop.refused = "the schedule may do more than move the learning rate"
            return
        try:
            found = self.loop.run(plan, self.ahead.tables(planned), rates, self._weights(times))
        except RuntimeError as error:  # a matrix without a factor: the program says it better
            self._return_to(start)
            if self.settle():
                self._go_back(f"its code raised an error ({error})")
            return
        table = torch.stack([x.double() for x in found])
        bad = (~table.isfinite().all(0)).nonzero()
        if len(bad) or not self._is_finite():
            self._blame(planned, start, int(bad[0]) if len(bad) else times, times)
            return
        self.descent.step_number += times
        self.unchecked += sum(times / kind.step.length for kind, times in plan)
        self.progress.record_block(dict(zip(self.names, table.tolist(), strict=True)), self.batches)
        self.progress.position = self.ahead.position()

    def _is_finite(self) -> bool:
        """Whether all that is trained still is finite."""
        moved = [p for parameters in self.descent.parameters for p in parameters]
        return bool(torch.stack(torch._foreach_norm(moved)).sum().isfinite()) or all(
            bool(p.isfinite().all()) for p in moved
        )

    def _blame(
        self, planned: Sequence[tuple[Hashable, int]], start: Mark, good: int, times: int
    ) -> None:
        """Takes the steps before one that is not finite, and those that may be it by the programs.

        Arguments:
            planned: The steps, as they were taken.
            start: Where the run was before them.
            good: How many have losses that are finite; the gradient of the last may not be.
            times: How many there were.
        """
        self._return_to(start)
        if good > 1:
            self._run(_first(planned, good - 1))
        state = self._mark()
        for _ in range(max(good - 1, 0), min(good + 1, times)):
            if self.progress.batch == self.batches:
                self.progress.end_epoch(None, None)
            # Raises, or else where it is a number beside the loss that is not finite.
            self.progress.record(self.descent.step(self.ahead.now()))
            self.progress.read_losses()
        self._return_to(state)
        self._go_back("a step is not finite that is finite by the program itself")

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

    def _weights(self, times: int) -> Tensor | None:
        """What is new in an average after each of the next steps."""
        if self.descent.average is None:
            return None
        numbers = torch.arange(1, times + 1, dtype=torch.float64) + self.descent.step_number
        return 1 - ((1 + numbers) / (10 + numbers)).clamp(max=self.descent.average.decay)

    def _same_rates(self, plan: Plan) -> list[Tensor]:
        """The learning rates of now, for each update of each optimiser."""
        found = []
        for n, optimizer in enumerate(self.descent.optimizers):
            updates = sum(times * len(kind.step.turns[n].losses) for kind, times in plan)
            found.append(_table([_rates(optimizer)]).expand(updates, -1))
        return found

    def _all_rates(self, plan: Plan) -> list[Tensor] | None:
        """The learning rates of the next steps, for which the schedules go on."""
        descent = self.descent
        if not any(descent.schedulers) and not any(map(_decays, descent.optimizers)):
            return self._same_rates(plan)
        if not all(s is None or only_schedules(s) for s in descent.schedulers):
            return None
        others = [_others(o) for o in descent.optimizers]
        rates: list[list[list[float]]] = [[] for _ in descent.optimizers]
        for kind in (kind for kind, times in plan for _ in range(times)):
            for optimizer, found, turn in zip(
                descent.optimizers, rates, kind.step.turns, strict=True
            ):
                found += [_moved_rates(optimizer) for _ in turn.losses]
            for scheduler in descent.schedulers:
                if scheduler is not None:
                    scheduler.step()
        if [_others(o) for o in descent.optimizers] != others:
            return None
        return [_table(found) for found in rates]


def _stepped(objective: Objective) -> Any:
    """What an objective does after a step; None where it has nothing of its own to do."""
    keeps = getattr(type(objective), "stepped", nothing)
    return None if keeps in (nothing, Objective.stepped) else objective.stepped


def _first(planned: Sequence[tuple[Hashable, int]], most: int) -> list[tuple[Hashable, int]]:
    """The first steps of a plan."""
    found = []
    for key, times in planned:
        if taken := min(times, most):
            found.append((key, taken))
            most -= taken
    return found


def _table(rates: list[list[float]]) -> Tensor:
    return torch.tensor(rates, dtype=torch.float64)


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rates of the next step, which ClippedAdam lowers first."""
    return [float(group["lr"]) * group.get("lrd", 1.0) for group in optimizer.param_groups]


def _moved_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rates of a step, to which ClippedAdam lowers its own."""
    rates = _rates(optimizer)
    if _decays(optimizer):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return rates


def _decays(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("lrd", 1.0) != 1.0 for group in optimizer.param_groups)


def _others(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The settings of an optimiser, the learning rates aside."""
    names = ("params", "lr")
    return [{k: v for k, v in g.items() if k not in names} for g in optimizer.param_groups]
