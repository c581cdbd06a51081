"""A seed that is given twice is not the same noise twice."""

import random

import numpy as np
import torch

from ppl_models.scoped import own_draws, own_rng

CPU = torch.device("cpu")


def first_of(context):
    with context:
        return torch.rand(4).tolist(), random.random(), np.random.rand()


def test_work_of_another_kind_draws_other_numbers():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    users = torch.rand(4).tolist(), random.random(), np.random.rand()
    others = [first_of(own_draws(what, 0, CPU)) for what in ("draw_rows", "evaluation")]
    for numbers in zip(users, *others, strict=True):
        assert len({str(number) for number in numbers}) == 3


def test_the_same_work_draws_the_same_numbers_wherever_it_starts():
    torch.manual_seed(3)
    found = first_of(own_draws("draw_rows", 7, CPU))
    torch.rand(2)
    assert found == first_of(own_draws("draw_rows", 7, CPU))
    with own_rng("draw_rows", 7, CPU):
        assert torch.rand(4).tolist() == found[0]
    assert found != first_of(own_draws("draw_rows", 8, CPU))


def test_seeds_may_be_large_or_negative():
    for seed in (-1, 0, 2**31, 2**62 + 1):
        first_of(own_draws("draw_rows", seed, CPU))
