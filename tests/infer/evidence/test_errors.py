"""What the printed line says of the errors of an evidence: which is which, and when to trust it."""

import math
import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from guides import ExactPosterior
from ppl_models import data_plate, from_pyro_svi, log_evidence
from ppl_models.infer.evidence.evidence import weights_of
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.evidence.numbers.evidence import Evidence
from tests.support.oracles import linear_gaussian

FEW = r"\d+ draws are as good as \S+ \(Evidence\.effective_draws\)"


def model(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of(scale):
    """The posterior has the scale 0.707."""

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x / 2, scale))

    return guide


def shared(x=None, size=None):
    m = pyro.sample("m", dist.Normal(torch.zeros(20), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)


def shared_guide(scale):
    def guide(x, size=None):
        exact = (1 + len(x)) ** -0.5
        pyro.sample("m", dist.Normal(x.sum(0) / (1 + len(x)), scale * exact).to_event(1))

    return guide


def rows(number=100):
    return 2**0.5 * torch.randn(number, generator=torch.Generator().manual_seed(0))


def evidence(value, variance, rows=None, num_samples=1000, **options):
    value, variance = torch.tensor(value).double(), torch.tensor(variance).double()
    rows = rows or len(value)
    return Evidence(value, "lower bound", rows, num_samples, None, variance, **options)


def test_effective_draws_are_those_of_the_weights():
    x = rows(5)
    found = log_evidence(model, guide_of(0.6), x, num_samples=50, seed=3)
    with sampling(model, guide_of(0.6), (x,), 3) as joint:
        joint.check_points(lambda *_: None)
        parts = [found["log_weight"] for _, found in joint.evaluate(weights_of, 50, 4096)]
    log_weight = torch.cat(parts)
    weight = log_weight.exp()
    expected = weight.sum(0).square() / weight.square().sum(0)
    torch.testing.assert_close(found.effective_draws, expected)


def test_all_draws_of_the_posterior_count_and_of_one_draw_one():
    gaussian, x = linear_gaussian(rows=6)
    exact = ExactPosterior(gaussian)
    found = log_evidence(gaussian, exact, x, num_samples=40, method="importance")
    torch.testing.assert_close(found.effective_draws, torch.full((6,), 40.0).double())
    assert not found.is_unreliable
    single = log_evidence(gaussian, exact, x, num_samples=1, method="importance")
    assert single.effective_draws.tolist() == [1.0] * 6
    assert not single.is_unreliable  # its error is not known, and the line says so
    assert "unknown" in str(single)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 0.2])
def test_weights_that_collapse_are_said_to_be_unreliable(scale):
    """The bound is many of its errors below the evidence."""
    x = rows()
    with pytest.warns(UserWarning, match=FEW):
        found = log_evidence(model, guide_of(scale), x, num_samples=1000, seed=0)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    assert truth - found.mean > 5 * found.monte_carlo_error
    assert found.is_unreliable
    assert re.search(r"Monte Carlo error \S+, unreliable: as good as \d+\.\d draws;", str(found))


@pytest.mark.parametrize("scale", [0.65, 0.7, 1.0, 1.5])
def test_weights_that_carry_are_not(scale):
    x = rows()
    found = log_evidence(model, guide_of(scale), x, num_samples=1000, seed=0)  # no warning
    truth = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    assert abs(found.mean - truth) < 4 * found.monte_carlo_error
    assert "unreliable" not in str(found)


def test_latents_of_all_rows_that_collapse():
    x = torch.zeros(10, 20)
    with pytest.warns(UserWarning, match=FEW):
        found = log_evidence(shared, shared_guide(0.3), x, num_samples=100, seed=0)
    assert found.effective_draws.shape == (1,)
    assert re.search(
        r"100 importance samples, .*, unreliable: as good as \d\.\d draws\)", str(found)
    )
    fine = log_evidence(shared, shared_guide(1.0), x, num_samples=100, seed=0)
    assert not fine.is_unreliable


def test_one_warning_at_the_line_of_the_user():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log_evidence(model, guide_of(0.01), rows(), num_samples=100, batch_size=50)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_few_bad_rows_of_many_do_not_spoil_the_mean():
    """The error of the mean is that of all rows; `effective_draws` tells which are the bad ones."""
    variance = [1e-3] * 200 + [0.5] * 2
    found = evidence([-3.0] * 202, variance)
    assert not found.is_unreliable
    assert (found.effective_draws < 3).sum() == 2
    assert evidence([-3.0] * 202, [1e-3] * 160 + [0.5] * 42).is_unreliable


