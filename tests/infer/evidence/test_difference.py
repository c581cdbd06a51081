"""An evidence less another: the numbers are by hand, and what is proven is true."""

import dataclasses
import itertools
import math

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch.distributions import MultivariateNormal

from guides import AmortizedNormal, ExactPosterior
from ppl_models import Difference, Evidence, FactorAnalysis, compare, data_plate, log_evidence
from tests.support.evidences import evidence

SIDES = {"exact": 0.0, "lower bound": -1.0, "upper bound": 1.0}


def of_kind(truth: torch.Tensor, kind: str) -> Evidence:
    """A number of that kind, some way off the exact one on the side where it may be."""
    gap = torch.rand(()) * torch.rand_like(truth)
    return evidence(truth + SIDES[kind] * gap, kind)


def test_it_is_what_it_is_by_hand():
    a, b = evidence([1.0, 2.0, 4.5]), evidence([0.5, 2.5, 1.0])
    difference = a - b
    assert isinstance(difference, Difference)
    assert difference.value.tolist() == [0.5, -0.5, 3.5]
    assert difference.mean == pytest.approx(3.5 / 3, rel=1e-15)
    by_hand = math.sqrt(sum((d - 3.5 / 3) ** 2 for d in (0.5, -0.5, 3.5)) / 2 / 3)
    assert difference.standard_error == pytest.approx(by_hand, rel=1e-14)
    assert (b - a).mean == -difference.mean


def test_rows_are_paired():
    """What is hard for both makes no error: that of each alone is large."""
    hard = 100 * torch.randn(500, dtype=torch.float64)
    a, b = evidence(hard + 1 + 0.01 * torch.randn(500)), evidence(hard)
    assert a.standard_error > 1
    assert (a - b).standard_error < 0.001
    assert (a - b).mean == pytest.approx(1, abs=0.01)


def test_exact_densities_differ_by_their_ratio():
    x = torch.randn(50, 3, dtype=torch.float64)
    models = [FactorAnalysis(3, 1).double() for _ in range(2)]
    first, second = (log_evidence(model, None, x) for model in models)
    densities = []
    for model in models:
        covariance = model.loadings @ model.loadings.T + (2 * model.log_scale).exp().diag()
        densities.append(MultivariateNormal(model.loc, covariance).log_prob(x))
    torch.testing.assert_close((first - second).value, densities[0] - densities[1])
    assert (first - second).kind == "exact"


def test_single_precision_is_subtracted_in_double():
    a, b = (
        dataclasses.replace(evidence([0.0]), value=torch.tensor([value], dtype=torch.float32))
        for value in (1e8, 0.5)
    )
    assert (a - b).value.item() == 99999999.5


@pytest.mark.parametrize("kinds", list(itertools.product(SIDES, SIDES)))
def test_the_kind_is_true(kinds):
    """Whatever the gaps: a bound is on its side, and an estimate may be on either."""
    signs = set()
    for _ in range(50):
        truths = torch.randn(2, 5, dtype=torch.float64)
        difference = of_kind(truths[0], kinds[0]) - of_kind(truths[1], kinds[1])
        off = difference.mean - (truths[0] - truths[1]).mean().item()
        signs.add(0 if abs(off) < 1e-12 else math.copysign(1, off))
    expected = {"exact": {0}, "lower bound": {-1}, "upper bound": {1}, "estimate": {-1, 1}}
    assert signs == expected[difference.kind]


def test_what_is_proven_is_true():
    proven = set()
    for kinds in itertools.product(SIDES, SIDES):
        for _ in range(100):
            truths = 3 * torch.randn(2, 3, dtype=torch.float64)
            difference = of_kind(truths[0], kinds[0]) - of_kind(truths[1], kinds[1])
            if difference.doubt is None:
                assert difference.mean * (truths[0] - truths[1]).mean() > 0, kinds
                proven.add(kinds)
    # Two bounds of one side alone prove nothing, ever.
    sides = set(itertools.product(SIDES, SIDES))
    assert proven == sides - {("lower bound",) * 2, ("upper bound",) * 2}


