"""Which numbers of factors, and which rows, factor models refuse.

Shapes: `B` rows, `D` features, `K` factors.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ppl_models.checks import check_count, check_float64, check_no_array, check_rows, listed
from ppl_models.processes import Part

SINGULAR = 1e-12  # variance that is no more than rounding, beside the largest


def check_num_factors(num_factors: int, num_features: int, where: str) -> None:
    """Raises unless there is a factor, and there are no more than features."""
    check_count(num_features=num_features)
    if not 1 <= num_factors <= num_features:
        raise ValueError(
            f"{where}: expected 1 to {num_features} factors for {num_features} features, got "
            f"num_factors={num_factors}. Try num_factors={max(1, num_features // 2)}."
        )


def check_batches(
    x: Tensor | Iterable[Tensor], num_features: int, missing: bool, where: str
) -> Iterable[Tensor]:
    """Gives batches of rows, once, and refuses those that the model does not take.

    Whether numbers are finite is looked up after the last batch: a look makes a GPU wait.

    Arguments:
        x: All rows, or batches of them, or a `Part` of either.
        num_features: The features that a row should have.
        missing: Whether NaN means that an entry is missing.
        where: The name of the model, for errors.
    """

    check_no_array(x, where)

    def checked(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return _checked(batches, num_features, missing, where)

    return x.through(checked) if isinstance(x, Part) else checked([x] if torch.is_tensor(x) else x)


def _checked(
    batches: Iterable[Tensor], num_features: int, missing: bool, where: str
) -> Iterator[Tensor]:
    rows, bad = 0, []
    for batch in batches:
        check_rows(batch, num_features, where)
        check_float64(batch, where)
        rows += len(batch)
        bad.append((batch.isinf() if missing else ~batch.isfinite()).any(1).sum())
        yield batch
    if bad and (count := int(torch.stack(bad).sum())):
        raise ValueError(
            f"{where}: {count} of {rows} rows hold NaN or infinity. Try leaving them out, "
            f"x[x.isfinite().all(1)], or a factor model with missing='marginalise' where NaN "
            f"stands for what was not observed."
        )


def check_columns(counts: Tensor, constant: Tensor, where: str) -> None:
    """Raises where features were never observed, or are constant."""
    never = (counts == 0).nonzero()[:, 0].tolist()
    if never:
        raise ValueError(
            f"{where}: feature(s) {listed(never, most=10)} are missing from all rows. "
            f"Try leaving them out: x[:, ~x.isnan().all(0)]."
        )
    same = constant.nonzero()[:, 0].tolist()
    if same:
        raise ValueError(
            f"{where}: feature(s) {listed(same, most=10)} are constant: their noise would be zero, "
            f"and the likelihood infinite. Try leaving them out, or ProbabilisticPCA, whose noise "
            f"is shared."
        )


def check_rank(values: Tensor, num_rows: int, num_factors: int, where: str) -> None:
    """Raises where rows lie in a subspace of no more dimensions than there are factors.

    Arguments:
        values: The eigenvalues of their covariance, ascending, `(D,)`.
        num_rows: How many they are.
        num_factors: The number of factors, `K`.
        where: The name of the model, for errors.
    """
    rest = values[: len(values) - num_factors]
    if values[-1] > 0 and rest.sum() > SINGULAR * values[-1]:
        return
    rank = int((values > SINGULAR * values[-1]).sum())
    advice = [f"fewer factors than {rank}"] if rank > 1 else []
    if rank == num_rows - 1 and num_factors < len(values):  # rows less their mean: one fewer
        advice.append(f"more rows than {num_factors + 1}")
    if rank:
        advice.append(f"PCA with num_factors={rank}, which has no noise")
    raise ValueError(
        f"{where}: the {num_rows} rows lie in a subspace of {rank} dimension{'s' * (rank != 1)}, "
        f"and num_factors={num_factors} takes them all: nothing is left to the noise, and the "
        f"likelihood has no maximum. Expected rows that span {num_factors + 1} dimensions or more"
        + ("" if num_factors < len(values) else f", as {len(values)} features cannot")
        + f". Try {', or '.join(advice or ['rows that vary'])}."
    )
