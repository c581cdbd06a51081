"""Models that know their posterior, or what is missing of a row: that is used, and first tried."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from guides import AmortizedNormal, ExactPosterior
from ppl_models import (
    VAE,
    FactorAnalysis,
    GaussianMixture,
    data_plate,
    from_pyro_svi,
    log_evidence,
)
from ppl_models.infer.evidence.impute import impute
from tests.support.oracles import linear_gaussian

NAN = math.nan


def values(data, group, name):
    return torch.as_tensor(data[group][name].values)[0]


def with_holes(kind="factors"):
    torch.manual_seed(0)
    if kind == "factors":
        model = FactorAnalysis(5, 2, missing="marginalise").double()
    else:
        model = GaussianMixture(5, 3, missing="marginalise").double()
        with torch.no_grad():
            model.locs.normal_()
    x = model(size=8).detach()
    x[torch.rand(x.shape) < 0.4] = NAN
    return model, x


class Moved(FactorAnalysis):
    """Another program, which inherits the closed forms of the first."""

    def forward(self, x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.ones(2).double(), 1.0).to_event(1))
            mean = self.loc + z @ self.loadings.T
            return pyro.sample("x", dist.Normal(mean, self.log_scale.exp()).to_event(1), obs=x)


def test_a_known_posterior_is_the_guide_where_none_is_given():
    model, x = linear_gaussian()
    data = from_pyro_svi(model, None, x, num_samples=4000, seed=0)
    exact, drawn = model.posterior(x), values(data, "posterior", "z")
    torch.testing.assert_close(drawn.mean(0), exact.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.var(0), exact.variance, atol=0.1, rtol=0.1)
    total = values(data, "sample_stats", "log_p") - values(data, "sample_stats", "log_q")
    evidence = model.evidence().log_prob(x).sum().detach()
    torch.testing.assert_close(total, evidence.expand(4000), atol=1e-9, rtol=0)
    given = from_pyro_svi(model, ExactPosterior(model), x, num_samples=4000, seed=0)
    assert torch.equal(values(given, "posterior", "z"), drawn)


def test_its_weights_are_the_evidence_also_of_rows_with_holes():
    model, x = with_holes()
    evidence = log_evidence(model, None, x, num_samples=3, method="importance")
    torch.testing.assert_close(evidence.value, model.evidence().log_prob(x).detach())
    assert evidence.monte_carlo_error < 1e-6


def test_enumerated_latents_are_summed_over_all_the_same():
    """The posterior of a mixture is over a site that its program enumerates."""
    model = GaussianMixture(3, 2).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    data = from_pyro_svi(model, None, x, num_samples=4)
    expected = model.evidence().log_prob(x).detach()
    torch.testing.assert_close(values(data, "log_likelihood", "x"), expected.expand(4, 6))
    assert log_evidence(model, None, x, method="importance").kind == "exact"


def test_a_posterior_that_is_not_of_the_program_is_refused():
    torch.manual_seed(0)
    model = Moved(5, 2).double()
    x = model(size=7).detach()
    with pytest.raises(ValueError, match=r"Moved\.posterior\(x\) is not the posterior of the"):
        from_pyro_svi(model, None, x, num_samples=3)


class Wider(nn.Module):
    """A posterior that is wider than that of the program."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def posterior(self, x):
        return dist.Normal(x / 2, 0.5**0.5 * (1 + self.by))


def test_a_posterior_that_is_nearly_that_of_the_program_is_refused():
    torch.manual_seed(0)
    x = torch.randn(8, dtype=torch.float64)
    with pytest.raises(ValueError, match="is not the posterior of the program"):
        log_evidence(Wider(by=5e-4), None, x)
    rounded = log_evidence(Wider(by=1e-7), None, x, num_samples=3, seed=0)
    torch.testing.assert_close(
        rounded.value, dist.Normal(0.0, 2**0.5).log_prob(x), atol=1e-5, rtol=0
    )


def test_latents_that_are_not_of_rows_need_a_guide():
    class Shared(nn.Module):
        def forward(self, x=None, size=None):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with data_plate(x, size):
                return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def posterior(self, x):
            return dist.Normal(x.sum() / (1 + len(x)), (1 + len(x)) ** -0.5)

    with pytest.raises(ValueError, match="'z' are neither in the guide nor enumerated"):
        log_evidence(Shared(), None, torch.randn(4))
    with pytest.raises(ValueError, match="'z' are neither in the guide nor enumerated"):
        from_pyro_svi(VAE(4, 2), None, torch.ones(3, 4))


@pytest.mark.parametrize("kind", ["factors", "mixture"])
def test_what_is_missing_is_drawn_by_the_model_itself(kind):
    model, x = with_holes(kind)
    torch.manual_seed(1)
    drawn = impute(model, None, x, num_samples=3)
    torch.manual_seed(1)
    assert torch.equal(drawn, model.impute(x, num_samples=3))
    drawn = impute(model, None, x, num_samples=3, seed=1)
    guide = AmortizedNormal(5, 2)  # not needed, and not used: it takes no NaN
    assert torch.equal(drawn, impute(model, guide, x, num_samples=3, seed=1))
    before = torch.get_rng_state()
    impute(model, None, x, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_drawn_without_a_guide_where_all_latents_are_enumerated():
    """The same mixture as a program that knows nothing, whose components are drawn given x."""
    exact, x = with_holes("mixture")

    class Plain(nn.Module):
        missing = "marginalise"

        def __init__(self):
            super().__init__()
            self.inside = exact

        def forward(self, x=None, size=None):
            return self.inside(x, size)

    drawn = impute(Plain(), None, x, num_samples=20_000, num_particles=20_000, seed=0)
    torch.testing.assert_close(drawn.mean(0), exact.impute(x), atol=0.06, rtol=0)


def test_what_a_new_program_inherits_is_not_used():
    """Its guide is weighed instead, as that of any program."""
    torch.manual_seed(0)
    model = Moved(3, 2).double()
    x = torch.tensor([[0.5, -0.5, 1.0]] * 3, dtype=torch.float64)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(torch.ones(2).double(), 1.0).to_event(1))

    torch.manual_seed(2)
    expected = impute(lambda x, size=None: model(x, size), guide, x, seed=0)
    assert torch.equal(impute(model, guide, x, seed=0), expected)
    with pytest.raises(ValueError, match="is not the posterior of the program"):
        impute(model, None, x)


def test_draws_of_another_shape_are_refused():
    class Means(nn.Module):
        missing = "marginalise"

        def forward(self, x=None, size=None):
            with data_plate(x, size):
                return pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

        def impute(self, x, num_samples):
            return x.nan_to_num()

    with pytest.raises(ValueError, match=r"Means\.impute\(x, num_samples\) to give rows of shape"):
        impute(Means(), None, torch.tensor([[NAN, 1.0]]), num_samples=2)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        impute(FactorAnalysis(2, 1), None, torch.tensor([[NAN, 1.0]]))
