"""Bounds from both sides: against closed forms, sums and a grid's integral."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, GaussianMixture, data_plate, sandwich
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.sampling import annealed, slopes
from ppl_models.infer.sampling.of_rows import OfRows
from ppl_models.infer.sampling.slopes import Slopes
from tests.support.oracles import linear_gaussian

DOUBLE = torch.float64


def near(model, scale=1.2, shift=0.2):
    """The exact posterior's mean and scales, both a little off, and no correlations."""

    def guide(x, size=None):
        exact = model.posterior(x)
        loc = exact.mean + shift * exact.stddev
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(loc, scale * exact.stddev).to_event(1))

    return guide


def test_with_the_exact_posterior_both_are_the_evidence():
    model, x = linear_gaussian(rows=6)
    found = sandwich(model, ExactPosterior(model), x, simulate=True, num_steps=4, seed=0)
    exact = model.evidence().log_prob(found.rows[0]).detach()
    torch.testing.assert_close(found.lower.value, exact)
    torch.testing.assert_close(found.upper.value, exact)
    assert (found.lower.kind, found.upper.kind) == ("lower bound", "upper bound")


@pytest.mark.slow
def test_both_are_near_the_evidence_of_factor_analysis():
    model, x = linear_gaussian(rows=40)
    found = sandwich(model, near(model), x, simulate=True, num_steps=200, seed=0)
    exact = model.evidence().log_prob(found.rows[0])
    assert not torch.equal(found.rows[0], x)
    for bound, sign in ((found.lower, 1), (found.upper, -1)):
        missing = sign * (exact - bound.value)
        assert abs(missing.mean()) < 0.01
        assert missing.mean() > -4 * missing.std() / math.sqrt(40)
    assert found.gap == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_weights_have_the_mean_that_they_should(direction):
    r"""With few temperatures: :math:`E[w] = p(x)`, and :math:`E[1 / w] = 1 / p(x)` backwards."""
    model, x = linear_gaussian(rows=1)
    exact, count = model.evidence().log_prob(x).detach(), 6000
    with sampling(model, near(model), (x,), 0) as joint:
        rows = OfRows(joint, slice(0, 1), count)
        chains = Slopes(rows, rows.draw())
        how = annealed.prepare(chains, rows.draw(), 1, 4)
        if direction == "forward":
            found = annealed.forward(chains, how, rows.draw())
            ratio = (found.log_weight - exact).exp()
        else:
            start = rows.of({"z": model.posterior(x).sample((count,)).squeeze(1)})
            found = annealed.backward(chains, how, start)
            ratio = (exact - found.log_weight).exp()
    assert 0.4 < found.accepted < 0.9
    error = ratio.std() / math.sqrt(count)
    assert error < 0.02
    assert abs(ratio.mean() - 1) < 4 * error


def test_transitions_leave_the_posterior_as_it_is():
    model, x = linear_gaussian(rows=1)
    posterior = model.posterior(x)
    with sampling(model, near(model), (x,), 0) as joint:
        rows = OfRows(joint, slice(0, 1), 4000)
        start = rows.of({"z": posterior.sample((4000,)).squeeze(1)})
        chains = Slopes(rows, start)
        scales, step = posterior.stddev.detach(), torch.full((1,), 1.3, dtype=DOUBLE)
        position = start
        for _ in range(3):
            position = annealed._transition(
                chains, position, torch.ones((), dtype=DOUBLE), scales, step
            ).position
    assert not torch.equal(position, start)
    whole = torch.linalg.solve_triangular(
        posterior.scale_tril[0], (position - posterior.mean).T, upper=False
    )
    torch.testing.assert_close(whole.mean(1), torch.zeros(2, dtype=DOUBLE), atol=0.08, rtol=0)
    torch.testing.assert_close(whole.cov(), torch.eye(2, dtype=DOUBLE), atol=0.12, rtol=0)


def gamma_poisson(x=None, size=None):
    """A latent that is positive; rows are negative binomial."""
    with data_plate(x, size):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 1.0))
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def wide_gamma(x, size=None):
    with data_plate(x, size):
        pyro.sample("rate", dist.LogNormal(torch.log((x + 2) / 2), 0.8))


