"""Checks of all rows: what is wrong is found wherever it is, and named by its row."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from guides import AmortizedNormal
from ppl_models import (
    GAN,
    VAE,
    Diffusion,
    FactorAnalysis,
    GaussianMixture,
    adversarial,
    check_data,
    data_plate,
    denoising,
    elbo,
    weighted,
)
from ppl_models.infer.reading import in_order
from tests.support.runs import Rows


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(in_order, "AT_ONCE", 64)


def bound():
    return elbo(VAE(4, 2), AmortizedNormal(4, 2))


def spoiled(row: int, value: float) -> Tensor:
    x = torch.bernoulli(torch.full((300, 4), 0.5), generator=torch.Generator().manual_seed(0))
    x[row, 2] = value
    return x


KINDS = {
    "tensor": lambda x, on_disk: x,
    "array on disk": lambda x, on_disk: on_disk(x),
    "dataset": lambda x, on_disk: Rows(x),
    "loader": lambda x, on_disk: DataLoader(TensorDataset(x), batch_size=32),
}
OBJECTIVES = {
    "bound": bound,
    "weighted": lambda: weighted({bound(): 2.0}),
    "model": lambda: VAE(4, 2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("row", [0, 77, 299])
def test_a_row_outside_of_the_support_is_named(kind, objective, row, on_disk):
    data = KINDS[kind](spoiled(row, 0.5), on_disk)
    with pytest.raises(ValueError, match=rf"^row {row}: site 'x': 1 of 1 rows lie outside"):
        check_data(OBJECTIVES[objective](), data)
    check_data(OBJECTIVES[objective](), KINDS[kind](spoiled(row, 1.0), on_disk))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(kind, value, on_disk):
    data = KINDS[kind](spoiled(201, value), on_disk)
    for what in (bound(), GaussianMixture(4, 2), adversarial(GAN(4, 2)), denoising(Diffusion(4))):
        with pytest.raises(ValueError, match=r"data\[0\]: 1 of .* NaN or infinity \(row 201\)"):
            check_data(what, data)


def test_what_was_not_observed_is_let_through(on_disk):
    data = on_disk(spoiled(201, np.nan))
    check_data(GaussianMixture(4, 2, missing="marginalise"), data)


class Uneven(Dataset):
    """A row of another shape than all others."""

    def __len__(self) -> int:
        return 300

    def __getitem__(self, i: int) -> Tensor:
        return torch.zeros(3 if i == 201 else 4)


def test_a_row_of_another_shape_is_named():
    message = r"data: expected rows of one shape, got \(4,\) in row 192 and \(3,\) in row 201"
    with pytest.raises(ValueError, match=message):
        check_data(bound(), Uneven())


class OtherType(Dataset):
    def __len__(self) -> int:
        return 300

    def __getitems__(self, rows: list[int]) -> Tensor:
        return torch.zeros(len(rows), 4).to(torch.float64 if 201 in rows else torch.float32)


def test_rows_of_another_type_are_named():
    message = (
        r"rows like the first ones, \(4,\) torch.float32, got \(4,\) torch.float64 in rows 192"
    )
    with pytest.raises(ValueError, match=message):
        check_data(bound(), OtherType())


def labelled(x=None, y=None, size=None):
    with data_plate(x, size):
        pyro.sample("y", dist.Categorical(logits=torch.zeros(3)), obs=y)


def test_labels_are_looked_at_too(on_disk):
    x, y = torch.zeros(300, 4), torch.arange(300) % 3
    check_data(labelled, (on_disk(x), on_disk(y)))
    y[150] = 3
    with pytest.raises(ValueError, match=r"^row 150: site 'y'.* such as 3"):
        check_data(labelled, (on_disk(x), on_disk(y)))


def test_what_is_no_data():
    with pytest.raises(TypeError, match=r"expected what fit takes.*got list"):
        check_data(bound(), [[1.0]])


def test_nothing_is_drawn_moved_or_left_behind():
    model, x = FactorAnalysis(4, 2), spoiled(0, 1.0)
    before, mode = torch.get_rng_state(), model.training
    check_data(model, x)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training == mode
