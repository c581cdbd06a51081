"""The importance-weighted bound: against closed forms, hand-written formulas and `log_evidence`."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import AutoNormal

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit, log_evidence
from ppl_models.infer.objectives.iwae import iwae
from tests.support.oracles import WEIGHTS, linear_gaussian


def wide(model, seed=None):
    """The exact posterior with its scales doubled, and shifted; with a seed the same draws."""

    def guide(x, size=None):
        exact = model.posterior(x)
        scale = 2 * exact.variance.sqrt()
        if seed is not None:
            torch.manual_seed(seed)
        with data_plate(x, size):
            return pyro.sample("z", dist.Normal(exact.mean + scale / 2, scale).to_event(1))

    return guide


@pytest.mark.parametrize("num_particles", [1, 2, 9])
def test_with_the_exact_posterior_it_is_the_evidence_for_any_draw(num_particles):
    model, x = linear_gaussian(rows=7)
    objective = iwae(model, ExactPosterior(model), num_particles)
    expected = -model.evidence().log_prob(x).mean()
    torch.testing.assert_close(objective.loss(x), expected)
    torch.testing.assert_close(objective.loss(x, size=70), expected)  # a minibatch of 7 out of 70


def test_it_is_the_log_evidence_of_the_same_draws():
    model, x = linear_gaussian(rows=6)
    guide = wide(model, seed=5)
    evidence = log_evidence(model, guide, x, num_samples=8, method="importance")
    loss = iwae(model, guide, 8).loss(x, size=60)
    assert loss.item() == pytest.approx(-evidence.mean, abs=1e-12)


def test_its_gradient_is_that_of_the_formula():
    """Per row log-mean-exp over particles, by hand; gradients of model and guide."""
    num_particles, rows = 4, 3
    model, x = linear_gaussian(rows=rows)
    guide = AmortizedNormal(5, 2).double()
    objective = iwae(model, guide, num_particles)
    objective.loss(x)  # has looked: what follows draws only what it needs
    torch.manual_seed(3)
    objective.loss(x, size=30).backward()
    got = {name: p.grad.clone() for name, p in objective.named_parameters()}
    for parameter in [*model.parameters(), *guide.parameters()]:
        parameter.grad = None

    torch.manual_seed(3)
    loc, log_scale = guide.encoder(x).chunk(2, dim=1)  # (B, 2)
    noise = torch.randn(num_particles * rows, 2, dtype=x.dtype).view(num_particles, rows, 2)
    z = loc + log_scale.exp() * noise  # (K, B, 2)
    log_weight = (
        -0.5 * z.square().sum(2)
        + (0.5 * noise.square() + log_scale).sum(2)  # - log q, less constants that cancel
        - 0.5 * (((x - model.loc - z @ model.loadings.T) / model.log_scale.exp()).square()).sum(2)
        - (model.log_scale + 0.5 * math.log(2 * math.pi)).sum()
    )
    bound = (log_weight.logsumexp(0) - math.log(num_particles)).mean()
    (-bound).backward()
    assert len(got) == 9
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_minibatches_are_the_whole_data_in_expectation():
    model, x = linear_gaussian(rows=12)
    objective = iwae(model, wide(model), 3)
    with torch.no_grad():
        whole = torch.stack([objective.loss(x) for _ in range(400)])
        parts = torch.stack(
            [torch.stack([objective.loss(p, size=12) for p in x.split(4)]) for _ in range(400)]
        ).mean(1)
    error = (whole.var() / 400 + parts.var() / 400).sqrt()
    assert abs(whole.mean() - parts.mean()) < 4 * error < 0.2


def test_it_grows_with_the_particles_below_the_evidence():
    model, x = linear_gaussian(rows=50)
    exact = model.evidence().log_prob(x).mean().item()
    with torch.no_grad():
        means = [
            -sum(iwae(model, wide(model), k).loss(x).item() for _ in range(20)) / 20
            for k in (1, 5, 50)
        ]
    assert means == sorted(means)
    assert means[0] < exact - 0.3
    assert exact - 0.1 < means[-1] < exact


def test_one_particle_is_the_elbo():
    model, x = linear_gaussian(rows=6)
    guide = wide(model, seed=5)
    torch.testing.assert_close(iwae(model, guide, 1).loss(x), elbo(model, guide).loss(x))


def test_the_scale_of_a_minibatch_inside_the_logarithm_is_no_bound():
    """What Pyro's estimator does, and why this file exists."""
    model, x = linear_gaussian(rows=5)
    truth = model.evidence().log_prob(x).mean().item()
    guide = wide(model)
    pyro_loss = RenyiELBO(num_particles=20, vectorize_particles=False)
    with torch.no_grad():
        theirs = sum(-pyro_loss.loss(model, guide, x, size=500) / 500 for _ in range(20)) / 20
        ours = sum(-iwae(model, guide, 20).loss(x, size=500).item() for _ in range(20)) / 20
    assert truth - 0.2 < ours < truth + 0.02
    assert abs(theirs - truth) > 5 * abs(ours - truth)


