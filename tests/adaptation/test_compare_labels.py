"""Evidences of labelled rows against sums and integrals, and losses that are warned of."""

import itertools
import math
import warnings

import pytest
import torch
from scipy.integrate import dblquad
from scipy.stats import invgamma, norm

from ppl_models import LabelComparison, compare_labels
from ppl_models.adaptation import class_evidence as evidence
from ppl_models.adaptation.class_evidence import class_evidence
from ppl_models.adaptation.reverse import told_back


def total_by_hand(x, y, source, num_classes, features):
    """The labels by an urn, the features of each class by a function, averaged over weights."""
    seen, labels = [1] * num_classes, 0.0
    for label in y.tolist():
        labels += math.log(seen[label] / sum(seen))
        seen[label] += 1
    logs = [
        sum(
            features(x[y == c][:, j], source[0][source[1] == c][:, j], weight)
            for c, j in itertools.product(range(num_classes), range(x.shape[1]))
        )
        for weight in evidence.WEIGHTS
    ]
    return (
        labels + torch.tensor(logs, dtype=torch.float64).logsumexp(0).item() - math.log(len(logs))
    )


def test_binary_rows_follow_the_urn(monkeypatch):
    """The predictive probability of each next pixel, one after the other."""
    monkeypatch.setattr(evidence, "WEIGHTS", (1.0, 7.0))
    x = torch.bernoulli(torch.full((9, 3), 0.4, dtype=torch.float64))
    source = torch.bernoulli(torch.full((20, 3), 0.7, dtype=torch.float64)), torch.arange(20) % 2
    y = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 1])

    def features(own, before, weight):
        mean = (before.sum() + 0.5) / (len(before) + 1)
        one, zero, log_p = weight * mean, weight * (1 - mean), 0.0
        for pixel in own:
            log_p += math.log((one if pixel else zero) / (one + zero))
            one, zero = one + pixel, zero + 1 - pixel
        return log_p

    expected = total_by_hand(x, y, source, 2, features)
    found = class_evidence(x, y, source, 2)
    assert found.total.item() == pytest.approx(expected, rel=1e-10)


def test_of_real_rows_mean_and_variance_are_integrated_out(monkeypatch):
    monkeypatch.setattr(evidence, "WEIGHTS", (2.0,))
    x = torch.randn(4, 1, dtype=torch.float64)
    source = torch.randn(10, 1, dtype=torch.float64) + 1, torch.zeros(10, dtype=torch.int64)
    together = torch.cat([x, source[0]])

    def features(own, before, weight):
        mean = ((before.sum() + together.mean()) / 11).item()
        spread = together.var(correction=0).item()
        v = ((before - mean).square().sum().item() + spread) / 11

        def joint(loc, variance):
            rows = norm.pdf(own.numpy(), loc, variance**0.5).prod()
            prior = norm.pdf(loc, mean, (variance / weight) ** 0.5)
            return rows * prior * invgamma.pdf(variance, weight / 2, scale=weight * v / 2)

        return math.log(dblquad(joint, 1e-4, 30, -8, 8, epsabs=1e-9)[0])

    y = torch.zeros(4, dtype=torch.int64)
    expected = total_by_hand(x, y, source, 1, features)
    assert class_evidence(x, y, source, 1).total.item() == pytest.approx(expected, abs=1e-3)


def test_it_bounds_the_evidence_of_rows_without_labels():
    """Each labeling is a term of the sum over all, which the densities of all rows sum to one."""
    source = torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 1])
    total = 0.0
    for row in itertools.product([0.0, 1.0], repeat=3):
        x = torch.tensor(row)[:, None]
        logs = [
            class_evidence(x, torch.tensor(y), source, 2).total
            for y in itertools.product([0, 1], repeat=3)
        ]
        assert max(logs) < torch.stack(logs).logsumexp(0)
        total += torch.stack(logs).logsumexp(0).exp().item()
    assert total == pytest.approx(1.0)


def test_features_that_are_constant_change_nothing():
    x, y = torch.randn(12, 2), torch.arange(12) % 2
    source = torch.randn(12, 2), y
    wide = torch.cat([x, torch.ones(12, 1)], 1), (torch.cat([source[0], torch.ones(12, 1)], 1), y)
    expected = class_evidence(x, y, source, 2)
    torch.testing.assert_close(class_evidence(wide[0], y, wide[1], 2).total, expected.total)


def blobs(rows=600, offset=0.0):
    y = torch.arange(rows) % 3
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    return centres[y] + offset + 0.5 * torch.randn(rows, 2), y


def nearest(x, offset):
    return torch.cdist(x, torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]) + offset).argmin(1)


