"""Evidences of labelled rows against sums and integrals, and losses that are warned of."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import invgamma, multivariate_t, norm

from ppl_models import LabelComparison, compare_labels
from ppl_models.adaptation import class_evidence as evidence
from ppl_models.adaptation.class_evidence import class_evidence
from ppl_models.adaptation.reverse import told_back


def total_by_hand(z, y, hints, predictive):
    """Row after row, the label by an urn and the row by those of its class, averaged over weights.

    Arguments:
        z: Rows as the source sees them, `(N, P)`.
        hints: Of each class its rows of the source, `(M, P)`.
        predictive: The log density of a row, given the class's rows before it, hint and weight.
    """
    seen, labels, logs = [1] * len(hints), 0.0, [0.0] * len(evidence.WEIGHTS)
    for n, label in enumerate(y.tolist()):
        labels += math.log(seen[label] / sum(seen))
        seen[label] += 1
        own = z[:n][y[:n] == label]
        for i, weight in enumerate(evidence.WEIGHTS):
            logs[i] += predictive(z[n], own, hints[label], weight)
    return labels + math.log(sum(math.exp(log) for log in logs) / len(logs))


def test_rows_follow_the_predictive_density(monkeypatch):
    """Of each next row a multivariate t, of which parameters were moved row by row."""
    monkeypatch.setattr(evidence, "WEIGHTS", (1.0, 7.0))
    x = torch.randn(9, 2, dtype=torch.float64)
    source = torch.randn(20, 2, dtype=torch.float64) + 1, torch.arange(20) % 2
    y = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 1])
    centre = source[0].mean(0)
    spread = (source[0] - centre).T @ (source[0] - centre) / 20

    def predictive(row, own, hint, weight):
        mean = hint.sum(0) / (len(hint) + 1)  # all rows of the source together are one at zero
        scatter = spread + (hint - mean).T @ (hint - mean)
        psi, degrees = weight * scatter / (len(hint) + 1), weight + 3
        for other in own:
            off = other - mean
            psi = psi + weight / (weight + 1) * torch.outer(off, off)
            mean, weight, degrees = mean + off / (weight + 1), weight + 1, degrees + 1
        shape = psi * (weight + 1) / weight / (degrees - 1)
        return multivariate_t.logpdf(row.numpy(), mean.numpy(), shape.numpy(), degrees - 1)

    hints = [source[0][source[1] == c] - centre for c in range(2)]
    expected = total_by_hand(x - centre, y, hints, predictive)
    assert class_evidence(x, y, source, 2).total.item() == pytest.approx(expected, rel=1e-10)


def test_mean_and_variance_are_integrated_out(monkeypatch):
    monkeypatch.setattr(evidence, "WEIGHTS", (2.0,))
    x = torch.randn(4, 1, dtype=torch.float64)
    source = torch.randn(10, 1, dtype=torch.float64) + 1, torch.zeros(10, dtype=torch.int64)
    hint = source[0] - source[0].mean()
    rows = (x - source[0].mean()).numpy()
    v = hint.square().sum().item() / 10  # as is that of all rows together, of which one counts

    loc = torch.linspace(-12, 12, 601).double()
    log_variance = torch.linspace(-10, 7, 601).double()[:, None]
    deviation = (log_variance / 2).exp()
    joint = norm.logpdf(loc, 0.0, deviation / 2**0.5) + norm.logpdf(
        rows[:, None], loc, deviation
    ).sum(0)
    joint = joint + invgamma.logpdf(log_variance.exp(), 2, scale=v) + log_variance.numpy()
    expected = math.log(np.exp(joint).sum() * (24 / 600) * (17 / 600))
    found = class_evidence(x, torch.zeros(4, dtype=torch.int64), source, 1).total.item()
    assert found == pytest.approx(expected, abs=1e-5)


def test_it_bounds_the_evidence_of_rows_without_labels():
    """Each labeling is a term of the sum over all; of one more row it integrates to the rest."""
    source = torch.tensor([[0.0], [1.0], [1.5], [0.3]]).double(), torch.tensor([0, 1, 1, 0])
    x, y = torch.tensor([[0.4], [1.1]]).double(), torch.tensor([0, 1])

    def density(value, label):
        rows = torch.cat([x, torch.tensor([[value]], dtype=torch.float64)])
        labels = torch.cat([y, torch.tensor([label])])
        return class_evidence(rows, labels, source, 2).total.exp().item()

    steps = np.linspace(-8, 8, 161)  # of which sinh reaches far into the tails
    values = [(density(np.sinh(u), 0) + density(np.sinh(u), 1)) * np.cosh(u) for u in steps]
    total = class_evidence(x, y, source, 2).total.exp().item()
    assert sum(values) * 0.1 == pytest.approx(total, rel=1e-4)
    logs = [
        class_evidence(x, torch.tensor(labels), source, 2).total
        for labels in itertools.product([0, 1], repeat=2)
    ]
    assert max(logs) < torch.stack(logs).logsumexp(0)


def test_features_that_are_constant_or_said_twice_change_nothing():
    """A copy of each feature stretches the components by the root of 2, and tells no more."""
    x, y = torch.randn(12, 2).double(), torch.arange(12) % 2
    rows = torch.randn(12, 2).double()
    expected = class_evidence(x, y, (rows, y), 2)
    wide = [torch.cat([part, torch.ones(12, 1)], 1) for part in (x, rows)]
    torch.testing.assert_close(class_evidence(wide[0], y, (wide[1], y), 2), expected)
    twice = class_evidence(x.repeat(1, 2), y, (rows.repeat(1, 2), y), 2)
    torch.testing.assert_close(twice.total, expected.total - 12 * math.log(2))
    torch.testing.assert_close(twice.rows, expected.rows - math.log(2))


def test_rows_are_seen_through_the_first_components_of_the_source(monkeypatch):
    monkeypatch.setattr(evidence, "COMPONENTS", 1)
    x, y = torch.randn(12, 2).double(), torch.arange(12) % 2
    rows = torch.randn(40, 2).double() * torch.tensor([5.0, 0.1]).double()
    rows = rows - rows.mean(0)
    axis = torch.linalg.svd(rows).Vh[0]
    expected = class_evidence((x @ axis)[:, None], y, ((rows @ axis)[:, None], y.repeat(4)[:40]), 2)
    torch.testing.assert_close(class_evidence(x, y, (rows, y.repeat(4)[:40]), 2), expected)


def test_rows_differ_in_the_density_at_the_mean_of_the_parameters(monkeypatch):
    """Of very many rows the evidence of each is its density by the moments of its class."""
    monkeypatch.setattr(evidence, "WEIGHTS", (1.0,))
    y = torch.arange(4000) % 2
    x = torch.randn(4000, 2).double() + y[:, None]
    found = class_evidence(x, y, (x, y), 2)
    expected = torch.stack(
        [
            torch.distributions.MultivariateNormal(x[y == c].mean(0), x[y == c].T.cov()).log_prob(x)
            for c in range(2)
        ]
    )[y, torch.arange(4000)] - math.log(2)
    torch.testing.assert_close(found.rows, expected, atol=0.02, rtol=0)
    assert found.rows.sum().item() == pytest.approx(found.total.item(), rel=0.01)


def blobs(rows=600, offset=0.0):
    y = torch.arange(rows) % 3
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    return centres[y] + offset + 0.5 * torch.randn(rows, 2), y


def nearest(x, offset):
    return torch.cdist(x, torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]) + offset).argmin(1)


def test_a_gain_is_called_so_and_a_loss_is_warned_of():
    """Boundaries moved with the rows of the target, and away from them."""
    source, (x, y) = blobs(1500), blobs(1500, offset=0.7)
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
    assert "1500 target rows" in str(found)


def test_the_names_of_classes_count():
    """Clusters as they should be, under the names of others: the labels of the source tell."""
    source, (x, y) = blobs(), blobs(offset=0.3)
    with pytest.warns(UserWarning, match="worse than none"):
        compare_labels(x, before=y, after=(y + 1) % 3, source=source)
    before = y.where(torch.rand(600) > 0.1, torch.randint(3, (600,)))
    with pytest.warns(UserWarning, match="not better than none, as far as told"):
        found = compare_labels(x, before=before, after=(y + 1) % 3, source=source)
    assert found.difference > 3 * found.standard_error
    assert found.departed < 0
    assert found.told_back < -1


def test_labels_should_be_shared_out_as_in_the_source():
    """Classes of which many rows go to one that has enough: more regular than at random."""
    source, (x, y) = blobs(), blobs(offset=0.3)
    before = y.where(torch.rand(600) > 0.6, torch.randint(3, (600,)))
    after = y.where(torch.rand(600) > 0.3, 0)
    with pytest.warns(UserWarning, match="classes are .0.* nats further from those of the source"):
        found = compare_labels(x, before=before, after=after, source=source)
    assert found.difference > 3 * found.standard_error
    assert found.told_back > 0
    departed = [
        sum(
            share * math.log(3 * share)
            for share in ((n + 1) / 603 for n in labels.bincount().tolist())
        )
        for labels in (before, after)
    ]
    assert found.departed == pytest.approx(departed[1] - departed[0], abs=1e-6)
    assert found.departed > 0.05


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


def test_better_takes_all_numbers():
    """Every verdict, by the numbers that it rests on."""
    for difference, told, departed, changed, verdict in (
        (0.31, 0.01, -0.1, 5, "better"),
        (0.31, -0.0029, 0.0, 5, "better"),
        (0.31, -0.0031, -0.1, 5, "undecided"),
        (0.31, 0.01, 1e-4, 5, "undecided"),
        (0.29, 0.01, -0.1, 5, "undecided"),
        (-0.29, 0.01, -0.1, 5, "undecided"),
        (-0.31, 0.01, -0.1, 5, "worse"),
        (0.0, 0.0, 0.0, 0, "unchanged"),
    ):
        found = LabelComparison(-2.0, -2.0 + difference, 0.1, told, 0.001, departed, changed, 100)
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
    with pytest.raises(ValueError, match="source: expected rows that differ, got 30 that are all"):
        compare_labels(x, before=y, after=y, source=(torch.ones(30, 2), y))
    bad = x.index_fill(0, torch.tensor(0), torch.nan)
    with pytest.raises(ValueError, match="target: 1 of 30 rows hold NaN"):
        compare_labels(bad, before=y, after=y, source=source)
