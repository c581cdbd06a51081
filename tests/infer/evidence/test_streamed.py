"""The evidence of rows that are read a part at a time: that of the same rows in memory."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, FactorAnalysis, GaussianMixture, data_plate, log_evidence
from ppl_models.infer.reading import in_order
from ppl_models.likelihoods import Normal
from tests.support.runs import Rows


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(in_order, "AT_ONCE", 64)


def rows(count: int = 300) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


KINDS = {
    "array on disk": lambda x, on_disk: on_disk(x),
    "dataset": lambda x, on_disk: Rows(x),
    "loader": lambda x, on_disk: DataLoader(TensorDataset(x), batch_size=64),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("make", "method"),
    [
        (lambda: FactorAnalysis(4, 2), "auto"),
        (lambda: GaussianMixture(4, 2), "auto"),
        (lambda: GaussianMixture(4, 2), "importance"),  # by the sum over its components
    ],
)
def test_an_exact_evidence(kind, make, method, on_disk):
    torch.manual_seed(0)
    model, x = make(), rows()
    expected = log_evidence(model, None, x, method=method)
    found = log_evidence(model, None, KINDS[kind](x, on_disk), method=method)
    torch.testing.assert_close(found.value, expected.value)
    assert (found.kind, found.num_rows, found.num_samples) == ("exact", 300, 0)
    assert found.monte_carlo_error == 0
    assert str(found) == str(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_by_draws(kind, on_disk):
    torch.manual_seed(0)
    model, x = FactorAnalysis(4, 2), rows()

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 0.4).to_event(1))

    options = {"num_samples": 200, "method": "importance", "seed": 0}
    data = KINDS[kind](x, on_disk)
    with pytest.warns(UserWarning, match="200 draws") as warned:
        found = log_evidence(model, guide, data, **options)
    assert len(warned) == 1  # not one for each part
    expected = model.evidence().log_prob(x).mean().item()
    assert found.kind == "lower bound"
    assert found.mean == pytest.approx(expected, abs=4 * found.monte_carlo_error + 0.05)
    assert found.pareto_k.shape == found.effective_draws.shape == found.value.shape == (300,)


def test_a_seed_gives_the_same_numbers_other_ones_in_each_part(on_disk):
    torch.manual_seed(0)
    pair = VAE(4, 2, likelihood=Normal()), AmortizedNormal(4, 2)
    x = on_disk(rows(64).repeat(2, 1))
    first, again = (log_evidence(*pair, x, num_samples=20, seed=3).value for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[:64], first[64:])
    alone = log_evidence(*pair, rows(64), num_samples=20, seed=3).value
    assert torch.equal(first[:64], alone)


def test_what_fits_in_one_part_is_as_in_memory(on_disk):
    def model(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0).expand([4]).to_event(1), obs=x)

    guide, x = AutoNormal(model), rows(50)
    guide(x)  # which makes its parameters
    options = {"num_samples": 30, "seed": 0}
    expected = log_evidence(model, guide, x, **options)
    assert torch.equal(log_evidence(model, guide, on_disk(x), **options).value, expected.value)
    with pytest.raises(ValueError, match=r"'loc'.* there is one evidence, of the whole data"):
        log_evidence(model, guide, on_disk(rows()), **options)


def test_a_guide_with_parameters_for_each_row(on_disk):
    model = VAE(4, 2, likelihood=Normal())
    with pytest.raises(ValueError, match="the guide has parameters for each row"):
        log_evidence(model, AutoNormal(model), on_disk(rows()), num_samples=30)


def test_rows_that_depend_on_those_beside_them(on_disk):
    class Centred(FactorAnalysis):
        evidence = None

        def forward(self, x=None, size=None):
            prior = dist.Normal(self.loadings.new_zeros(2), 1.0).to_event(1)
            with data_plate(x, size):
                z = pyro.sample("z", prior)
                loc = x.mean(0) + z @ self.loadings.T
                return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="depends on the rows beside it"):
        log_evidence(Centred(4, 2), AmortizedNormal(4, 2), on_disk(rows()), num_samples=30)


@pytest.mark.parametrize("method", ["auto", "importance"])
def test_a_bad_row_is_named(method, on_disk):
    x = rows()
    x[200, 1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 64 rows .*\(row 8\).*\(Counted from row 192.\)"):
        log_evidence(FactorAnalysis(4, 2), AmortizedNormal(4, 2), on_disk(x), method=method)


def test_an_order_that_is_not_known():
    loader = DataLoader(TensorDataset(rows()), batch_size=64, shuffle=True)
    with pytest.raises(ValueError, match="rows in their order, got a DataLoader that chooses"):
        log_evidence(FactorAnalysis(4, 2), None, loader)


def test_bits_of_discrete_features(on_disk):
    x = torch.bernoulli(torch.full((300, 4), 0.5))
    pair = VAE(4, 2), AmortizedNormal(4, 2)
    assert log_evidence(*pair, on_disk(x), num_samples=30).num_features == 4