def test_a_gain_is_called_so_and_a_loss_is_warned_of():
    """Boundaries moved with the rows of the target, and away from them."""
    source, (x, y) = blobs(), blobs(offset=0.7)
    before, right, wrong = (nearest(x, offset) for offset in (0.0, 0.7, -0.7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_labels(x, before=before, after=right, source=source)
    assert found.verdict == "better"
    assert found.kind == "lower bound"
    assert found.difference > 3 * found.standard_error > 0
    assert found.told_back > 3 * found.told_back_error > 0
    assert (right == y).sum() > (before == y).sum() > (wrong == y).sum()
    with pytest.warns(UserWarning, match=r"adaptation is worse than none: .* a difference of -"):
        worse = compare_labels(x, before=before, after=wrong, source=source)
    assert worse.verdict == "worse"
    with pytest.warns(UserWarning, match="worse than none"):
        back = compare_labels(x, before=right, after=before, source=source)
    assert back.difference == pytest.approx(-found.difference)
    assert f"a difference of {found.difference:+.3f}" in str(found)
    assert "600 target rows" in str(found)


def test_the_names_of_classes_count():
    """Clusters as they should be, under the names of others: the source knows better."""
    source, (x, y) = blobs(), blobs(offset=0.3)
    with pytest.warns(UserWarning, match="worse than none"):
        compare_labels(x, before=y, after=(y + 1) % 3, source=source)


def test_few_changes_are_undecided_and_none_are_no_news():
    source, (x, _) = blobs(), blobs(offset=0.3)
    before = nearest(x, 0.3)
    after = before.clone()
    middle = (x[:, 0] - x[:, 1]).abs().argsort()[:1]
    after[middle] = 3 - after[middle].clamp(min=1)  # from one side of a boundary to the other
    with pytest.warns(UserWarning, match="not better than none, as far as told"):
        assert compare_labels(x, before=before, after=after, source=source).verdict == "undecided"
    same = compare_labels(x, before=before, after=before, source=source)
    assert same.verdict == "unchanged"
    assert same.difference == 0


def test_better_takes_both_numbers():
    """Every verdict, by the numbers that it rests on."""
    for difference, told, changed, verdict in (
        (0.4, 0.01, 5, "better"),
        (0.4, -0.01, 5, "undecided"),
        (0.29, 0.01, 5, "undecided"),
        (-0.29, 0.01, 5, "undecided"),
        (-0.31, 0.01, 5, "worse"),
        (0.0, 0.0, 0, "unchanged"),
    ):
        found = LabelComparison(-2.0, -2.0 + difference, 0.1, told, 0.001, changed, 100)
        assert found.verdict == verdict


def test_labels_are_told_back_by_a_regression_of_standardised_rows():
    """An offset and a scale of the target change nothing; labels at random tell log 1 / 3."""
    (x, y), target = blobs(), 3 * blobs(offset=0.2)[0] + 5
    proposed = nearest((target - 5) / 3, 0.2)
    found = told_back(target, proposed, (x, y), 3)
    torch.testing.assert_close(
        told_back((target - 5) / 3, proposed, (x, y), 3), found, atol=1e-3, rtol=0
    )
    assert found.mean() > -0.2
    shuffled = told_back(target, proposed[torch.randperm(600)], (x, y), 3).mean().item()
    assert shuffled == pytest.approx(-math.log(3), abs=0.1)
    one = told_back(target, torch.zeros_like(proposed), (x, y), 3)  # one class, of which it is sure
    expected = torch.where(y == 0, math.log(0.99 + 0.01 / 3), math.log(0.01 / 3)).double()
    torch.testing.assert_close(one, expected)


def test_refusals():
    source, (x, y) = blobs(30), blobs(30)
    with pytest.raises(
        TypeError, match="target: expected rows alone, got 2 things, such as labels"
    ):
        compare_labels((x, y), before=y, after=y, source=source)
    with pytest.raises(TypeError, match=r"source: expected rows and their labels.*source=\(x, y\)"):
        compare_labels(x, before=y, after=y, source=x)
    with pytest.raises(ValueError, match="source: expected rows of 2 features"):
        compare_labels(x, before=y, after=y, source=(source[0][:, :1], y))
    with pytest.raises(ValueError, match="before: expected one label for each row"):
        compare_labels(x, before=y[:20], after=y, source=source)
    with pytest.raises(ValueError, match=r"after: .*one-hot"):
        compare_labels(x, before=y, after=torch.eye(3)[y], source=source)
    with pytest.raises(
        ValueError, match="after: expected labels that are whole numbers from 0 to 2"
    ):
        compare_labels(x, before=y, after=y + 1, source=source)
    with pytest.raises(ValueError, match="source: expected labels that are whole numbers"):
        compare_labels(x, before=y, after=y, source=(source[0], y - 1))
    bad = x.index_fill(0, torch.tensor(0), torch.nan)
    with pytest.raises(ValueError, match="target: 1 of 30 rows hold NaN"):
        compare_labels(bad, before=y, after=y, source=source)
