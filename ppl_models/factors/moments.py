r"""What factor models need to know of rows to be fitted to them: their mean and covariance.

Rows are counted in units in which the variance of a feature is 1 (or, with shared noise, the mean
variance of the features), so that a fit does not depend on the units of the data.

Shapes: `B` rows, `D` features, `K` factors.
"""

import itertools
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_models.factors.checks import check_batches, check_columns
from ppl_models.missing import observed_mean
from ppl_models.processes import Processes, processes_of
from ppl_models.row_weights import weighted_batches

INF = math.inf
CHUNK = 16_384  # rows that are in float64 at once
LITTLE = 2**24  # products of two numbers, too few to be shared among threads
LOCK = threading.RLock()


@cache
def _libraries() -> Any:
    """Those of linear algebra that NumPy and SciPy brought along; found once, in 5 ms."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_thread(work: int) -> Iterator[None]:
    """A context for little work, about so many products of two numbers, which threads make slower.

    They wait for one another more than they work: two took 4 to 20 times as long as one.
    """
    with LOCK:  # else one fit could put back what another one had set
        if work >= LITTLE:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with _libraries().limit(limits=1):
                yield
        finally:
            torch.set_num_threads(before)


class Moments(NamedTuple):
    """Means and covariances, in float64 on the CPU.

    Entries that are missing stand at the mean of those that are not, and the covariance is scaled
    so that variances are right: correlations are understated, which is good enough for a start.
    """

    rows: int  # with any entry
    missing: int  # entries of these
    counts: Tensor  # rows that have a feature, by weight, (D,)
    mean: Tensor  # (D,)
    units: Tensor  # standard deviations, (D,)
    values: Tensor  # eigenvalues of the covariance in these units, ascending, (D,)
    vectors: Tensor  # its eigenvectors, as columns, (D, D)

    @property
    def root(self) -> Tensor:
        r"""R, `(D, D)`, with :math:`R^\top R` the covariance in these units."""
        return (self.vectors * self.values.sqrt()).T


@torch.no_grad()
def moments(
    x: Tensor | Iterable[Tensor],
    num_features: int,
    *,
    missing: bool,
    shared: bool,
    where: str,
    sample_weight: Tensor | None = None,
) -> Moments:
    """Returns the moments of rows, after checking them.

    Arguments:
        x: All rows, with shape `(N, D)`, or batches of them, or a `Part` of either.
        num_features: The features that a row should have, `D`.
        missing: Whether NaN means that an entry is missing.
        shared: Whether features share their units, as they do their noise.
        where: The name of the model, for errors.
        sample_weight: How many times each row counts, `(N,)`. Default: once.

    Raises:
        TypeError: If the rows are not floating-point numbers.
        ValueError: If rows are not finite, are fewer than two, a feature is missing from all, or,
            unless `shared`, a feature is constant.
    """
    with one_thread(x.numel() * num_features if isinstance(x, Tensor) else LITTLE):
        checked = check_batches(x, num_features, missing, where)
        batches = weighted_batches(checked, sample_weight, where)
        return _moments(_sums(batches, missing, where, processes_of(x)), shared, where)


class Sums(NamedTuple):
    """Sums over rows, in float64, with entries counted from the center."""

    center: Tensor  # (D,)
    lowest: Tensor  # entries, (D,)
    highest: Tensor  # (D,)
    rows: int  # with any entry
    entries: int
    counts: Tensor  # rows that have a feature, by weight, (D,)
    first: Tensor  # (D,)
    second: Tensor  # (D, D)


def _sums(
    batches: Iterable[tuple[Tensor, Tensor | None]], lenient: bool, where: str, here: Processes
) -> Sums:
    """Returns the sums over the rows of all processes, of which this one has some."""
    full = (batch for batch in batches if len(batch[0]))
    with here.all_or_none(where):
        some = list(itertools.islice(full, 1))
        center = _amid(*some[0], lenient) if some else torch.zeros(0)
    # Those of different processes are counted from the same point.
    center = next((c for c in here.gather(center) if len(c)), center)
    with here.all_or_none(where):
        own = _own_sums(center, itertools.chain(some, full), lenient)
    if here.alone:
        return own
    lowest, highest = here.gather(own.lowest), here.gather(own.highest)
    rows, entries, *sums = here.totals(*own[3:])
    ends = torch.stack(lowest).amin(0), torch.stack(highest).amax(0)
    return Sums(center, *ends, int(rows), int(entries), *sums)


def _amid(batch: Tensor, weight: Tensor | None, lenient: bool) -> Tensor:
    """A point amid rows, from which squares keep their digits, (D,)."""
    if weight is not None:
        return observed_mean(batch.double(), weight).nan_to_num()
    if lenient and batch.isnan().any():
        batch = batch.nanmean(0, keepdim=True).nan_to_num()
    return batch.mean(0, dtype=torch.float64)


def _own_sums(
    center: Tensor, batches: Iterable[tuple[Tensor, Tensor | None]], lenient: bool
) -> Sums:
    """Returns the sums over the rows that are here, none of whose batches is empty."""
    rows, entries = 0, 0
    first, counts = torch.zeros_like(center), torch.zeros_like(center)
    second = center.new_zeros(len(center), len(center))
    lowest, highest = center + INF, center - INF
    for batch, weight in batches:
        missing = batch.isnan() if lenient else batch.new_zeros((), dtype=torch.bool)
        whole = not (lenient and missing.any())
        low, high = (batch, batch) if whole else (batch.where(~missing, s) for s in (INF, -INF))
        lowest, highest = lowest.minimum(low.amin(0)), highest.maximum(high.amax(0))
        if weight is None:
            counts += len(batch) if whole else (~missing).sum(0)
        else:
            counts += weight.sum() if whole else weight @ (~missing).double()
        rows += len(batch) if whole else int((~missing).any(1).sum())
        entries += batch.numel() if whole else int((~missing).sum())
        for start, chunk in zip(range(0, len(batch), CHUNK), batch.split(CHUNK), strict=True):
            y = chunk.double() - center
            y = y if whole else y.nan_to_num()
            times = y if weight is None else y * weight[start : start + CHUNK, None]
            first += times.sum(0)
            second.addmm_(times.T, y)
    return Sums(center, lowest, highest, rows, entries, counts, first, second)


def _moments(found: Sums, shared: bool, where: str) -> Moments:
    center, lowest, highest, rows, entries, counts, first, second = found
    if rows < 2:
        raise ValueError(f"{where}: expected at least two rows of finite numbers, got {rows}.")
    check_columns(counts, (lowest >= highest) & (not shared), where)
    first = first / counts
    scale = counts.sqrt()
    covariance = second / scale.outer(scale) - first.outer(first)
    variance = covariance.diagonal()
    units = ((variance @ counts / counts.sum()).expand_as(variance) if shared else variance).sqrt()
    with one_thread(len(units) ** 3):
        values, vectors = torch.linalg.eigh((covariance / units.outer(units)).nan_to_num().cpu())
    values = values.clamp(min=0)
    missed = rows * len(units) - entries
    mean, units = (center + first).cpu(), units.cpu()
    return Moments(rows, missed, counts.cpu(), mean, units, values, vectors)
