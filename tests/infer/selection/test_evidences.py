"""Evidences side by side: paired differences from the highest, and which order is known."""

import math

import pytest
import torch

from guides import ExactPosterior
from ppl_models import EvidenceComparison, FactorAnalysis, GaussianMixture, compare, log_evidence
from ppl_models.infer.selection.table import Comparison
from tests.support.evidences import evidence

EXACT, LOW, HIGH = "exact", "lower bound", "upper bound"


def three() -> dict:
    return {
        "worst": evidence([0.0, 2.0]),
        "best": evidence([8.0, 9.0], LOW, num_samples=7, row_variance=torch.tensor([0.3, 0.1])),
        3: evidence([8.0, 8.5], LOW, num_samples=7),
    }


def test_numbers_by_hand():
    table = compare(three())
    assert isinstance(table, EvidenceComparison)
    assert list(table.evidences) == ["worst", "best", 3]
    assert table.highest == "best"
    assert list(table.differences) == ["worst", 3]
    assert table.differences["worst"].value.tolist() == [-8.0, -7.0]
    assert table.differences["worst"].kind == HIGH  # exact less a lower bound: at most this
    assert table.differences[3].kind == "estimate"
    assert table.order == {
        "worst": "proven",
        "best": "highest",
        3: "not known: both are lower bounds",
    }


def test_the_best_is_refused_where_it_is_not_known():
    with pytest.raises(
        ValueError,
        match=r"'best' has the highest number, but .* than 3 \(both are lower bounds\)\. Expected",
    ):
        compare(three()).best()
    known = three()
    del known[3]
    assert compare(known).best() == "best"


