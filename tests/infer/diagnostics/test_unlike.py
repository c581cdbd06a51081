"""Rows unlike those of a model: p-values that are uniform, and rows that were put among others."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, predictive_pvalues
from ppl_models.likelihoods import Bernoulli
from tests.support.oracles import linear_gaussian


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return VAE(8, 2, Bernoulli()).double(), AmortizedNormal(8, 2).double()


def test_of_rows_that_the_model_drew_they_are_uniform(vae):
    """Whatever the guide: this one has learned nothing."""
    model, guide = vae
    with torch.no_grad():
        x = model(size=400)
    found = predictive_pvalues(model, guide, x, num_samples=10, num_simulations=4000, seed=0)
    assert kstest(found.value, "uniform").pvalue > 0.01
    assert found.p_value > 0.01
    assert len(found.unlike) == 0
    assert str(found).startswith("0 of 400 rows are unlike the 4000 that the model drew; all rows")


def test_exact_evidence_of_a_single_row():
    r"""Of :math:`\mathcal{N}(0, 1)` it is the probability of the two tails."""

    def model(x=None, size=None):
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0), obs=x)

    x = torch.tensor([0.0, 1.0, 2.0, 4.5], dtype=torch.float64)
    found = predictive_pvalues(model, None, x, num_simulations=40_000, seed=0)
    expected = 2 * (1 - dist.Normal(0.0, 1.0).cdf(x))
    torch.testing.assert_close(found.value, expected, atol=0.01, rtol=0)
    assert found.unlike.tolist() == [3]
    assert found.evidence.kind == "exact"


def test_rows_that_are_not_the_models_are_named_the_worst_first():
    model, x = linear_gaussian(rows=100)
    x = torch.cat([x, x[:1] + 30, x[1:2] + 60])
    found = predictive_pvalues(model, None, x, seed=0)
    assert {100, 101} <= set(found.unlike.tolist())
    assert len(found.unlike) < 6
    assert "rows " in str(found)
    assert found.simulated.shape == (2040, 1)


def test_a_model_that_is_not_that_of_the_data_shows_in_all_rows_together():
    """No row is unlike it: they are more alike than those that it draws."""
    model, x = linear_gaussian(rows=300)
    found = predictive_pvalues(model, None, 0.5 * x, seed=0)
    assert len(found.unlike) == 0
    assert found.p_value < 1e-3


def test_rows_that_are_alike_are_ties():
    """Of two outcomes, whose evidence is rounded otherwise in other batches."""

    def model(x=None, size=None):
        with data_plate(x, size):
            return pyro.sample("x", dist.Bernoulli(torch.tensor(0.3)), obs=x)

    x = (torch.arange(200) % 10 < 3).float()
    found = predictive_pvalues(model, None, x, num_simulations=5000, seed=0)
    assert found.value[x == 0].min() == 1.0
    assert found.value[0].item() == pytest.approx(0.3, abs=0.03)
    assert found.p_value > 0.05


class Regression(nn.Module):
    """With inputs: what is likely depends on them."""

    def forward(self, x, y=None, size=None):
        with data_plate(x, size):
            return pyro.sample("y", dist.Normal(10 * x, 1.0), obs=y)


def test_each_row_is_compared_at_its_inputs():
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    y = 10 * x + torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[7] = 10.0  # as at the other end
    found = predictive_pvalues(Regression(), None, x, y, num_simulations=2000, seed=0)
    assert found.simulated.shape == (2000, 50)
    assert found.unlike.tolist() == [7]
    assert "at the inputs of each" in str(found)
    others = torch.arange(50) != 7
    assert predictive_pvalues(Regression(), None, x[others], y[others], seed=0).p_value > 0.01


def test_latents_of_all_rows_are_refused():
    def model(x=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x, size=None):
        pyro.sample("m", dist.Normal(0.0, 0.1))

    with pytest.raises(ValueError, match=r"latents that rows share.* Try loo"):
        predictive_pvalues(model, guide, torch.randn(5))


def test_a_guide_of_fitted_rows_is_refused(vae):
    model, _ = vae
    with torch.no_grad():
        x = model(size=20)
    guide = pyro.infer.autoguide.AutoNormal(model)
    guide(x)
    with pytest.raises(ValueError, match="amortised"):
        predictive_pvalues(model, guide, x)


def test_missing_values_are_refused():
    from ppl_models import FactorAnalysis

    model = FactorAnalysis(3, 1, missing="marginalise")
    x = torch.tensor([[0.0, 1.0, torch.nan], [0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match="missing values"):
        predictive_pvalues(model, None, x)


def test_a_model_that_cannot_draw_is_refused():
    def model(x, size=None):
        with data_plate(x):
            return pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)

    with pytest.raises(ValueError, match="cannot draw data"):
        predictive_pvalues(model, None, torch.randn(5))
