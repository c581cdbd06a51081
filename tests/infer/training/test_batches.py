"""From what users have to minibatches: every row once an epoch, or an error that says what came."""

import functools
import operator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit
from ppl_models.transformed import Transformed
from tests.support.oracles import binary
from tests.support.refusals import Refused, vae
from tests.support.runs import Rows, Seen, quiet


def as_tensor(x: Tensor) -> Any:
    return x


def as_tuple(x: Tensor) -> Any:
    return (x,)


@pytest.mark.parametrize("kind", [as_tensor, as_tuple, TensorDataset, Rows])
def test_every_row_once_an_epoch_in_another_order(kind):
    model, x = Seen(), torch.arange(11.0)
    quiet(elbo(model), kind(x), epochs=3, batch_size=4, seed=0)
    assert [len(batch) for batch in model.batches] == [4, 4, 3] * 3
    assert set(model.sizes) == {11}
    orders = [functools.reduce(operator.iadd, model.batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(order) == x.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("own_generator", [True, False])
def test_a_loader_keeps_its_own_way(shuffle, own_generator):
    model, x = Seen(), torch.arange(11.0)
    generator = torch.Generator() if own_generator else None
    loader = DataLoader(TensorDataset(x), batch_size=4, shuffle=shuffle, generator=generator)
    quiet(elbo(model), loader, epochs=3, seed=0)
    assert [len(batch) for batch in model.batches] == [4, 4, 3] * 3
    orders = [functools.reduce(operator.iadd, model.batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(order) == x.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == (3 if shuffle else 1)


def test_a_loader_that_drops_the_last_batch():
    model, x = Seen(), torch.arange(11.0)
    loader = DataLoader(TensorDataset(x), batch_size=4, drop_last=True)
    run = quiet(elbo(model), loader, epochs=3)
    assert run.steps == 6
    assert [len(batch) for batch in model.batches] == [4, 4] * 3


def test_the_default_is_the_whole_data_in_order():
    model, x = Seen(), torch.arange(11.0)
    quiet(elbo(model), x, epochs=2, seed=0)
    assert model.batches == [x.tolist()] * 2


def test_a_batch_size_above_the_data_is_one_batch():
    model, x = Seen(), torch.arange(11.0)
    assert quiet(elbo(model), x, epochs=2, batch_size=1000).steps == 2
    assert model.batches == [x.tolist()] * 2


@pytest.mark.parametrize("kind", [lambda *xy: xy, TensorDataset, Rows])
def test_pairs_stay_together(kind):
    class Together(Seen):
        def forward(self, x: Tensor, y: Tensor, size: int | None = None) -> None:
            assert torch.equal(y, 2 * x)
            super().forward(x, y, size)

    x = torch.arange(11.0)
    model = Together()
    quiet(elbo(model), kind(x, 2 * x), epochs=2, batch_size=4, seed=0)
    assert len(model.batches) == 6


def test_a_transform_draws_anew_at_every_step():
    model, x = Seen(), torch.full((11,), 0.5)
    quiet(elbo(model), Transformed(x, transform=torch.bernoulli), epochs=3, seed=0)
    assert len({tuple(batch) for batch in model.batches}) == 3
    assert {value for batch in model.batches for value in batch} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 4), r"data\[0\]: expected at least one row, got none.*\(0, 4\)"),
        (torch.tensor(1.0), r"data\[0\]: expected at least one row"),
        (Rows(torch.zeros(0, 4)), r"data: expected at least one row, got an empty Dataset"),
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
        (np.full((9, 4), "a"), r"data\[0\]: expected real numbers, got ndarray with entries of"),
        ([[1.0] * 4] * 9, r"data: expected a tensor.*got list. Try torch.as_tensor"),
        ({"x": torch.ones(9, 4)}, r"data: expected a tensor.*got dict"),
        ((), r"data: expected a tensor.*got tuple"),
        (None, r"data: expected a tensor.*got NoneType"),
        (Stream(), r"data: Stream has no length.*Dataset with __len__"),
        (DataLoader(Stream(), batch_size=2), r"data: Stream has no length"),
        (Rows(["a"] * 9), r"data: expected batches of tensors"),
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
