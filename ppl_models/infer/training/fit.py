"""The only training loop."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ppl_models.checks import check_count
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.programs.device import choose_device
from ppl_models.infer.programs.modules import allows_missing
from ppl_models.infer.programs.rng import get_rng_state, mix, own_rng, set_rng_state
from ppl_models.infer.training import files
from ppl_models.infer.training.batches import Batch, Chosen, InMemory, Source, source
from ppl_models.infer.training.descent import Descent, Optimizer, Schedule
from ppl_models.infer.training.progress import State
from ppl_models.modes import modes

LONG = 20_000  # steps that are worth the time of a compiler


@dataclass
class Run:
    """What a fit leaves behind.

    Attributes:
        history: For each name a list with one number an epoch, in nats per row: `"loss"` (the
            mean over the steps of the epoch; of several objectives, each under its name, with what
            they report beside it) and, where there was validation, `"validation"`.
        steps: The number of steps taken, those before a resume included.
        seconds: The wall-clock time of this call.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    def __repr__(self) -> str:
        # The history may have thousands of numbers, which a prompt would all print.
        last = [f"{name} {values[-1]:.5g}" for name, values in self.history.items() if values]
        return f"Run({', '.join([f'{self.steps} steps in {self.seconds:.1f} s', *last])})"


def fit(
    objective: Objective | Sequence[Objective],
    data: Any,
    *,
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
    clip: float | None = None,
    schedule: Schedule | None = None,
    ema: float | None = None,
    compile: bool | Literal["auto"] = "auto",
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    r"""Descends an objective, or several in turns, on minibatches of data.

    The modules are in training mode meanwhile and in evaluation mode afterwards. On the CPU a
    run with a `seed` is repeatable bit for bit, also when it was interrupted and resumed.

    Arguments:
        objective: What to descend, such as `elbo(model, guide)`.
        data: A tensor of rows, a tuple of tensors, a `Transformed`, a `Dataset` or a
            `DataLoader`. Tensors are checked whole before the first step; of the last two only
            the first batch can be.
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
        clip: The largest norm of the gradient.
        schedule: A callable `schedule(optimizer)` or `schedule(optimizer, steps)` that returns
            a scheduler of torch, which moves at every step.
        ema: The decay of an exponential moving average of all that is trained, such as 0.999,
            which counts about the last `1 / (1 - ema)` steps (early on, the last tenth of those
            taken). Validation, and with it `patience`, looks at the averages, and they are what
            the modules hold afterwards; the training itself stays the same. Buffers, such as the
            running means of batch normalisation, are not averaged. A checkpoint holds both.
        compile: Whether to run the losses as compiled code: a small program takes a third to a
            tenth of the time, after some seconds for each shape of a batch. `"auto"` does so in
            runs of 20,000 steps or more, and follows the checkpoint on resume. Programs that
            cannot be compiled run eagerly, with a warning that says why. On CUDA the whole step,
            from the gathering of rows to the optimiser, is then replayed as one graph.
        checkpoint: A file for the state of the run, written at the end, and in between every
            `checkpoint_every` seconds.
        resume: Whether to go on from the checkpoint, if there is one. The other arguments must
            be as before, but for `epochs` and `steps`.
        progress: Whether to show a progress bar (on a terminal).

    Raises:
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
    _check_arguments(
        epochs=epochs,
        steps=steps,
        patience=patience,
        lr=lr,
        clip=clip,
        validation=validation,
        checkpoint=checkpoint,
        resume=resume,
    )
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile: expected True, False or 'auto', got {compile!r}.")
    began = time.perf_counter()
    place = None if device is None else choose_device(device)
    descent = Descent(
        objective, lr=lr, optimizer=optimizer, clip=clip, schedule=schedule, amp=amp, ema=ema
    )
    missing = allows_missing(descent.modules())
    train = source(data, batch_size, place, missing)
    at_once = None if isinstance(validation, DataLoader) else batch_size
    held_out = None if validation is None else source(validation, at_once, place, missing)
    total = steps or (epochs or 0) * train.batches  # one of them is given

    if seed is not None:
        torch.manual_seed(seed)
    order_seed = int(torch.randint(2**31, ())) if seed is None else seed
    descent.steps = total
    path = None if checkpoint is None else Path(checkpoint)
    tree = files.read(path) if resume and path is not None and path.exists() else None
    if compile == "auto":
        compile = total >= LONG if tree is None else tree.get("settings", {}).get("compile", False)
    descent.compile = compile
    if place is not None:
        for module in descent.modules():
            module.to(place)
    first = next(train.epoch(mix(order_seed, 0)))
    descent.start(first, _tensors(train))

    settings = {
        "batch_size": train.batch_size,
        "rows": train.size,
        "lr": lr,
        "clip": clip,
        "amp": amp,
        "optimizer": type(descent.optimizers[0]).__name__,
        "schedule": type(descent.schedulers[0]).__name__,
        "horizon": total if descent.schedule_has_horizon else None,
        "validated": validation is not None,
        "patience": patience,
        "ema": ema,
        "compile": descent.compile,
    }
    state = State(descent, order_seed, settings)
    if tree is not None and path is not None:
        state.restore(tree, path, seed)
    if held_out is not None:
        _check(descent, held_out, order_seed)

    saved = time.perf_counter()
    bar = tqdm(total=total, initial=descent.step_number, disable=None if progress else True)
    with bar, closing(descent), modes(descent.modules(), training=True):
        while descent.step_number < total and not state.stopped:
            for batch in _epoch(train, descent, mix(state.order_seed, state.epoch), state.batch):
                with _placed(state.epoch, path):
                    state.record(descent.step(batch))
                bar.update()
                if descent.step_number == total:
                    break
                if path is not None and time.perf_counter() - saved >= checkpoint_every:
                    state.write(path)
                    saved = time.perf_counter()
            if state.batch < train.batches:
                break  # the last step came in the middle of an epoch
            _end_epoch(state, held_out, patience)
            state.warn_of_caveats()
            bar.set_postfix(state.latest(), refresh=False)
        state.check()
        if path is not None:
            state.write(path)
        if state.batch:
            _end_epoch(state, held_out, patience)
            state.read()
        state.warn_of_caveats()
        descent.finish()
        state.return_to_best()
    for module in descent.modules():
        module.eval()
    return Run(state.history, descent.step_number, time.perf_counter() - began)


def _epoch(train: Source, descent: Descent, seed: int, start: int) -> Iterator[Batch | Chosen]:
    """The batches of an epoch, as rows where gathering them is recorded with the step."""
    if descent.replay is not None and isinstance(train, InMemory) and train.recordable:
        return train.choices(seed, start)
    return train.epoch(seed, start)


@contextmanager
def _placed(epoch: int, path: Path | None) -> Iterator[None]:
    """Adds the epoch, and what is not lost, to the error of a loss that is not finite."""
    try:
        yield
    except FloatingPointError as error:
        kept = f" The last good checkpoint is kept in {path}." if path and path.exists() else ""
        raise FloatingPointError(f"epoch {epoch + 1}, {error}{kept}") from None


def _end_epoch(state: State, held_out: Source | None, patience: int | None) -> None:
    """Closes an epoch, with the validation loss of the averages where there are any."""
    if held_out is None:
        state.end_epoch(None, patience)
    else:
        with state.descent.averaged():
            state.end_epoch(_evaluate(state.descent, held_out, state.order_seed), patience)


@torch.no_grad()
def _evaluate(descent: Descent, held_out: Source, seed: int) -> float:
    """The loss of held-out data in nats per row, with the same draws each time."""
    with modes(descent.modules(), training=False), own_rng(mix(seed, -1), descent.device):
        losses, counts = [], []
        for loss, batch in _losses(descent, held_out):
            losses.append(loss)
            counts.append(len(batch.values[0]))
        values = torch.stack(losses).tolist()  # read at once, from a GPU
        mean = sum(v * n for v, n in zip(values, counts, strict=True)) / sum(counts)
    if not math.isfinite(mean):
        with modes(descent.modules(), training=False), own_rng(mix(seed, -1), descent.device):
            _find_fault(descent, held_out)
    return mean


def _losses(descent: Descent, held_out: Source) -> Iterator[tuple[Tensor, Batch]]:
    (objective,) = descent.objectives
    for batch in _others(held_out):
        with pyro.validation_enabled(False):
            loss = descent.evaluate(objective, batch)
        yield loss, batch


def _find_fault(descent: Descent, held_out: Source) -> None:
    """Raises at the held-out batch whose loss is not finite, with the same draws."""
    rng = get_rng_state(descent.device)
    for loss, batch in _losses(descent, held_out):
        if not torch.isfinite(loss):
            set_rng_state(rng, descent.device)
            when = f"on the validation data after step {descent.step_number}"
            raise FloatingPointError(descent.blame(descent.objectives[0], batch, loss, when))
        rng = get_rng_state(descent.device)


def _check(descent: Descent, held_out: Source, seed: int) -> None:
    """Tries a batch of the validation data before the first step."""
    if len(descent.objectives) != 1:
        raise ValueError(
            f"validation: expected one objective, got {len(descent.objectives)}. "
            f"Try validation=None, and metrics after the fit."
        )
    with modes(descent.modules(), training=False), own_rng(seed, descent.device):
        descent.check(next(_others(held_out)), _tensors(held_out))


def _others(held_out: Source) -> Iterator[Batch]:
    """Held-out batches: no rows that a guide could have parameters for."""
    return (batch._replace(rows=None) for batch in held_out.epoch(0, shuffle=False))


def _tensors(data: Source) -> tuple[Tensor, ...] | None:
    return data.tensors if isinstance(data, InMemory) and data.transform is None else None


def _check_arguments(**given: Any) -> None:
    epochs, steps = given["epochs"], given["steps"]
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"fit: expected either epochs or steps, got epochs={epochs}, steps={steps}. "
            f"Try epochs=100."
        )
    counts = {name: given[name] for name in ("epochs", "steps", "patience")}
    check_count(**{name: value for name, value in counts.items() if value is not None})
    if not math.isfinite(given["lr"]) or given["lr"] <= 0:
        raise ValueError(f"lr: expected a positive number, got {given['lr']!r}. Try 1e-3.")
    if given["clip"] is not None and not given["clip"] > 0:
        raise ValueError(f"clip: expected a positive norm, got {given['clip']!r}. Try 1.0.")
    if given["patience"] is not None and given["validation"] is None:
        raise ValueError("patience: expected validation data to wait for, got validation=None.")
    if given["resume"] and given["checkpoint"] is None:
        raise ValueError("resume: expected checkpoint=, the file to go on from, got None.")
