"""Likelihoods: exact log-probabilities, normalisation, and refusals."""

import itertools

import pytest
import torch

from guides import AmortizedNormal
from guides.conditional import ConditionalNormal, LabelNormal
from guides.ladder import BottomUpNormal
from ppl_models import VAE, elbo
from ppl_models.autoencoders.autoencoder import AutoEncoder
from ppl_models.autoencoders.conditional import ConditionalVAE
from ppl_models.autoencoders.hierarchical import HierarchicalVAE
from ppl_models.autoencoders.reconstruction import reconstruction
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from ppl_models.likelihoods import Bernoulli, Categorical, Levels, LogisticMixture, Normal
from ppl_models.nn import MLP
from tests.support.oracles import binary
from tests.support.runs import quiet


def test_bernoulli_sums_to_one():
    outputs = torch.randn(1, 6, dtype=torch.float64)
    rows = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64)
    total = Bernoulli()(outputs.expand(len(rows), 6)).log_prob(rows).logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-12)


def test_categorical_sums_to_one_and_agrees_with_torch():
    outputs = torch.randn(1, 3 * 4, dtype=torch.float64)
    rows = torch.tensor(list(itertools.product(range(4), repeat=3)), dtype=torch.float64) / 3
    got = Categorical(4)(outputs.expand(len(rows), 12)).log_prob(rows)
    assert got.logsumexp(0).item() == pytest.approx(0.0, abs=1e-12)
    expected = torch.distributions.Categorical(logits=outputs.view(3, 4)).log_prob(rows * 3)
    torch.testing.assert_close(got, expected.sum(1))


def test_levels_sample_their_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0])
    levels = Levels(logits)
    x = levels.sample((100_000,))
    assert levels.support.check(x).all()
    assert x.mean().item() == pytest.approx(levels.mean.item(), abs=0.005)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_float32_grey_levels_are_on_the_grid(levels):
    x = torch.arange(levels, dtype=torch.float32) / (levels - 1)
    support = Categorical(levels)(torch.zeros(1, levels * levels)).support
    assert support.check(x).all()
    assert not support.check(x + 0.4 / (levels - 1)).any()


def test_normal_has_a_shared_scale_or_one_of_each_pixel():
    outputs, x = torch.randn(5, 6), torch.randn(5, 3)
    own = Normal(own_scale=True)(outputs)
    scale = 1e-3 + outputs[:, 1::2].exp()
    expected = torch.distributions.Normal(outputs[:, ::2], scale).log_prob(x).sum(1)
    torch.testing.assert_close(own.log_prob(x), expected)

    shared = Normal()
    assert [p.shape for p in shared.parameters()] == [()]
    assert list(Normal(own_scale=True).parameters()) == []
    with torch.no_grad():
        shared.log_scale.fill_(-30.0)
    assert shared(outputs).stddev.min() >= 1e-3  # no infinite density


@pytest.mark.parametrize(
    ("likelihood", "num_outputs"),
    [(Bernoulli(), 1), (Normal(), 1), (Normal(own_scale=True), 2), (Categorical(17), 17)],
)
def test_a_vae_builds_its_decoder_for_each(likelihood, num_outputs):
    vae = VAE(num_features=6, num_latents=2, likelihood=likelihood)
    x = vae(size=3)
    assert x.shape == (3, 6)
    assert vae.decoder(torch.zeros(1, 2)).shape == (1, 6 * num_outputs)
    assert vae.mean(torch.zeros(3, 2)).shape == (3, 6)


def test_ones_own_likelihood():
    class Poisson:
        num_outputs = 1

        def __call__(self, outputs):
            import pyro.distributions as dist

            return dist.Poisson(outputs.exp()).to_event(1)

    assert VAE(4, 2, likelihood=Poisson())(size=3).shape == (3, 4)


@pytest.mark.parametrize("likelihood", ["bernoulli", Bernoulli, Normal, None, lambda x: x])
def test_what_is_no_likelihood(likelihood):
    with pytest.raises(TypeError, match=r"Bernoulli\(\), Normal\(\).*Categorical\(levels\)"):
        VAE(4, 2, likelihood=likelihood)


def test_one_level_is_none():
    with pytest.raises(ValueError, match="levels: expected a whole number, 2 or more"):
        Categorical(1)


@pytest.mark.parametrize("likelihood", ["bernoulli", Bernoulli, Normal, 3, lambda outputs: None])
def test_a_likelihood_that_is_none(likelihood):
    message = r"likelihood: expected an object, one of Bernoulli\(\), Normal\(\).*Categorical"
    with pytest.raises(TypeError, match=message):
        VAE(4, 2, likelihood=likelihood)


