"""From what users have to minibatches: every row once an epoch, or an error that says what came."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit
from tests.support.oracles import binary
from tests.support.refusals import Images, Refused, vae
from tests.support.runs import quiet


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 4), r"data\[0\]: expected at least one row, got none.*\(0, 4\)"),
        (torch.tensor(1.0), r"data\[0\]: expected at least one row"),
        (Images(torch.zeros(0, 4)), r"data: expected at least one row, got an empty Dataset"),
        (
            DataLoader(TensorDataset(torch.ones(3, 4)), batch_size=4, drop_last=True),
            r"data: expected a batch or more, got none.*3 rows, batch_size=4.*drop_last=False",
        ),
    ],
)
def test_empty_data(data, message):
    pair = vae()
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), data, steps=2)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield torch.ones(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((9, 4)), r"data: expected a tensor.*got ndarray. Try torch.as_tensor"),
        ([[1.0] * 4] * 9, r"data: expected a tensor.*got list"),
        ({"x": torch.ones(9, 4)}, r"data: expected a tensor.*got dict"),
        ((), r"data: expected a tensor.*got tuple"),
        (None, r"data: expected a tensor.*got NoneType"),
        (Stream(), r"data: Stream has no length.*Dataset with __len__"),
        (DataLoader(Stream(), batch_size=2), r"data: Stream has no length"),
        (Images([{"a": 1.0}] * 9), r"data: expected batches of tensors"),
    ],
)
def test_data_that_are_none(data, message):
    pair = vae()
    with Refused(TypeError, message, *pair):
        quiet(elbo(*pair), data, steps=2)


def test_rows_of_different_lengths():
    pair = vae()
    message = r"data: expected tensors with the same number of rows, got \[9, 8\].*\(x, y\)"
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), (torch.ones(9, 4), torch.ones(8)), steps=2)


@pytest.mark.parametrize("size", [0, -1, 2.5, "all"])
def test_batch_sizes(size):
    pair = vae()
    message = rf"batch_size: expected a positive number of rows, got {size!r}. Try 64, or None"
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2, batch_size=size)


def test_a_batch_size_beside_a_loader():
    pair, loader = vae(), DataLoader(TensorDataset(torch.ones(9, 4)), batch_size=3)
    with Refused(ValueError, r"batch_size: the DataLoader has one of its own \(3\); got 4", *pair):
        quiet(elbo(*pair), loader, steps=2, batch_size=4)


def test_a_loader_of_a_part_has_the_size_of_the_part():
    x = binary(100)
    half = DataLoader(TensorDataset(x), batch_size=10, sampler=SubsetRandomSampler(range(50)))
    vae, guide = VAE(4, 2), AmortizedNormal(4, 2)
    run = fit(elbo(vae, guide), x, epochs=1, validation=half, seed=0)
    expected = fit(elbo(vae, guide), x, epochs=1, validation=x[:50], seed=0, lr=1e-12)
    assert run.history["validation"] == pytest.approx(expected.history["validation"], rel=0.1)