def test_it_never_exceeds_the_evidence_under_minibatches_and_rises_with_the_particles():
    """100 rows in minibatches of 10, 5000 particles: Pyro's is nats above the evidence."""
    pyro.set_rng_seed(0)

    def model(x, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    x = 2**0.5 * torch.randn(100, dtype=torch.float64)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    found, parts = [], x.split(10)
    for particles in (1, 10, 100, 5000):
        objective = iwae(model, guide, particles)
        with torch.no_grad():
            bound = torch.stack([-100 * objective.loss(part, size=100) for part in parts])
        missing = torch.stack([10 * e.sum() for e in exact.split(10)]) - bound
        error = missing.std() / 10**0.5
        assert missing.mean() > -4 * error
        found.append(bound.mean().item())
    assert found == sorted(found)
    assert found[-1] == pytest.approx(exact.sum().item(), abs=0.5)
    theirs = RenyiELBO(num_particles=5000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        total = sum(-theirs.loss(model, guide, part, size=100) for part in parts) / 10
    assert total > exact.sum() + 5


def test_enumerated_sites_are_summed_over_in_each_weight():
    """z ~ N(0, 1), k enumerated, x ~ N(z + loc_k, 1): marginally a mixture of N(loc_k, 2)."""
    locs = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)

    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(z + locs[k], 1.0), obs=x)

    def posterior(x):
        mixture = dist.Categorical(
            logits=WEIGHTS.log() + dist.Normal(locs, 2**0.5).log_prob(x[:, None])
        )
        return mixture, dist.Normal((x[:, None] - locs) / 2, 0.5**0.5)

    class Reparameterised(dist.MixtureSameFamily):
        has_rsample = True  # for the test: nothing is trained here

        def rsample(self, sample_shape=()):
            return self.sample(sample_shape)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", Reparameterised(*posterior(x)))

    x = torch.randn(9, dtype=torch.float64)
    exact = (WEIGHTS.log() + dist.Normal(locs, 2**0.5).log_prob(x[:, None])).logsumexp(1)
    torch.testing.assert_close(iwae(model, guide, 4).loss(x, size=90), -exact.mean())


@pytest.mark.slow
def test_it_trains_through_fit_in_minibatches():
    x = linear_gaussian(rows=300)[1]
    model, guide = FactorAnalysis(5, 2).double(), AmortizedNormal(5, 2).double()
    run = fit(iwae(model, guide, 5), x, epochs=40, batch_size=64, lr=2e-2, seed=0, validation=x)
    exact = -log_evidence(model, None, x).mean
    assert run.history["loss"][-1] < run.history["loss"][0] - 0.5
    assert exact - 0.02 < run.history["validation"][-1] < exact + 0.3
    assert list(run.history) == ["loss", "validation"]


def test_latents_shared_by_all_rows_are_refused():
    def model(x=None, size=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x=None, size=None):
        pyro.sample("rate", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.1))

    with pytest.raises(ValueError, match=r"'rate' of the model is shared by all rows.*elbo"):
        fit(iwae(model, guide, 5), torch.ones(8), epochs=1)


def test_guides_with_parameters_for_each_row_are_refused():
    model, x = linear_gaussian(rows=12)
    with pytest.raises(ValueError, match=r"AutoNormal has parameters for each row.*amortised"):
        fit(iwae(model, AutoNormal(model), 3), x, epochs=1, batch_size=4)

    def own(x, size=None):
        with data_plate(x, size):
            loc = pyro.param("loc", lambda: torch.zeros(12, 2, dtype=x.dtype), event_dim=1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def by_index(x, size=None):
        with data_plate(x, size) as rows:
            loc = pyro.param("locs", lambda: torch.zeros(12, 2, dtype=x.dtype))[rows]
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    for guide in (own, by_index):
        # 3 particles of 4 rows are 12 rows, as many as there are parameters
        with pytest.raises(ValueError, match="amortised"):
            fit(iwae(model, guide, 3), x, epochs=1, batch_size=4)


def test_what_has_no_reparameterisation_is_refused():
    def model(x=None, size=None):
        with data_plate(x, size):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.zeros(()))))

    with pytest.raises(ValueError, match=r"'k' of the guide .* without a reparameterisation"):
        fit(iwae(model, guide, 3), torch.randn(8), epochs=1)


@pytest.mark.parametrize("count", [0, -1, 2.5, "many"])
def test_counts_that_are_none(count):
    with pytest.raises(ValueError, match="num_particles: expected a positive whole number"):
        iwae(VAE(4, 2), AmortizedNormal(4, 2), count)
