r"""Expectation maximisation: steps that never lower the evidence, until they no longer raise it."""

import copy
import math
import time
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_models.checks import allows_missing, check_count, check_devices
from ppl_models.infer.training.batches import (
    InMemory,
    Source,
)
from ppl_models.infer.training.climbs.climb import climb
from ppl_models.infer.training.climbs.protocols import HasCaveat, HasClimb, HasStack
from ppl_models.infer.training.climbs.rows import (
    check_takes,
    rows_and_start,
    rows_of,
    weight_of,
    whole,
)
from ppl_models.infer.training.fit import Run
from ppl_models.processes import ALONE, Processes, fingerprint, takes_parts, together
from ppl_models.processes.jobs import jobs_at_once, side_by_side
from ppl_models.prompt.bars import is_watched
from ppl_models.scoped import get_host_rng_state, get_rng_state, set_host_rng_state, set_rng_state
from ppl_models.user_line import warn


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
        rows = rows_of(model, data, batch_size, place, missing)
        if isinstance(rows, InMemory):
            check_takes(model, len(whole(rows)))
        weight = weight_of(model, rows, sample_weight)
        if seed is not None:
            torch.manual_seed(seed)
        sharing = here if takes_parts(model.em_step) else ALONE
        x, start = rows_and_start(model, rows, weight, batch_size, place, missing, sharing)
        advice = "a batch_size, with which parts of them are moved"
        check_devices({"model": model}, start[:1], advice)
    settings = [initialise, restarts, max_steps, tolerance, batch_size, seed]
    _check_alike(here, model, rows, start, settings)

    hidden = not is_watched(progress)
    with tqdm(desc="EM", disable=hidden, leave=False) as bar:
        candidates = _candidates(model, restarts, x)
        # Steps of several are cheap: they go on a little, as they do side by side until all end.
        least = tolerance / 10 if len(candidates) > 1 and isinstance(model, HasClimb) else tolerance
        ends = _side_by_side(candidates, x, start, max_steps, least, bar)
        for candidate in candidates if not ends else []:
            if initialise:
                _start(candidate, start, here)
            # Steps that share nothing are taken by each process for itself.
            with (ALONE if sharing is here else here).all_or_none("fit_em"):
                ends.append(climb(candidate, x, max_steps, least, bar, sharing))
    values, state = max(ends, key=lambda end: end[0][-1])
    for name, value in model.state_dict().items():
        value.copy_(state[name])
    here.take_from_first(list(model.state_dict().values()))
    values = here.gather_values(values)[0]
    _warn_of_the_end(model, values, max_steps, tolerance)
    return Run({"loss": [-value for value in values]}, len(values), time.perf_counter() - began)


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
    end = climb(model, x, max_steps, tolerance, tqdm(disable=True), ALONE)
    after = get_rng_state(device)
    drew = any(not torch.equal(before[kind], after[kind]) for kind in before)
    return end, drew or host != get_host_rng_state()


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
