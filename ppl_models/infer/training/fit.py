"""The only training loop."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ppl_models.checks import allows_missing, check_count
from ppl_models.infer.objectives.objective import Objective, as_objectives, modules_of
from ppl_models.infer.programs.device import choose_device
from ppl_models.infer.reading.batches import (
    Batch,
    Chosen,
    InMemory,
    Loaded,
    Source,
    in_memory_rows,
    source,
)
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.reading.position import check_goes_on
from ppl_models.infer.training import files
from ppl_models.infer.training.average import check_decay
from ppl_models.infer.training.blocks import Blocks
from ppl_models.infer.training.choice import Choice
from ppl_models.infer.training.descent import Descent
from ppl_models.infer.training.ends.drift import UntilConverged
from ppl_models.infer.training.held_out import HeldOut
from ppl_models.infer.training.interrupt import Interrupt, unwound
from ppl_models.infer.training.optimizers import LearningRateSchedule, Optimizer
from ppl_models.infer.training.progress import Progress
from ppl_models.scoped import mix, modes
from ppl_models.user_line import warn


@dataclass
class Run:
    """What a fit leaves behind.

    Attributes:
        history: For each name a list with one number an epoch, in nats per row: `"loss"` (the
            mean over the steps of the epoch; of several objectives, each under its name, with what
            they report beside it) and, where there was validation, `"validation"`.
        steps: The number of steps taken, those before a resume included.
        seconds: The wall-clock time of this call.
        converged: Whether the loss no longer fell at the end, where it was asked for by
            `until="converged"`; else None. See `convergence(run)`.
        eager_because: Why the last steps were the program's own, where `compile="auto"` had the
            choice; None where they were compiled.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    eager_because: str | None = None
    converged: bool | None = None

    def __repr__(self) -> str:
        # The history may have thousands of numbers, which a prompt would all print.
        last = [f"{name} {values[-1]:.5g}" for name, values in self.history.items() if values]
        return f"Run({', '.join([f'{self.steps} steps in {self.seconds:.1f} s', *last])})"


