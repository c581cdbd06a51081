"""How well maps keep distances: by hand, and beside scikit-learn's."""

import pytest
import torch

from ppl_models.metrics import stress, trustworthiness


def test_stress_by_hand():
    line = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 3, 2
    table = torch.tensor([[0.0, 2.0, 3.0], [2.0, 0.0, torch.nan], [3.0, torch.nan, 0.0]])
    assert stress(table, line) == pytest.approx((1 / 10) ** 0.5)
    assert stress(torch.cdist(line, line), line) == 0


def test_trustworthiness_is_its_formula():
    points, places, n, k = torch.randn(12, 3).double(), torch.randn(12, 2).double(), 12, 3
    table = torch.cdist(points, points)
    ranks = table.argsort(1).argsort(1)  # of item i: 0 itself, then 1, 2, ...
    near = torch.cdist(places, places).argsort(1)[:, 1 : k + 1]
    penalty = (ranks.gather(1, near) - k).clamp(min=0).sum().item()
    expected = 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * penalty
    assert 0.3 < expected < 0.9
    assert trustworthiness(table, places, k) == pytest.approx(expected)
    assert trustworthiness(table, points, k) == 1


def test_bad_arguments():
    line = torch.arange(6.0)[:, None]
    table = torch.cdist(line, line)
    with pytest.raises(ValueError, match="of the same items"):
        stress(table[:5], line)
    with pytest.raises(ValueError, match="got none"):
        stress(torch.full((6, 6), torch.nan), line)
    with pytest.raises(ValueError, match="2 that are not known"):
        trustworthiness(table.masked_fill(table == 5, torch.nan), line, k=2)
    with pytest.raises(ValueError, match="less than half"):
        trustworthiness(table, line, k=3)
