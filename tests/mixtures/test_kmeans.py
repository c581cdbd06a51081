"""k-means: seeding and Lloyd's algorithm against scikit-learn."""

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris

from ppl_models.mixtures.kmeans import kmeans


def inertia(x, labels):
    return sum(((x[labels == k] - x[labels == k].mean(0)) ** 2).sum().item() for k in range(3))


def test_as_good_as_scikit_learn():
    x = torch.from_numpy(load_iris().data)
    labels = kmeans(x, 3, restarts=5)
    assert labels.shape == (5, 150)
    best = min(inertia(x, row) for row in labels)
    assert best <= KMeans(3, n_init=5, random_state=0).fit(x.numpy()).inertia_ + 1e-9


def test_lloyd_improves_on_the_seeds():
    x = torch.randn(300, 2).double()
    torch.manual_seed(0)
    seeds = kmeans(x, 3, max_steps=0)[0]
    torch.manual_seed(0)
    assert inertia(x, kmeans(x, 3)[0]) < inertia(x, seeds)


def test_seeds_are_spread():
    """Twenty tight clusters: seeds drawn uniformly would miss a third of them."""
    centers = 100 * torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))
    x = (centers[:, None] + torch.randn(20, 30, 2)).flatten(0, 1)
    labels = kmeans(x, 20, restarts=10, max_steps=0)
    found = [len(row.unflatten(0, (20, 30)).mode(1).values.unique()) for row in labels]
    assert sum(found) / 10 > 19


def test_far_from_zero():
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]]).double() + 1e8
    labels = kmeans(x, 2)[0]
    assert labels[0] == labels[1] != labels[2] == labels[3]


def test_fewer_distinct_rows_than_clusters():
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert set(kmeans(x, 2)[0].tolist()) == {0, 1}
    with pytest.raises(ValueError, match="at least 3 distinct rows for 3 clusters, got 2"):
        kmeans(x, 3)
