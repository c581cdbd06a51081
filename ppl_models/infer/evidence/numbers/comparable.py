"""Which evidences can be subtracted: those of the same rows, all densities or all probabilities."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_models.infer.evidence.numbers.evidence import Evidence

PSEUDO = "pseudo-likelihood"


def check_comparable(evidences: "Mapping[Hashable, Evidence]", where: str) -> None:
    """Raises a ValueError that names two which cannot be compared, if there are any.

    That they are of the same rows, in the same units, is for the caller to know: only how many
    numbers there are can be seen.
    """
    (first, one), *others = evidences.items()
    for name, other in others:
        for check in (_check_rows, _check_values, _check_kinds, _check_features, _check_size):
            check(where, first, one, name, other)


def check_densities(
    where: str, first: Hashable, a: "Evidence", name: Hashable, b: "Evidence"
) -> None:
    """Raises where a row has no density under both: its difference is none."""
    if none := (a.value.double() - b.value.double()).isnan().nonzero().flatten().tolist():
        raise ValueError(
            f"{where}: row(s) {none[:5]} have no density under both {first!r} and {name!r}, minus "
            f"infinity less minus infinity. Try models whose support holds these rows."
        )


def _check_size(where: str, first: Hashable, a: "Evidence", name: Hashable, b: "Evidence") -> None:
    if a.row_size is not None and b.row_size is not None and a.row_size != b.row_size:
        raise ValueError(
            f"{where}: expected evidences of the same columns, got {a.row_size} number(s) of a row "
            f"in {first!r} and {b.row_size} in {name!r}. Try log_evidence of the same columns, in "
            f"the same units, for each."
        )


def _check_rows(where: str, first: Hashable, a: "Evidence", name: Hashable, b: "Evidence") -> None:
    if a.num_rows != b.num_rows:
        raise ValueError(
            f"{where}: expected evidences of the same rows, got {a.num_rows} rows in {first!r} "
            f"and {b.num_rows} in {name!r}. Try log_evidence of the same rows for each."
        )


def _check_values(
    where: str, first: Hashable, a: "Evidence", name: Hashable, b: "Evidence"
) -> None:
    if len(a.value) != len(b.value):
        whole, by_row = (first, name) if len(a.value) < len(b.value) else (name, first)
        raise ValueError(
            f"{where}: expected evidences of each row, or of the whole data, got one of the whole "
            f"in {whole!r}, whose latents are shared by all rows, and one of each row in "
            f"{by_row!r}. The first is for parameters that are not known, the second given fitted "
            f"ones. Try rows held out: log_predictive(model, guide, *held_out) of the first."
        )


def _check_kinds(where: str, first: Hashable, a: "Evidence", name: Hashable, b: "Evidence") -> None:
    if (a.kind == PSEUDO) != (b.kind == PSEUDO):
        raise ValueError(
            f"{where}: a pseudo-likelihood is the sum of the log evidences of each feature given "
            f"all others, and no log density of rows: expected it beside others of its kind, got "
            f"{a.kind!r} in {first!r} and {b.kind!r} in {name!r}. Try a model of all features "
            f"together, such as AnyOrderWords for words."
        )


def _check_features(
    where: str, first: Hashable, a: "Evidence", name: Hashable, b: "Evidence"
) -> None:
    if a.num_features == b.num_features:
        return
    found = f"{_described(a)} in {first!r} and {_described(b)} in {name!r}"
    if a.num_features is not None and b.num_features is not None:
        raise ValueError(
            f"{where}: expected the same features of each row, got {found}. Try the same columns, "
            f"whole or with the same entries left out, for each."
        )
    raise ValueError(
        f"{where}: expected probabilities of the same features, or densities, got {found}. A "
        f"density depends on the units of the data, a probability does not. Try likelihoods over "
        f"the same levels; where both are of the same discrete features, say so: "
        f"dataclasses.replace(evidence, num_features={a.num_features or b.num_features})."
    )


def _described(evidence: "Evidence") -> str:
    """What an evidence is of."""
    if evidence.num_features is None:
        return "a density, or a part of the features,"
    return f"{evidence.num_features} discrete features"
