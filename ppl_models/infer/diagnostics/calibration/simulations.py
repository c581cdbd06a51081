"""Simulations of a model with draws of a posterior: of rows, or of data sets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.effect import AutoMessenger

from ppl_models.checks import check_at_least, check_count
from ppl_models.infer.diagnostics.calibration.data_sets import (
    DataSets,
    amortised,
    of_one_data_set,
    refitted,
)
from ppl_models.infer.diagnostics.calibration.draws import Simulations, nothing_to_rank
from ppl_models.infer.diagnostics.calibration.refits import Refits
from ppl_models.infer.diagnostics.calibration.rows import of_rows
from ppl_models.infer.diagnostics.calibration.simulator import Simulator
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.rows import Rows, UnknownRowsError
from ppl_models.infer.programs.tables import as_rows
from ppl_models.infer.trials.same import check_same
from ppl_models.scoped import kept_rng, modes, own_rng

FEWEST_SIMULATIONS, FEWEST_DRAWS = 20, 10
UNCOUNTED = ("refit", "num_jobs", "progress")  # which may differ between processes


class Wanted(NamedTuple):
    """How much is simulated, and how: the arguments of `sbc`."""

    size: int | None
    num_simulations: int
    num_draws: int
    refit: Callable[..., Any] | None
    num_jobs: int | None
    batch_size: int
    seed: int
    progress: bool = True


@contextmanager
def simulations(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    inputs: tuple[Any, ...],
    wanted: Wanted,
) -> Iterator[Simulations]:
    """A context with simulations of a model. The arguments are those of `sbc`."""
    _check_wanted(guide, wanted)
    numbers = {n: x for n, x in wanted._asdict().items() if n not in UNCOUNTED}
    check_same("sbc", (model, guide, wanted.refit), inputs, **numbers)
    program, modules = Program(model, "model"), modules_of_programs(model, guide)
    program.is_evaluated = True
    inputs = as_rows(inputs, modules)
    with (
        torch.no_grad(),
        modes(modules, training=False),
        own_rng("calibration", wanted.seed, torch.device("cpu")),
    ):
        simulator = Simulator(program, inputs, wanted.size)
        if not simulator.latents:
            raise ValueError(nothing_to_rank([]))
        with (
            own_rng("calibration", wanted.seed, simulator.device),
            _drawn(model, guide, simulator, wanted) as all_,
        ):
            yield all_


@contextmanager
def _drawn(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    simulator: Simulator,
    wanted: Wanted,
) -> Iterator[Simulations]:
    count, num_draws, batch_size = wanted.num_simulations, wanted.num_draws, wanted.batch_size
    if wanted.refit is not None:
        jobs, seed = wanted.num_jobs, wanted.seed
        refits = Refits(wanted.refit, model, num_draws, jobs, seed, wanted.progress)
        yield refitted(DataSets(simulator, count, batch_size), refits)
        return
    _check_own_rows(guide, simulator)
    if simulator.by_row:
        data, trace = simulator.rows(count)
        with sampling(model, guide, data, None) as joint:
            if joint.by_row and joint.tiled:
                yield of_rows(joint, simulator, trace, num_draws, batch_size)
                return
    if guide is None:
        raise ValueError(
            "guide: expected one that draws the latents of a data set, or refit, got None. Try "
            "sbc(model, None, size=100, refit=lambda model, x: nuts(model, x, progress=False))."
        )
    sets = DataSets(simulator, count, batch_size)
    with amortised(Program(guide, "guide", simulator.program), sets, num_draws) as found:
        yield found


def _check_wanted(guide: Any, wanted: Wanted) -> None:
    """Raises unless there is enough to see something, and it is known where posteriors are from."""
    check_at_least(FEWEST_SIMULATIONS, num_simulations=wanted.num_simulations)
    check_at_least(FEWEST_DRAWS, num_draws=wanted.num_draws)
    check_count(batch_size=wanted.batch_size, size=1 if wanted.size is None else wanted.size)
    check_count(num_jobs=1 if wanted.num_jobs is None else wanted.num_jobs)
    if wanted.refit is not None and guide is not None:
        raise ValueError(
            "guide: expected None beside refit, which makes a guide or draws for each data set. "
            "Try sbc(model, None, size=..., refit=refit)."
        )
    if wanted.refit is not None and not callable(wanted.refit):
        raise TypeError(
            f"refit: expected a function of the model and data, got {type(wanted.refit).__name__}. "
            f"Try refit=lambda model, x: nuts(model, x, progress=False)."
        )
    inner = None if guide is None else Program(guide, "guide").inner
    if isinstance(inner, (AutoGuide, AutoMessenger)):
        raise ValueError(of_one_data_set(type(inner).__name__))


def _check_own_rows(guide: Any, simulator: Simulator) -> None:
    """Raises where a guide has parameters for each row of some data."""
    if guide is not None and has_own_rows(guide, simulator):
        raise ValueError(of_one_data_set(type(guide).__name__))


def has_own_rows(guide: Any, simulator: Simulator) -> bool:
    """Whether a guide has parameters for each row of some data."""
    program, size = Program(guide, "guide", simulator.program), simulator.size
    try:
        with kept_rng(simulator.device), Rows(None, size, size), program.noticing():
            program(*simulator.first.data, size=size)
    except UnknownRowsError:
        return True
    except Exception:  # whatever comes up again, of all rows, comes up as itself
        return False
    return False
