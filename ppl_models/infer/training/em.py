r"""Expectation maximisation: steps that never lower the evidence, until they no longer raise it."""

import copy
import functools
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ppl_models.checks import allows_missing, check_count, check_devices, check_tensors
from ppl_models.infer.programs.tables import as_data
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.reading.in_order import gives_in_order
from ppl_models.infer.training.batches import (
    InMemory,
    Loaded,
    OnDisk,
    Source,
    in_memory,
    on_disk,
    streamed,
)
from ppl_models.infer.training.fit import Run
from ppl_models.processes import ALONE, Part, Processes, fingerprint, takes_parts, together
from ppl_models.processes.jobs import jobs_at_once, side_by_side
from ppl_models.row_weights import check_sample_weight
from ppl_models.scoped import get_host_rng_state, get_rng_state, set_host_rng_state, set_rng_state
from ppl_models.user_line import warn

AT_ONCE = 4096  # rows of a batch that is read, where nothing else is said
MANY = 20_000  # rows from which a start is chosen, where the data are not in memory
LEFT = 4  # steps that would be left, of which a leap may save some
SLACK = {torch.float64: 1e-9, torch.float32: 1e-5}  # what rounding may lower, relative to 1 nat


class HasEMStep(Protocol):
    """A module that knows the steps of EM.

    Under `torchrun` all processes take the same steps on all rows, unless `em_step` says that it
    takes a part of them, and adds its sums over the processes: `ppl_models.processes.by_parts`.
    """

    def initialise(self, x: Tensor) -> None:
        """Chooses where to start. Raises where the rows `x` cannot be fitted."""

    def em_step(self, x: Tensor | Iterable[Tensor]) -> Tensor:
        """Moves the parameters, and returns the objective *before*, in nats per row.

        `x` are all the rows, or batches of them that can be gone through more than once. The
        objective is the log evidence (with a penalty, where the model has one).

        Where rows may have weights, this and `initialise` take `sample_weight=None`, too: those of
        all rows, `(N,)`.
        """


@runtime_checkable
class HasStack(Protocol):
    """A module whose step of EM serves several restarts at once."""

    def stack(self, restarts: int) -> Any:
        """Returns a copy whose parameters have a leading dimension, and so has its objective."""


