"""The only training loop."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm.auto import tqdm

from ppl_models.infer.objectives.objective import Objective, as_objectives, modules_of
from ppl_models.infer.programs.device import choose_device
from ppl_models.infer.training import files
from ppl_models.infer.training.batches import (
    Batch,
    Chosen,
    InMemory,
    Source,
    in_memory_rows,
)
from ppl_models.infer.training.blocks import Blocks
from ppl_models.infer.training.choice import Choice
from ppl_models.infer.training.descent import Descent
from ppl_models.infer.training.ends.drift import UntilConverged
from ppl_models.infer.training.held_out import HeldOut
from ppl_models.infer.training.interrupt import Interrupt, unwound
from ppl_models.infer.training.optimizers import LearningRateSchedule, Optimizer
from ppl_models.infer.training.progress import Progress
from ppl_models.infer.training.start.beginning import (
    as_written,
    check_together,
    checkpoint_path,
    end_of,
    first_batch,
    go_on,
    move,
    seeded,
    settings,
    sources,
)
from ppl_models.infer.training.start.options import check_length, check_no_more, check_options
from ppl_models.infer.training.together.generators import take_first, take_own
from ppl_models.pictures.curves import curves
from ppl_models.pictures.drawing import drawing, figure_of
from ppl_models.processes import together
from ppl_models.prompt.bars import is_watched
from ppl_models.scoped import mix, modes
from ppl_models.user_line import warn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG = 1.0  # seconds before the first step, or of compiling, that are said


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
        eager_because: Why the last steps were the program's own, although `compile` was `"auto"` or
            True; None where they were compiled.
        seconds_to_first_step: The wall-clock time until the first step of this call was taken:
            checks, imports, the first run of the programs. NaN without any, and of `fit_em`.
        seconds_compiling: The time in which code was made for blocks of steps, on the CPU: half a
            minute from a cold cache is usual, a second where the same was compiled before.

    Example:
        >>> from ppl_models import FactorAnalysis, elbo, fit
        >>> from guides import ExactPosterior
        >>> model, x = FactorAnalysis(5, 2), torch.randn(100, 5)
        >>> run = fit(elbo(model, ExactPosterior(model)), x, epochs=3, batch_size=20, seed=0)
        >>> run.steps, list(run.history), len(run.history["loss"])
        (15, ['loss'], 3)
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    eager_because: str | None = None
    converged: bool | None = None
    seconds_to_first_step: float = math.nan
    seconds_compiling: float = 0.0

    def __repr__(self) -> str:
        # The history may have thousands of numbers, which a prompt would all print.
        last = [f"{name} {values[-1]:.5g}" for name, values in self.history.items() if values]
        first, compiling = self.seconds_to_first_step, self.seconds_compiling
        spent = [f"{first:.1f} s to the first"] if first >= LONG else []
        spent += [f"{compiling:.1f} s compiling"] if compiling >= LONG else []
        beside = f" ({', '.join(spent)})" if spent else ""
        said = [f"{self.steps} steps in {self.seconds:.1f} s{beside}", *last]
        return f"Run({', '.join(said)})"

    def plot(self, axes: "Axes | None" = None) -> "Figure":
        """Draws the losses of the history against epochs, in nats per row, validation dashed.

        Where the first epochs would hide the rest, the scale is that of the others, and a line
        says how far the first ones go.

        Arguments:
            axes: Where to draw. By default in a figure of its own, which pyplot does not hold.

        Example:
            >>> figure = Run({"loss": [3.0, 2.0, 1.5], "validation": [3.1, 2.3, 1.9]}).plot()
            >>> [line.get_label() for line in figure.axes[0].lines]
            ['loss', 'validation']
        """
        with drawing(axes) as axes:
            curves(axes, self.history)
            one = next(iter(self.history)) if len(self.history) == 1 else None
            axes.set(xlabel="epochs", ylabel=f"{one} (nats per row)" if one else "nats per row")
            if len(self.history) > 1:
                axes.legend()
        return figure_of(axes)


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
    shard: bool = False,
) -> Run:
    r"""Descends an objective, or several in turns, on minibatches of data.

    The modules are in training mode meanwhile and in evaluation mode afterwards. On the CPU a
    run with a `seed` is repeatable bit for bit, also when it was interrupted and resumed. Ctrl-C
    ends it after the step, as if that was the last one, with a warning; a second one stops at once.

    Under `torchrun` the processes share each batch, and descend the loss of the whole: one process
    is `n` of them, but for what is drawn. Each calls this alike, with all the data; it takes every
    n-th row of a batch, and gradients are averaged by rows, parameters that a guide has for single
    rows included. Each draws its own random numbers, for latents that rows share, too; see
    `as_one_process`. Schedules, clipping, averages and the end are decided once; the first process
    shows the bar, warns, and writes checkpoints, from which any number of processes may go on. Of a
    loss whose rows see each other (batch normalisation), and where data, code, parameters or seeds
    differ, all are told before the first step.

    Arguments:
        objective: What to descend, such as `elbo(model, guide)`.
        data: A tensor of rows, a tuple of tensors, a `Transformed`, or rows that are read a batch
            at a time. Tensors are checked whole before the first step; of the others only the first
            batch is, and all by `check_data`. Arrays and data frames become tensors, where a tensor
            is taken: floating-point numbers in the precision of the modules, integers as they are.
            What is read is a `numpy.memmap` (where there is a batch_size: the run is the one in
            memory, and the order of the rows alone is kept, 8 bytes each), a `Dataset` (best with
            a `__getitems__` that gives a batch at once: a tensor, an array, a tuple of them, or a
            dict whose names are those of the arguments of the program), a data set of Hugging
            Face (so `datasets.Dataset.from_parquet(path)` for Parquet), or a `DataLoader`.
        epochs: How often to go through the data, a resumed part included.
        steps: The number of steps in all, instead of `epochs`.
        batch_size: The rows of a minibatch, on all processes; the last one may have fewer. Default:
            all.
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
            miss. Other steps, and those of several processes, have compiled losses alone; on
            CUDA each step of a single process is replayed as one graph. A run is resumed as it was
            written, compiled or not, which `"auto"` finds in the checkpoint.
        checkpoint: A file for the state of the run, written at the end, and in between every
            `checkpoint_every` seconds.
        resume: Whether to go on from the checkpoint, if there is one. The other arguments must
            be as before, but for `epochs` and `steps`. In the middle of an epoch a plain
            `DataLoader` reads its batches again up to there; a `StatefulDataLoader` (of torchdata)
            goes on where it was.
        progress: Whether to show a progress bar (on a terminal), which vanishes when it is done.
        shard: Whether several processes, as `torchrun` starts them, split networks too large for
            one: each holds its share of their parameters, gradients and moments, and gathers a
            layer when it is called. Before and after the fit, and in a checkpoint, parameters
            are whole; one process alone trains as without. The docs have a page on many machines.

    Raises:
        TypeError: If the objective or the optimiser is none.
        ValueError: If an argument, the data or the checkpoint do not fit.
        FloatingPointError: If a loss is infinite or undefined: on the CPU at once, with the site
            that it comes from, elsewhere within 100 steps. The last checkpoint is kept.
        ProcessError: If another process failed, or does not answer for ten minutes (the time-out
            of a group that was made before).

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE, elbo, fit
        >>> objective = elbo(VAE(4, 2), AmortizedNormal(4, 2))
        >>> run = fit(objective, torch.ones(100, 4), epochs=3, batch_size=20, seed=0)
        >>> run.steps, len(run.history["loss"])
        (15, 3)
    """
    check_no_more(more)
    check_length(epochs, steps)
    check_options(lr, clip, patience, validation, compile, until, ema)
    path, began = checkpoint_path(checkpoint, resume), time.perf_counter()
    processes = together()
    place = None if device is None else choose_device(device)
    objectives = as_objectives(objective)
    end = end_of(until, objectives)

    train, held_out = sources(objectives, data, validation, batch_size, place)
    total = steps or (epochs or 0) * train.batches  # one of them is given
    order_seed = seeded(seed, processes)
    written = files.read_by_first(path, processes) if resume and path is not None else None
    compile = as_written(compile, written)

    start = partial(Descent, lr=lr, optimizer=optimizer, clip=clip, schedule=schedule, amp=amp)
    start = partial(start, ema=ema, processes=processes, shard=shard, compile=compile is True)
    move(objectives, place)
    first = first_batch(train, order_seed, path)
    check_together(processes, objectives, train, held_out, first, shard, compile)
    with Interrupt() as interrupt, unwound(modules_of(objectives)):
        descent = start(objectives, first, in_memory_rows(train), steps=total)
        common = settings(descent, train, held_out is not None, patience, compile, until)
        reached = Progress(descent, order_seed, common)
        take_own(processes, order_seed, descent.device)
        with closing(descent), descent.joined_afterwards():
            with descent.joined_on(ValueError):
                if written is not None and path is not None:
                    go_on(written, path, reached, train, seed)
                if held_out is not None:
                    held_out.check(descent, order_seed)
            loop = _Loop(reached, train, held_out, patience, path, checkpoint_every, interrupt, end)
            loop.run(total, progress)
            take_first(processes, descent.device)
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
        self.first_at: float | None = None  # when the first step was taken

    @property
    def asked(self) -> bool:
        """Whether it is to end after a step: of several processes, where one of them was asked."""
        exchange = self.descent.exchange
        return self.interrupt.asked if exchange is None else exchange.stop

    @property
    def blocks(self) -> Blocks | None:
        """What takes the steps in blocks, if anything does."""
        return self.choice.blocks

    def run(self, total: int, shown: bool) -> None:
        """Goes on to so many steps in all, and leaves the modules in evaluation mode."""
        initial, hidden = self.descent.step_number, not is_watched(shown)
        self.choice.look_ahead(total)
        with (
            tqdm(total=total, initial=initial, disable=hidden, leave=False) as bar,
            modes(self.descent.modules(), training=True),
        ):
            self._go_through_epochs(total, bar)
            self._finish()
        for module in self.descent.modules():
            module.eval()

    def _go_through_epochs(self, total: int, bar: tqdm) -> None:
        while self._goes_on(total):
            with _naming_epoch(self.progress, self.path), self._saying_compiling(bar):
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
            taken = self.blocks.take(total)
            self.first_at = self.first_at or (time.perf_counter() if taken else None)
            return taken
        except RuntimeError:  # of batches that are read, as in `_until_interrupted`
            if not self.asked:
                raise
            return True

    @contextmanager
    def _saying_compiling(self, bar: tqdm) -> Iterator[None]:
        """Has the bar say why it stands still, where code is made for the first block."""
        new = self.blocks is not None and self.blocks.open and not self.blocks.used
        if new:
            bar.set_description("compiling")
        try:
            yield
        finally:
            if new:
                bar.set_description(None)

    def _goes_on(self, total: int) -> bool:
        ended = self.progress.stopped or self.asked
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
            self._say()
            with _naming_epoch(self.progress, self.path):
                losses, position = self.choice.step(batch, total), getattr(batch, "position", None)
                self.progress.record(losses, position)
            self.first_at = self.first_at or time.perf_counter()
            self.choice.act()
            bar.update()
            if self.descent.step_number == total or self.asked:
                return
            if self.path is not None and self._is_due():
                self.progress.write(self.path)
                self.written_at = time.perf_counter()
            if self.blocks is not None and self.blocks.open:
                return

    def _say(self) -> None:
        """Has the next step tell other processes whether to stop, and whether to write."""
        if exchange := self.descent.exchange:
            exchange.stop = self.interrupt.asked
            late = time.perf_counter() - self.written_at >= self.every
            exchange.due = late and exchange.processes.is_first

    def _is_due(self) -> bool:
        if exchange := self.descent.exchange:
            return exchange.due
        return time.perf_counter() - self.written_at >= self.every

    def _until_interrupted(self, batches: Iterator[Batch | Chosen]) -> Iterator[Batch | Chosen]:
        """Batches up to an interrupt, which the processes of a `DataLoader` do not survive."""
        try:
            yield from batches
        except RuntimeError:
            if not self.interrupt.asked or self.descent.exchange is not None:
                raise

    def _batches(self) -> Iterator[Batch | Chosen]:
        """The rest of an epoch, as rows where gathering them is recorded with the step."""
        if self.blocks is not None:
            return self.blocks.ahead.rest()
        seed, start = mix(self.progress.order_seed, self.progress.epoch), self.progress.batch
        gathers = self.descent.replay is not None
        if gathers and isinstance(self.train, InMemory) and self.train.recordable:
            return self.train.choices(seed, start)
        return self.train.epoch(seed, start, processes=self.descent.processes)

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
    if loop.asked:
        warn(_interrupted(step, total, loop.path))
    converged = None
    if loop.end is not None:
        stopped = loop.asked or loop.progress.stopped
        converged = loop.end.converged(history, warned=not stopped)
    first = math.nan if loop.first_at is None else loop.first_at - began
    seconds, compiling = time.perf_counter() - began, loop.descent.seconds_compiling
    reason = loop.choice.why_eager()
    return Run(history, step, seconds, reason, converged, first, compiling)


def _interrupted(step: int, total: int, path: Path | None) -> str:
    """What a user must know of a run that ended before its time."""
    kept = f", and with checkpoint={str(path)!r}, resume=True it goes on from there" if path else ""
    return (
        f"fit: interrupted after {step} of {total} steps; all is as if that step was the "
        f"last{kept}. A second Ctrl-C would have stopped it at once, by a KeyboardInterrupt."
    )


@contextmanager
def _naming_epoch(progress: Progress, path: Path | None) -> Iterator[None]:
    """Adds the epoch, and what is not lost, to the error of a loss that is not finite."""
    try:
        yield
    except FloatingPointError as error:
        kept = f" The last good checkpoint is kept in {path}." if path and path.exists() else ""
        raise FloatingPointError(f"epoch {progress.epoch + 1}, {error}{kept}") from None
