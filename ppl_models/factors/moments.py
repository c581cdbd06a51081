r"""What factor models need to know of rows to be fitted to them, and which rows they refuse.

Rows are counted in units in which the variance of a feature is 1 (or, with shared noise, the mean
variance of the features), so that a fit does not depend on the units of the data.

Shapes: `B` rows, `D` features, `K` factors.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_models.checks import check_float64, check_rows

INF = math.inf
CHUNK = 16_384  # rows that are in float64 at once
SINGULAR = 1e-12  # variance that is no more than rounding, beside the largest
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
    counts: Tensor  # rows that have a feature, (D,)
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
    x: Tensor | Iterable[Tensor], num_features: int, *, missing: bool, shared: bool, where: str
) -> Moments:
    """Returns the moments of rows, after checking them.

    Arguments:
        x: All rows, with shape `(N, D)`, or batches of them.
        num_features: The features that a row should have, `D`.
        missing: Whether NaN means that an entry is missing.
        shared: Whether features share their units, as they do their noise.
        where: The name of the model, for errors.

    Raises:
        TypeError: If the rows are not floating-point numbers.
        ValueError: If rows are not finite, are fewer than two, a feature is missing from all, or,
            unless `shared`, a feature is constant.
    """
    with one_thread(x.numel() * num_features if isinstance(x, Tensor) else LITTLE):
        return _moments(check_batches(x, num_features, missing, where), missing, shared, where)


def _moments(batches: Iterable[Tensor], lenient: bool, shared: bool, where: str) -> Moments:
    rows = 0
    center = torch.zeros(0)
    for batch in batches:
        if not len(batch):
            continue
        missing = batch.isnan() if lenient else batch.new_zeros((), dtype=torch.bool)
        whole = not (lenient and missing.any())
        if not len(center):
            # Counted from a point amid the rows, squares keep their digits.
            some = batch if whole else batch.nanmean(0, keepdim=True).nan_to_num()
            center = some.mean(0, dtype=torch.float64)
            first, counts = torch.zeros_like(center), torch.zeros_like(center)
            second = center.new_zeros(len(center), len(center))
            lowest, highest = center + INF, center - INF
        low, high = (batch, batch) if whole else (batch.where(~missing, s) for s in (INF, -INF))
        lowest, highest = lowest.minimum(low.amin(0)), highest.maximum(high.amax(0))
        counts += len(batch) if whole else (~missing).sum(0)
        rows += len(batch) if whole else int((~missing).any(1).sum())
        for chunk in batch.split(CHUNK):
            y = chunk.double() - center
            y = y if whole else y.nan_to_num()
            first += y.sum(0)
            second.addmm_(y.T, y)
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
    return Moments(rows, counts.cpu(), (center + first).cpu(), units.cpu(), values, vectors)


def check_batches(
    x: Tensor | Iterable[Tensor], num_features: int, missing: bool, where: str
) -> Iterator[Tensor]:
    """Yields batches of rows, and refuses those that the model does not take.

    Whether numbers are finite is looked up after the last batch: a look makes a GPU wait.

    Arguments:
        x: All rows, or batches of them.
        num_features: The features that a row should have.
        missing: Whether NaN means that an entry is missing.
        where: The name of the model, for errors.
    """
    rows, bad = 0, []
    for batch in [x] if isinstance(x, Tensor) else x:
        check_rows(batch, num_features, where)
        check_float64(batch, where)
        rows += len(batch)
        bad.append(_not_finite(batch, missing))
        yield batch
    if bad:
        _raise_not_finite(int(torch.stack(bad).sum()), rows, missing, where)


def check_finite(x: Tensor, missing: bool, where: str) -> None:
    """Raises where rows are not finite; NaN is fine where it means that an entry is missing."""
    _raise_not_finite(int(_not_finite(x, missing)), len(x), missing, where)


def _not_finite(x: Tensor, missing: bool) -> Tensor:
    """How many rows are not finite, ()."""
    return (x.isinf() if missing else ~x.isfinite()).any(1).sum()


def _raise_not_finite(bad: int, rows: int, missing: bool, where: str) -> None:
    if bad:
        what = "infinity" if missing else "NaN or infinity"
        more = (
            ""
            if missing
            else ", or a factor model with missing='marginalise', to which NaN means missing"
        )
        raise ValueError(
            f"{where}: expected rows of finite numbers, got {bad} of {rows} rows "
            f"with {what}. Try leaving them out: x[x.isfinite().all(1)]{more}."
        )


def check_columns(counts: Tensor, constant: Tensor, where: str) -> None:
    """Raises where features were never observed, or are constant."""
    never = (counts == 0).nonzero()[:, 0].tolist()
    if never:
        raise ValueError(
            f"{where}: feature(s) {_listed(never)} are missing from all rows. "
            f"Try leaving them out: x[:, ~x.isnan().all(0)]."
        )
    same = constant.nonzero()[:, 0].tolist()
    if same:
        raise ValueError(
            f"{where}: feature(s) {_listed(same)} are constant: their noise would be zero, and "
            f"the likelihood infinite. Try leaving them out, or ProbabilisticPCA, whose noise is "
            f"shared."
        )


def check_rank(found: Moments, num_factors: int, where: str) -> None:
    """Raises where rows lie in a subspace of as many dimensions as there are factors."""
    rest = found.values[: len(found.values) - num_factors]
    if rest.sum() <= SINGULAR * found.values[-1] or found.values[-1] == 0:
        raise ValueError(
            f"{where}: the rows lie in a subspace of {num_factors} dimensions, where the "
            f"likelihood has no maximum. Try fewer factors than {num_factors}, or more rows "
            f"than {found.rows}."
        )


def _listed(features: list[int]) -> str:
    return ", ".join(map(str, features[:10])) + (", ..." if len(features) > 10 else "")
