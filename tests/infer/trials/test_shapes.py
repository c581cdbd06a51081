"""A missing `.to_event(1)`, where there are as many features as rows and no error shows it."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppl_models import data_plate, elbo, from_pyro_svi, iwae, log_evidence
from tests.support.runs import quiet

SIZE = 8
X = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
REFUSED = (
    r"site '{}' of the {}: the plate 'data' takes dimension -1 .* the \d rows.*\.to_event\(1\)"
)


def features(x: Tensor, size: int | None = None) -> None:
    with data_plate(x, size):
        mean = pyro.param("mean", x.new_zeros(SIZE))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def column(x: Tensor, size: int | None = None) -> None:
    """Means `(B, 1)` for the first feature, `(B,)`: of each row with each."""
    weights = pyro.param("weights", x.new_ones(SIZE, 1))
    with data_plate(x, size):
        pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=x[:, 0])


def factor(x: Tensor, size: int | None = None) -> None:
    with data_plate(x, size):
        pyro.factor("x", -(x - pyro.param("at", x.new_zeros(()))).square())


def plated(x: Tensor, size: int | None = None) -> None:
    """A plate of features, for which the rows would have to be turned."""
    with data_plate(x, size), pyro.plate("features", SIZE, dim=-2):
        pyro.sample("x", dist.Normal(pyro.param("loc", x.new_zeros(SIZE, 1)), 1.0), obs=x)


def latent(x: Tensor, size: int | None = None) -> None:
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(x.new_zeros(SIZE, SIZE), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def latent_rightly(x: Tensor, size: int | None = None) -> None:
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(x.new_zeros(SIZE), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor, size: int | None = None) -> None:
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(pyro.param("slope", x.new_tensor(0.5)) * x, 0.5**0.5))


def guide_rightly(x: Tensor, size: int | None = None) -> None:
    with data_plate(x, size):
        scale = pyro.param("scale", x.new_tensor(0.5**0.5))
        pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))


MISSING = {
    "features": (features, None, "x", "model"),
    "column": (column, None, "y", "model"),
    "factor": (factor, None, "x", "model"),
    "plated": (plated, None, "x", "model"),
    "latent": (latent, guide, "z", "model"),
    "latent of the guide": (latent_rightly, guide, "z", "guide"),
}


@pytest.mark.parametrize(("model", "guide", "site", "program"), MISSING.values(), ids=MISSING)
def test_as_many_features_as_rows(model, guide, site, program):
    message = REFUSED.format(site, program)
    with pytest.raises(ValueError, match=message):
        log_evidence(model, guide, X, num_samples=4)
    with pytest.raises(ValueError, match=message):
        from_pyro_svi(model, guide, X, num_samples=4)
    with pytest.raises(ValueError, match=message):
        quiet(elbo(model, guide), X, steps=1)
    with pytest.raises(ValueError, match=message):
        elbo(model, guide).loss(X)
    with pytest.raises(ValueError, match=message):
        quiet(elbo(model, guide), X.repeat(3, 1), steps=1, batch_size=SIZE)


def test_as_many_latents_as_rows_in_iwae():
    with pytest.raises(ValueError, match=REFUSED.format("z", "model")):
        iwae(latent, guide, 3).loss(X)


def test_shared_latents_and_as_many_features_as_rows():
    def model(x, size=None):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(SIZE), 1.0).to_event(1))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ValueError, match=REFUSED.format("x", "model")):
        log_evidence(model, AutoNormal(model), X, num_samples=4)


def test_with_to_event_the_number_is_that_of_the_closed_form():
    found = log_evidence(latent_rightly, guide_rightly, X, num_samples=4)
    torch.testing.assert_close(found.value, dist.Normal(0.0, 2**0.5).log_prob(X).sum(1))


def rows_on_the_left(x: Tensor) -> None:
    """Rows that a plate places, features in a plate of their own."""
    with pyro.plate("data", len(x), dim=-2), pyro.plate("features", SIZE, dim=-1):
        pyro.sample("x", dist.Normal(pyro.param("loc", x.new_zeros(SIZE)), 1.0), obs=x)


def turned_left(x: Tensor, size: int | None = None) -> None:
    """Rows that are single numbers, which stand where the plate on the right of theirs is."""
    with pyro.plate("data", len(x), dim=-2), pyro.plate("copies", SIZE, dim=-1):
        pyro.sample("x", dist.Normal(pyro.param("loc", x.new_zeros(())), 1.0), obs=x)


def test_rows_on_the_right_of_their_plate():
    for refused in (
        lambda: log_evidence(turned_left, None, X[0]),
        lambda: from_pyro_svi(turned_left, None, X[0], num_samples=4),
        lambda: elbo(turned_left).loss(X[0]),
    ):
        with pytest.raises(ValueError, match=r"site 'x' of the model.* takes dimension -2 "):
            refused()


def turned_rightly(x: Tensor, size: int | None = None) -> None:
    with data_plate(x, size), pyro.plate("features", SIZE, dim=-2):
        pyro.sample("x", dist.Normal(x.new_zeros(SIZE, 1), 1.0), obs=x.T)


@pytest.mark.parametrize("model", [rows_on_the_left, turned_rightly])
def test_plates_of_features_pass(model):
    found = log_evidence(model, None, X)
    torch.testing.assert_close(found.value, dist.Normal(0.0, 1.0).log_prob(X).sum(1))


def in_groups(*shape: int, count: int = 5, events: int = 1) -> Any:
    """A program of a latent in a plate of groups, whose rows are as groups are."""

    def program(x: Tensor, size: int | None = None) -> None:
        with pyro.plate("group", count, dim=-1):
            loc = pyro.param("loc", x.new_zeros(()))
            z = pyro.sample("z", dist.Normal(loc.expand(*shape), 1.0).to_event(events))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(z.sum() + x.new_zeros(len(x)), 1.0), obs=x[:, 0])

    return program


def whole(x: Tensor, size: int | None = None) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
    with data_plate(x, size):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def of_groups(x: Tensor, size: int | None = None) -> None:
    with pyro.plate("group", 5, dim=-1):
        loc = pyro.param("of_groups", x.new_zeros(5, 1))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


ANOTHER = r"site 'z': the Normal of the guide has shape \(5, 1\), and the \w+ of the model \({}\)"
IN_PLATE = "site 'z': the plate 'group' holds {} entries in the model, and 5 in the guide"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (in_groups(5, events=0), ANOTHER.format("5,")),
        (in_groups(5, 3), ANOTHER.format("5, 3")),
        (in_groups(1, count=4), IN_PLATE.format(4)),
        (in_groups(1, count=6), IN_PLATE.format(6)),
        (whole, ANOTHER.format("1,")),  # which fails by itself, at the rows
    ],
)
def test_a_latent_is_of_one_shape(model: Any, message: str) -> None:
    """In the guide and in the model, for any number of rows."""
    with pytest.raises(ValueError, match=message):
        quiet(elbo(model, of_groups), X, steps=2)
    with pytest.raises(ValueError, match=message):
        log_evidence(model, of_groups, X, num_samples=5)


def test_latents_of_one_shape_are_let_through() -> None:
    quiet(elbo(in_groups(5, 1), of_groups), X, steps=2)
    assert log_evidence(in_groups(5, 1), of_groups, X, num_samples=5).num_rows == SIZE
