"""Which rows a minibatch holds.

`fit` shuffles. A plate whose subsample is `arange(B)` would give the parameters that a guide keeps
for each row to the wrong rows, without any error; so the true indices are supplied from outside,
to the plate named `"data"`.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiscreteParallel,
    AutoGaussian,
    AutoGuide,
    AutoStructured,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_models.infer.programs.pyro_internals import active_handlers, plate_frames
from ppl_models.infer.programs.torch_internals import no_torch_function, tensor_of_no_values
from ppl_models.scoped import kept_rng

_UNKNOWN = (
    "there is an entry for each row, and it is not known which rows these are. Try the tensors or "
    "the Dataset instead of a DataLoader, the rows that were fitted instead of others, or an "
    "amortised guide, which takes any."
)

# Made for the rows of a first batch, and no more: as one vector, or with no parameters for others.
_WHOLE = (AutoContinuous, AutoStructured, AutoGaussian, AutoDiscreteParallel)

_LIKE = {
    *(getattr(torch.ops.aten, f"{kind}_like").default for kind in ("zeros", "ones", "full")),
    *(getattr(torch.ops.aten, f"new_{kind}").default for kind in ("zeros", "ones", "full")),
}


class UnknownRowsError(ValueError):
    """What belongs to single rows was asked for, and it is not known which these are."""


class Rows(Messenger):
    """A handler that tells the plate `"data"` of `size` rows which of them a batch holds.

    Where they are not known, whatever belongs to single rows is refused.

    Arguments:
        rows: The indices, with shape `(B,)`, or None where they are not known.
        size: The number of rows in all.
        count: The number of rows in the batch, `B`.

    Example:
        >>> with Rows(torch.tensor([5, 2]), size=10, count=2):
        ...     print(pyro.plate("data", 10, subsample_size=2).indices)
        tensor([5, 2])
    """

    def __init__(self, rows: Tensor | None, size: int, count: int) -> None:
        super().__init__()
        self.rows, self.size, self.count = rows, size, count

    def _pyro_sample(self, message: dict) -> None:
        if message["name"] != "data" or not site_is_subsample(message):
            return
        plate, given = message["fn"], message["value"]
        count = (plate.subsample_size or plate.size) if given is None else len(given)
        # A plate of another size, or one that draws rows of its own, is not of this batch.
        if (plate.size, count) == (self.size, self.count):
            device = plate.device if given is None else given.device
            message["value"] = _Unknown(count, device) if self.rows is None else self.rows

    def _pyro_param(self, message: dict) -> None:
        placed = message["kwargs"].get("event_dim") is not None
        plates = {frame.name: frame for frame in message["cond_indep_stack"]}
        if self.rows is None and placed and "data" in plates:
            raise UnknownRowsError(f"parameter {message['name']!r}: {_UNKNOWN}")


class _Unknown(Tensor):
    """Indices of rows that are not known: so many, on a device; what needs their values is refused.

    At once: as an index on a GPU, a number beyond all bounds would end the process.
    """

    @staticmethod
    def __new__(cls, count: int, device: torch.device | None) -> "_Unknown":
        return tensor_of_no_values(cls, (count,), torch.int64, device)  # type: ignore[return-value]

    __torch_function__ = no_torch_function  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _LIKE:  # which take no more than its shape
            plain = torch.empty(args[0].shape, dtype=torch.int64, device=args[0].device)
            return func(plain, *args[1:], **(kwargs or {}))
        raise UnknownRowsError(f"an index of the plate 'data': {_UNKNOWN}")


class FollowingRows:
    """A context in which the plate `"data"` of an autoguide follows the batch it is called with.

    By itself an autoguide keeps the number of rows of the first batch, which the last, uneven one
    does not have, and without indices it draws the rows at random. Afterwards it is as Pyro made
    it, but for a first batch that stood for more rows: it then has the place of them all.

    Arguments:
        guide: The autoguide.
        takes_size: Whether its model has an argument `size`. One without may draw rows of its own.
        model: Its model, where that is known.
    """

    def __init__(
        self, guide: AutoGuide, takes_size: bool, model: Callable[..., Any] | None
    ) -> None:
        self.guide, self.takes_size = guide, takes_size
        self.plates = partial(_plates_of_batch, guide, takes_size, model)

    def __enter__(self) -> None:
        guide = self.guide
        if guide.master is None and guide.create_plates is None:
            vars(guide)["create_plates"] = self.plates  # a module's own way to set it is slow
            self.fresh = guide.prototype_trace is None

    def __exit__(self, *error: Any) -> None:
        if self.guide.create_plates is self.plates:
            vars(self.guide)["create_plates"] = None
            if self.fresh and self.takes_size:
                _stand_for_all(self.guide)


def rejoin(guide: AutoGuide) -> None:
    """Puts the parts of an autoguide under it again, which Pyro takes apart where it is copied."""
    if guide.master is None:
        for part in guide.modules():
            if part is not guide and isinstance(part, AutoGuide) and part.master is None:
                part.master = weakref.ref(guide)


def _plates_of_batch(
    guide: AutoGuide,
    takes_size: bool,
    model: Callable[..., Any] | None,
    *batch: Tensor,
    **named: Any,
) -> list[pyro.plate]:
    """The plate `"data"` for the rows of a batch, where the guide has one."""
    frame = plate_frames(guide).get("data")
    if frame is None or not batch:
        return []
    count, size = len(batch[0]), frame.full_size or frame.size
    kind = type(guide).__name__
    handler = next((m for m in active_handlers() if isinstance(m, Rows)), None)
    strange = handler.size != size if handler is not None else count != size
    if model and strange and not takes_size and _plate_of_model(model, *batch, **named) == frame:
        return []  # of something else than rows: it is alike for any number of them
    if handler is not None and handler.size != size:
        raise ValueError(
            f"{kind}: it has parameters for each of {size} rows, but there are "
            f"{handler.size} in all. Try the rows it was fitted to, a model with an argument "
            f"`size` (`with data_plate(x, size):`), or an amortised guide, which takes any."
        )
    if count > size or (handler is None and count < size):
        raise ValueError(
            f"{kind}: it has parameters for each of {size} rows, and was called with {count} "
            f"rows that it cannot place. Try the rows it was fitted to, or an amortised "
            f"guide, which takes any."
        )
    for part in guide.modules():
        whole = isinstance(part, _WHOLE) and "data" in plate_frames(part)
        if whole and (count, size) != (frame.size, frame.size):
            what = "probabilities" if isinstance(part, AutoDiscreteParallel) else "one vector"
            raise ValueError(
                f"{type(part).__name__}: it holds the latents of all rows in {what}, made "
                f"for the {frame.size} rows of its first batch, and cannot take {count} of "
                f"{size}. Try batch_size=None (the whole data), AutoNormal, or an amortised "
                f"guide."
            )
    if count == size and not takes_size:
        return []  # as many as in the model's own plate, which may subsample
    return [pyro.plate("data", size, subsample_size=count, dim=frame.dim)]


def _plate_of_model(model: Callable[..., Any], *batch: Tensor, **named: Any) -> Any:
    """The plate `"data"` that the model has for a batch."""
    with kept_rng(batch[0].device), torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(*batch, **named)
    frames = (f for _, site in trace.iter_stochastic_nodes() for f in site["cond_indep_stack"])
    return next((frame for frame in frames if frame.name == "data"), None)


def _stand_for_all(guide: AutoGuide) -> None:
    """Makes what a first batch left behind that of all the rows that it stood for.

    Not where one vector holds the latents of the rows of that batch, and of no others.
    """
    for part in guide.modules():
        if isinstance(part, AutoGuide) and not isinstance(part, _WHOLE):
            frames = plate_frames(part)
            frame = frames.get("data")
            if frame is not None and frame.full_size and frame.size != frame.full_size:
                frames["data"] = frame._replace(size=frame.full_size)
