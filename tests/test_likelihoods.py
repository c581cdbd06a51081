"""Likelihoods: exact log-probabilities, normalisation, and refusals."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from guides import AmortizedNormal
from guides.conditional import ConditionalNormal, LabelNormal
from guides.ladder import BottomUpNormal
from ppl_models import VAE, elbo
from ppl_models.autoencoders.autoencoder import AutoEncoder
from ppl_models.autoencoders.conditional import ConditionalVAE
from ppl_models.autoencoders.hierarchical import HierarchicalVAE
from ppl_models.autoencoders.reconstruction import reconstruction
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from ppl_models.likelihoods import (
    Bernoulli,
    Categorical,
    Levels,
    LogisticMixture,
    Multinomial,
    Normal,
    Ordered,
    Poisson,
)
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


LEVELS = torch.tensor([0.5, 1.0, 2.0, 5.0]).double()


@pytest.mark.parametrize("link", ["logit", "probit"])
@pytest.mark.parametrize("own", [False, True])
def test_ordered_levels_are_intervals_of_a_score_with_noise(link, own):
    likelihood = Ordered(LEVELS, link, own).double()
    with torch.no_grad():
        likelihood.first.fill_(-0.7)
        likelihood.log_gaps.copy_(torch.tensor([0.3, -0.5]))
    outputs = 0.5 * torch.randn(5, 2 * likelihood.num_outputs).double()  # no tails: scipy rounds
    law = likelihood(outputs)
    noise = stats.logistic if link == "logit" else stats.norm
    values = outputs.reshape(5, 2, -1)
    gaps = torch.tensor([0.3, -0.5]).double() + (values[..., 1:] if own else 0.0)
    cuts = -0.7 + torch.nn.functional.pad(gaps.exp().cumsum(-1), (1, 0))
    cuts = cuts.expand(5, 2, 3).detach().numpy()
    below = noise.cdf(cuts - values[..., :1].numpy())
    edges = np.concatenate([np.zeros((5, 2, 1)), below, np.ones((5, 2, 1))], -1)
    for n, level in enumerate(LEVELS):
        expected = np.log(np.diff(edges)[..., n]).sum(-1)
        found = law.log_prob(level.expand(5, 2)).detach()
        torch.testing.assert_close(found, torch.tensor(expected))
    mean = np.diff(edges) @ LEVELS.numpy()
    torch.testing.assert_close(law.mean.detach(), torch.tensor(mean))


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_ordered_levels_far_in_the_tails_have_gradients(link):
    likelihood = Ordered(LEVELS, link).double()
    for score in (-60.0, 0.0, 60.0):
        outputs = torch.tensor([[score]]).double().requires_grad_()
        for level in LEVELS:
            value = likelihood(outputs).log_prob(level.reshape(1, 1)).sum()
            (gradient,) = torch.autograd.grad(value, outputs)
            assert value.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_ordered_levels_have_gradients_in_float32(link):
    """That of torch's log_ndtr is no number far out, in some vectors."""
    outputs = torch.linspace(-8, 8, 20_000).requires_grad_()
    for level in (0.5, 5.0):
        law = Ordered(LEVELS.float(), link)(outputs)
        law.base_dist.log_prob(torch.full_like(outputs, level)).sum().backward()
        assert outputs.grad.isfinite().all()


def test_ordered_levels_are_sampled_as_often_as_they_say():
    torch.manual_seed(0)
    law = Ordered([1, 2, 3])(torch.tensor([[0.4]]))
    draws = law.sample((4000,)).flatten()
    for level in (1.0, 2.0, 3.0):
        share = (draws == level).double().mean().item()
        assert share == pytest.approx(law.log_prob(torch.tensor([[level]])).exp().item(), abs=0.03)


def test_ordered_levels_start_halfway():
    likelihood = Ordered(LEVELS, "probit").double()
    unit = likelihood.start(torch.tensor(1.2).double(), torch.tensor(0.5).double())
    found = likelihood(((LEVELS[2] - 1.2) * unit).reshape(1, 1)).log_prob(LEVELS[2].reshape(1, 1))
    normal = stats.norm(2.0, 0.5)
    assert found.exp().item() == pytest.approx(normal.cdf(3.5) - normal.cdf(1.5))


def test_numbers_that_are_no_levels_are_outside():
    law = Ordered(LEVELS).double()(torch.zeros(3, 1).double())
    assert law.support.check(torch.tensor([[1.0], [1.5], [6.0]]).double()).tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("levels", "link", "message"),
    [
        ([1, 2], "logit", "3 ascending numbers or more"),
        ([1, 3, 2], "logit", "3 ascending numbers or more"),
        ([1, 2, 3], "cloglog", "expected 'logit' or 'probit'"),
    ],
)
def test_levels_that_do_not_ascend_are_refused(levels, link, message):
    with pytest.raises(ValueError, match=message):
        Ordered(levels, link)


def test_poisson_outputs_are_logarithms():
    law = Poisson()(torch.tensor([[0.0, 1.0]]))
    expected = stats.poisson([1.0, np.e]).logpmf([2, 3]).sum()
    assert law.log_prob(torch.tensor([[2.0, 3.0]])).item() == pytest.approx(expected, rel=1e-5)


def test_multinomial_rows_are_scored_given_their_total():
    outputs = torch.randn(2, 4).double()
    rows = torch.tensor([[2.0, 0, 1, 0], [0, 5, 1, 1]]).double()
    law = Multinomial(total_count=3)(outputs)
    for row, logits, found in zip(rows, outputs, law.log_prob(rows), strict=True):
        peer = stats.multinomial(int(row.sum()), logits.softmax(-1).numpy())
        assert found.item() == pytest.approx(peer.logpmf(row.numpy()))
    torch.testing.assert_close(law.mean, 3 * outputs.softmax(-1))
    assert (law.sample((10,)).sum(-1) == 3).all()
    assert law.expand((5, 2)).log_prob(rows).shape == (5, 2)
    assert law.support.check(torch.tensor([[0.5, 0, 0, 0], [1, 0, 0, 2]])).tolist() == [False, True]


def test_fractions_of_counts_are_refused_before_the_first_step():
    objective = elbo(VAE(4, 2, Multinomial()), AmortizedNormal(4, 2))
    with pytest.raises(ValueError, match="lie outside the support"):
        quiet(objective, torch.full((6, 4), 0.5), epochs=1)
