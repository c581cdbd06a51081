"""Chains of nutpie's NUTS on a density, given as C functions or as one of Python.

nutpie takes C functions from its own compilers of models alone; what stands between these and its
sampler is a handful of names, all of them here.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ppl_models.infer.compiled.code.density import NativeDensity
from ppl_models.infer.sampling.density import Density

LATENTS, DIMENSION = "latents", "latents_dim_0"
POSITIONS = "unconstrained_draw"  # a statistic of nutpie


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
            "'ppl_models[mcmc]'."
        ) from error
    return nutpie


def sample(density: Density, settings: Settings) -> Chains:
    """Runs chains.

    Raises:
        KeyboardInterrupt: If they are interrupted: what they have drawn until then is dropped.
    """
    package = nutpie()
    running = package.sample(
        _model(density),
        draws=settings.draws,
        tune=settings.tune,
        chains=settings.chains,
        cores=min(settings.chains, num_cores()) if density.native else 1,
        seed=settings.seed,
        target_accept=settings.target_accept,
        progress_bar=settings.progress,
        store_unconstrained=True,
        return_raw_trace=True,
        blocking=False,
    )
    try:
        raw = running.wait()
    except BaseException as error:  # nutpie has errors of Rust
        with suppress(BaseException):
            running.cancel()
        raise density.broken or error from None
    latents, statistics = raw.get_arrow_trace()
    return _chains(latents, statistics, density, settings)


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


def _chains(
    latents: list[Any], statistics: list[Any], density: Density, settings: Settings
) -> Chains:
    """Draws and their statistics as arrays, from Arrow's batches of each chain."""

    for batch in statistics:
        counts = batch.num_rows, int(_array(batch.column("tuning")).sum())
        if counts != (settings.tune + settings.draws, settings.tune):
            raise RuntimeError(f"nuts: nutpie drew {counts[0]} times, to tune {counts[1]} of them.")

    def stacked(batches: list[Any], name: str) -> np.ndarray:
        return np.stack([_array(batch.column(name))[settings.tune :] for batch in batches])

    scalars = [n for n in statistics[0].column_names if _is_scalar(statistics[0].column(n))]
    positions = stacked(statistics, POSITIONS)
    values = stacked(latents, LATENTS)
    if density.native is None:
        values = np.apply_along_axis(density.latents, -1, positions)
    return Chains(values, positions, {n: stacked(statistics, n) for n in scalars})


def _is_scalar(column: Any) -> bool:
    return not hasattr(_arrow(column), "flatten") and not str(column.type).startswith("list")


def _array(column: Any) -> np.ndarray:
    array = _arrow(column)
    if not hasattr(array, "flatten"):
        return np.asarray(array.to_numpy(False))
    return np.asarray(array.flatten().to_numpy(False)).reshape(len(array), -1)


def _arrow(column: Any) -> Any:
    import pyarrow

    return pyarrow.array(column)
