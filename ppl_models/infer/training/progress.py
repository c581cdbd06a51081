"""Where a run is, which a checkpoint holds, so that a resumed run goes on bit for bit."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_models.infer.reading.position import Position
from ppl_models.infer.training import files
from ppl_models.infer.training.descent import Descent
from ppl_models.infer.training.together.shards.written import gathered, own_part
from ppl_models.user_line import warn

READ_EVERY = 100  # losses that are read at once


class Progress:
    """Where a run is, and what it has seen.

    Arguments:
        descent: What takes the steps.
        order_seed: The seed of the order of the rows.
        settings: What a resumed run must have in common with this one.
    """

    def __init__(self, descent: Descent, order_seed: int, settings: dict[str, Any]) -> None:
        self.descent, self.order_seed, self.settings = descent, order_seed, settings
        self.epoch, self.batch = 0, 0  # the next batch
        self.history: dict[str, list[float]] = {}
        self.sums: dict[str, float] = {}  # of the losses in this epoch
        # Not yet read from the device: losses of steps, and how many steps an epoch had at its end.
        self.pending: list[dict[str, Tensor] | int] = []
        self.best: dict[str, Any] | None = None
        self.waited = 0
        self.stopped = False
        # With `compile="auto"`: the step after which steps were compiled, or why they are not.
        self.compiled_since: int | None = None
        self.eager_because: str | None = None
        self.warned: set[str] = set()
        self.position: Position | None = None  # of a loader that says where it is

    def record(self, losses: dict[str, Tensor], position: Position | None = None) -> None:
        """Takes note of the losses of a step, and of where its batch was read."""
        self.pending.append(losses)
        self.position = position
        self.batch += 1
        if len(self.pending) >= READ_EVERY:
            self.read_losses()

    def record_block(self, losses: dict[str, list[float]], batches: int) -> None:
        """Takes note of the losses of many steps; epochs of so many batches end on the way.

        One that ends with the last step is left to `end_epoch`.
        """
        self.read_losses()
        done, many = 0, len(next(iter(losses.values())))
        while done < many:
            if self.batch == batches:
                self._close_epoch(self.batch)
                self.epoch, self.batch = self.epoch + 1, 0
            if batches == 1:  # an epoch is a step: all but the last at once
                for name, values in losses.items():
                    key = "loss" if len(losses) == 1 else name
                    self.history.setdefault(key, []).extend(values[done:-1])
                self.epoch, done = self.epoch + many - 1 - done, many - 1
            taken = min(batches - self.batch, many - done)
            for name, values in losses.items():
                self.sums[name] = sum(values[done : done + taken], self.sums.get(name, 0.0))
            self.batch, done = self.batch + taken, done + taken

    def mark(self) -> dict[str, Any]:
        """Where it is, to return to."""
        self.read_losses()
        kept = {name: getattr(self, name) for name in _WRITTEN}
        lengths = {name: len(values) for name, values in self.history.items()}
        return {**kept, "sums": dict(self.sums), "history": lengths}

    def return_to(self, mark: dict[str, Any]) -> None:
        """Goes back to where it was: what was recorded since is dropped."""
        self.pending.clear()
        for name, value in mark.items():
            if name != "history":
                setattr(self, name, value)
        for name in list(self.history):
            del self.history[name][mark["history"].get(name, 0) :]
            if name not in mark["history"]:
                del self.history[name]
        self.sums = dict(mark["sums"])

    def end_epoch(self, validation: float | None, patience: int | None) -> None:
        """Closes an epoch, after `self.batch` steps of it."""
        self.pending.append(self.batch)
        self.epoch, self.batch = self.epoch + 1, 0
        if validation is not None or self._costs_nothing or len(self.pending) >= READ_EVERY:
            self.read_losses()
        if validation is None:
            return
        self.history.setdefault("validation", []).append(validation)
        if patience is None:
            return
        if self.best is None or validation < self.best["validation"]:
            tensors = {name: x.detach().clone() for name, x in self._tensors().items()}
            self.best, self.waited = {"validation": validation, "tensors": tensors}, 0
        else:
            self.waited += 1
            self.stopped = self.waited >= patience

    def warn_of_caveats(self) -> None:
        """Warns, once, of what an objective has to say of the epochs so far: its `caveat`."""
        for objective in self.descent.objectives if self.history else ():
            if objective.name not in self.warned and (caveat := objective.caveat(self.history)):
                self.warned.add(objective.name)
                warn(caveat)

    def latest(self) -> dict[str, float]:
        """The last entries of the history."""
        return {name: values[-1] for name, values in self.history.items()}

    def return_to_best(self) -> None:
        """Gives the modules the parameters of the best validation loss, where one was kept."""
        if self.best is not None:
            files.fill(self._tensors(), self.best["tensors"])

    def check_finite(self) -> None:
        """Raises where a loss or a parameter is not finite."""
        self.read_losses()
        self.descent.check_parameters()

    def write(self, path: Path) -> None:
        """Writes a checkpoint, unless the run is broken: the one before is then kept.

        Of several processes the first one writes it, with where the generators of all are.
        """
        self.check_finite()
        processes = self.descent.processes
        checkpoint = {
            "kind": "checkpoint",
            "settings": self.settings,
            "tensors": self._tensors(),
            **self.descent.state_dict(),
            "progress": {name: getattr(self, name) for name in _WRITTEN},
        }
        if self.descent.shards is not None:
            checkpoint = gathered(checkpoint, self.descent.shards, self.descent.parameters)
        with processes.all_or_none(f"writing the checkpoint {path}"):
            if processes.is_first:
                files.write(path, checkpoint)

    def restore(self, checkpoint: dict[str, Any], path: Path, seed: int | None) -> None:
        """Goes on from the checkpoint that `path` holds, after checking that it fits."""
        kind = checkpoint.get("kind")
        if kind != "checkpoint":
            raise ValueError(f"{path}: expected a checkpoint of fit, got {kind}. Try load({path}).")
        files.check_tensors_match(str(path), checkpoint["tensors"], self._tensors())
        self._check_settings(checkpoint["settings"], path)
        progress = {**dict.fromkeys(_LATER), **checkpoint["progress"]}
        if seed is not None and seed != progress["order_seed"]:
            raise ValueError(
                f"{path}: it was written with seed={progress['order_seed']}, got seed={seed}. "
                f"Try the same seed, or none."
            )
        if self.descent.shards is not None:
            split = {name for name, x in self._tensors().items() if files.held(x) is not x}
            shards, parameters = self.descent.shards, self.descent.parameters
            checkpoint = own_part(checkpoint, shards, parameters, split)
            progress["best"] = checkpoint["progress"]["best"]
        files.fill(self._tensors(), checkpoint["tensors"])
        self.descent.load_state_dict(checkpoint)
        for name in _WRITTEN:
            setattr(self, name, progress[name])

    def _check_settings(self, written: dict[str, Any], path: Path) -> None:
        horizon = written["horizon"], self.settings["horizon"]
        if None not in horizon and horizon[0] != horizon[1]:
            raise ValueError(
                f"{path}: its schedule was made for {horizon[0]} steps in all, got {horizon[1]}; "
                f"the learning rates so far would be other ones. Try the same horizon, or load() "
                f"the weights and start anew."
            )
        unknown = {name: self.settings[name] for name in ("frozen", "objectives")}
        before = {**_ADDED, **unknown, **written}
        differing = [
            f"{name}={before.get(name)!r}, now {value!r}"
            for name, value in self.settings.items()
            if before.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{path}: it was written by a run with {'; '.join(differing)}. A resumed run goes "
                f"on as it was: try the same settings, or start anew without resume."
            )

    @property
    def _costs_nothing(self) -> bool:
        """Whether losses can be read at any time; a GPU would first finish all it was given."""
        return self.descent.device.type == "cpu"

    def read_losses(self) -> None:
        """Reads pending losses, in one go, and raises at the first that is not finite."""
        pending, self.pending = self.pending, []
        steps = [entry for entry in pending if isinstance(entry, dict)]
        number = self.descent.step_number - len(steps)
        values = iter(_table(steps))
        for entry in pending:
            if isinstance(entry, int):
                self._close_epoch(entry)
                continue
            number += 1
            for name, loss in zip(entry, next(values), strict=True):
                if loss - loss != 0:
                    raise FloatingPointError(
                        f"{name}: the loss is {loss} at step {number}. "
                        f"Try a smaller lr, clip=1.0, or device='cpu', which names the site."
                    )
                self.sums[name] = self.sums.get(name, 0.0) + loss

    def _close_epoch(self, steps: int) -> None:
        for name, total in self.sums.items():
            key = "loss" if len(self.sums) == 1 else name
            self.history.setdefault(key, []).append(total / steps)
        self.sums = {}

    def _tensors(self) -> dict[str, Tensor]:
        """The live parameters and buffers of all programs, by name."""
        tensors: dict[str, Tensor] = {}
        for i, objective in enumerate(self.descent.objectives):
            modules = objective.modules().items()
            of_modules = (
                ((f"{root}.{name}", x) for name, x in files.module_tensors(module).items())
                for root, module in modules
            )
            parameters = objective.named_parameters()
            for name, tensor in chain(chain.from_iterable(of_modules), parameters):
                tensors[f"{i}.{name}"] = tensor
        return tensors


def _table(steps: list[dict[str, Tensor]]) -> list[list[float]]:
    """The losses of some steps, read at once."""
    if not steps:
        return []
    values = torch.stack([step[name] for step in steps for name in steps[0]])
    return values.reshape(len(steps), -1).cpu().double().tolist()


_WRITTEN = (
    "epoch",
    "batch",
    "order_seed",
    "history",
    "sums",
    "best",
    "waited",
    "stopped",
    "compiled_since",
    "eager_because",
    "position",
)

_LATER = ("compiled_since", "eager_because", "position")  # which older checkpoints have not

# What a run was like whose checkpoint is older than the setting.
_ADDED = {"ema": None, "compile": False, "until": None}
