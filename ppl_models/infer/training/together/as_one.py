"""The random numbers of one process on several: each draws those of the whole batch.

In ordinary runs each process draws for its rows alone. A run of several then agrees with one of a
single process in distribution, and cannot be compared with it step by step. In the context here
each process draws what a single one would, and keeps what belongs to its rows, so that all losses
and parameters are those of one process, to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_models.processes import Processes, Share, together

# What draws: into a tensor, as much as a size says, or by tensors of parameters.
INTO = {f"{n}_" for n in ("normal", "uniform", "exponential", "cauchy", "geometric", "log_normal")}
INTO |= {"bernoulli_", "random_"}
SIZED = {"rand": 0, "randn": 0, "randint": -1}  # where the size is among the arguments
LIKE = {"rand_like", "randn_like", "randint_like"}
BY_PARAMETERS = {"normal", "bernoulli", "poisson", "binomial", "_standard_gamma"}
BY_ROWS = {"multinomial", "_sample_dirichlet"}  # of whose last dimension a draw is made
_open = [False]


@contextmanager
def as_one_process() -> Iterator[None]:
    """A context in which several processes train as one would, number by number.

    For tests that a program of your own is the same on `n` processes. Steps are eager, each draw
    costs as much as on one process, and each batch must have a row for each process. Draws are
    known to be of rows in the plate `"data"`, and outside of sites by their first dimension.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE, elbo, fit
        >>> objective = elbo(VAE(4, 2), AmortizedNormal(4, 2))
        >>> with as_one_process():  # under `torchrun` the losses are those of a single process
        ...     run = fit(objective, torch.ones(100, 4), epochs=3, seed=0, compile=False)
        >>> len(run.history["loss"])
        3
    """
    before, _open[0] = _open[0], True
    try:
        yield
    finally:
        _open[0] = before


def is_as_one() -> bool:
    """Whether several processes are to draw what one would."""
    return _open[0]


@contextmanager
def whole_draws(share: Share | None) -> Iterator[None]:
    """A context in which rows draw what they would in the whole batch, where that is wanted.

    Arguments:
        share: The rows of the batch that are here; None where they are all.
    """
    wanted = is_as_one() and share is not None
    if not wanted:
        yield
        return
    assert share is not None
    if not len(share.places):
        raise ValueError(
            "as_one_process: expected a row of each batch on each process, got one without. Try "
            "a batch_size that divides the rows."
        )
    mode = _WholeDraws(together(), share)
    with _Sites(mode), mode:
        yield


class _Site(NamedTuple):
    """The site that is drawn now: the shape of its batch, and where the rows are in it."""

    name: str
    shape: torch.Size
    place: int | None


class _Sites(Messenger):
    """Tells what draws which site it is for."""

    def __init__(self, mode: "_WholeDraws") -> None:
        super().__init__()
        self.mode = mode

    def _pyro_sample(self, message: dict) -> None:
        if site_is_subsample(message) or message["value"] is not None:
            return
        shape = getattr(message["fn"], "batch_shape", torch.Size())
        dims = [frame.dim for frame in message["cond_indep_stack"] if frame.name == "data"]
        place = len(shape) + dims[0] if dims and len(shape) >= -dims[0] else None
        self.mode.site = _Site(message["name"], shape, place)

    def _pyro_post_sample(self, message: dict) -> None:
        self.mode.site = None


class _WholeDraws(TorchDispatchMode):
    """Draws for the whole batch, and keeps what belongs to the rows that are here."""

    def __init__(self, processes: Processes, share: Share) -> None:
        super().__init__()
        self.processes, self.share = processes, share
        self.site: _Site | None = None
        self.everyone: list[Tensor] | None = None  # the places of all processes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, named = func._schema.name.removeprefix("aten::"), kwargs or {}
        if name in INTO:
            return self._into(func, args, named)
        if name in SIZED:
            return self._sized(func, SIZED[name], args, named)
        if name in LIKE:
            whole = self._widened(args[0].shape)
            like = args[0].new_empty(whole.shape) if whole else args[0]
            return self._kept(func(like, *args[1:], **named), whole)
        if name in BY_PARAMETERS or name in BY_ROWS:
            return self._by_parameters(func, name, args, named)
        if name == "native_dropout":
            return self._dropout(func, args, named)
        return func(*args, **named)

    def _into(self, func: Any, args: tuple, named: dict[str, Any]) -> Tensor:
        target, *rest = args
        whole = self._widened(target.shape)
        if whole is None:
            return func(*args, **named)
        rest = [self._gathered(x, whole, target.shape) for x in rest]
        drawn = func(target.new_empty(whole.shape), *rest, **named)
        return target.copy_(self._kept(drawn, whole))

    def _sized(self, func: Any, where: int, args: tuple, named: dict[str, Any]) -> Tensor:
        given = list(args)
        whole = self._widened(torch.Size(given[where]))
        if whole is not None:
            given[where] = list(whole.shape)
        return self._kept(func(*given, **named), whole)

    def _by_parameters(self, func: Any, name: str, args: tuple, named: dict[str, Any]) -> Tensor:
        tensors = [x for x in args if isinstance(x, Tensor)]
        shape = torch.broadcast_shapes(*(x.shape for x in tensors)) if tensors else torch.Size()
        if not tensors:  # normal of two numbers and a size
            return self._sized(func, 2, args, named)
        rows = shape[:-1] if name in BY_ROWS else shape
        whole = self._widened(rows)
        if whole is None:
            return func(*args, **named)
        whole = whole._replace(shape=whole.shape + shape[len(rows) :])
        given = [self._gathered(x, whole, shape) for x in args]
        return self._kept(func(*given, **named), whole)

    def _dropout(self, func: Any, args: tuple, named: dict[str, Any]) -> Any:
        whole = self._widened(args[0].shape)
        if whole is None:
            return func(*args, **named)
        found = func(self._gathered(args[0], whole, args[0].shape), *args[1:], **named)
        return tuple(self._kept(x, whole) for x in found)

    def _widened(self, shape: torch.Size) -> "_Whole | None":
        """What a draw of a shape is in the whole batch; None where it is of no rows."""
        here = len(self.share.places)
        if self.site is None:
            of_rows = len(shape) > 0 and shape[0] == here
            return self._whole(shape, 0, 1) if of_rows else None
        site = self.site
        if site.place is None:
            return None
        rows = site.shape[site.place]
        if rows % here:
            raise RuntimeError(
                f"as_one_process: site {site.name!r} has {rows} entries in the plate 'data', of "
                f"{here} rows. Expected as many, or a multiple of them."
            )
        if shape[: len(site.shape)] == site.shape:
            return self._whole(shape, site.place, rows // here)
        if len(shape) and shape[0] == site.shape.numel():  # as a categorical is drawn
            before = site.shape[: site.place].numel()
            after = site.shape[site.place + 1 :].numel()
            if after == 1:
                return self._whole(shape, 0, before * (rows // here))
        raise RuntimeError(
            f"as_one_process: cannot tell which rows a draw of shape {tuple(shape)} at site "
            f"{site.name!r} is of."
        )

    def _whole(self, shape: torch.Size, dim: int, copies: int) -> "_Whole":
        wide = [*shape[:dim], copies * self.share.total, *shape[dim + 1 :]]
        return _Whole(torch.Size(wide), dim, copies)

    def _kept(self, drawn: Tensor, whole: "_Whole | None") -> Tensor:
        """What belongs to the rows that are here."""
        if whole is None:
            return drawn
        return drawn.index_select(whole.dim, whole.places(self.share.places, self.share.total))

    def _gathered(self, x: Any, whole: "_Whole", shape: torch.Size) -> Any:
        """A parameter of a draw, of all rows."""
        if not isinstance(x, Tensor) or x.dim() == 0:
            return x
        if self.everyone is None:
            self.everyone = self.processes.gather(self.share.places)
        x = x.expand(shape)
        full = x.new_empty(whole.shape)
        for part, places in zip(self.processes.gather(x), self.everyone, strict=True):
            full.index_copy_(whole.dim, whole.places(places, self.share.total), part)
        return full


class _Whole(NamedTuple):
    """A draw for the whole batch: its shape, and the dimension of the rows, some copies of them."""

    shape: torch.Size
    dim: int
    copies: int

    def places(self, places: Tensor, total: int) -> Tensor:
        """Where rows are in that dimension: the copies of all rows follow each other."""
        starts = torch.arange(self.copies, device=places.device) * total
        return (starts[:, None] + places).reshape(-1)
