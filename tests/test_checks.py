"""What arguments and rows must be: refused before the first step, with what to try."""

import math

import pytest
import torch

from guides import ExactPosterior
from ppl_models import FactorAnalysis, elbo
from ppl_models.checks import check_resolution
from ppl_models.likelihoods import Normal
from tests.support.refusals import Refused, spoiled, vae
from tests.support.runs import quiet


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite(value):
    pair = vae(Normal())
    with Refused(
        ValueError, r"data\[0\]: 2 of 9 rows hold NaN or infinity \(rows 3, 7\).*isfinite", *pair
    ):
        quiet(elbo(*pair), spoiled(3, 7, value=value), steps=2, batch_size=2)


def test_rows_that_are_not_finite_in_labels_in_validation_and_many():
    pair = vae(Normal())
    with Refused(ValueError, r"data\[1\]: 1 of 9 rows .*\(row 8\)", *pair):
        quiet(elbo(*pair), (torch.ones(9, 4), spoiled(8)[:, 1]), steps=2)
    with Refused(ValueError, r"6 of 9 rows .*\(rows 0, 1, 2, 3, 4, \.\.\.\)", *pair):
        quiet(elbo(*pair), spoiled(*range(6)), steps=2)
    with Refused(ValueError, r"2 of 9 rows hold NaN", *pair):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2, validation=spoiled(1, 2))


@pytest.mark.parametrize("shape", [(9, 5), (9, 3), (9,), (9, 2, 2)])
def test_the_wrong_number_of_features(shape):
    model, pair = FactorAnalysis(4, 2), vae()
    message = rf"expected rows of 4 features.*got \({', '.join(map(str, shape))}"
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), torch.ones(shape), steps=2)
    with Refused(ValueError, message, model):
        quiet(elbo(model, ExactPosterior(model)), torch.ones(shape), steps=2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images(dtype):
    pair = vae()
    with Refused(
        TypeError, rf"expected rows of floating-point numbers, got {dtype}.*x.float\(\)", *pair
    ):
        quiet(elbo(*pair), torch.ones(9, 4).to(dtype), steps=2)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 8e5), (torch.float64, 4e14)])
def test_rows_of_less_than_a_tenth_of_the_spread_of_their_digits(dtype, most):
    """Numbers of the model are `2**-23` (`2**-52`) of a mean apart, up to a tenth of the spread."""
    loc, scale = torch.tensor([0.0, 3.0, 9.0]).double(), torch.tensor([0.0, 2.0, 0.0]).double()
    for sign in (1, -1):
        for unit in (1e-6, 1.0, 1e6):
            loc[1] = sign * unit * 2 * most  # a column without any spread is let through
            check_resolution(loc, unit * scale, dtype, "here")
            loc[1] *= 1.2
            with pytest.raises(ValueError, match=r"here: expected rows near zero.*got column 1"):
                check_resolution(loc, unit * scale, dtype, "here")
