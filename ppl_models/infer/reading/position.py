"""Where a loader is that can say so, as the `StatefulDataLoader` of torchdata can.

A run that is resumed goes on from there, without reading again what was read. What the loader, its
sampler and its data set keep goes into checkpoints, which hold numbers, text and tensors alone.
"""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

Position = dict[str, Any]


def says_where(loader: DataLoader) -> bool:
    """Whether a loader can say where it is."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def position(loader: Any) -> Position | None:
    """Where a loader is, after the last batch that it gave; None where it does not say."""
    if not says_where(loader):
        return None
    return {"workers": loader.num_workers, "state": loader.state_dict()}


def check_goes_on(found: Position | None, loader: Any, path: Path) -> None:
    """Raises a ValueError where a loader cannot go on from where another one was.

    Arguments:
        found: Where that was, as `path` holds it; None where it did not say.
        loader: What is to go on; None where it is no loader.
        path: The checkpoint.
    """
    if found is None:
        return
    if not says_where(loader):
        raise ValueError(
            f"{path}: its rows came from a StatefulDataLoader, whose order no other one has; got "
            f"{'other data' if loader is None else type(loader).__name__}. Try the same loader."
        )
    if found["workers"] != loader.num_workers:
        raise ValueError(
            f"{path}: its StatefulDataLoader had num_workers={found['workers']}, got "
            f"num_workers={loader.num_workers}: where each worker was is known for as many alone. "
            f"Try num_workers={found['workers']}."
        )
