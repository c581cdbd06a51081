"""EASE beside the problem that it solves."""

import pytest
import torch

from ppl_models.recommender.ease import EASE


def picks(rows=20, items=7):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(rows, items, generator=generator) < 0.4).double()


@pytest.mark.parametrize(("rows", "items"), [(20, 7), (6, 15)])
def test_each_item_is_a_ridge_regression_on_the_others(rows, items):
    x = picks(rows, items)
    weights = EASE(x, strength=0.7).scores(torch.eye(items).double())
    for item in range(items):
        others = [k for k in range(items) if k != item]
        design = x[:, others]
        gram = design.T @ design + 0.7 * torch.eye(items - 1).double()
        expected = torch.linalg.solve(gram, design.T @ x[:, item])
        torch.testing.assert_close(weights[others, item], expected)
        assert weights[item, item].item() == pytest.approx(0, abs=1e-12)


def test_refused():
    with pytest.raises(ValueError, match="strength: expected a positive number"):
        EASE(picks(), 0.0)
    with pytest.raises(ValueError, match="EASE: expected rows of 7 features"):
        EASE(picks()).scores(torch.ones(2, 6))
    with pytest.raises(ValueError, match="EASE: 1 of 20 rows hold NaN"):
        EASE(picks().index_fill(0, torch.tensor([3]), torch.nan))
