"""Chains of nutpie's NUTS on a density, given as C functions or as one of Python.

nutpie takes C functions from its own compilers of models alone; what stands between these and its
sampler is a handful of names, all of them here.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_models.infer.compiled.code.density import NativeDensity
from ppl_models.infer.sampling.density import Density
from ppl_models.processes import Turns, together
from ppl_models.prompt.bars import is_watched
from ppl_models.scoped import mix

LATENTS, DIMENSION = "latents", "latents_dim_0"
POSITIONS = "unconstrained_draw"  # a statistic of nutpie
CPU = torch.device("cpu")


Results = dict[Any, Tensor]


class Chains(NamedTuple):
    """What chains have drawn, `C` chains of `S` draws.

    Attributes:
        latents: The latents in a row, `(C, S, L)`.
        positions: These as real numbers, `(C, S, D)`.
        statistics: Of each draw, `(C, S)`: `diverging`, `n_steps`, `energy` and others.
    """

    latents: np.ndarray
    positions: np.ndarray
    statistics: dict[str, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """How to sample.

    Attributes:
        draws: Of each chain, after those of `tune`.
        tune: Draws by which each chain finds its step and its scales, left out.
        chains: How many.
        target_accept: The probability of acceptance to which steps are tuned.
        seed: Of all chains.
        progress: Whether to show how far they are.
    """

    draws: int
    tune: int
    chains: int
    target_accept: float
    seed: int
    progress: bool


def nutpie() -> Any:
    """The package.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import nutpie
    except ImportError as error:
        raise ImportError(
            "nuts: it samples by nutpie, which is not installed. Try pip install "
            "'ppl-models[mcmc]'."
        ) from error
    return nutpie


def sample(density: Density, settings: Settings) -> Chains:
    """Runs chains, of which each of the processes that compute together has some.

    Each chain is seeded by its number, so that it is the same wherever it runs.

    Raises:
        KeyboardInterrupt: If they are interrupted: what they have drawn until then is dropped.
    """
    here = together()
    parts = [range(rank, settings.chains, here.count) for rank in range(here.count)]
    found: Results = {}
    for part in Turns(here, "nuts", CPU).take(parts, partial(_some, density, settings)):
        found |= part or {}
    names = {name: None for _, name in found}
    every = {
        name: np.stack([found[chain, name].numpy() for chain in range(settings.chains)])
        for name in names
    }
    return Chains(every.pop(LATENTS), every.pop(POSITIONS), every)


def _some(density: Density, settings: Settings, chains: range) -> Results:
    """Some of the chains, as many of these at once as there are cores."""
    found: Results = {}
    width = num_cores() if density.native else 1
    hidden = not is_watched(settings.progress)
    bar = tqdm(total=len(chains), desc="nuts", unit="chain", disable=hidden, leave=False)
    with bar:
        for start in range(0, len(chains), width):
            some = chains[start : start + width]
            running = [_started(density, settings, chain) for chain in some]
            for chain, raw in zip(some, _ended(running, density, bar), strict=True):
                latents, statistics = raw.get_arrow_trace()
                for name, values in _arrays(latents[0], statistics[0], density, settings).items():
                    found[chain, name] = torch.from_numpy(np.array(values))
    return found


def _started(density: Density, settings: Settings, chain: int) -> Any:
    return nutpie().sample(
        _model(density),
        draws=settings.draws,
        tune=settings.tune,
        chains=1,
        cores=1,
        seed=mix(settings.seed, chain),
        target_accept=settings.target_accept,
        progress_bar=False,
        store_unconstrained=True,
        return_raw_trace=True,
        blocking=False,
    )


def _ended(running: list[Any], density: Density, bar: tqdm) -> list[Any]:
    """What chains have drawn."""
    ended = []
    try:
        for chain in running:
            ended.append(chain.wait())
            bar.update()
        return ended
    except BaseException as error:  # nutpie has errors of Rust
        for chain in running:
            with suppress(BaseException):
                chain.cancel()
        raise density.broken or error from None


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _model(density: Density) -> Any:
    """A density as a model of nutpie: latents are those of the code, or found afterwards."""
    if density.native is not None:
        return _Model(density, density.native)
    return nutpie().compiled_pyfunc.from_pyfunc(
        density.size,
        lambda: density.evaluate,
        lambda *_: lambda x: {LATENTS: x},
        [np.dtype("float64")],
        [(density.size,)],
        [LATENTS],
        make_initial_point_fn=density.start,
    )


@dataclass(frozen=True)
class _Model:
    """A model as nutpie's sampler asks for it."""

    density: Density
    native: NativeDensity
    dims: dict[str, Any] = field(default_factory=dict)

    @property
    def n_dim(self) -> int:
        return self.density.size

    def _make_sampler(self, settings: Any, mean: Any, cores: int, *rest: Any) -> Any:
        lib = nutpie()._lib
        size, count, native = self.density.size, self.density.count, self.native
        density = lib.LogpFunc(native.density, native.address, native)
        latents = lib.ExpandFunc(size, count, native.latents, native.address, native)
        variables = lib.PyVariable.new_variables([LATENTS], ["float64"], [(count,)], {}, {})
        lengths = {DIMENSION: count}
        model = lib.PyMcModel(
            density, latents, variables, size, lengths, {}, self.density.start, None
        )
        return lib.PySampler.from_pymc(settings, cores, model, *rest)


def _arrays(
    latents: Any, statistics: Any, density: Density, settings: Settings
) -> dict[str, np.ndarray]:
    """The draws of a chain, `(S, *)`, with their statistics, from Arrow's batches."""
    counts = statistics.num_rows, int(_array(statistics.column("tuning")).sum())
    if counts != (settings.tune + settings.draws, settings.tune):
        raise RuntimeError(f"nuts: nutpie drew {counts[0]} times, to tune {counts[1]} of them.")

    def drawn(batch: Any, name: str) -> np.ndarray:
        return _array(batch.column(name))[settings.tune :]

    scalars = [n for n in statistics.column_names if _is_scalar(statistics.column(n))]
    found = {name: drawn(statistics, name) for name in [*scalars, POSITIONS]}
    found[LATENTS] = drawn(latents, LATENTS)
    if density.native is None:
        found[LATENTS] = np.apply_along_axis(density.latents, -1, found[POSITIONS])
    return found


def _is_scalar(column: Any) -> bool:
    """Whether a statistic is a number, or a truth value, of each draw."""
    from pyarrow import types

    kind = _arrow(column).type
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _array(column: Any) -> np.ndarray:
    array = _arrow(column)
    if not hasattr(array, "flatten"):
        return np.asarray(array.to_numpy(False))
    return np.asarray(array.flatten().to_numpy(False)).reshape(len(array), -1)


def _arrow(column: Any) -> Any:
    import pyarrow

    return pyarrow.array(column)
