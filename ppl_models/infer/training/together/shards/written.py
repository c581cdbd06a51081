"""Checkpoints of sharded runs: whole tensors, as those of any other run, on the first process.

One is gathered after the other, so that no process holds more than that beside its own; the first
has all of them at the end. A checkpoint that is read is split alike, whoever wrote it.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_models.infer.training.together.shards.shards import Shards

State = dict[str, Any]


def gathered(checkpoint: State, shards: Shards, parameters: list[list[Tensor]]) -> State:
    """A checkpoint with whole tensors; of what is split a process that is not first has its own.

    Arguments:
        checkpoint: What a process has of it.
        shards: What is split.
        parameters: What each optimiser moves here.
    """

    def whole(x: Tensor) -> Tensor:
        found = shards.joined(x.to_local() if hasattr(x, "to_local") else x)
        return found.cpu() if shards.processes.is_first else x

    split = {name for name, x in checkpoint["tensors"].items() if hasattr(x, "to_local")}
    return _each(checkpoint, whole, split, shards, parameters, whole_already=False)


def own_part(
    checkpoint: State, shards: Shards, parameters: list[list[Tensor]], split: set[str]
) -> State:
    """A checkpoint of whole tensors with those rows that are here, where they are split.

    Arguments:
        checkpoint: The checkpoint.
        shards: What is split.
        parameters: What each optimiser moves here.
        split: The names of the tensors that are split.
    """
    return _each(checkpoint, shards.own, split, shards, parameters, whole_already=True)


def _each(
    checkpoint: State,
    change: Callable[[Tensor], Tensor],
    split: set[str],
    shards: Shards,
    parameters: list[list[Tensor]],
    whole_already: bool,
) -> State:
    """A checkpoint with something done to each tensor that is split, in the same order on all."""

    def named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: change(x) if name in split else x for name, x in tensors.items()}

    def moments(p: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        part = shards.part_of(p)
        if part is None:
            return state
        shape = part.shape if whole_already else p.shape
        return {
            name: change(x) if isinstance(x, Tensor) and x.shape == shape else x
            for name, x in state.items()
        }

    average, best = checkpoint["average"], checkpoint["progress"]["best"]
    moved = [p for each in parameters for p in each]
    if average is not None:
        both = zip(moved, average, strict=True)
        average = [x if shards.part_of(p) is None else change(x) for p, x in both]
    if best is not None:
        best = {**best, "tensors": named(best["tensors"])}
    optimizers = [
        {**state, "state": {k: moments(each[int(k)], s) for k, s in state["state"].items()}}
        for state, each in zip(checkpoint["optimizers"], parameters, strict=True)
    ]
    return {
        **checkpoint,
        "tensors": named(checkpoint["tensors"]),
        "average": average,
        "progress": {**checkpoint["progress"], "best": best},
        "optimizers": optimizers,
    }