def test_latents_with_constraints():
    x = torch.arange(8, dtype=DOUBLE)
    found = sandwich(gamma_poisson, wide_gamma, x, simulate=True, num_steps=100, seed=0)
    exact = dist.NegativeBinomial(2.0, torch.tensor(0.5, dtype=DOUBLE)).log_prob(found.rows[0])
    torch.testing.assert_close(found.lower.mean, exact.mean().item(), atol=0.03, rtol=0)
    torch.testing.assert_close(found.upper.mean, exact.mean().item(), atol=0.03, rtol=0)
    exact = dist.NegativeBinomial(2.0, torch.tensor(0.5, dtype=DOUBLE)).log_prob(x)
    plain = sandwich(gamma_poisson, wide_gamma, x, num_steps=100, seed=0)
    torch.testing.assert_close(plain.lower.mean, exact.mean().item(), atol=0.03, rtol=0)


def test_enumerated_latents_are_summed_out():
    locs = torch.tensor([-2.0, 3.0], dtype=DOUBLE)
    weights = torch.tensor([0.3, 0.7], dtype=DOUBLE)

    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(z + locs[k], 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    x = torch.randn(10, dtype=DOUBLE)
    found = sandwich(model, guide, x, simulate=True, num_steps=100, num_chains=32, seed=0)
    parts = dist.Normal(locs, 2**0.5).log_prob(found.rows[0][:, None])
    exact = (weights.log() + parts).logsumexp(1)
    torch.testing.assert_close(found.lower.mean, exact.mean().item(), atol=0.05, rtol=0)
    torch.testing.assert_close(found.upper.mean, exact.mean().item(), atol=0.05, rtol=0)


@pytest.mark.slow
def test_both_sides_of_the_integral_of_a_vae():
    """In single precision, with a guide that was never trained."""
    torch.manual_seed(1)
    vae, guide = VAE(6, 2), AmortizedNormal(6, 2)
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(8)  # so that rows say something of their latents
    found = sandwich(
        vae, guide, torch.zeros(20, 6), simulate=True, num_steps=100, num_chains=8, seed=0
    )
    axis = torch.linspace(-6, 6, 241)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = vae.decoder(z).double()
    prior = dist.Normal(0.0, 1.0).log_prob(z.double()).sum(1) + 2 * math.log(axis[1] - axis[0])
    density = dist.Bernoulli(logits=logits)
    of_rows = [density.log_prob(row.double()).sum(1) + prior for row in found.rows[0]]
    exact = torch.stack(of_rows).logsumexp(1)
    for bound, sign in ((found.lower, 1), (found.upper, -1)):
        missing = sign * (exact - bound.value)
        assert missing.mean() > -4 * missing.std() / math.sqrt(20)
        assert missing.mean() < 0.05
    assert found.gap > -4 * found.gap_error


def test_rows_that_are_no_draws_of_the_model_have_the_lower_one():
    model, x = linear_gaussian(rows=4)
    found = sandwich(model, near(model), x, num_steps=5, seed=0)
    assert found.upper is None
    assert found.rows[0] is x
    assert math.isnan(found.gap)
    assert "no upper bound: these rows are no draws of the model" in str(found)


def test_the_text_names_both():
    model, x = linear_gaussian(rows=4)
    text = str(sandwich(model, near(model), x, simulate=True, num_steps=5, seed=0))
    assert "(lower bound) to" in text
    assert "(upper bound), each on average; apart by" in text


def test_rows_in_parts_are_the_same_rows():
    """With the exact posterior, as draws are others."""
    model, x = linear_gaussian(rows=5)
    options = {"simulate": True, "num_steps": 3, "num_chains": 2, "seed": 0}
    whole = sandwich(model, ExactPosterior(model), x, **options)
    parts = sandwich(model, ExactPosterior(model), x, batch_size=6, **options)
    assert torch.equal(whole.rows[0], parts.rows[0])
    torch.testing.assert_close(whole.upper.value, parts.upper.value)


def test_the_generators_are_left_as_they_were():
    model, x = linear_gaussian(rows=4)
    torch.manual_seed(1)
    expected = torch.randn(1)
    torch.manual_seed(1)
    sandwich(model, near(model), x, simulate=True, num_steps=3, seed=0)
    assert torch.equal(torch.randn(1), expected)


def test_other_latents_have_the_importance_weighted_bound():
    x = torch.randn(20, dtype=DOUBLE)

    def discrete(x=None, size=None):
        with data_plate(x, size):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5, dtype=DOUBLE)))
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def of_discrete(x, size=None):
        with data_plate(x, size):
            pyro.sample("k", dist.Bernoulli(logits=x - 0.5))

    def shared(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def of_shared(x, size=None):
        pyro.sample("loc", dist.Normal(x.sum() / 21, 21**-0.5))

    for model, guide, reason in (
        (discrete, of_discrete, "'k' is discrete"),
        (shared, of_shared, "the rows share latents"),
    ):
        found = sandwich(model, guide, x, simulate=True, num_steps=10, num_chains=10, seed=0)
        assert found.upper is None
        assert reason in found.no_upper
        assert "importance-weighted, not annealed" in str(found)
        assert (found.lower.kind, found.lower.num_samples) == ("lower bound", 100)


def test_code_that_depends_on_values_runs_by_itself():
    model, x = linear_gaussian(rows=2)

    class Branching(OfRows):
        def at(self, position):
            found = super().at(position)
            factor = 2.0 if position[0, 0] > 0 else 1.0
            return found._replace(log_q=factor * found.log_q)

    with sampling(model, near(model), (x,), 0) as joint:
        rows = Branching(joint, slice(0, 2), 4)
        start = rows.draw()
        with pytest.warns(UserWarning, match="sandwich: it runs eagerly: "):
            chains = Slopes(rows, start)
        beta = torch.tensor(0.3, dtype=DOUBLE)
        for place in (start, -start):
            for ours, theirs in zip(
                chains(place, beta), chains.by_program(place, beta), strict=True
            ):
                assert torch.equal(ours, theirs)


def test_a_graph_that_is_another_program_later_is_found_and_the_run_begins_anew(monkeypatch):
    model, x = linear_gaussian(rows=3)
    calls = []
    plain = Slopes.by_program

    def moving(self, position, beta):
        calls.append(1)
        found = plain(self, position, beta)
        return found if len(calls) < 20 else found._replace(density=found.density + 1.0)

    monkeypatch.setattr(Slopes, "by_program", moving)
    monkeypatch.setattr(slopes, "EVERY", 8)
    with pytest.warns(UserWarning, match="runs eagerly: its graph gives another density"):
        found = sandwich(model, ExactPosterior(model), x, num_steps=12, num_chains=2, seed=0)
    assert len(calls) > 100
    torch.testing.assert_close(found.lower.value, model.evidence().log_prob(x).detach())


def test_a_program_that_draws_by_itself_is_refused():
    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
            noise = torch.randn(len(x), dtype=DOUBLE)
            return pyro.sample("x", dist.Normal(z + noise, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match="draws something that is no latent of it"):
        sandwich(model, guide, torch.zeros(8, dtype=DOUBLE), num_steps=3)


def test_what_has_no_such_bounds():
    model, x = linear_gaussian(rows=4)
    with pytest.raises(ValueError, match="latents that a guide draws, got a model without any"):
        sandwich(GaussianMixture(4, 2), None, torch.randn(5, 4))
    with pytest.raises(ValueError, match="num_chains: expected a whole number, 2 or more"):
        sandwich(model, near(model), x, num_chains=1)
    with pytest.raises(ValueError, match="num_steps: expected a positive"):
        sandwich(model, near(model), x, num_steps=0)
    holes = x.clone()
    holes[0, 0] = torch.nan
    with pytest.raises(ValueError, match="simulate: expected rows without missing entries"):
        sandwich(model, near(model), holes, simulate=True)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        sandwich(model, near(model), holes)
    with pytest.raises(ValueError, match="at least one tensor of rows, got none"):
        sandwich(model, near(model), simulate=True)

    def halved(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(1), 1.0), obs=x[:, 0] / 2)

    with pytest.raises(ValueError, match=r"simulate: .*site 'x' to be one of the tensors"):
        sandwich(halved, near(model), x, simulate=True)


def test_inputs_beside_the_rows_stay():
    network = nn.Linear(1, 2).double()

    def model(x, y=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
            loc = (z * network(x)).sum(1)
            return pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def guide(x, y, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2, dtype=DOUBLE), 1.0).to_event(1))

    x, y = torch.randn(6, 1, dtype=DOUBLE), torch.zeros(6, dtype=DOUBLE)
    found = sandwich(model, guide, x, y, simulate=True, num_steps=60, seed=1)
    assert torch.equal(found.rows[0], x)
    assert not torch.equal(found.rows[1], y)
    scale = (1 + network(x).square().sum(1)).sqrt()
    exact = dist.Normal(0.0, scale).log_prob(found.rows[1]).mean().item()
    torch.testing.assert_close(found.lower.mean, exact, atol=0.03, rtol=0)
    torch.testing.assert_close(found.upper.mean, exact, atol=0.03, rtol=0)
