"""Rankings by hand, and beside scikit-learn's."""

import math

import pytest
import torch
from sklearn.metrics import ndcg_score

from ppl_models.metrics import ndcg_at, recall_at


def test_by_hand():
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, -math.inf], [1.0, 2.0, 3.0, 4.0, 5.0]])
    held_out = torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 0, 1]])
    torch.testing.assert_close(recall_at(1, scores, held_out), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(recall_at(2, scores, held_out), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(recall_at(3, scores, held_out), torch.tensor([1.0, 0.5]))
    best = 1 + 1 / math.log2(3)
    expected = torch.tensor([1.5 / best, 1 / best])
    torch.testing.assert_close(ndcg_at(3, scores, held_out), expected)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_ndcg_is_that_of_scikit_learn(k):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 30, generator=generator).double()
    held_out = torch.rand(6, 30, generator=generator) < 0.3
    for row, value in enumerate(ndcg_at(k, scores, held_out)):
        peer = ndcg_score(held_out[row : row + 1].long(), scores[row : row + 1], k=k)
        assert value.item() == pytest.approx(peer)


def test_a_random_ranking_has_the_recall_of_chance():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4000, 50, generator=generator)
    held_out = torch.rand(4000, 50, generator=generator) < 0.5  # more than 10, as good as always
    assert recall_at(10, scores, held_out).mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("metric", [recall_at, ndcg_at])
def test_refused(metric):
    scores = torch.randn(2, 3)
    with pytest.raises(ValueError, match="1 of 2 users have no item held out"):
        metric(2, scores, torch.tensor([[0, 0, 0], [1, 0, 0]]))
    with pytest.raises(ValueError, match="of the same shape"):
        metric(2, scores, torch.ones(2, 4))
    with pytest.raises(ValueError, match="got NaN"):
        metric(2, scores.fill_(torch.nan), torch.ones(2, 3))
    with pytest.raises(ValueError, match="k: expected a positive whole number"):
        metric(0, torch.ones(2, 3), torch.ones(2, 3))
