"""Missing pixels: left out of the likelihood exactly, drawn from the posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, FactorAnalysis, elbo, fit, log_evidence
from ppl_models.infer.evidence.impute import impute
from ppl_models.likelihoods import Normal
from ppl_models.nn import MLP, MissingInput
from tests.support.oracles import linear_gaussian, with_holes

NAN = torch.nan


def as_vae(model):
    """A factor analysis as a VAE: a linear decoder, and a scale for each pixel."""
    factors, features = model.loadings.shape[1], len(model.loc)

    class Decoder(nn.Module):
        def forward(self, z):
            loc = model.loc + z @ model.loadings.T
            log_scale = (model.log_scale.exp() - 1e-3).log().expand_as(loc)
            return torch.stack([loc, log_scale], -1).flatten(1)

    vae = VAE(features, factors, Normal(own_scale=True), Decoder(), missing="marginalise")
    return vae.double()


def missing_pair():
    exact, x = linear_gaussian(rows=30)
    marginal = FactorAnalysis(5, 2, missing="marginalise").double()
    marginal.load_state_dict(exact.state_dict())
    return marginal, with_holes(x)


def test_it_is_a_factor_analysis_with_missing_entries():
    """The evidence of what was observed, in closed form, from the exact posterior's weights."""
    exact, x = missing_pair()
    vae, guide = as_vae(exact), ExactPosterior(exact)
    evidence = log_evidence(vae, guide, x, num_samples=3)
    torch.testing.assert_close(evidence.value, exact.evidence().log_prob(x).detach())
    torch.testing.assert_close(elbo(vae, guide).loss(x, size=90), -evidence.value.mean())


class Wide:
    def __init__(self, model):
        self.model = model

    def __call__(self, x, size=None):
        exact = self.model.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            scale = 1.5 * exact.variance.sqrt()
            pyro.sample("z", dist.Normal(exact.mean + 0.5 * scale, scale).to_event(1))


@pytest.mark.parametrize("make", [ExactPosterior, Wide], ids=["exact", "wrong"])
def test_draws_are_those_of_the_conditional(make):
    """Resampled by their weights, even the draws of a wrong guide have the exact moments."""
    exact, x = missing_pair()
    x = x[:8]
    drawn = impute(as_vae(exact), make(exact), x, num_samples=4000, num_particles=4000, seed=0)
    assert drawn.shape == (4000, 8, 5)
    there = ~x.isnan()
    assert (drawn[:, there] == x[there]).all()
    torch.testing.assert_close(drawn.mean(0), exact.impute(x), atol=0.15, rtol=0)
    many = exact.impute(x, num_samples=20_000)
    torch.testing.assert_close(drawn.std(0), many.std(0), atol=0.1, rtol=0.1)


def test_complete_rows_are_the_same_with_it_and_without():
    x = torch.rand(6, 4).round()
    torch.manual_seed(0)
    plain = VAE(4, 2)
    lenient = VAE(4, 2, missing="marginalise")
    lenient.load_state_dict(plain.state_dict())
    guide = AmortizedNormal(4, 2)
    values = [log_evidence(m, guide, x, num_samples=5000, seed=0).value for m in (plain, lenient)]
    torch.testing.assert_close(*values, atol=0.02, rtol=0)
    assert lenient(size=3).shape == (3, 4)


@pytest.mark.slow
def test_it_trains_on_rows_with_holes_and_fills_them():
    """Rows of equal pixels: what is missing is what is there."""
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((200, 1), 0.5)).expand(200, 8).contiguous()
    seen = with_holes(x, 0.5)
    vae = VAE(8, 2, missing="marginalise")
    guide = AmortizedNormal(8, 2, encoder=MissingInput(MLP(16, 4)))
    run = fit(elbo(vae, guide), seen, epochs=40, batch_size=50, lr=1e-2, seed=0, validation=seen)
    assert run.history["loss"][-1] < run.history["loss"][0] - 1
    assert all(torch.isfinite(p).all() for m in (vae, guide) for p in m.parameters())
    some = seen[(~seen.isnan()).any(1)]
    truth = x[(~seen.isnan()).any(1)]
    drawn = impute(vae, guide, some, num_samples=5, seed=1)
    right = (drawn == truth)[:, some.isnan()].double().mean()
    assert right > 0.9
    assert torch.equal(drawn, impute(vae, guide, some, num_samples=5, seed=1))
    evidence = log_evidence(vae, guide, seen, num_samples=20, seed=0)
    with pytest.raises(ValueError, match="some features are missing"):
        _ = evidence.bits_per_dim
    assert "bits/dim" not in str(evidence)
    assert "bits/dim" in str(log_evidence(vae, guide, x, num_samples=20, seed=0))


def test_refusals():
    x = torch.tensor([[1.0, NAN, 0.0, 1.0]] * 4)
    guide = AmortizedNormal(4, 2, encoder=MissingInput(MLP(8, 4)))
    with pytest.raises(ValueError, match="missing: expected 'error' or 'marginalise'"):
        VAE(4, 2, missing="drop")
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        fit(elbo(VAE(4, 2), guide), x, epochs=1)
    lenient = VAE(4, 2, missing="marginalise")
    with pytest.raises(ValueError, match=r"outside the support of its .* such as 0\.5"):
        fit(elbo(lenient, guide), x / 2, epochs=1)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        fit(elbo(lenient, guide), x / 0, epochs=1)
    with pytest.raises(ValueError, match="num_particles: expected a positive"):
        impute(lenient, guide, x, num_particles=0)

    class Joint:
        num_outputs = 1

        def __call__(self, outputs):
            return dist.MultivariateNormal(outputs, torch.eye(4))

    with pytest.raises(TypeError, match="a likelihood of independent features"):
        VAE(4, 2, Joint(), missing="marginalise")(x)

    def shared(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(loc, 1.0).expand([4]).to_event(1), obs=x)

    def its_guide(x, size=None):
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="impute: expected latents of rows"):
        impute(shared, its_guide, torch.zeros(3, 4))
