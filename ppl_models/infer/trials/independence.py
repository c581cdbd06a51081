r"""Whether the rows are independent, as the plate `"data"` promises, tried on the program itself.

.. math::
    \log p(x_{1:B}, z_{1:B} \mid \theta) = \sum_{b=1}^{B} \log p(x_b, z_b \mid \theta)

where no term depends on another row, on the place of its own, or on how many there are. Draws of
rows are tiled and data are cut into minibatches on that promise, and a covariate
`torch.arange(len(x))`, a scale `len(x) ** 0.5` or the mean of the batch break it. So some rows are
run together, then split and in another order, with the latents that they had: the log-density of
each row has to be what it was.

Shapes: `B` rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.pyro_internals import active_handlers
from ppl_models.infer.programs.rows import Rows
from ppl_models.scoped import kept_rng, modes, own_rng

FEW = 16  # rows that are tried
FEWEST = 4
ROUNDING = 1e-3  # of a log-density in nats, and of that share of it where it is larger
ROUNDING_64 = 1e-6
ROOM = 2**18  # numbers of data that are tried at once, beside batches
NOISE = 30  # times what a change of the last digits does to a log-density: that is no rounding


class Pair(NamedTuple):
    """The traces of both programs on the same rows."""

    model: poutine.Trace
    guide: poutine.Trace


class Trial:
    """Both programs on rows of some data, again and again, in evaluation mode.

    Arguments:
        model: The model.
        guide: Its guide.
        data: Tensors with one entry for each row.
        rows: Which rows these are, `(B,)`, or None where that is not known.
        size: The number of rows in all. None for as many as a run has.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: tuple[Tensor, ...],
        rows: Tensor | None,
        size: int | None,
    ) -> None:
        self.model, self.guide = model, guide
        self.data, self.rows, self.size = data, rows, size

    def of_parts(self) -> str | None:
        """The first site to which other rows make a difference, and how to call it, or None."""
        count = len(self.data[0])
        if count < FEWEST:  # all of them several times, and by themselves
            places = torch.arange(count).repeat(-(-FEWEST // count))
            return self._first_other(places, torch.arange(len(places)).flip(0).split(count))
        places = torch.linspace(0, count - 1, min(count, FEW)).round().long()
        order = torch.arange(len(places)).flip(0)
        return self._first_other(places, (order[::2], order[1::2]))

    def of_sizes(self, *sizes: int) -> str | None:
        """The same, of so many rows, repeated if need be: the most of them, and the first of these.

        A program may branch on how many there are, which no few rows show.
        """
        whole, *parts = sorted({*sizes}, reverse=True)
        places = torch.arange(whole) % len(self.data[0])
        return self._first_other(places, [torch.arange(part) for part in parts])

    def of_company(self) -> str | None:
        """The same, where a program takes no other number of rows: half of them stay, twice each.

        So they have other places and other rows beside them, and are as many as before.
        """
        every = torch.arange(len(self.data[0]))
        half = len(every) // 2
        halves = every % max(half, 1), half + every % (len(every) - half)
        return self._first_other(every, (every.flip(0), *halves))

    def takes(self, size: int) -> bool:
        """Whether the programs run on so many rows."""
        try:
            with self.quietly():
                self.run(torch.arange(size) % len(self.data[0]))
        except Exception:  # whatever a program does that takes other numbers of rows
            return False
        return True

    def room(self) -> int:
        """How many rows may be tried at once, beside batches."""
        return ROOM * len(self.data[0]) // max(1, sum(x.numel() for x in self.data))

    def of_latents(self) -> str | None:
        """The first site to which the latents of other rows make a difference, or None."""
        count = len(self.data[0])
        every = torch.arange(count)
        with self.quietly():
            one, other = self.run(every), self.run(every)
            generator = torch.Generator().manual_seed(0)
            ours = torch.zeros(count, dtype=torch.bool)
            ours[torch.randperm(count, generator=generator)[: count // 2]] = True
            latents = Pair(*(_mixed(*traces, ours) for traces in zip(one, other, strict=True)))
            mixed = self.run(every, latents)
            shown = [
                difference
                for before, mine in ((one, every[ours]), (other, every[~ours]))
                for difference in _differences(before, mixed, mine, mine)
            ]
            return self._beyond_noise(shown, every, one)

    def _first_other(self, places: Tensor, parts: Sequence[Tensor]) -> str | None:
        with self.quietly():
            drawn, every = self.run(places), torch.arange(len(places))
            whole = self._run_again(places, drawn, every)
            shown = []
            for part in parts:
                split = self._run_again(places, drawn, part)
                shown += _differences(whole, split, part, torch.arange(len(part)))
            return self._beyond_noise(shown, places, whole)

    def _run_again(self, places: Tensor, drawn: Pair, part: Tensor) -> Pair:
        """Runs both on a part of the rows, with the latents drawn, and the same chance beside."""
        with own_rng("a trial", 0, self.data[0].device):  # of what a program draws without a site
            return self.run(places[part], Pair(*(_taken(trace, part) for trace in drawn)))

    def _beyond_noise(self, shown: list["Difference"], places: Tensor, whole: Pair) -> str | None:
        """The first difference that neither rounding nor a program's own chance explains."""
        large = [d for d in shown if d.size > d.rounding]
        if not large:
            return None
        noise = self._noise(places, whole)
        return next((d.where for d in large if d.size > NOISE * noise.get(d.where, 0.0)), None)

    def _noise(self, places: Tensor, whole: Pair) -> dict[str, float]:
        """What other last digits do to each site; nothing in a program that takes no others."""
        try:
            again = self.run(places, Pair(*map(_jittered, whole)), jitter=True)
        except Exception:  # whatever a program does that knows its rows by their numbers
            return {}
        every = torch.arange(len(places))
        return {d.where: d.size for d in _differences(whole, again, every, every)}

    def run(self, places: Tensor, latents: Pair | None = None, jitter: bool = False) -> Pair:
        """Runs both on some rows; with latents that are given, or drawn by the guide."""
        places = places.to(self.data[0].device)
        batch = tuple(_moved(x[places]) if jitter else x[places] for x in self.data)
        rows = None if self.rows is None else self.rows[places]
        size = len(places) if self.size is None else self.size
        model: Callable[..., Any] = self.model
        guide: Callable[..., Any] = self.guide
        if latents is not None:
            model = _Given(latents.model)(model)  # for those that are enumerated
            guide = _Given(latents.guide)(guide)
        with _Only(rows, size, len(places)):
            guided = poutine.trace(guide).get_trace(*batch, size=size)
            model = poutine.replay(model, trace=guided)
            joint = poutine.trace(model).get_trace(*batch, size=size)
        for trace in (guided, joint):
            trace.compute_log_prob(lambda _, site: not site_is_subsample(site))
        return Pair(joint, guided)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """A run that leaves nothing behind: no gradients, no training, no draws."""
        modules = [m for p in (self.model, self.guide) for m in p.modules().values()]
        with (
            torch.no_grad(),
            kept_rng(self.data[0].device),
            modes(modules, training=False),
            pyro.validation_enabled(False),
        ):
            yield


class _Only(Rows):
    """Says alone which rows these are, whatever a handler around it says."""

    def _pyro_sample(self, message: dict) -> None:
        super()._pyro_sample(message)
        if message["name"] == "data" and site_is_subsample(message):
            message["stop"] = True


class _Given(Messenger):
    """Gives values of other runs alone: masks, and the priors in a guide, are of the rows now."""

    def __init__(self, trace: poutine.Trace) -> None:
        super().__init__()
        self.trace = trace

    def _pyro_sample(self, message: dict) -> None:
        if message["name"] in self.trace and not message["is_observed"]:
            message["done"], message["value"] = True, self.trace.nodes[message["name"]]["value"]


class Difference(NamedTuple):
    """By how much the log-density of a site differs between two runs, relative to its size."""

    where: str
    size: float
    rounding: float


def _differences(before: Pair, after: Pair, rows: Tensor, now: Tensor) -> list[Difference]:
    """Those of all sites, of some rows in a run and where these are in another."""
    found = []
    for old, new, program in zip(before, after, ("model", "guide"), strict=True):
        for name in dict.fromkeys([*_compared(old), *_compared(new)]):
            a, b = _density(old.nodes.get(name), rows), _density(new.nodes.get(name), now)
            found.append(_difference(f"site {name!r} of the {program}", a, b))
    return found


def _compared(trace: poutine.Trace) -> list[str]:
    """The sites that must not know of other rows: those of rows, and latents that all share."""
    return [
        site["name"]
        for site in sites.random_sites(trace)
        if sites.in_data_plate(site) or not site["is_observed"]
    ]


def _density(site: dict | None, rows: Tensor) -> Tensor:
    """The log-density of a site on some rows, without the scale of the plate.

    Of one that is not there, as in a loop that others made longer, it is zero.
    """
    if site is None:
        return torch.zeros((), dtype=torch.float64)
    density = site["log_prob"] / site["scale"]
    return _of_rows(density, _row_dim(site), rows)


def _difference(where: str, a: Tensor, b: Tensor) -> Difference:
    if a.dim() and b.dim() and a.shape != b.shape:
        return Difference(where, torch.inf, ROUNDING)
    rounding = ROUNDING_64 if a.dtype == b.dtype == torch.float64 else ROUNDING
    size = (a - b).abs() / (1 + a.abs())
    size = size.masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0).nan_to_num(nan=torch.inf)
    return Difference(where, size.max().item() if size.numel() else 0.0, rounding)


def _row_dim(site: dict) -> int | None:
    """The dimension of the rows, counted from the right of the batch shape."""
    return next((f.dim for f in site["cond_indep_stack"] if f.name == "data"), None)


def _of_rows(x: Tensor, dim: int | None, rows: Tensor) -> Tensor:
    """Some rows of a tensor; all of one that has no rows, or is the same for all."""
    if dim is None or x.dim() < -dim or x.shape[dim] == 1:
        return x
    return x.index_select(dim, rows.to(x.device))


def _value_dim(site: dict) -> int | None:
    dim = _row_dim(site)
    return None if dim is None else dim - site["fn"].event_dim


def _given(trace: poutine.Trace) -> dict[str, dict]:
    """The latents to be given again. Points follow from the others, or are the guide's own."""
    found = sites.latent_sites(trace).items()
    return {name: site for name, site in found if sites.kind(site["fn"]) != "Delta"}


def _with_values(trace: poutine.Trace, value: Callable[[dict], Tensor]) -> poutine.Trace:
    given = poutine.Trace()
    for name, site in _given(trace).items():
        given.add_node(name, **{**site, "value": value(site)})
    return given


def _taken(trace: poutine.Trace, rows: Tensor) -> poutine.Trace:
    """The latents of some rows."""
    return _with_values(trace, lambda site: _of_rows(site["value"], _value_dim(site), rows))


def _mixed(one: poutine.Trace, other: poutine.Trace, ours: Tensor) -> poutine.Trace:
    """The latents of some rows from one trace, those of the others from another."""

    def value(site: dict) -> Tensor:
        mine, theirs, dim = site["value"], other.nodes[site["name"]]["value"], _value_dim(site)
        if dim is None or mine.dim() < -dim or mine.shape[dim] == 1:
            return mine
        chosen = ours.to(mine.device).reshape(-1, *[1] * (-dim - 1))
        return torch.where(chosen, mine, theirs)

    return _with_values(one, value)


def _jittered(trace: poutine.Trace) -> poutine.Trace:
    """The latents, their last digits changed where they are continuous."""
    return _with_values(
        trace, lambda site: site["value"] if sites.is_discrete(site) else _moved(site["value"])
    )


def _moved(x: Tensor) -> Tensor:
    """Numbers with their last digits changed, those that are equal alike."""
    return x * (1 + 4 * torch.finfo(x.dtype).eps) if x.is_floating_point() else x


def first_dependence(parts: Trial, batch: Trial, sizes: Sequence[int]) -> str | None:
    """The first site that looks at other rows than its own, by the trials that a program takes.

    One that fails for some other number of rows has no number there; but what it is beside other
    rows, in batches that it does take, has to be seen.

    Arguments:
        parts: Rows, of which any are tried.
        batch: As many as are run together.
        sizes: How many rows there may be at once.

    Raises:
        ValueError: If programs fail for other rows in a batch of the same size.
    """
    try:
        found = parts.of_parts()
    except Exception:  # whatever a program does that takes batches of one size only
        found = _of_company(batch)
    if found:
        return found
    try:
        return parts.of_sizes(*sizes)
    except Exception:  # again
        taken = [size for size in sizes if parts.takes(size)]
        return parts.of_sizes(*taken) if taken else None


def _of_company(batch: Trial) -> str | None:
    try:
        return batch.of_company()
    except Exception as error:
        count = len(batch.data[0])
        raise ValueError(
            f"batches of {count} rows: the programs fail for the same rows in another order, or "
            f"for half of them twice ({first_line(error)}), so that it cannot be tried "
            f"whether a row depends on the others of its batch. Expected rows that are "
            f"independent, as the plate 'data' promises. Try elbo(model, guide) and the whole "
            f"data as one batch (batch_size=None), or a program that takes any rows."
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, without Pyro's tables of shapes."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": ")


def check_minibatches(
    model: Program,
    guide: Program,
    batch: tuple[Tensor, ...],
    size: int,
    data: tuple[Tensor, ...] | None,
) -> None:
    """Raises where minibatches of a program are not parts of the whole, as their rows are not.

    Arguments:
        model: The model.
        guide: Its guide.
        batch: A minibatch, of rows that a handler `Rows` around this may know.
        size: The number of rows in all.
        data: All of them, where they are in memory.
    """
    handler = next((m for m in active_handlers() if isinstance(m, Rows)), None)
    if handler is None:  # a batch by itself, which no other follows
        return
    alone = parts = Trial(model, guide, batch, handler.rows, size)
    if data is not None:
        every = None if handler.rows is None else torch.arange(size, device=handler.rows.device)
        parts = Trial(model, guide, data, every, size)
    count = len(batch[0])
    whole = min(size, max(2 * count, parts.room()))
    found = first_dependence(parts, alone, [n for n in (whole, count, size % count) if n])
    if found:
        raise ValueError(
            f"{found}: the log-density of a row depends on the other rows of its batch, on how "
            f"many there are or on their order, and the plate 'data' promises rows that are "
            f"independent: batches of {len(batch[0])} of {size} rows would be no parts of the "
            f"whole. Try batch_size=None, or what a row needs to know of the others as a tensor "
            f"beside it, fit(objective, (x, covariate), ...)."
        )


def known_rows(batch: tuple[Tensor, ...], size: int) -> Tensor | None:
    """Which rows a batch holds, as a handler `Rows` around this says, or as it is all of them."""
    handler = next((m for m in active_handlers() if isinstance(m, Rows)), None)
    if handler is not None:
        return handler.rows
    whole = len(batch[0]) == size
    return torch.arange(size, device=batch[0].device) if whole else None


def named_rows(model: poutine.Trace, guide: poutine.Trace, rows: int) -> bool:
    """Whether a plate of another name may hold the rows, so that it is not known what is whose."""
    frames = [
        frame
        for trace in (model, guide)
        for site in sites.random_sites(trace)
        for frame in site["cond_indep_stack"]
    ]
    return any(frame.name != "data" and frame.size == rows for frame in frames)