class Climber(Protocol):
    """The steps of EM of a module, one after the other."""

    def __call__(self) -> Tensor:
        """Takes one step; returns the objective *before*, in nats per row."""

    def state(self) -> dict[str, Tensor]:
        """What the next step begins with, in tensors that it leaves as they are."""

    def leap(self, factor: float, least: float) -> bool:
        """Goes the way of the last step so many times, if the objective is `least` or more there.

        Whether it did; else nothing has moved. The next step gives the objective there.
        """

    def parameters(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Such a state, or that of one of several restarts, as the module's `state_dict`."""


@runtime_checkable
class HasClimb(Protocol):
    """A module whose steps are faster where one follows the other."""

    def climbs(self, *x: Any) -> bool:
        """Whether they are for these rows."""

    def climb(self, *x: Tensor) -> Climber:
        """Returns what takes the steps of `em_step(*x)`, where that is so."""


@runtime_checkable
class HasCaveat(Protocol):
    """A module that knows what users must be told of its fit."""

    def caveat(self) -> str | None:
        """Says it; None where there is nothing to say."""


def fit_em(
    model: Any,
    data: Any,
    *,
    sample_weight: Any = None,
    initialise: bool = True,
    restarts: int = 1,
    max_steps: int = 1000,
    tolerance: float = 1e-6,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Run:
    r"""Fits a model by expectation maximisation.

    .. math::
        \theta_{t+1} = \arg\max_\theta \;
        \mathbb{E}_{p(z \mid x, \theta_t)} \left[ \log p(x, z \mid \theta) \right]

    With weights the evidence is :math:`\sum_n w_n \log p(x_n)`, and nats are per row by weight: a
    row of weight 2 counts as two. Each step goes through all rows; no step raises the loss, the
    mean of minus the log evidence. The model is left with the parameters of the last loss in the
    history.

    It runs where the model is. Batches of a `Dataset` or a `DataLoader` are moved there one at a
    time, and so are the parts of a tensor on the CPU, where a `batch_size` is given: data that do
    not fit on a GPU stay where they are (`x.pin_memory()` makes the copies faster).

    Under `torchrun` each process takes its part of the rows, and sums over rows are added over the
    processes: the fit is that of one process, to rounding. Starts are chosen by the first one, and
    so is every decision. All are given the same data and settings.

    Arguments:
        model: A module with `em_step(x)` and `initialise(x)`.
        data: A tensor (array, data frame) of rows, or a tuple of them where `em_step` takes more
            than one, or rows that are read in batches, once in each step: a `numpy.memmap`, a
            `Dataset` (of Hugging Face, too), a `DataLoader`.
        sample_weight: How many times each row counts, `(N,)`, 0 or more, in the order of the rows,
            which a `DataLoader` must not shuffle. Default: once.
        initialise: Whether to choose a start; else it is where the model is.
        restarts: The number of starts, of which the best end is kept. The first is what a single
            one would be. Where `joblib.parallel_config` says so, they run side by side, to the same
            end.
        max_steps: The largest number of steps.
        tolerance: Stop when a step raises the evidence by no more, in nats per row.
        batch_size: The rows of a batch that is read, default 4096, or of a tensor that stays on the
            CPU while the model is elsewhere, default all.
        seed: Seeds torch's generator, for the starts.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        A `Run`: `history["loss"]` are the losses of the best restart in nats per row, `steps`
        their number.

    Raises:
        ValueError: If an argument or the data do not fit, or are not the same on all processes.
        ProcessError: If another process failed, or does not answer.
        TypeError: If the model has no such step, or none that takes weights.
        RuntimeError: If a step lowers the evidence, which no step of EM does.

    References:
        | Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster et al., 1977)
        | https://doi.org/10.1111/j.2517-6161.1977.tb01600.x

    Example:
        >>> from ppl_models import GaussianMixture, fit_em
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 9])
        >>> run = fit_em(GaussianMixture(2, num_components=2), x, restarts=3, seed=0)
        >>> run.history["loss"][-1] <= run.history["loss"][0]
        True
    """
    here = together()
    began = time.perf_counter()
    with here.all_or_none("fit_em"):
        _check_arguments(model, initialise, restarts, max_steps, tolerance)
        missing = allows_missing([model])
        place = next(iter(model.parameters())).device
        rows = _rows(model, data, batch_size, place, missing)
        if isinstance(rows, InMemory):
            _check_takes(model, len(_whole(rows)))
        weight = _weight(model, rows, sample_weight)
        if seed is not None:
            torch.manual_seed(seed)
        sharing = here if takes_parts(model.em_step) else ALONE
        x, start = _rows_and_start(model, rows, weight, batch_size, place, missing, sharing)
        advice = "a batch_size, with which parts of them are moved"
        check_devices({"model": model}, start[:1], advice)
    settings = [initialise, restarts, max_steps, tolerance, batch_size, seed]
    _check_alike(here, model, rows, start, settings)

    with tqdm(desc="EM", disable=None if progress and here.is_first else True) as bar:
        candidates = _candidates(model, restarts, x)
        # Steps of several are cheap: they go on a little, as they do side by side until all end.
        least = tolerance / 10 if len(candidates) > 1 and isinstance(model, HasClimb) else tolerance
        ends = _side_by_side(candidates, x, start, max_steps, least, bar)
        for candidate in candidates if not ends else []:
            if initialise:
                _start(candidate, start, here)
            # Steps that share nothing are taken by each process for itself.
            with (ALONE if sharing is here else here).all_or_none("fit_em"):
                ends.append(_climb(candidate, x, max_steps, least, bar, sharing))
    values, state = max(ends, key=lambda end: end[0][-1])
    for name, value in model.state_dict().items():
        value.copy_(state[name])
    here.take_from_first(list(model.state_dict().values()))
    values = here.gather_values(values)[0]
    _warn_of_the_end(model, values, max_steps, tolerance)
    return Run({"loss": [-value for value in values]}, len(values), time.perf_counter() - began)


def _rows(
    model: Any, data: Any, batch_size: int | None, place: torch.device, missing: bool
) -> Source:
    """Where the rows are: in memory, or where they are read in each step, a batch at a time."""
    taken, at_once = Taken(_names(model), [model]), batch_size or AT_ONCE
    disk = on_disk(data, at_once, taken)
    if disk is not None and len(disk.tensors) == 1:
        return disk.to(place)
    rows = in_memory(as_data(data, [model]), batch_size, missing)
    if rows is None:
        own = isinstance(data, DataLoader)
        return streamed(data, batch_size if own else at_once, place, taken)
    return rows


def _rows_and_start(
    model: Any,
    rows: Source,
    weight: Tensor | None,
    batch_size: int | None,
    place: torch.device,
    missing: bool,
    here: Processes,
) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """What each step goes through, and rows to choose a start from; each with its weights."""
    if not isinstance(rows, InMemory) or isinstance(rows, OnDisk):
        batches = Part(_Streamed(rows, missing, here), here)
        return _with(batches, weight), _first_rows(model, rows, weight, missing)
    tensors = _whole(rows)
    if weight is not None and not (weight > 0).all():  # what is left out is so once for all
        keep = weight > 0
        tensors, weight = tuple(x[keep.to(x.device)] for x in tensors), weight[keep]
    x = tensors[0]
    if batch_size is not None and x.device.type == "cpu" != place.type:
        _check_alone(tensors)
        some = _random_rows(x)
        start = _with(x[some].to(place), None if weight is None else weight[some])
        return _with(Part(_Moved(x, rows.batch_size, place, here), here), weight), start
    if here.alone:
        return _with(tensors, weight), _with(tensors, weight)
    parts = tuple(Part([(x[here.own(len(x))], len(x))], here) for x in tensors)
    return _with(parts, weight), _with(tensors, weight)


def _check_alike(
    here: Processes, model: Any, rows: Source, start: tuple[Tensor, ...], settings: list[Any]
) -> None:
    """Raises on all processes where they do not have the same, or less than a row each."""
    if here.alone:
        return
    # Rows that are streamed are known by the first of them.
    known = (*rows.tensors, *start) if type(rows) is InMemory else start
    values = dict(model.state_dict())
    here.check_agree(
        "fit_em",
        "Try the same lines on all of them, with torch.manual_seed(0) before data and models are "
        "made. Rows are split over the processes here.",
        settings=settings,
        model=[type(model).__name__, list(values)],
        data=[rows.size, fingerprint(*known)],
        parameters=fingerprint(*values.values()),
    )
    count = min(rows.size, len(start[0])) if type(rows) is InMemory else rows.size
    if count < here.count:
        raise ValueError(
            f"fit_em: expected a row or more for each of {here.count} processes, got {count} in "
            f"all. Try torchrun --nproc-per-node {max(count, 1)}."
        )


def _start(model: Any, start: tuple[Tensor, ...], here: Processes) -> None:
    """Chooses where to begin, which is where the first process does."""
    with here.all_or_none("fit_em"):
        model.initialise(*start)
    here.take_from_first(list(model.state_dict().values()))


def _side_by_side(
    candidates: list[Any],
    x: tuple[Any, ...],
    start: tuple[Tensor, ...],
    max_steps: int,
    tolerance: float,
    bar: tqdm,
) -> list[tuple[list[float], dict[str, Tensor]]]:
    """The ends of several restarts, where joblib's context has them run at once; else none.

    Starts are drawn here, one after the other; where steps draw as well, their order matters, and
    nothing has happened.
    """
    if len(candidates) == 1 or jobs_at_once("fit_em") == 1:
        return []
    place = start[0].device
    before, host = get_rng_state(place), get_host_rng_state()
    begun = copy.deepcopy(candidates)
    for candidate in begun:
        candidate.initialise(*start)
    climbs = [(candidate, x, max_steps, tolerance) for candidate in begun]
    found = []
    for end, drew in side_by_side(
        _climb_apart, climbs, "fit_em"
    ):  # to the last: none is left alone
        found.append((end, drew))
        bar.update(len(end[0]))
    if any(drew for _, drew in found):
        set_rng_state(before, place)
        set_host_rng_state(host)
        return []
    return [end for end, _ in found]


def _climb_apart(
    model: Any, x: tuple[Any, ...], max_steps: int, tolerance: float
) -> tuple[tuple[list[float], dict[str, Tensor]], bool]:
    """The end of a restart in another process, and whether its steps drew random numbers."""
    device = next(iter(model.parameters())).device
    before, host = get_rng_state(device), get_host_rng_state()
    end = _climb(model, x, max_steps, tolerance, tqdm(disable=True), ALONE)
    after = get_rng_state(device)
    drew = any(not torch.equal(before[kind], after[kind]) for kind in before)
    return end, drew or host != get_host_rng_state()


def _of_first(model: Any, found: Tensor, here: Processes) -> Tensor:
    """The objective that the first process has found, on all, which then have its parameters.

    All have found the same but for a last bit, on which what is done next must not depend.
    """
    if here.alone:
        return found
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    found, *values = here.first_of(found, *state)
    for value, of_first in zip(state, values, strict=True):
        value.copy_(of_first)
    return found


def _with(x: Any, weight: Tensor | None) -> tuple[Any, ...]:
    """What steps are called with: a model need not know of weights where there are none."""
    tensors = x if isinstance(x, tuple) else (x,)
    return tensors if weight is None else (*tensors, weight)


def _weight(model: Any, rows: Source, sample_weight: Any) -> Tensor | None:
    """The weights of all rows, on the CPU, after checking that they can be used."""
    if sample_weight is None:
        return None
    name = type(model).__name__
    for method in ("em_step", "initialise"):
        if "sample_weight" not in inspect.signature(getattr(model, method)).parameters:
            raise TypeError(
                f"fit_em: {name}.{method} takes no weights of rows, got sample_weight. Try rows "
                f"that are repeated, or def {method}(self, x, sample_weight=None) in {name}."
            )
    if isinstance(rows, Loaded) and not gives_in_order(rows.loader):
        raise ValueError(
            "sample_weight: expected rows in an order that is known, got a DataLoader that "
            "chooses its own. Try shuffle=False, or the Dataset with a batch_size."
        )
    weight = torch.as_tensor(sample_weight).double().cpu()
    check_sample_weight(weight, rows.size, "fit_em")
    return weight


def _candidates(model: Any, restarts: int, x: tuple[Any, ...]) -> list[Any]:
    """The model, or copies of it, one of which may hold all restarts."""
    if restarts == 1:
        return [model]
    # Alone each ends where it has converged, and the first where it would without the others.
    if isinstance(model, HasStack) and not (isinstance(model, HasClimb) and model.climbs(*x)):
        return [model.stack(restarts)]
    return [copy.deepcopy(model) for _ in range(restarts)]


def _warn_of_the_end(model: Any, values: list[float], max_steps: int, tolerance: float) -> None:
    if len(values) > 1 and not values[-1] - values[-2] <= tolerance:
        warn(
            f"fit_em: still rising by {values[-1] - values[-2]:.1e} nats per row at step "
            f"{len(values)}. Try max_steps={10 * max_steps}, or a larger tolerance."
        )
    if isinstance(model, HasCaveat) and (caveat := model.caveat()):
        warn(caveat)


class _Steps:
    """Steps by `em_step`, as any module takes them."""

    def __init__(self, model: Any, x: tuple[Any, ...]) -> None:
        self.model, self.x = model, x

    def __call__(self) -> Tensor:
        return self.model.em_step(*self.x)

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def leap(self, factor: float, least: float) -> bool:
        return False  # what may be extrapolated is not known

    def parameters(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state


@torch.no_grad()
def _climb(
    model: Any, x: tuple[Any, ...], max_steps: int, tolerance: float, bar: tqdm, here: Processes
) -> tuple[list[float], dict[str, Tensor]]:
    """Steps until all restarts have converged; the objectives of the best, and its parameters.

    The parameters are those of the last objective, which is known only once a step has gone
    through the rows; so the parameters before each step are kept.
    """
    fast = isinstance(model, HasClimb) and model.climbs(*x)
    step: Climber = model.climb(*x) if fast else _Steps(model, x)
    values: list[list[float]] = []  # of each restart
    state = step.state()
    leaps = _Leaps(step, tolerance)
    try:
        while True:
            before, state = state, step.state()
            found = _of_first(model, step(), here)
            value = found.reshape(-1).tolist()  # one read for each step
            if error := _fault(model, value, values):
                state = before
                raise error
            gains = (
                [new - old for new, old in zip(value, values[-1], strict=True)] if values else []
            )
            if any(gain < 0 for gain in gains):  # what rounding took back is not accepted
                falls = torch.tensor([gain < 0 for gain in gains], device=found.device)
                state = _kept(step, falls.view_as(found), before, state)
                value = list(map(max, value, values[-1]))
            values.append(value)
            bar.update()
            if not bar.disable:
                bar.set_postfix(loss=f"{-max(value):.4f}", refresh=False)
            if (gains and max(gains) <= tolerance) or len(values) == max_steps:
                break
            if len(gains) == 1:
                leaps.after(value[0], gains[0])
    except BaseException:  # Ctrl-C as well
        model.load_state_dict(step.parameters(state))
        raise
    best = max(range(len(value)), key=value.__getitem__)
    final = {k: v[best] for k, v in state.items()} if found.ndim == 1 else state
    return [value[best] for value in values], step.parameters(final)


class _Leaps:
    r"""Leaps between steps that gain little less each time, to where they would end.

    Near an optimum what is left to go shrinks by a rate :math:`\rho` in each step, and what is left
    to gain by its square; so the end is :math:`1 / (1 - \rho)` times the step away. Where that
    gains less than the step before, the way goes on as if it had not been tried.

    | Acceleration of the EM Algorithm by Using Quasi-Newton Methods (Jamshidian & Jennrich, 1997)
    | https://doi.org/10.1111/1467-9868.00083
    """

    def __init__(self, step: Climber, tolerance: float) -> None:
        self.step, self.tolerance = step, tolerance
        self.gains: list[float] = []  # of steps since the last leap
        self.wait, self.leapt = 2, False

    def after(self, value: float, gain: float) -> None:
        """Takes note of a step, and leaps where that saves some."""
        if self.leapt:  # it was no step of EM that gained this
            self.leapt = False
            return
        self.gains.append(gain)
        if len(self.gains) < self.wait or not 0 < self.gains[-1] < self.gains[-2]:
            return
        shrinks = self.gains[-1] / self.gains[-2]  # rho squared
        if gain * shrinks**LEFT <= self.tolerance:
            return
        self.gains.clear()
        self.leapt = self.step.leap(1 / (1 - math.sqrt(shrinks)), value + gain)
        self.wait = 2 if self.leapt else min(2 * self.wait, 16)


def _fault(model: Any, value: list[float], values: list[list[float]]) -> Exception | None:
    """What is wrong with the objectives of a step after others, if anything."""
    number, name = len(values), type(model).__name__
    if not all(map(math.isfinite, value)):
        return FloatingPointError(
            f"EM step {number + 1}: the objective of {name} is "
            f"{value if len(value) > 1 else value[0]}. The parameters are those before it. Try "
            f"standardised data."
        )
    slack = SLACK.get(next(model.parameters()).dtype, 1e-2)
    losses = [old - new for new, old in zip(value, values[-1], strict=True)] if values else []
    if any(loss > slack * (1 + abs(new)) for loss, new in zip(losses, value, strict=False)):
        return RuntimeError(
            f"EM step {number} lowered the objective of {name} by {max(losses):.1e} nats per row, "
            f"which no step of EM does: see its em_step. The parameters are those before it."
        )
    return None


def _kept(
    step: Climber, back: Tensor, before: dict[str, Tensor], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state, with that before it in the restarts that go back."""
    if before.keys() != state.keys():
        before, state = step.parameters(before), step.parameters(state)
    return {name: _choose(back, before[name], state[name]) for name in state}


def _choose(back: Tensor, old: Tensor, new: Tensor) -> Tensor:
    back = back.reshape(back.shape + (1,) * (new.ndim - back.ndim)).to(new.device)
    return torch.where(back, old, new)


class _Streamed:
    """Rows that are streamed: each time it is gone through, all of them once, or those here."""

    def __init__(self, rows: Source, missing: bool, here: Processes) -> None:
        self.rows, self.missing, self.here, self.checked = rows, missing, here, False

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        start = 0
        for batch in self.rows.epoch(0, shuffle=False, processes=self.here):
            own, share = batch.values[0], batch.share
            total = len(own) if share is None else share.total
            if not self.checked and (len(own) or share is None):
                places = torch.arange(total) if share is None else share.places.cpu()
                check_tensors(batch.values, self.missing, start + places)
            yield own, total
            start += total
        self.checked = True


class _Moved:
    """A tensor of rows on the CPU, of which parts are moved to where the model is."""

    def __init__(self, x: Tensor, batch_size: int, place: torch.device, here: Processes) -> None:
        self.x, self.batch_size, self.place, self.here = x, batch_size, place, here

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for part in self.x.split(self.batch_size):
            own = part[self.here.own(len(part))]
            yield own.to(self.place, non_blocking=True), len(part)  # it stays as it is


def _random_rows(x: Tensor) -> Tensor | slice:
    """Which rows to choose a start from, where not all may be moved at once."""
    return slice(None) if len(x) <= MANY else torch.randperm(len(x))[:MANY]


def _whole(rows: InMemory) -> tuple[Tensor, ...]:
    if rows.transform is not None:
        raise ValueError(
            "data: EM goes through the same rows again and again; got a transform. Try fit."
        )
    return rows.tensors


def _check_takes(model: Any, count: int) -> None:
    """Raises unless a step is one on so many tensors: another would be taken for weights."""
    names = _names(model)
    if len(names) != count:
        wanted = "rows alone" if len(names) == 1 else f"({', '.join(names)})"
        raise ValueError(
            f"data: expected {len(names)} tensor(s), as {type(model).__name__}.em_step takes, got "
            f"{count}. Try {wanted}; weights of rows are sample_weight, and labels are not taken."
        )


def _names(model: Any) -> list[str]:
    """What a step takes, the weights aside."""
    step = model.em_step
    names = list(_arguments(getattr(step, "__func__", step))[inspect.ismethod(step) :])
    return [name for name in names if name != "sample_weight"]


@functools.lru_cache(maxsize=64)  # a look at a signature takes longer than a step of few rows
def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _check_alone(tensors: tuple[Tensor, ...]) -> None:
    if len(tensors) > 1:
        raise ValueError(
            f"batch_size: parts of one tensor of rows are moved, got {len(tensors)} tensors. Try "
            f"batch_size=None, and the data where the model is."
        )


def _first_rows(
    model: Any, rows: Source, weight: Tensor | None, missing: bool
) -> tuple[Tensor, ...]:
    """Rows to choose a start from, where the data are streamed, with their weights."""
    found, which, count = [], [], 0
    for batch in rows.epoch(0):
        _check_takes(model, len(batch.values))
        check_tensors(batch.values, missing, batch.rows)
        found.append(batch.values[0])
        order = torch.arange(count, count + len(found[-1]))
        which.append(order if batch.rows is None else batch.rows.cpu())
        count += len(found[-1])
        if count >= MANY:
            break
    return _with(torch.cat(found), None if weight is None else weight[torch.cat(which)])


def _check_arguments(
    model: Any, initialise: bool, restarts: int, max_steps: int, tolerance: float
) -> None:
    if not hasattr(model, "em_step"):
        raise TypeError(
            f"fit_em: {type(model).__name__} has no em_step(x). Try fit(elbo(model, guide), x)."
        )
    check_count(restarts=restarts, max_steps=max_steps)
    if not math.isfinite(tolerance) or tolerance < 0:
        raise ValueError(f"tolerance: expected nats per row, 0 or more, got {tolerance!r}.")
    if restarts > 1 and not initialise:
        raise ValueError(
            f"restarts: expected 1 where initialise=False: all {restarts} would start alike."
        )
