"""What a run begins with: its rows, its seed, its place, and what it goes on from."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from ppl_models.checks import allows_missing
from ppl_models.infer.objectives.objective import Objective, modules_of
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.reading.position import check_goes_on
from ppl_models.infer.training import files
from ppl_models.infer.training.batches import Batch, Loaded, Source, source
from ppl_models.infer.training.descent import Descent
from ppl_models.infer.training.ends.drift import UntilConverged
from ppl_models.infer.training.held_out import HeldOut
from ppl_models.infer.training.progress import Progress
from ppl_models.infer.training.together.agreement import check_can_share
from ppl_models.infer.training.together.generators import take_first
from ppl_models.infer.training.together.shards.whether import check_can_shard
from ppl_models.processes import Processes
from ppl_models.scoped import mix


def sources(
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


def first_batch(train: Source, order_seed: int, path: Path | None) -> Batch:
    """The first batch, by which all is checked."""
    first = next(train.epoch(mix(order_seed, 0)))
    if path is not None:
        files.check_can_hold(first.position)
    return first


def go_on(
    written: dict[str, Any], path: Path, reached: Progress, train: Source, seed: int | None
) -> None:
    """Goes on from a checkpoint, and has a loader go on from where it was, if it said so."""
    reached.restore(written, path, seed)
    loader = train.loader if isinstance(train, Loaded) else None
    check_goes_on(reached.position, loader, path)
    if isinstance(train, Loaded):
        train.resume(reached.batch, reached.position)


def seeded(seed: int | None, processes: Processes) -> int:
    """Seeds torch's generators, and returns the seed of the order of the rows."""
    processes.check_agree("fit", "Try the same seed on each.", seed=seed)
    if seed is None:
        take_first(processes, torch.device("cpu"))
        return int(torch.randint(2**31, ()))
    torch.manual_seed(seed)
    return seed


def check_together(
    processes: Processes,
    objectives: list[Objective],
    train: Source,
    held_out: HeldOut | None,
    first: Batch,
    shard: bool,
    compile: bool | Literal["auto"],
) -> None:
    """Raises on all processes where they cannot share batches or, if they are to, networks."""
    every = [train, *([held_out.source] if held_out else [])]
    check_can_share(processes, objectives, every, first)
    if shard:
        check_can_shard(processes, objectives, every, compile)


def move(objectives: list[Objective], place: torch.device | None) -> None:
    if place is not None:
        for module in modules_of(objectives):
            module.to(place)


def settings(
    descent: Descent,
    train: Source,
    validated: bool,
    patience: int | None,
    compile: bool | Literal["auto"],
    until: str | None,
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
        "compile": compile,
        "until": until,
    }


def as_written(
    compile: bool | Literal["auto"], written: dict[str, Any] | None
) -> bool | Literal["auto"]:
    """How a run is compiled: where that is left to it, as the run was that it goes on with."""
    if compile == "auto" and written is not None:
        return written.get("settings", {}).get("compile", False)
    return compile


def end_of(until: str | None, objectives: list[Objective]) -> UntilConverged | None:
    """What ends a run before its time, if anything."""
    if until is None:
        return None
    if len(objectives) != 1:
        raise ValueError(
            f"until: expected one objective, whose loss falls until it has converged, got "
            f"{len(objectives)}, which take turns. Try until=None, and metrics after the fit."
        )
    return UntilConverged(objectives[0].name)


def checkpoint_path(checkpoint: str | Path | None, resume: bool) -> Path | None:
    if resume and checkpoint is None:
        raise ValueError("resume: expected checkpoint=, the file to go on from, got None.")
    return None if checkpoint is None else Path(checkpoint)