@pytest.mark.parametrize(
    ("first", "second", "doubt"),
    [
        (("lower bound", 6.0), ("exact", 0.0), None),
        (("lower bound", -6.0), ("exact", 0.0), "the bounds leave it open"),
        (("exact", 6.0), ("lower bound", 0.0), "the bounds leave it open"),
        (("exact", 6.0), ("upper bound", 0.0), None),
        (("upper bound", 6.0), ("exact", 0.0), "the bounds leave it open"),
        (("upper bound", 6.0), ("lower bound", 0.0), "the bounds leave it open"),
        (("lower bound", 6.0), ("upper bound", 0.0), None),
        (("lower bound", 6.0), ("lower bound", 0.0), "both are lower bounds"),
        (("upper bound", 6.0), ("upper bound", 0.0), "both are upper bounds"),
        (("estimate", 6.0), ("exact", 0.0), "one is an estimate"),
        (("estimate", 6.0), ("estimate", 0.0), "both are estimates"),
        (("pseudo-likelihood", 6.0), ("pseudo-likelihood", 0.0), "pseudo-likelihoods are no"),
        (("exact", 1.0), ("exact", 1.0), "the numbers are equal"),
        (("exact", 1e-9), ("exact", 0.0), None),
        (("exact", 3.0), ("exact", 3.0 + 1e-6), "the numbers are equal but for rounding"),
    ],
)
def test_what_the_kinds_prove(first, second, doubt):
    a, b = (evidence([value, value], kind) for kind, value in (first, second))
    for found in ((a - b).doubt, (b - a).doubt):  # from either side the same
        assert found is None if doubt is None else found.startswith(doubt)


def test_luck_with_weights_is_rarer_than_it_may_be():
    """A bound of the very number beside it is above by luck alone: seldom enough, in all rows."""
    exact, seldom = evidence(torch.zeros(3)), []
    for spread in (0.3, 1.0, 3.0):
        log_weight = spread * torch.randn(4000, 3, dtype=torch.float64) - spread**2 / 2  # mean 1
        bounds = (evidence(w, "lower bound", num_samples=1) for w in log_weight)
        seldom.append(sum((bound - exact).doubt is None for bound in bounds) / 4000)
    assert 0 < max(seldom) < 0.05
    three = math.log(20) / 3  # nats in all that are enough
    assert (evidence([three + 1e-9] * 3, "lower bound") - exact).doubt is None
    less = evidence([three - 1e-9] * 3, "lower bound") - exact
    assert less.doubt == "it may be by the draws alone"


def test_luck_without_weights_is_by_the_monte_carlo_error():
    def bound(mean: float, variance: float) -> Evidence:
        row_variance = torch.full((4,), variance, dtype=torch.float64)
        options = {"num_samples": 9, "weighted": False, "row_variance": row_variance}
        return evidence([mean] * 4, "lower bound", **options)

    exact = evidence(torch.zeros(4))
    assert (bound(1.0, 1.0) - exact).monte_carlo_error == 0.5
    assert (bound(1.0, 1.0) - exact).doubt is None  # two errors
    assert (bound(0.7, 1.0) - exact).doubt == "it may be by the draws alone"
    assert (bound(100.0, math.nan) - exact).doubt == "it may be by the draws alone"
    assert (bound(0.7, 0.0) - exact).doubt is None


def test_errors_of_draws_add_up():
    a = evidence([1.0, 2.0], "lower bound", num_samples=5, row_variance=torch.tensor([1.0, 3.0]))
    b = evidence([0.0, 0.0], "estimate", num_samples=5, row_variance=torch.tensor([5.0, 0.0]))
    assert (a - b).monte_carlo_error == pytest.approx((math.sqrt(4) + math.sqrt(5)) / 2)


@pytest.mark.parametrize("shift", [0.1, 2.0, -2.0])
def test_draws_of_one_seed_are_within_the_error_that_is_said(shift):
    """Both sides then have the same noise, which may go either way."""
    torch.manual_seed(0)
    model = FactorAnalysis(3, 1).double()
    x = model(size=20).detach()

    def guide(by):
        def around(x, size=None):
            with data_plate(x, size):
                posterior = model.posterior(x)
                wide = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt() * 1.3
                pyro.sample("z", Normal(posterior.mean + 0.2 * by, wide).to_event(1))

        return around

    options = {"num_samples": 100, "method": "importance"}
    found = [
        log_evidence(model, guide(1.0), x, seed=seed, **options)
        - log_evidence(model, guide(1 - shift), x, seed=seed, **options)
        for seed in range(40)
    ]
    spread = torch.tensor([difference.mean for difference in found]).std().item()
    said = sum(difference.monte_carlo_error for difference in found) / 40
    assert spread < 1.2 * said


def test_a_lower_bound_of_a_model_does_not_beat_its_own_exact_number():
    torch.manual_seed(1)
    model = FactorAnalysis(4, 2).double()
    x = model(size=30).detach()
    exact = log_evidence(model, None, x)
    worse = FactorAnalysis(4, 2).double()
    with torch.no_grad():
        worse.loc += 1.5
    low = log_evidence(model, ExactPosterior(model), x, num_samples=30, method="importance")
    assert (low - exact).doubt is not None  # equal, but for rounding
    proven = low - log_evidence(worse, None, x)
    assert proven.kind == "lower bound"
    assert proven.mean > 0
    assert proven.doubt is None