@pytest.mark.parametrize(
    ("kinds", "known"),
    [
        ((EXACT, EXACT), True),
        ((LOW, EXACT), True),
        ((EXACT, LOW), False),
        ((EXACT, HIGH), True),
        ((HIGH, EXACT), False),
        ((LOW, HIGH), True),
        ((HIGH, LOW), False),
        ((LOW, LOW), False),
        ((HIGH, HIGH), False),
        (("estimate", EXACT), False),
        ((LOW, "estimate"), False),
        (("pseudo-likelihood", "pseudo-likelihood"), False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_order_is_known_by_the_kinds(kinds, known, turned):
    pair = {"high": evidence([9.0, 9.0], kinds[0]), "low": evidence([0.0, 1.0], kinds[1])}
    table = compare(dict(reversed(pair.items())) if turned else pair)
    assert table.highest == "high"
    assert (table.order["low"] == "proven") == known
    assert ("not known" in str(table)) != known


def test_equal_numbers_have_no_best():
    table = compare({"a": evidence([1.0, 2.0]), "b": evidence([2.0, 1.0])})
    assert table.order == {"a": "highest", "b": "not known: the numbers are equal"}


def test_models_are_what_their_evidences_say():
    """A lower bound of the better of two, beside the exact numbers of both."""
    torch.manual_seed(0)
    good, bad = FactorAnalysis(4, 2).double(), FactorAnalysis(4, 2).double()
    x = good(size=60).detach()
    with torch.no_grad():
        bad.loc += 3

    def guide(rows, size=None):  # a little off, so that the bound has a gap
        return ExactPosterior(good)(rows + 1.5, size)

    numbers = {
        "good": log_evidence(good, None, x),
        "good, bound": log_evidence(good, guide, x, num_samples=3, method="importance", seed=0),
        "bad": log_evidence(bad, None, x),
    }
    table = compare(numbers)
    assert table.highest == "good"
    assert table.order["bad"] == "proven"
    assert table.order["good, bound"] == "not known: the bounds leave it open"
    del numbers["good"]
    assert compare(numbers).best() == "good, bound"


def test_the_table():
    title, worst, best, third, *notes = str(compare(three())).splitlines()
    assert title.split("  ")[0] == "candidate"
    assert "bits/dim" not in title
    assert " ".join(worst.split()) == "worst 1.000 ± 1.000 exact -7.500 ± 0.500 proven"
    assert " ".join(best.split()) == "best 8.500 ± 0.500 0.316 lower bound highest"
    assert third.startswith("3  ")
    assert third.endswith("-0.250 ± 0.250    not known: both are lower bounds")
    assert worst.index("proven") == third.index("not known") == title.index("order")
    assert notes == [
        "Of 2 rows, in nats per row; ± is over rows, paired in differences.",
        "Highest: best. Beside 3 it is not known which model is better.",
    ]
    assert repr(compare(three())) == "EvidenceComparison(3 evidences of 2 rows, highest: 'best')"


def test_a_proven_order_says_so_and_what_other_rows_may_change():
    exact = {"a": evidence([0.0, 4.0, 2.0]), "b": evidence([1.0, 2.0, 2.5])}
    notes = str(compare(exact)).splitlines()[3:]
    assert notes[1] == "Highest: a, proven on these rows."
    assert notes[2].startswith("Within two errors over rows: b.")
    clear = {"a": evidence([5.0, 4.0, 6.0]), "b": evidence([1.0, 0.0, 2.5])}
    assert not any("Within" in line for line in str(compare(clear)).splitlines())


def test_one_evidence_alone():
    table = compare({"a": evidence([1.0, 2.0])})
    assert table.best() == "a"
    assert table.order == {"a": "highest"}
    assert len(str(table).splitlines()) == 3
    assert table.dataframe()["difference"].tolist() == [0.0]


def test_evidences_of_the_whole_data():
    pair = {
        "a": evidence([-30.0], LOW, num_rows=10, num_samples=5),
        "b": evidence([-90.0], HIGH, num_rows=10, num_samples=5),
    }
    table = compare(pair)
    assert table.best() == "a"
    assert "Of all 10 rows together, in nats of all; a difference is a log Bayes factor" in str(
        table
    )
    assert "-30.000  " in str(table).splitlines()[1]
    assert "  -60.000  " in str(table).splitlines()[2]
    assert table.dataframe().loc["b", "difference"] == -60.0
    assert table.dataframe().loc["b", "evidence"] == -90.0
    assert math.isnan(table.dataframe().loc["b", "difference_error"])


def test_bits_per_dimension_of_discrete_data():
    pair = {
        "a": evidence([-2.0, -4.0], num_features=3),
        "b": evidence([-5.0, -5.0], num_features=3),
    }
    table = compare(pair)
    bits = 3 / (3 * math.log(2))
    assert table.dataframe().loc["a", "bits_per_dim"] == pytest.approx(bits)
    assert str(table).splitlines()[1].endswith(f"highest  {bits:.4f}")


def test_the_data_frame():
    table = compare(three())
    frame = table.dataframe()
    assert frame.index.tolist() == ["worst", "best", 3]
    assert frame.index.name == "candidate"
    assert frame.loc["worst", ["evidence", "difference", "difference_error"]].tolist() == [
        *(1.0, -7.5),
        pytest.approx(0.5),
    ]
    assert frame.loc["best", ["difference", "difference_error"]].tolist() == [0, 0]
    assert frame["kind"].tolist() == [EXACT, LOW, LOW]
    assert frame["difference_kind"].tolist() == [HIGH, EXACT, "estimate"]
    assert frame["order"].to_dict() == table.order
    error = pytest.approx(math.sqrt(0.4) / 2)
    assert frame["monte_carlo_error"].tolist() == [0, error, 0]
    assert frame["difference_monte_carlo_error"].tolist() == [error, 0, error]
    assert frame["bits_per_dim"].isna().all()


def test_a_comparison_of_models_is_a_data_frame_too():
    x = torch.randn(40, 2, dtype=torch.float64)
    x[:20] += 8
    models = {k: GaussianMixture(2, k).double() for k in (1, 2)}
    table = compare(models, x, folds=2, restarts=1, seed=0, progress=False)
    assert isinstance(table, Comparison)
    frame = table.dataframe()
    assert frame.index.tolist() == [1, 2]
    assert frame["parameters"].tolist() == [5, 11]
    columns = ["evidence", "bic", "held_out", "standard_error", "difference", "difference_error"]
    for name in [*columns, "weight"]:
        assert frame[name].tolist() == getattr(table, name).tolist()
    assert frame["warned"].tolist() == [name in table.warnings for name in (1, 2)]
    # And its models by their evidences.
    exact = compare({k: log_evidence(model, None, x) for k, model in models.items()})
    assert exact.dataframe()["evidence"].tolist() == frame["evidence"].tolist()


@pytest.mark.parametrize(
    ("candidates", "rows", "error", "message"),
    [
        ({}, None, ValueError, "expected candidates by name"),
        ([evidence([1.0])], None, ValueError, "expected candidates by name"),
        ({"a": GaussianMixture(2, 1)}, None, TypeError, "got GaussianMixture for 'a'. Try log_ev"),
        ({"a": evidence([1.0]), "b": 1.0}, None, TypeError, "got float for 'b'"),
        ({"a": evidence([1.0])}, torch.zeros(1, 2), TypeError, "got evidences and rows"),
        (
            {"a": evidence([1.0, 2.0]), "b": evidence([1.0])},
            None,
            ValueError,
            "compare: expected evidences of the same rows, got 2 rows in 'a' and 1 in 'b'",
        ),
        (
            {"a": evidence([1.0], num_rows=2), "b": evidence([1.0, 2.0])},
            None,
            ValueError,
            "one of the whole in 'a', whose latents are shared by all rows, and .* row in 'b'",
        ),
        (
            {"a": evidence([1.0]), "b": evidence([1.0]), "c": evidence([9.0], "pseudo-likelihood")},
            None,
            ValueError,
            "got 'exact' in 'a' and 'pseudo-likelihood' in 'c'",
        ),
        (
            {"a": evidence([1.0], num_features=64), "b": evidence([1.0])},
            None,
            ValueError,
            r"64 discrete features in 'a' and a density, .* in 'b'.*num_features=64\)",
        ),
    ],
)
def test_refuses(candidates, rows, error, message):
    with pytest.raises(error, match=message):
        compare(candidates, rows)


def test_a_table_of_nothing_is_refused():
    with pytest.raises(ValueError, match="expected evidences by name, got none"):
        EvidenceComparison({})


def test_rows_that_no_candidate_has_a_density_of_are_told_with_their_names():
    pair = {"a": evidence([-1.0, -math.inf]), "b": evidence([-2.0, -math.inf])}
    with pytest.raises(ValueError, match=r"compare: row\(s\) \[1\] have no density.*'a' and 'b'"):
        compare(pair)


def test_names_that_are_written_alike_are_told_apart():
    lines = str(compare({1: evidence([0.0, 1.0]), "1": evidence([3.0, 5.0])})).splitlines()
    assert lines[1].startswith("1  ")
    assert lines[2].startswith("'1'  ")
    assert lines[4] == "Highest: '1', proven on these rows."


@pytest.mark.parametrize("given", [{"folds": 3}, {"restarts": 2}, {"seed": 0}])
def test_arguments_of_fits_beside_evidences(given):
    with pytest.raises(TypeError, match=f"evidences are ready, and {next(iter(given))} of fits"):
        compare({"a": evidence([0.0, 1.0])}, **given)


def test_comparisons_are_equal_to_themselves_alone():
    one, other = (compare({"a": evidence([0.0, 1.0])}) for _ in range(2))
    assert one == one
    assert one != other
    assert evidence([0.0, 1.0]) != evidence([0.0, 1.0])