def fit(
    objective: Objective | Sequence[Objective],
    data: Any,
    *more: Any,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    amp: bool = False,
    validation: Any = None,
    patience: int | None = None,
    until: Literal["converged"] | None = None,
    clip: float | None = None,
    schedule: LearningRateSchedule | None = None,
    ema: float | None = None,
    compile: bool | Literal["auto"] = "auto",
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    r"""Descends an objective, or several in turns, on minibatches of data.

    The modules are in training mode meanwhile and in evaluation mode afterwards. On the CPU a
    run with a `seed` is repeatable bit for bit, also when it was interrupted and resumed. Ctrl-C
    ends it after the step, as if that was the last one, with a warning; a second one stops at once.

    Arguments:
        objective: What to descend, such as `elbo(model, guide)`.
        data: A tensor of rows, a tuple of tensors, a `Transformed`, a `Dataset` or a
            `DataLoader`. Tensors are checked whole before the first step; of the last two only
            the first batch can be. Arrays and data frames become tensors, where a tensor is taken:
            floating-point numbers in the precision of the modules, integers as they are.
        epochs: How often to go through the data, a resumed part included.
        steps: The number of steps in all, instead of `epochs`.
        batch_size: The rows of a minibatch; the last one may have fewer. Default: all.
        lr: The learning rate.
        optimizer: A callable `optimizer(parameters, lr=lr)`, such as a class of `torch.optim`.
            Default: Adam.
        seed: Seeds torch's generators, and the order of the rows.
        device: Where to train: `"auto"`, `"cpu"`, `"cuda"`, `"mps"`. The modules and the data
            are moved there. Default: where they are.
        amp: Whether to run the networks in bfloat16 (autocast).
        validation: Data whose loss is recorded after each epoch, in nats per row of them; what
            latents shared by all rows cost is divided by their number, so that with few rows it
            weighs more than in training. It draws from a generator of its own: training is the
            same with it and without.
        patience: Stop after so many epochs without a better validation loss, and return to the
            parameters of the best.
        until: `"converged"` ends the run sooner than `epochs` where its loss no longer falls: the
            trend over the last half of its epochs is no larger than its standard error, and that
            is at most a hundredth of all that the loss fell by, or a tenth of the noise of an
            epoch. That is looked at after 20 epochs, and after each tenth more of them, and has to
            be so at two looks. A loss that still falls after `epochs` is warned of. The loss of a
            network that learns its rows by heart falls on for long: see `patience`.
        clip: The largest norm of the gradient.
        schedule: A callable `schedule(optimizer)` or `schedule(optimizer, steps)` that returns
            a scheduler of torch, which moves at every step.
        ema: The decay of an exponential moving average of all that is trained, such as 0.999,
            which counts about the last `1 / (1 - ema)` steps (early on, the last tenth of those
            taken). Validation, and with it `patience`, looks at the averages, and they are what
            the modules hold afterwards; the training itself stays the same. Buffers, such as the
            running means of batch normalisation, are not averaged. A checkpoint holds both.
        compile: Whether to run steps as compiled code, some seconds after the start; `"auto"` does
            so on the CPU where steps come in blocks, see below, and there are so many to come that
            it pays from a cold start, about 10,000 of a small program and never fewer than 1,200.
            It counts the steps asked for (`patience` may end a run sooner) and the operations of
            the second step, and asks no clock: a run with a `seed` is the same each time. Where it
            does not compile, or the code turns out not to be the program, `Run.eager_because` says
            why, without a warning.
            With `True`, on the CPU many steps run in one call, from the gathering of rows and their
            transform to the optimiser and what an objective does after a step, for Adam, AdamW, SGD
            or Pyro's ClippedAdam; a small program then takes a hundredth of the time. Batches of a
            `Dataset` or a `DataLoader` are read ahead of such a block, each once and in their order
            (where reading them draws from torch's generator a block is one step). A step of the
            code is compared with one of the programs at first every tenth of a second or so, later
            every one or two, and at the end; where they differ, the run goes back to where they
            last agreed, and on from there by the programs, with a warning that says why. What
            happens once in thousands of steps, and leaves no trace in Python, a comparison may
            miss. Other steps have compiled losses alone, and on CUDA each step is replayed as one
            graph. A run is resumed as it was written, compiled or not, which `"auto"` finds in the
            checkpoint.
        checkpoint: A file for the state of the run, written at the end, and in between every
            `checkpoint_every` seconds.
        resume: Whether to go on from the checkpoint, if there is one. The other arguments must
            be as before, but for `epochs` and `steps`.
        progress: Whether to show a progress bar (on a terminal).

    Raises:
        TypeError: If the objective or the optimiser is none.
        ValueError: If an argument, the data or the checkpoint do not fit.
        FloatingPointError: If a loss is infinite or undefined: on the CPU at once, with the site
            that it comes from, elsewhere within 100 steps. The last checkpoint is kept.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE, elbo, fit
        >>> objective = elbo(VAE(4, 2), AmortizedNormal(4, 2))
        >>> run = fit(objective, torch.ones(100, 4), epochs=3, batch_size=20, seed=0)
        >>> run.steps, len(run.history["loss"])
        (15, 3)
    """
    _check_no_more(more)
    _check_length(epochs, steps)
    _check_options(lr, clip, patience, validation, compile, until)
    path = _checkpoint_path(checkpoint, resume)
    began = time.perf_counter()
    place = None if device is None else choose_device(device)
    objectives = as_objectives(objective)
    end = _end(until, objectives)
    check_decay(ema)

    train, held_out = _sources(objectives, data, validation, batch_size, place)
    total = steps or (epochs or 0) * train.batches  # one of them is given
    order_seed = _seeded(seed)
    written = files.read(path) if resume and path is not None and path.exists() else None
    compile = _as_written(compile, written)

    start = partial(
        Descent, lr=lr, optimizer=optimizer, clip=clip, schedule=schedule, amp=amp, ema=ema
    )
    _move(objectives, place)
    first = _first(train, order_seed, path)
    with Interrupt() as interrupt, unwound(modules_of(objectives)):
        rows = in_memory_rows(train)
        descent = start(objectives, first, rows, steps=total, compile=compile is True)
        settings = _settings(descent, train, validated=held_out is not None, patience=patience)
        settings |= {"compile": compile, "until": until}
        reached = Progress(descent, order_seed, settings)
        if written is not None and path is not None:
            reached.restore(written, path, seed)
            _go_on_reading(train, reached, path)
        if held_out is not None:
            held_out.check(descent, order_seed)
        with closing(descent):
            loop = _Loop(reached, train, held_out, patience, path, checkpoint_every, interrupt, end)
            loop.run(total, progress)
    return _finished(loop, total, began)


class _Loop:
    """The steps of a run, and what comes between them and after them.

    Arguments:
        progress: Where it goes on, and what it moves.
        train: The rows to learn from.
        held_out: The rows of the validation, if there is one.
        patience: How many epochs without a better validation loss are too many.
        path: The file for checkpoints, if they are wanted.
        every: The seconds from one to the next.
        interrupt: Whether it is to end after a step.
        end: What ends it before its time, if anything.
    """

    def __init__(
        self,
        progress: Progress,
        train: Source,
        held_out: HeldOut | None,
        patience: int | None,
        path: Path | None,
        every: float,
        interrupt: Interrupt,
        end: UntilConverged | None,
    ) -> None:
        self.interrupt, self.end = interrupt, end
        self.progress, self.descent = progress, progress.descent
        self.train, self.held_out, self.patience = train, held_out, patience
        self.path, self.every, self.written_at = path, every, time.perf_counter()
        self.choice = Choice(progress, train, whole_epochs=held_out is not None)

    @property
    def blocks(self) -> Blocks | None:
        """What takes the steps in blocks, if anything does."""
        return self.choice.blocks

    def run(self, total: int, shown: bool) -> None:
        """Goes on to so many steps in all, and leaves the modules in evaluation mode."""
        initial, hidden = self.descent.step_number, None if shown else True
        self.choice.look_ahead(total)
        with (
            tqdm(total=total, initial=initial, disable=hidden) as bar,
            modes(self.descent.modules(), training=True),
        ):
            self._go_through_epochs(total, bar)
            self._finish()
        for module in self.descent.modules():
            module.eval()

    def _go_through_epochs(self, total: int, bar: tqdm) -> None:
        while self._goes_on(total):
            with _naming_epoch(self.progress, self.path):
                taken = self._take_block(total)
            self.choice.give_up_closed()
            if not taken:
                self._go_through_batches(total, bar)
            if self.progress.batch == self.train.batches:
                self._end_epoch()
                self.progress.warn_of_caveats()
            if self.blocks is not None:
                self._after_block(total)
            bar.set_postfix(self.progress.latest(), refresh=False)
            bar.update(self.descent.step_number - bar.n)

    def _take_block(self, total: int) -> bool:
        """Takes a block of steps, where they come in blocks; returns whether it did."""
        if self.blocks is None or not self.blocks.open:
            return False
        if self.end is not None:  # a block ends with the epoch after which it is looked at
            total = min(total, self.end.next_look(self.progress.epoch) * self.train.batches)
        if self.descent.step_number == total:
            return False
        try:
            return self.blocks.take(total)
        except RuntimeError:  # of batches that are read, as in `_until_interrupted`
            if not self.interrupt.asked:
                raise
            return True

    def _goes_on(self, total: int) -> bool:
        ended = self.progress.stopped or self.interrupt.asked
        return self.descent.step_number < total and not ended

    def _after_block(self, total: int) -> None:
        """Writes a checkpoint when it is time, of steps alone that are known to be right."""
        assert self.blocks is not None
        due = time.perf_counter() - self.written_at >= self.every
        if self._goes_on(total) and (self.path is None or not due):
            return
        if self.blocks.settle() and due and self.path is not None:
            self.progress.write(self.path)
            self.written_at = time.perf_counter()

    def _go_through_batches(self, total: int, bar: tqdm) -> None:
        for batch in self._until_interrupted(self._batches()):
            with _naming_epoch(self.progress, self.path):
                losses, position = self.choice.step(batch, total), getattr(batch, "position", None)
                self.progress.record(losses, position)
            self.choice.act()
            bar.update()
            if self.descent.step_number == total or self.interrupt.asked:
                return
            if self.path is not None and time.perf_counter() - self.written_at >= self.every:
                self.progress.write(self.path)
                self.written_at = time.perf_counter()
            if self.blocks is not None and self.blocks.open:
                return

    def _until_interrupted(self, batches: Iterator[Batch | Chosen]) -> Iterator[Batch | Chosen]:
        """Batches up to an interrupt, which the processes of a `DataLoader` do not survive."""
        try:
            yield from batches
        except RuntimeError:
            if not self.interrupt.asked:
                raise

    def _batches(self) -> Iterator[Batch | Chosen]:
        """The rest of an epoch, as rows where gathering them is recorded with the step."""
        if self.blocks is not None:
            return self.blocks.ahead.rest()
        seed, start = mix(self.progress.order_seed, self.progress.epoch), self.progress.batch
        gathers = self.descent.replay is not None
        if gathers and isinstance(self.train, InMemory) and self.train.recordable:
            return self.train.choices(seed, start)
        return self.train.epoch(seed, start)

    def _end_epoch(self) -> None:
        """Closes an epoch, with the validation loss of the averages where there are any."""
        progress = self.progress
        if self.held_out is None:
            progress.end_epoch(None, self.patience)
        else:
            with self.descent.averaged():
                loss = self.held_out.loss(self.descent, progress.order_seed)
                progress.end_epoch(loss, self.patience)
        if self.end is not None and self.end.looks(progress.epoch):
            progress.read_losses()
            progress.stopped |= self.end.reached(progress.history)

    def _finish(self) -> None:
        """Writes the last checkpoint, and leaves the parameters that are wanted."""
        progress = self.progress
        progress.check_finite()
        if self.path is not None:
            progress.write(self.path)
        if progress.batch:
            self._end_epoch()
            progress.read_losses()
        progress.warn_of_caveats()
        self.descent.finish()
        progress.return_to_best()


def _finished(loop: _Loop, total: int, began: float) -> Run:
    """What a run leaves behind, with a warning where it ended before its time, or after it."""
    history, step = loop.progress.history, loop.descent.step_number
    if loop.interrupt.asked:
        warn(_interrupted(step, total, loop.path))
    converged = None
    if loop.end is not None:
        stopped = loop.interrupt.asked or loop.progress.stopped
        converged = loop.end.converged(history, warned=not stopped)
    seconds = time.perf_counter() - began
    return Run(history, step, seconds, loop.choice.eager_because, converged)


def _interrupted(step: int, total: int, path: Path | None) -> str:
    """What a user must know of a run that ended before its time."""
    kept = f", and with checkpoint={str(path)!r}, resume=True it goes on from there" if path else ""
    return (
        f"fit: interrupted after {step} of {total} steps; all is as if that step was the "
        f"last{kept}. A second Ctrl-C would have stopped it at once, by a KeyboardInterrupt."
    )


def _sources(
    objectives: list[Objective],
    data: Any,
    validation: Any,
    batch_size: int | None,
    place: torch.device | None,
) -> tuple[Source, HeldOut | None]:
    """The rows to learn from, and those held out, where there are any."""
    modules = modules_of(objectives)
    missing = allows_missing(modules)
    taken = Taken(objectives[0].arguments, modules)
    train = source(data, batch_size, place, missing, taken)
    if validation is None:
        return train, None
    at_once = None if isinstance(validation, DataLoader) else batch_size
    return train, HeldOut(source(validation, at_once, place, missing, taken))


def _first(train: Source, order_seed: int, path: Path | None) -> Batch:
    """The first batch, by which all is checked."""
    first = next(train.epoch(mix(order_seed, 0)))
    if path is not None:
        files.check_can_hold(first.position)
    return first


def _go_on_reading(train: Source, reached: Progress, path: Path) -> None:
    """Has a loader go on from where it was, if it said so."""
    loader = train.loader if isinstance(train, Loaded) else None
    check_goes_on(reached.position, loader, path)
    if isinstance(train, Loaded):
        train.resume(reached.batch, reached.position)


def _seeded(seed: int | None) -> int:
    """Seeds torch's generators, and returns the seed of the order of the rows."""
    if seed is None:
        return int(torch.randint(2**31, ()))
    torch.manual_seed(seed)
    return seed


def _move(objectives: list[Objective], place: torch.device | None) -> None:
    if place is not None:
        for module in modules_of(objectives):
            module.to(place)


def _settings(
    descent: Descent, train: Source, validated: bool, patience: int | None
) -> dict[str, Any]:
    """What a resumed run must have in common with this one."""
    return {
        "objectives": [objective.name for objective in descent.objectives],
        "batch_size": train.batch_size,
        "rows": train.size,
        "lr": descent.lr,
        "clip": descent.clip,
        "amp": descent.amp,
        "optimizer": type(descent.optimizers[0]).__name__,
        "schedule": type(descent.schedulers[0]).__name__,
        "horizon": descent.horizon,
        "validated": validated,
        "patience": patience,
        "ema": descent.ema,
        "frozen": descent.frozen(),
    }


@contextmanager
def _naming_epoch(progress: Progress, path: Path | None) -> Iterator[None]:
    """Adds the epoch, and what is not lost, to the error of a loss that is not finite."""
    try:
        yield
    except FloatingPointError as error:
        kept = f" The last good checkpoint is kept in {path}." if path and path.exists() else ""
        raise FloatingPointError(f"epoch {progress.epoch + 1}, {error}{kept}") from None


def _check_no_more(more: tuple[Any, ...]) -> None:
    """Raises where a program, its guide and the data were given, or the data in parts."""
    if more:
        raise TypeError(
            f"fit: expected an objective and the data, got {2 + len(more)} arguments. Try "
            f"fit(elbo(model, guide), x, epochs=100), or data=(x, y) for rows with labels."
        )


def _check_length(epochs: int | None, steps: int | None) -> None:
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"fit: expected either epochs or steps, got epochs={epochs}, steps={steps}. "
            f"Try epochs=100."
        )
    _check_counts(epochs=epochs, steps=steps)