def test_rows_that_only_one_has_a_density_of_on_both_sides():
    a, b = evidence([-math.inf, 0.0, 1.0]), evidence([0.0, -math.inf, 1.0])
    assert (a - b).doubt == "each has rows that the other gives no density"
    with pytest.raises(ValueError, match="not known whether its model is better"):
        compare({"a": a, "b": b}).best()


def test_other_columns_are_not_compared():
    model = FactorAnalysis(3, 1)
    x = torch.randn(9, 3)
    whole, part = log_evidence(model, None, x), log_evidence(FactorAnalysis(2, 1), None, x[:, 1:])
    with pytest.raises(ValueError, match=r"the same columns, got 3 number.*and 2 in 'other'"):
        whole - part
    with pytest.raises(ValueError, match="compare: expected evidences of the same columns"):
        compare({"whole": whole, "part": part})
    prior = log_evidence(model, AmortizedNormal(3, 1), x, num_samples=2, method="importance")
    assert (whole - prior).kind == "upper bound"


def test_a_row_without_density():
    a, b = evidence([-math.inf, 0.0, 1.0]), evidence([0.0, 1.0, 1.0])
    assert (a - b).mean == -math.inf
    assert (a - b).doubt is None
    assert str(a - b).startswith("difference -inf nats per row, exact (exact less exact)")
    with pytest.raises(ValueError, match=r"row\(s\) \[0\] have no density under both"):
        a - evidence([-math.inf, 1.0, 1.0])


@pytest.mark.parametrize(
    ("first", "second", "printed"),
    [
        (
            evidence([2.0, 4.0]),
            evidence([0.0, 0.0]),
            "difference 3.000 ± 1.000 nats per row, exact (exact less exact; ± is over rows)",
        ),
        (
            evidence([2.0, 4.0], "lower bound", num_samples=1),
            evidence([0.0, 0.0]),
            "difference 3.000 ± 1.000 nats per row, lower bound: at least this much (lower bound "
            "less exact; Monte Carlo error 0.000; ± is over rows)",
        ),
        (
            evidence([2.0]),
            evidence([0.0], "lower bound", num_samples=1),
            "difference 2.000 nats of one row, upper bound: at most this much (exact less lower "
            "bound; Monte Carlo error 0.000)",
        ),
        (
            evidence([6.0], "lower bound", num_rows=4, row_variance=torch.tensor([0.25])),
            evidence([3.0], "lower bound", num_rows=4, num_samples=9),
            "difference 3.000 nats of all 4 rows (0.750 per row), estimate (lower bound less lower "
            "bound, right as far as their gaps are alike; Monte Carlo error 0.500)",
        ),
        (
            evidence([2.0, 4.0], "pseudo-likelihood"),
            evidence([0.0, 0.0], "pseudo-likelihood"),
            "difference 3.000 ± 1.000 nats per row, pseudo-likelihood (pseudo-likelihood less "
            "pseudo-likelihood, of no log densities; ± is over rows)",
        ),
    ],
)
def test_the_line(first, second, printed):
    assert str(first - second) == printed
    assert repr(first - second).startswith(f"Difference({printed.split(',')[0].split(' ', 1)[1]}")


def test_few_draws_make_the_error_larger_than_it_says():
    heavy = evidence(
        [2.0, 4.0], "lower bound", num_samples=1000, row_variance=torch.tensor([0.9, 0.9])
    )
    assert heavy.is_unreliable
    assert "Monte Carlo error 0.671 or more;" in str(heavy - evidence([0.0, 0.0]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (evidence([1.0, 2.0]), "3 rows in 'evidence' and 2 in 'other'"),
        (evidence([1.0], num_rows=3), "one of the whole in 'other', whose .* row in 'evidence'"),
        (evidence([1.0] * 3, "pseudo-likelihood"), "no log density .* 'exact' in 'evidence'"),
        (evidence([1.0] * 3, num_features=4), "density, .* in 'evidence' and 4 discrete features"),
    ],
)
def test_refuses(other, message):
    with pytest.raises(ValueError, match=f"evidence - other: .*{message}"):
        evidence([1.0, 2.0, 3.0]) - other


def test_other_features_are_refused_and_the_same_are_not():
    with pytest.raises(ValueError, match="5 discrete features in 'evidence' and 4 discrete"):
        evidence([1.0], num_features=5) - evidence([1.0], num_features=4)
    assert (evidence([1.0], num_features=4) - evidence([0.0], num_features=4)).mean == 1


def test_a_number_is_no_evidence():
    with pytest.raises(TypeError, match="unsupported operand"):
        evidence([1.0]) - 1.0