LABELS = torch.arange(12) % 3


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: elbo(VAE(4, 2, decoder=MLP(2, 1)), AmortizedNormal(4, 2)), binary(12)),
        (
            lambda: elbo(
                VAE(4, 2, LogisticMixture(2, 1), decoder=MLP(2, 3)), AmortizedNormal(4, 2)
            ),
            binary(12),
        ),
        (
            lambda: elbo(HierarchicalVAE(4, 3, 2, decoder=MLP(3, 1)), BottomUpNormal(4, 3, 2)),
            binary(12),
        ),
        (
            lambda: elbo(ConditionalVAE(4, 3, 2, decoder=MLP(5, 1)), ConditionalNormal(4, 3, 2)),
            (binary(12), LABELS),
        ),
        (
            lambda: elbo(SemiSupervisedVAE(4, 3, 2, decoder=MLP(5, 1)), LabelNormal(4, 3, 2)),
            (binary(12), LABELS),
        ),
        (lambda: reconstruction(AutoEncoder(4, 2, decoder=MLP(2, 1))), binary(12)),
        (
            lambda: reconstruction(AutoEncoder(4, 2, decoder=MLP(2, 1), likelihood=Bernoulli())),
            binary(12),
        ),
    ],
)
def test_one_output_is_not_spread_over_all_features(make, data):
    with pytest.raises(ValueError, match=r"expected the decoder to give . output\(s\) for each"):
        quiet(make(), data, epochs=1, seed=0)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_logistic_levels_sum_to_one(levels):
    """With scales from far less than a level to far more than all of them."""
    outputs = 3 * torch.randn(50, 3 * 4, dtype=torch.float64)
    outputs[:, 8:] = torch.linspace(-6, 8, 200).view(50, 4)  # log scales
    every = (torch.arange(levels, dtype=torch.float64) / (levels - 1)).view(-1, 1, 1)
    total = LogisticMixture(levels, 4)(outputs).log_prob(every).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(50, dtype=torch.float64), atol=1e-10, rtol=0)


def test_logistic_levels_are_differences_of_the_distribution_function():
    outputs = torch.randn(1, 9, dtype=torch.float64)
    weight, loc, scale = outputs[0, :3].softmax(0), outputs[0, 3:6], outputs[0, 6:].exp()
    edges = torch.tensor([-torch.inf, -0.75, -0.25, 0.25, 0.75, torch.inf], dtype=torch.float64)
    below = (weight * ((edges[:, None] - loc) / scale).sigmoid()).sum(1)  # P(u < edge)
    every = torch.arange(5, dtype=torch.float64).unsqueeze(1) / 4
    got = LogisticMixture(5, 3)(outputs).log_prob(every).exp()
    torch.testing.assert_close(got, below.diff())
    mean = LogisticMixture(5, 3)(outputs).mean
    torch.testing.assert_close(mean[0, 0], (below.diff() * every[:, 0]).sum())


def test_outputs_of_several_features_are_side_by_side():
    outputs = torch.randn(4, 2 * 6, dtype=torch.float64)
    x = torch.randint(5, (4, 2)).double() / 4
    both = LogisticMixture(5, 2)(outputs).log_prob(x)
    each = [LogisticMixture(5, 2)(outputs[:, 6 * d : 6 * d + 6]) for d in (0, 1)]
    torch.testing.assert_close(both, sum(p.log_prob(x[:, d : d + 1]) for d, p in enumerate(each)))


def test_logistic_levels_sample_their_probabilities():
    levels = LogisticMixture(4, 2)(torch.randn(1, 6)).base_dist.expand((1, 1))
    x = levels.sample((50_000,)).flatten()
    assert levels.support.check(x).all()
    every = torch.arange(4.0) / 3
    probability = levels.log_prob(every.view(4, 1, 1)).exp().flatten()
    frequency = torch.stack([(x == e).float().mean() for e in every])
    torch.testing.assert_close(frequency, probability, atol=0.01, rtol=0)
    assert x.mean().item() == pytest.approx(levels.mean.item(), abs=0.01)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_logistic_levels_have_finite_gradients(size):
    """Outputs as large as a network could ever give."""
    extremes = torch.tensor(list(itertools.product([-size, 0.0, size], repeat=3)))
    outputs = extremes.requires_grad_()
    for level in (0.0, 0.4, 1.0):
        x = torch.full((27, 1), level)
        log_prob = LogisticMixture(256, 1)(outputs).log_prob(x)
        (gradient,) = torch.autograd.grad(log_prob.sum(), outputs)
        assert log_prob.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 3), "levels: expected a whole number, 2 or more"),
        ((17, 0), "num_components: expected a positive whole number, got 0"),
    ],
)
def test_a_mixture_of_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogisticMixture(*arguments)
