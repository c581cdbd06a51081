"""The aggregate posterior against quadrature, closed forms, and faults planted in guides."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy.integrate import quad
from torch import nn

from guides import AmortizedNormal, ConditionalNormal, ExactPosterior, LabelNormal
from guides.ladder import BottomUpNormal
from ppl_models import (
    VAE,
    FlowPrior,
    HierarchicalVAE,
    MixturePrior,
    ProbabilisticPCA,
    SemiSupervisedVAE,
    VampPrior,
    aggregate,
    data_plate,
)
from ppl_models.likelihoods import Normal


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def vae(num_latents, prior=None):
    return VAE(num_latents, num_latents, Normal(), nn.Identity(), prior=prior).double()


class Said(nn.Module):
    """A guide that says of a row with the number `n` what is in a list: scales as they are."""

    def __init__(self, locs, scales):
        super().__init__()
        self.locs, self.scales = locs, scales

    def posterior(self, x):
        n = x[:, 0].long()
        return dist.Normal(self.locs[n], self.scales[n]).to_event(1)

    def forward(self, x, size=None):
        with data_plate(x, size):
            return pyro.sample("z", self.posterior(x))


def rows(count, num_features=1):
    return torch.arange(count, dtype=torch.float64).unsqueeze(1).repeat(1, num_features)


def of(locs, scales, prior=None, **options):
    """The aggregate of Gaussians."""
    locs, scales = (torch.as_tensor(a, dtype=torch.float64) for a in (locs, scales))
    guide = Said(locs, scales)
    return aggregate(vae(locs.shape[1], prior), guide, rows(*locs.shape), seed=0, **options)


def integrated(locs, scales, log_prior):
    """I(n; z) and KL(q(z) || p(z)) of one dimension, by adaptive quadrature."""
    parts = [dist.Normal(*pair) for pair in zip(locs.flatten(), scales.flatten(), strict=True)]

    def log_all(z):
        return torch.stack([part.log_prob(z) for part in parts]).logsumexp(0) - math.log(len(parts))

    def mean(part, f):
        def height(z):
            z = torch.tensor(z, dtype=torch.float64)
            return (part.log_prob(z).exp() * (f(part, z))).item()

        ends = (part.loc + part.scale * torch.arange(-9, 10)).tolist()
        return sum(quad(height, *ends[i : i + 2], epsabs=1e-11)[0] for i in range(18))

    def over_rows(f):
        return sum(mean(part, f) for part in parts) / len(parts)

    information = over_rows(lambda part, z: part.log_prob(z) - log_all(z))
    return information, over_rows(lambda part, z: log_all(z) - log_prior(z))


def ppca(count=200, num_factors=2):
    x = double(count, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    return ProbabilisticPCA(6, num_factors).double().maximum_likelihood(x), x


def second_moment_is_one(model, guide, x):
    found = aggregate(model, guide, x, num_samples=2)
    moment = found.covariance + found.mean.outer(found.mean)
    torch.testing.assert_close(moment, torch.eye(len(moment)).to(moment), atol=1e-10, rtol=0)


TWO = [
    ([[-1.0], [1.5]], [[0.5], [0.8]]),
    ([[0.0], [0.3]], [[1.0], [0.02]]),  # one within the other
    ([[-4.0], [5.0]], [[0.1], [0.3]]),  # apart: I is log 2
    ([[0.2], [0.2]], [[0.7], [0.7]]),
]


@pytest.mark.parametrize(("locs", "scales"), TWO)
@pytest.mark.parametrize("prior", [None, MixturePrior(1, 3)], ids=["normal", "mixture"])
def test_two_rows_of_one_dimension_equal_quadrature(locs, scales, prior):
    locs, scales = (torch.tensor(a, dtype=torch.float64) for a in (locs, scales))
    found = of(locs, scales, prior)
    density = vae(1, prior).prior()
    information, gap = integrated(locs, scales, lambda z: density.log_prob(z[None]).detach())
    assert found.information == (pytest.approx(information, abs=1e-6), 0.0)
    assert found.prior_gap == (pytest.approx(gap, abs=1e-6), 0.0)
    assert found.mean_kl == (pytest.approx(information + gap, abs=1e-6), 0.0)
    assert found.information.value <= math.log(2) + 1e-12
    if prior is None:
        each = torch.distributions.kl_divergence(dist.Normal(locs, scales), dist.Normal(0.0, 1.0))
        assert found.mean_kl.value == pytest.approx(each.mean().item(), abs=1e-9)
        torch.testing.assert_close(found.kl_by_latent, each.mean(0))


def test_ppca_at_its_maximum_has_the_moments_of_its_prior():
    model, x = ppca()
    second_moment_is_one(model, ExactPosterior(model), x)
    found = aggregate(model, ExactPosterior(model), x, num_samples=20, seed=0)
    torch.testing.assert_close(found.mean, torch.zeros_like(found.mean), atol=1e-10, rtol=0)
    each = torch.distributions.kl_divergence(
        model.posterior(x), dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    )
    assert found.mean_kl == (pytest.approx(each.mean().item(), rel=1e-12), 0.0)
    total = found.information.value + found.prior_gap.value
    assert found.mean_kl.value == pytest.approx(total, rel=1e-12)
    assert found.active.tolist() == [True, True]
    # at the maximum the means have the variance that the posteriors lack
    torch.testing.assert_close(found.activity, 1 - model.posterior(x).variance[0])


def test_variances_passed_as_scales_are_caught():
    """As in a library whose encoder gave variances, which its sampler took for scales."""
    model, x = ppca()

    def guide(x, size=None):
        posterior = model.posterior(x)
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(posterior.mean, posterior.variance).to_event(1))

    with pytest.raises(AssertionError):
        second_moment_is_one(model, guide, x)


@pytest.mark.parametrize("num_latents", [1, 3])
def test_a_collapsed_posterior_tells_nothing(num_latents):
    one = torch.ones(6, num_latents, dtype=torch.float64)
    found = of(0.5 * one, 0.8 * one)
    each = 0.5 * (0.8**2 + 0.5**2 - 1) - math.log(0.8)
    assert found.information == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.0, abs=1e-12))
    assert found.prior_gap.value == pytest.approx(num_latents * each, abs=1e-9)
    assert found.activity.tolist() == pytest.approx([0.0] * num_latents)
    assert not found.active.any()


def test_a_shifted_guide_shows_in_the_gap_alone():
    model, x = ppca()
    shift = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def guide(x, size=None):
        posterior = model.posterior(x)
        with data_plate(x, size):
            shifted = dist.MultivariateNormal(posterior.mean + shift, posterior.covariance_matrix)
            pyro.sample("z", shifted)

    right = aggregate(model, ExactPosterior(model), x, seed=0)
    wrong = aggregate(model, guide, x, seed=0)
    assert wrong.information.value == pytest.approx(right.information.value)  # of the same draws
    rise = shift.square().sum().item() / 2  # as the mean of q(z) is zero without it
    assert wrong.prior_gap.value == pytest.approx(right.prior_gap.value + rise)
    torch.testing.assert_close(wrong.mean, shift)


@pytest.mark.slow
def test_draws_agree_with_quadrature_and_tell_their_error():
    """A second latent of no use sends the same numbers through draws."""
    locs, scales = double(7, 1), 0.2 + torch.rand(7, 1).double()
    exact = of(locs, scales)
    locs, scales = (torch.cat([a, torch.ones_like(a)], 1) for a in (locs, scales))
    extra = 0.5  # of the second latent, N(1, 1)
    guide, model, scores = Said(locs, scales), vae(2), []
    for seed in range(100):
        found = aggregate(model, guide, rows(7, 2), num_samples=30, seed=seed)
        scores.append((found.information.value - exact.information.value) / found.information.error)
        gap = found.prior_gap.value - exact.prior_gap.value - extra
        assert gap == pytest.approx(-scores[-1] * found.information.error, abs=1e-9)
    scores = torch.tensor(scores)
    assert abs(scores.mean()) < 4 / 10
    assert 0.8 < scores.std() < 1.25
    assert scores.abs().max() < 4


def test_the_aggregate_itself_as_prior_leaves_no_gap():
    x, guide = double(20, 3), AmortizedNormal(3, 2).double()
    best = VampPrior(x, guide)
    of_best = aggregate(VAE(3, 2, Normal(), prior=best).double(), guide, x, seed=0)
    assert of_best.prior_gap == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert of_best.mean_kl.value == pytest.approx(of_best.information.value)

    found = aggregate(VAE(3, 2, Normal()).double(), guide, x, num_samples=400, seed=0)
    closed = found.closed_by(best)
    error = math.hypot(closed.error, found.prior_gap.error)
    assert closed.value == pytest.approx(found.prior_gap.value, abs=4 * error)
    assert found.closed_by(MixturePrior(2, 3).double()).value < closed.value
    with pytest.raises(ValueError, match="distribution over vectors of 2 latents"):
        found.closed_by(MixturePrior(3, 3).double())


def test_single_latents_under_a_mixture():
    locs, scales = double(5, 2), 0.3 + torch.rand(5, 2).double()
    prior = MixturePrior(2, 3).double()
    found = of(locs, scales, prior, num_samples=4000)
    with torch.no_grad():
        density = prior()
    for k in range(2):
        alone = dist.MixtureSameFamily(
            density.mixture_distribution,
            dist.Normal(*(a[:, k].detach() for a in (prior.locs, prior.log_scales.exp()))),
        )
        expected = sum(integrated(locs[:, k], scales[:, k], alone.log_prob))
        assert found.kl_by_latent[k].item() == pytest.approx(expected, abs=0.03)
    torch.testing.assert_close(found.prior_mean, density.mean)
    torch.testing.assert_close(found.prior_variance, density.variance)


def test_posteriors_of_another_family():
    """Of Laplace posteriors there are draws alone, and no KL of single latents under a flow."""
    locs = double(6, 2)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Laplace(locs[x[:, 0].long()], 0.4).to_event(1))

    found = aggregate(vae(2), guide, rows(6, 2), num_samples=4000, seed=0)
    each = torch.distributions.kl_divergence(dist.Laplace(locs, 0.4), dist.Normal(0.0, 1.0)).sum(1)
    assert found.mean_kl.value == pytest.approx(each.mean().item(), abs=4 * found.mean_kl.error)
    variance = locs.var(0, unbiased=False) + 2 * 0.4**2
    torch.testing.assert_close(found.variance, variance, rtol=0.05, atol=0)
    torch.testing.assert_close(found.activity, variance - 2 * 0.4**2, rtol=0.05, atol=0)
    assert found.kl_by_latent is None
    of_flow = aggregate(vae(2, FlowPrior(2)), guide, rows(6, 2), seed=0)
    assert of_flow.mean_kl.value == pytest.approx(
        of_flow.information.value + of_flow.prior_gap.value
    )
    assert "      - " in str(of_flow)


def test_few_rows_at_once_change_no_number():
    model, x = ppca(50, 1)
    all_at_once = aggregate(model, ExactPosterior(model), x)
    few = aggregate(model, ExactPosterior(model), x, batch_size=7)
    assert few.information.value == pytest.approx(all_at_once.information.value, abs=1e-12)
    assert few.prior_gap.value == pytest.approx(all_at_once.prior_gap.value, abs=1e-12)
    torch.testing.assert_close(few.covariance, all_at_once.covariance)
    assert few.draws.shape == all_at_once.draws.shape == (10, 50, 1)


def test_few_points_at_once_change_no_number(monkeypatch):
    locs = double(9, 2)
    expected = of(locs, torch.full_like(locs, 0.5), MixturePrior(2, 3))
    monkeypatch.setattr("ppl_models.autoencoders.overlap.AT_ONCE", 100)
    found = of(locs, torch.full_like(locs, 0.5), MixturePrior(2, 3))
    assert found.information == pytest.approx(expected.information, rel=1e-12)


def test_rows_that_depend_on_each_other():
    x = double(12, 2)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x - x.mean(0), 0.5).to_event(1))

    found = aggregate(vae(2), guide, x, seed=0)
    expected = of(x - x.mean(0), torch.full_like(x, 0.5))
    torch.testing.assert_close(found.covariance, expected.covariance)
    assert found.mean_kl.value == pytest.approx(expected.mean_kl.value)
    assert found.information.value == pytest.approx(expected.information.value, abs=0.2)


def test_a_latent_that_is_a_number():
    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.5**0.5))

    x = double(5, 1)
    found = aggregate(model, guide, x)
    expected = of(x / 2, torch.full_like(x, 0.5**0.5))
    assert found.information.value == pytest.approx(expected.information.value, abs=1e-12)
    assert found.prior_gap.value == pytest.approx(expected.prior_gap.value, abs=1e-12)
    assert found.draws.shape == (10, 5, 1)


def test_labels_that_are_given_or_summed_out():
    x, y = torch.rand(9, 4).double().round(), torch.arange(9) % 3
    model, guide = SemiSupervisedVAE(4, 3, 2).double(), ConditionalNormal(4, 3, 2).double()
    assert aggregate(model, guide, x, y).num_rows == 9
    with pytest.raises(ValueError, match=r"one latent of each row, got the sites 'y', 'z'"):
        aggregate(model, LabelNormal(4, 3, 2).double(), x, y)


def test_it_prints_a_table_and_draws():
    locs = 0.5 * double(30, 14)
    found = of(locs, torch.full_like(locs, 0.1))
    text = str(found)
    assert "aggregate posterior of 30 rows, in nats per row" in text
    assert f"at most log N = {math.log(30):.3f}" in text
    assert "14 of 14 units active" in text
    assert "... and 2 more" in text
    assert "hardly overlap" in text
    assert len(found.plot().axes) == 13
    one = of(locs[:, :1], torch.full_like(locs[:, :1], 0.6))
    assert "hardly overlap" not in str(one)
    assert len(one.plot().axes) == 1


def test_narrow_posteriors_in_single_precision():
    """Networks round otherwise with other rows beside: no reason to refuse."""
    x, guide = torch.randn(600, 8), AmortizedNormal(8, 2)
    guide.encoder[-1].bias.data[2:] -= 8
    found = aggregate(VAE(8, 2, Normal()), guide, x, seed=0)
    assert found.information.value == pytest.approx(math.log(600), abs=0.2)
    assert "hardly overlap" in str(found)


def test_float32_rows():
    x = torch.rand(30, 8).round()
    found = aggregate(VAE(8, 2), AmortizedNormal(8, 2), x)
    assert found.information.value <= math.log(30)
    assert found.information.error > 0


# Refusals


def wide(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def point(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Delta(x).to_event(1))


def shared(x=None, size=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        pyro.sample("x", dist.Normal(z, 1.0).expand([2]).to_event(1), obs=x)


def without(x=None, size=None):
    with data_plate(x, size):
        pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x)


def conditional(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.1 * x, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def in_plates(x=None, size=None):
    with data_plate(x, size):
        with pyro.plate("k", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2, len(x)]))
        pyro.sample("x", dist.Normal(z.mT, 1.0).to_event(1), obs=x)


def in_plates_too(x, size=None):
    with data_plate(x, size), pyro.plate("k", 2, dim=-2):
        pyro.sample("z", dist.Normal(x.mT, 1.0))


class Box(nn.Module):
    def forward(self):
        return dist.Uniform(-torch.ones(2).double(), torch.ones(2).double()).to_event(1)


def masked(x=None, size=None):
    with data_plate(x, size), poutine.mask(mask=x[:, 0] < 1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def masked_too(x, size=None):
    with data_plate(x, size), poutine.mask(mask=x[:, 0] < 1):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def noisy(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x + torch.randn_like(x), 1.0).to_event(1))


def with_factor(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))
        pyro.factor("more", 0.1 * x[:, 0], has_rsample=True)


class Stubborn(dist.Normal):
    """A density of as many points as it has rows, and of no others."""

    def log_prob(self, value):
        return super().log_prob(value.view(self.batch_shape))


class Deaf(dist.Normal):
    """A density that takes the points of each row for those of the first."""

    def log_prob(self, value):
        return super().log_prob(value if value.dim() < 3 else value[:1])


def stubborn(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", Stubborn(x, torch.ones_like(x)).to_event(1))


def deaf(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", Deaf(x, torch.ones_like(x)).to_event(1))


def nothing(x=None, size=None):
    pass


def discrete(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5).to(x)).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def coin(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5).to(x)).to_event(1))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (vae(2), point, "expected a guide that spreads, got a point at 'z'"),
        (vae(2), AutoDelta(vae(2)), "expected a guide that spreads, got a point at 'z'"),
        (vae(2), AutoNormal(vae(2)), "one latent of each row, got the sites 'z', 'z_unconstr"),
        (in_plates, in_plates_too, r"batch shape \(rows,\), got Normal with batch shape \(2, "),
        (shared, AutoNormal(shared), "latents of rows, each by itself, got 'z' shared by all"),
        (without, nothing, "no latent to draw"),
        (conditional, wide, "a prior of 'z' that is the same for all rows"),
        (vae(2, Box()), wide, "the guide draws 'z' where Uniform, its prior, is zero"),
        (masked, masked_too, "the latent 'z' of each row, got a masked one"),
        (vae(2), noisy, "the guide says another density of 'z' than its site alone"),
        (vae(2), with_factor, "the guide says another density of 'z' than its site alone"),
        (vae(2), stubborn, "the guide says another density of 'z' than its site alone"),
        (vae(2), deaf, "the guide says another density of 'z' than its site alone"),
        (discrete, coin, "a continuous latent, got Bernoulli"),
        (
            HierarchicalVAE(2, 2, 2, Normal()).double(),
            BottomUpNormal(2, 2, 2).double(),
            "one latent of each row, got the sites 'z', 'z2'",
        ),
    ],
)
def test_refusals(model, guide, message):
    x = double(9, 2)
    with pytest.raises(ValueError, match=message):
        aggregate(model, guide, x)


def test_one_row_and_one_draw():
    with pytest.raises(ValueError, match="two rows or more, got one"):
        aggregate(vae(2), wide, double(1, 2))
    with pytest.raises(ValueError, match="num_samples: expected a whole number, 2 or more"):
        aggregate(vae(2), wide, double(9, 2), num_samples=1)
