"""Candidates compared: the columns are what they say, and ArviZ agrees."""

import math
import re

import arviz as az
import pytest
import torch
from torch import nn

from ppl_models import FactorAnalysis, GaussianMixture, log_evidence
from ppl_models.infer.selection.compare import compare


def clusters(rows: int = 60, num_features: int = 2) -> torch.Tensor:
    """Two well apart."""
    x = torch.randn(rows, num_features, dtype=torch.float64)
    x[: rows // 2] += 8
    return x


def mixtures(*numbers: int, **settings) -> dict[int, GaussianMixture]:
    return {k: GaussianMixture(2, k, **settings).double() for k in numbers}


def test_two_clusters_are_two():
    comparison = compare(mixtures(1, 2, 3), clusters(), folds=3, restarts=2, seed=0)
    assert comparison.best() == comparison.best("held-out") == comparison.best("bic") == 2
    assert comparison.names == [1, 2, 3]
    assert comparison.num_parameters.tolist() == [5, 11, 17]
    # One component more cannot describe the rows of its fit any worse.
    assert comparison.evidence[2] >= comparison.evidence[1] - 1e-6
    assert comparison.held_out[2] < comparison.held_out[1]


def test_leaving_out_each_row_is_what_it_is_by_hand():
    """With as many folds as rows; a single Gaussian is fitted by the mean and the covariance."""
    x = clusters(12)
    comparison = compare(mixtures(1), x, folds=12, restarts=1, seed=3)
    for n in range(12):
        rest = x[torch.arange(12) != n]
        density = torch.distributions.MultivariateNormal(
            rest.mean(0), torch.cov(rest.T, correction=0)
        )
        expected = density.log_prob(x[n])
        torch.testing.assert_close(comparison.held_out_rows[0, n], expected)
    whole = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    torch.testing.assert_close(comparison.fitted_rows[0], whole.log_prob(x))


def test_no_row_is_in_the_fit_that_it_is_held_out_of():
    """A row far away is unlikely under all fits without it, whatever its fold."""
    x = clusters(20)
    x[7] = 1e3
    comparison = compare(mixtures(1), x, folds=4, restarts=1, seed=1)
    assert comparison.held_out_rows[0, 7] < -1e3
    others = torch.arange(20) != 7
    assert comparison.held_out_rows[0, others].min() > -50


def test_columns_by_their_definitions():
    x = clusters(40)
    comparison = compare(mixtures(1, 2), x, folds=4, restarts=1, seed=0)
    total = comparison.fitted_rows.sum(1)
    expected = -2 * total + torch.tensor([5.0, 11.0]) * math.log(40)
    torch.testing.assert_close(comparison.bic, expected)
    a, b = comparison.held_out_rows
    assert comparison.best() == 2
    torch.testing.assert_close(comparison.held_out, torch.stack([a.mean(), b.mean()]))
    errors = torch.stack([a.std(), b.std()]) / 40**0.5
    torch.testing.assert_close(comparison.standard_error, errors)
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(comparison.difference, torch.stack([(a - b).mean(), zero]))
    paired = (a - b).std() / 40**0.5
    torch.testing.assert_close(comparison.difference_error, torch.stack([paired, zero]))


def test_candidates_are_left_fitted_to_all_rows():
    x, candidates = clusters(), mixtures(1, 2)
    comparison = compare(candidates, x, folds=2, restarts=1, seed=0)
    for c, model in enumerate(candidates.values()):
        value = log_evidence(model, None, x).value
        torch.testing.assert_close(value, comparison.fitted_rows[c])
        assert comparison.bic[c].item() == pytest.approx(model.bic(x))


def test_a_seed_repeats_and_leaves_the_generator_alone():
    x, candidates = clusters(), mixtures(1, 2, 3)
    state = torch.get_rng_state()
    first = compare(candidates, x, folds=3, restarts=1, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    again = compare(mixtures(1, 2, 3), x, folds=3, restarts=1, seed=5)
    assert torch.equal(first.held_out_rows, again.held_out_rows)
    other = compare(mixtures(1, 2, 3), x, folds=3, restarts=1, seed=6)
    assert not torch.equal(first.held_out_rows, other.held_out_rows)
    # Nothing depends on who else is compared.
    alone = compare(mixtures(3), x, folds=3, restarts=1, seed=5)
    assert torch.equal(alone.held_out_rows[0], first.held_out_rows[2])
    # Without a seed the folds are others each time.
    drawn = [compare(mixtures(1), x, folds=3, restarts=1) for _ in range(2)]
    assert not torch.equal(drawn[0].held_out_rows, drawn[1].held_out_rows)


def test_folds_differ_by_no_more_than_a_row(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ppl_models.infer.selection.compare.fit_em", lambda model, x, **_: seen.append(len(x))
    )
    compare(mixtures(1), clusters(11), folds=3, restarts=1, seed=0)
    assert seen[0] == 11
    assert sorted(seen[1:]) == [7, 7, 8]


def test_arviz_takes_it_and_agrees():
    x = clusters(50)
    comparison = compare(mixtures(1, 2, 3), x, folds=5, restarts=2, seed=0)
    data = comparison.elpd_data()
    table = az.compare(data, method="stacking")
    order = comparison.held_out.argsort(descending=True).tolist()
    assert list(table.index) == [str(comparison.names[c]) for c in order]
    weights = torch.tensor([table.loc[name, "weight"] for name in data], dtype=torch.float64)
    torch.testing.assert_close(comparison.weight, weights, atol=0.02, rtol=0)
    assert comparison.weight.sum() == pytest.approx(1)
    for c, elpd in enumerate(data.values()):
        kind = "elpd" if hasattr(elpd, "elpd") else "elpd_loo"
        assert elpd[kind] == pytest.approx(comparison.held_out_rows[c].sum().item())
        effective = (comparison.fitted_rows[c] - comparison.held_out_rows[c]).sum().item()
        assert elpd["p" if kind == "elpd" else "p_loo"] == pytest.approx(effective)
        # ArviZ's own is of the spread over N, not over N - 1.
        spread = comparison.held_out_rows[c].var(correction=0).item()
        assert elpd["se"] == pytest.approx((50 * spread) ** 0.5, rel=1e-12)
        assert str(elpd)
    assert not hasattr(data["2"], "n_folds") or data["2"].n_folds == 5


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_change_no_weight(unit):
    """Where densities are too small or too large for ArviZ's exponentials."""
    torch.manual_seed(0)
    x = torch.randn(40, 12, dtype=torch.float64)
    x[:20] += 1.5

    def weight(unit: float) -> torch.Tensor:
        candidates = {
            k: GaussianMixture(12, k, "diag", min_scale=1e-3 * unit).double() for k in (1, 2)
        }
        found = compare(candidates, x * unit, folds=4, restarts=1, tolerance=1e-4, seed=0)
        return found.weight

    expected = weight(1.0)
    assert 0.05 < expected[0] < 0.95
    torch.testing.assert_close(weight(unit), expected, atol=1e-3, rtol=0)


def test_missing_entries():
    x = clusters(60)
    x[::4, 1] = math.nan
    candidates = mixtures(1, 2, missing="marginalise")
    comparison = compare(candidates, x, folds=3, restarts=1, seed=0)
    assert comparison.best() == 2
    assert comparison.held_out_rows.isfinite().all()


def test_what_was_warned_of_is_in_the_table():
    x = clusters(40)
    x[:3] = x[0] + 1e-6 * torch.randn(3, 2, dtype=torch.float64)  # a component of these collapses
    candidates = mixtures(1, 6, min_scale=1e-2)
    comparison = compare(candidates, x, folds=2, restarts=5, seed=0)
    assert list(comparison.warnings) == [6]
    printed = str(comparison)
    assert "\n6* " in printed
    assert "\n1  " in printed
    assert "the floor" in printed


def test_a_fit_that_was_not_finished_is_told():
    x = torch.randn(60, 2, dtype=torch.float64)
    comparison = compare(mixtures(3), x, folds=2, restarts=1, max_steps=2, seed=0)
    assert "all rows: fit_em: still rising" in comparison.warnings[3][0]
    assert any(said.startswith("fold 2: ") for said in comparison.warnings[3])
    assert re.search(r"at step 2\. And \d more, in .warnings\.$", str(comparison))


def test_the_table():
    comparison = compare(mixtures(1, 2), clusters(40), folds=4, restarts=1, seed=0)
    title, first, second, *notes = str(comparison).splitlines()
    assert title.split("  ")[0] == "candidate"
    name, number, evidence, bic, held_out, _, error, difference, *_ = first.split()
    assert (name, number) == ("1", "5")
    assert float(evidence) == pytest.approx(comparison.evidence[0].item(), abs=1e-3)
    assert float(bic) == pytest.approx(comparison.bic[0].item(), abs=0.1)
    assert float(held_out) == pytest.approx(comparison.held_out[0].item(), abs=1e-3)
    assert float(error) == pytest.approx(comparison.standard_error[0].item(), abs=1e-3)
    assert float(difference) == pytest.approx(comparison.difference[0].item(), abs=1e-3)
    assert second.split()[0] == "2"
    assert "4 folds of 40 rows" in notes[0]
    assert notes[1] == "Best: 2 by held-out evidence, 2 by BIC (the least)."


@pytest.mark.parametrize(
    ("candidates", "change", "message"),
    [
        ({}, {}, "expected candidates by name"),
        ([GaussianMixture(2, 1)], {}, "expected candidates by name"),
        ({"a": nn.Linear(2, 2)}, {}, "candidate 'a', Linear, has no em_step, initialise"),
        ({"a": lambda x: x}, {}, r"Try.* compare\({'a': log_evidence\(model, guide, x\), ...}\)"),
        ({"a": 3}, {}, "candidate 'a', int, has no em_step"),
        (mixtures(1), {"folds": 1}, "folds: expected 2 to 60"),
        (mixtures(1), {"folds": 61}, "folds: expected 2 to 60"),
        (mixtures(1), {"folds": 2.0}, "folds: expected 2 to 60"),
        (mixtures(1), {"restarts": 0}, "restarts: expected a positive"),
        (mixtures(1), {"tolerance": -1.0}, "all rows: tolerance: expected"),
        (mixtures(31), {"folds": 2}, "candidate 31, fold 1: .* at least 31 rows"),
        ({"five": GaussianMixture(5, 1)}, {}, "candidate 'five', all rows: .*5 features"),
    ],
)
def test_refuses(candidates, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        compare(candidates, clusters(), **{"folds": 2, "restarts": 1, "seed": 0} | change)


def test_refuses_one_model_under_two_names():
    model = GaussianMixture(2, 1)
    with pytest.raises(ValueError, match="a model of its own"):
        compare({"a": model, "b": model}, clusters())


def test_refuses_what_is_no_tensor_of_rows():
    with pytest.raises(ValueError, match="x: expected a tensor of rows"):
        compare(mixtures(1), clusters().tolist())


def test_refuses_an_unknown_criterion():
    comparison = compare(mixtures(1), clusters(), folds=2, restarts=1, seed=0)
    with pytest.raises(ValueError, match="'held-out' or 'bic'"):
        comparison.best("aic")


def test_the_number_of_factors():
    loadings = torch.randn(8, 2, dtype=torch.float64)
    x = torch.randn(400, 2, dtype=torch.float64) @ loadings.T
    x = x + 0.3 * torch.randn(400, 8, dtype=torch.float64)
    candidates = {k: FactorAnalysis(8, k).double() for k in (1, 2, 3)}
    comparison = compare(candidates, x, folds=3, restarts=1, seed=0)
    assert comparison.best("bic") == comparison.best("held-out") == 2
    assert comparison.num_parameters.tolist() == [24, 31, 37]