def test_draws_that_are_not_weighted_all_count():
    found = evidence([-3.0, -2.0], [0.9, 0.9], num_samples=4, weighted=False)
    assert found.effective_draws.tolist() == [4.0, 4.0]
    assert not found.is_unreliable
    assert "(4 draws, Monte Carlo error 0.671; ± is over rows)" in str(found)


def test_each_of_the_two_errors_is_named():
    found = evidence([-3.0, -2.0, -4.0], [1e-3] * 3)
    assert str(found) == (
        "log evidence -3.000 ± 0.577 nats per row, lower bound "
        "(1000 importance samples, Monte Carlo error 0.018; ± is over rows)"
    )


def test_the_error_of_the_whole_data_is_of_the_number_before_it():
    found = evidence([-300.0], [0.01], rows=20)
    assert str(found) == (
        "log evidence -300.000 nats of all 20 rows (-15.000 per row), lower bound "
        "(1000 importance samples, Monte Carlo error 0.100)"
    )
    assert found.monte_carlo_error == pytest.approx(0.005)


def test_one_row_has_no_error_over_rows():
    gaussian, x = linear_gaussian(rows=1)
    number = gaussian.evidence().log_prob(x).item()
    assert (
        str(log_evidence(gaussian, None, x)) == f"log evidence {number:.3f} nats of one row, exact"
    )
    assert str(evidence([-3.0], [1e-3])) == (
        "log evidence -3.000 nats of one row, lower bound "
        "(1000 importance samples, Monte Carlo error 0.032)"
    )


def test_a_row_that_is_nowhere_leaves_no_nan():
    assert "nan" not in str(evidence([-math.inf, -2.0], [math.nan, 1e-3]))


# The plate of the rows at dim -2: 3 rows of 3 features, so that rows and features may be mistaken.


def upright(x=None, size=None):
    with pyro.plate("data", 3 if x is None else len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("features", 3, dim=-1):
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def between(x=None, size=None):
    """Each row is observed twice: in a plate to the right of that of the rows, and to the left."""
    with pyro.plate("data", 3 if x is None else len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("features", 3, dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        with pyro.plate("times", 3, dim=-3):
            pyro.sample("y", dist.Normal(z, 1.0), obs=x if x is None else x.T[:, :, None])


def between_guide(x, size=None):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(2 * x.sum(1, keepdim=True) / 7, 7**-0.5))


def upright_guide(x, size=None):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(x.sum(1, keepdim=True) / 4, 0.5))


@pyro.infer.config_enumerate
def upright_mixture(x=None, size=None):
    with pyro.plate("data", 3 if x is None else len(x), dim=-2):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("features", 3, dim=-1):
            return pyro.sample("x", dist.Normal(3 * k, 1.0), obs=x)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_rows_may_be_in_another_dimension(number):
    x = torch.randn(number, 3) + torch.arange(number)[:, None]
    truth = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x).double()
    found = log_evidence(upright, upright_guide, x, num_samples=4)
    torch.testing.assert_close(found.value, truth, atol=1e-4, rtol=0)
    posterior = from_pyro_svi(upright, upright_guide, x, num_samples=4)
    total = posterior["sample_stats"]["log_p"].values - posterior["sample_stats"]["log_q"].values
    assert total.ravel().tolist() == pytest.approx([truth.sum().item()] * 4, abs=1e-3)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_sums_over_components_may_be_in_another_dimension(number):
    x = torch.randn(number, 3) + torch.arange(number)[:, None]
    each = torch.stack([dist.Normal(loc, 1.0).log_prob(x).sum(1) for loc in (0.0, 3.0)], 1)
    truth = (each + torch.tensor([0.7, 0.3]).log()).logsumexp(1).double()
    torch.testing.assert_close(
        log_evidence(upright_mixture, None, x).value, truth, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_rows_may_be_between_other_plates(number):
    x = torch.randn(number, 3) + torch.arange(number)[:, None]
    twice = dist.MultivariateNormal(torch.zeros(6), torch.eye(6) + 1)
    truth = twice.log_prob(torch.cat([x, x], 1)).double()
    found = log_evidence(between, between_guide, x, num_samples=4)
    torch.testing.assert_close(found.value, truth, atol=1e-4, rtol=0)
