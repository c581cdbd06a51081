"""What the benchmarks on MovieLens make of ratings: folds, half stars, picks held out."""

import numpy as np
import pytest
import torch

from benchmarks.quality import movielens, movielens_top


def test_half_stars_of_a_normal_distribution_sum_to_one():
    loc = torch.tensor([-1.0, 0.6, 3.3, 7.0]).double()
    total = sum(
        movielens.half_stars(loc, 0.8, torch.full_like(loc, star)).exp()
        for star in movielens.STARS.tolist()
    )
    torch.testing.assert_close(total, torch.ones_like(loc), atol=1e-6, rtol=0)


def test_folds_part_the_rows():
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(7))
    ratings = torch.arange(70).double()
    splits = [movielens.Split(pairs, ratings, fold) for fold in range(5)]
    held_out = torch.cat([split.new_y for split in splits])
    assert held_out.sort().values.tolist() == ratings.tolist()
    for split in splits:
        assert sorted([*split.y.tolist(), *split.new_y.tolist()]) == ratings.tolist()
        assert split.counts == (10, 7)
        assert (split.x[:, 0] * 7 + split.x[:, 1]).tolist() == split.y.tolist()


def test_the_bias_baseline_finds_biases():
    generator = torch.Generator().manual_seed(0)
    users, films = torch.randn(2, 40, generator=generator).double() / 3
    pairs = torch.cartesian_prod(torch.arange(40), torch.arange(40))
    ratings = 3 + users[pairs[:, 0]] + films[pairs[:, 1]]
    ratings = ratings + 0.1 * torch.randn(1600, generator=generator).double()
    scores = movielens.bias(movielens.Split(pairs, ratings, 0))
    assert scores["RMSE"] < 0.15
    # One normal distribution of that noise: its entropy, about.
    assert scores["density"] == pytest.approx(0.5 + np.log(0.12 * (2 * np.pi) ** 0.5), abs=0.2)


def test_picks_are_given_or_hidden():
    generator = torch.Generator().manual_seed(0)
    picked = (torch.rand(150, 40, generator=generator) < 0.3).float()
    train, given, hidden = movielens_top.split(picked, seed=0)
    assert len(train) + 100 == (picked.sum(1) >= 5).sum()
    assert train.shape[1] == given.shape[1] == hidden.shape[1]
    assert not (given * hidden).any()
    rows = given + hidden
    assert (hidden.sum(1) == (0.2 * rows.sum(1)).ceil()).all()
    assert not torch.equal(hidden, movielens_top.split(picked, seed=1)[2])
