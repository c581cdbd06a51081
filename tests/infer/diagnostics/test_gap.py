"""The inference gap: against closed forms of factor analysis, and a grid's integral of a banana."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import (
    AmortizedFlow,
    AmortizedLowRankNormal,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    ExactPosterior,
)
from ppl_models import (
    VAE,
    Evidence,
    FactorAnalysis,
    GaussianMixture,
    data_plate,
    elbo,
    fit,
    inference_gap,
    log_evidence,
)
from tests.support.oracles import linear_gaussian, same, state

DOUBLE = torch.float64


def correlated(rows=20):
    """A factor analysis whose posterior has correlations of all kinds, and rows."""
    torch.manual_seed(0)
    model = FactorAnalysis(6, 4).double()
    with torch.no_grad():
        model.log_scale.fill_(-1.0)
    return model, model(size=rows).detach()


def diagonal_gap(model, x):
    """What the best diagonal Gaussian costs: of the precision, its diagonal alone."""
    precision = torch.linalg.inv(model.posterior(x).covariance_matrix)
    return (precision.diagonal(dim1=1, dim2=2).log().sum(1) - precision.logdet()) / 2


def test_the_exact_posterior_has_no_gap():
    model, x = linear_gaussian(rows=20)
    gap = inference_gap(model, ExactPosterior(model), x)
    assert gap.total.abs().max() < 1e-8
    assert (gap.evidence.kind, gap.kind) == ("exact", "estimate")
    assert gap.approximation is gap.amortisation is None
    assert str(gap).endswith("not split, as the guide has no encoder")


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0), (2, 0), (1, 1), (1, 2), (1, 3)])
def test_the_gap_of_a_wrong_guide_is_its_divergence(scale, shift):
    model, x = linear_gaussian(rows=20)

    def posterior(x):
        exact = model.posterior(x)
        loc = exact.loc + shift * exact.scale_tril.sum(-1)
        return dist.MultivariateNormal(loc, scale_tril=scale * exact.scale_tril)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", posterior(x))

    gap = inference_gap(model, guide, x, seed=0)
    expected = torch.distributions.kl_divergence(posterior(x), model.posterior(x))
    assert expected[0] > 0.3
    assert abs(gap.total - expected).mean() < 4 * gap.elbo.variance.sqrt().mean()
    assert abs(gap.total.mean() - expected.mean()) < 4 * gap.monte_carlo_error


@pytest.mark.slow
def test_the_gap_closes_as_guides_get_richer():
    """Diagonal, low rank, full: of which the best member is found for each row."""
    model, x = correlated()
    found = {}
    for kind in (AmortizedNormal, partial(AmortizedLowRankNormal, rank=1), "full"):
        kind = AmortizedMultivariateNormal if kind == "full" else kind
        encoder = nn.Linear(6, kind(6, 4).num_outputs)
        guide = kind(6, 4, encoder=encoder).double()
        gap = inference_gap(model, guide, x, steps=1000, seed=0, num_samples=16_000)
        name = getattr(kind, "__name__", "low rank")
        found[name] = gap.approximation.mean().item()
        assert gap.amortisation.min() > 0.5  # an encoder that has learned nothing
        torch.testing.assert_close(gap.approximation + gap.amortisation, gap.total)
    assert found["AmortizedNormal"] == pytest.approx(diagonal_gap(model, x)[0].item(), abs=0.02)
    assert 0.05 < found["low rank"] < found["AmortizedNormal"] - 0.2
    assert abs(found["AmortizedMultivariateNormal"]) < 0.01


def test_what_an_encoder_costs_is_no_part_of_the_family():
    """One that is off by a standard deviation in one latent."""
    model, x = correlated()
    precision = torch.linalg.inv(model.posterior(x).covariance_matrix)[0]
    with torch.no_grad():
        rows = torch.cat([torch.zeros(1, 6), torch.eye(6)]).double()
        loc = model.posterior(rows).loc
        guide = AmortizedNormal(6, 4, nn.Linear(6, 8)).double()
        guide.encoder.weight.copy_(torch.cat([(loc[1:] - loc[0]).T, torch.zeros(4, 6)]))
        guide.encoder.bias.copy_(torch.cat([loc[0], -precision.diagonal().log() / 2]))
        guide.encoder.bias[0] += precision[0, 0] ** -0.5
    gap = inference_gap(model, guide, x, seed=0, num_samples=4000)
    torch.testing.assert_close(gap.amortisation.mean().item(), 0.5, atol=0.02, rtol=0)
    expected = diagonal_gap(model, x).mean()
    torch.testing.assert_close(gap.approximation.mean(), expected, atol=0.02, rtol=0)


def test_everything_is_as_it_was():
    model, guide = VAE(4, 2), AmortizedNormal(4, 2)
    model.train()
    guide.encoder[0].weight.requires_grad_(False)
    before, learns = state(model, guide), [p.requires_grad for p in guide.parameters()]
    torch.manual_seed(3)
    expected = torch.randn(1)
    torch.manual_seed(3)
    inference_gap(model, guide, torch.ones(5, 4), steps=3, num_samples=200, seed=0)
    assert torch.equal(torch.randn(1), expected)
    assert same(state(model, guide), before)
    assert [p.requires_grad for p in guide.parameters()] == learns
    assert model.training
    assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])


def test_rows_have_gaps_of_their_own():
    model, x = correlated(rows=8)
    guide = AmortizedNormal(6, 4).double()
    together = inference_gap(model, guide, x, seed=0, num_samples=3000)
    alone = inference_gap(model, guide, x[5:7], seed=0, num_samples=3000)
    torch.testing.assert_close(alone.approximation, together.approximation[5:7], atol=0.1, rtol=0)
    error = (together.elbo.variance[5:7] + alone.elbo.variance).sqrt()
    assert (abs(alone.total - together.total[5:7]) < 4 * error).all()


def test_beside_a_bound_a_gap_is_a_bound():
    x = (torch.rand(12, 4) > 0.5).float()
    model, guide = VAE(4, 2), AmortizedNormal(4, 2)
    gap = inference_gap(model, guide, x, steps=50, seed=0)
    assert gap.kind == gap.evidence.kind == "lower bound"
    assert "lower bound (evidence: lower bound; 1000 draws" in str(gap)
    assert gap.total.mean() > 0


def test_an_evidence_that_is_known_is_taken():
    model, x = linear_gaussian(rows=5)
    known = log_evidence(model, None, x)
    gap = inference_gap(model, ExactPosterior(model), x, evidence=known)
    assert gap.evidence is known
    with pytest.raises(ValueError, match="one value for each of the 4 bounds, got 5"):
        inference_gap(model, ExactPosterior(model), x[:4], evidence=known)


def test_latents_that_rows_share_have_one_gap():
    def model(x, size=None):
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x, size=None):  # the posterior, moved by a standard deviation
        count = len(x) + 1
        pyro.sample("loc", dist.Normal(x.sum() / count + count**-0.5, count**-0.5))

    x = torch.randn(30, dtype=DOUBLE)
    gap = inference_gap(model, guide, x, num_samples=2000, seed=0)
    assert gap.total.item() == pytest.approx(0.5, abs=4 * gap.monte_carlo_error * 30)
    assert gap.best is None
    assert str(gap).startswith(f"gap {gap.total.item() / 30:.3f} nats per row, lower bound")


def test_labels_beside_the_rows_are_given_on():
    class Twice(AmortizedNormal):
        def forward(self, x, y, size=None):
            return super().forward(torch.cat([x, y[:, None]], 1), size=size)

    model, x = correlated(rows=4)

    def labelled(x, y, size=None):
        return model(x, size=size)

    with pytest.warns(UserWarning, match="a few carry most of the weight"):
        gap = inference_gap(labelled, Twice(7, 4).double(), x, x[:, 0], num_samples=400, seed=0)
    assert gap.best.value.shape == (4,)


def test_what_has_no_such_gap():
    with pytest.raises(ValueError, match="latents that a guide draws, got a model without any"):
        inference_gap(GaussianMixture(4, 2), lambda x, size=None: None, torch.randn(5, 4))

    class Twice(AmortizedNormal):
        def posterior(self, x):
            self.encoder(x)
            return super().posterior(x)

    model, x = linear_gaussian(rows=5)
    with pytest.raises(ValueError, match=r"Twice to call its encoder once, .*got 2 calls"):
        inference_gap(model, Twice(5, 2).double(), x)
    for wrong in ({"steps": 0}, {"lr": -1.0}, {"num_samples": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a positive"):
            inference_gap(model, ExactPosterior(model), x, **wrong)


def banana(x=None, size=None):
    """One latent on a parabola of the other."""
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
        curve = z[..., 1:] + z[..., :1].square()
        return pyro.sample("x", dist.Normal(curve, 0.3).to_event(1), obs=x)


def integral(x):
    """The log evidence of rows of the banana on a grid."""
    axis = torch.linspace(-7, 7, 1401, dtype=DOUBLE)
    a, b = torch.meshgrid(axis, axis, indexing="ij")
    prior = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(0.0, 1.0).log_prob(b)
    of_rows = [dist.Normal(b + a.square(), 0.3).log_prob(row) for row in x]
    values = torch.stack([(prior + term).flatten().logsumexp(0) for term in of_rows])
    values = values + 2 * math.log(axis[1] - axis[0])
    return Evidence(values, "exact", len(x), 0, None, torch.zeros_like(values))


@pytest.mark.slow
def test_the_gap_of_a_banana_closes_as_guides_get_richer():
    x = torch.tensor([[-0.5], [1.0]], dtype=DOUBLE)
    kinds = {
        AmortizedNormal: (1e-2, 300),
        AmortizedMixture: (2e-3, 800),
        partial(AmortizedFlow, num_context=4, hidden=(32,)): (1e-2, 400),
    }
    found = []
    for kind, (lr, steps) in kinds.items():
        torch.manual_seed(0)
        guide = kind(1, 2).double()
        fit(
            elbo(banana, guide),
            x.repeat(16, 1),
            steps=steps,
            lr=lr,
            schedule=lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
            seed=0,
        )
        gap = inference_gap(banana, guide, x, evidence=integral(x), steps=1, seed=0)
        found.append(gap.total)
    normal, mixture, flow = found
    assert (mixture < normal - 0.05).all()
    assert (flow < mixture - 0.02).all()
    assert (flow > -0.02).all()
    assert flow.mean() < 0.1