def _check_options(
    lr: float, clip: float | None, patience: int | None, validation: Any, compile: Any, until: Any
) -> None:
    _check_counts(patience=patience)
    if not math.isfinite(lr) or lr <= 0:
        raise ValueError(f"lr: expected a positive number, got {lr!r}. Try 1e-3.")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: expected a positive norm, got {clip!r}. Try 1.0.")
    if patience is not None and validation is None:
        raise ValueError("patience: expected validation data to wait for, got validation=None.")
    if until not in (None, "converged"):
        raise ValueError(
            f"until: expected 'converged' or None, got {until!r}. Try until='converged', with the "
            f"most epochs that it may take as epochs."
        )
    if not (isinstance(compile, bool) or compile == "auto"):
        raise ValueError(
            f"compile: expected True, False or 'auto', got {compile!r}. Try compile='auto'."
        )


def _as_written(
    compile: bool | Literal["auto"], written: dict[str, Any] | None
) -> bool | Literal["auto"]:
    """How a run is compiled: where that is left to it, as the run was that it goes on with."""
    if compile == "auto" and written is not None:
        return written.get("settings", {}).get("compile", False)
    return compile


def _end(until: str | None, objectives: list[Objective]) -> UntilConverged | None:
    """What ends a run before its time, if anything."""
    if until is None:
        return None
    if len(objectives) != 1:
        raise ValueError(
            f"until: expected one objective, whose loss falls until it has converged, got "
            f"{len(objectives)}, which take turns. Try until=None, and metrics after the fit."
        )
    return UntilConverged(objectives[0].name)


def _check_counts(**counts: int | None) -> None:
    check_count(**{name: value for name, value in counts.items() if value is not None})


def _checkpoint_path(checkpoint: str | Path | None, resume: bool) -> Path | None:
    if resume and checkpoint is None:
        raise ValueError("resume: expected checkpoint=, the file to go on from, got None.")
    return None if checkpoint is None else Path(checkpoint)
