"""Pareto's k: of known tails, of guides that are right and wrong, per row and in all."""

import dataclasses
import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from guides import ExactPosterior
from ppl_models import data_plate, khat, log_evidence
from ppl_models.infer.evidence.pareto import Tails, tail_length, threshold
from tests.support.oracles import linear_gaussian

HALF = torch.tensor(0.5, dtype=torch.float64)
SCALE = 0.5**0.5  # of the posterior


def model(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of(scale=1.0, shift=0.0):
    """The posterior, made narrower or moved by so many of its standard deviations."""

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x / 2 + shift * SCALE, scale * SCALE))

    return guide


def rows(number=200):
    generator = torch.Generator().manual_seed(0)
    return 2**0.5 * torch.randn(number, generator=generator, dtype=torch.float64)


def tails(log_weight, rounding=1e-12):
    found = Tails.of(len(log_weight), log_weight.shape[1])
    for part in log_weight.split(300):
        found.add(slice(None), part, torch.full_like(part, rounding))
    return found


def pareto(k, draws, number, seed=0):
    """The logarithms of draws of a Pareto distribution."""
    uniform = torch.rand(
        draws, number, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return -k * torch.log(uniform)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.1])
def test_the_shape_of_a_pareto_distribution(k):
    found = tails(pareto(k, 20000, 20)).smoothed().k
    assert found.mean().item() == pytest.approx(k, abs=0.03)


def of_arviz(log_weight):
    """ArviZ's smoothed weights, and k, from a tail as long as ours."""
    draws = len(log_weight)
    if hasattr(az, "psislw"):  # ArviZ 0.x, which rounds the length up as we do
        return az.psislw(log_weight.T.numpy(), normalize=False)
    from arviz_stats.base import array_stats

    half = (tail_length(draws) + 0.5) / 3  # which it rounds down
    return array_stats.psislw(-log_weight.T.numpy(), r_eff=draws / half**2)


@pytest.mark.parametrize("draws", [1000, 1003, 5000])
def test_it_is_that_of_arviz(draws):
    log_weight = pareto(0.6, draws, 5)
    found = tails(log_weight).smoothed()
    smoothed, k = of_arviz(log_weight)
    np.testing.assert_allclose(found.k, k, atol=1e-6)
    largest = np.sort(smoothed, 1)[:, ::-1][:, : tail_length(draws)]
    ours = found.log_weights.T.numpy()
    np.testing.assert_allclose(ours - ours[:, :1], largest - largest[:, :1], atol=1e-6)


def test_a_normal_of_twice_the_scale():
    r"""Of :math:`q = \mathcal{N}(0, 1)` and :math:`p = \mathcal{N}(0, 4)`: k nears 3 / 4."""
    z = torch.randn(20000, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_weight = dist.Normal(0.0, 2.0).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
    assert tails(log_weight).smoothed().k.mean().item() == pytest.approx(0.7, abs=0.05)


def test_equal_weights_up_to_rounding_are_constant():
    noise = 1e-6 * torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)).double()
    assert tails(noise, rounding=1e-5).smoothed().k.tolist() == [0.0] * 3
    assert (tails(noise, rounding=1e-11).smoothed().k != 0).all()


def test_a_few_draws_above_equal_others_have_no_shape_to_tell():
    log_weight = torch.zeros(1000, 1, dtype=torch.float64)
    log_weight[:3] = 10.0
    assert tails(log_weight).smoothed().k.item() == math.inf


def test_weights_without_a_tail():
    """Of two values, each common."""
    log_weight = torch.zeros(1000, 1, dtype=torch.float64)
    log_weight[::2] = 1.0
    assert tails(log_weight).smoothed().k.item() == 0.0


def test_weights_of_finitely_many_values_have_no_tail():
    """The largest of 24 was drawn some 80 times, up to rounding: no larger one is to come."""
    values = pareto(1.5, 24, 5)
    which = torch.randint(24, (2000,), generator=torch.Generator().manual_seed(0))
    noise = 1e-9 * torch.rand(2000, 5, dtype=torch.float64)
    assert tails(values[which] + noise, rounding=1e-8).smoothed().k.tolist() == [0.0] * 5


def test_the_threshold():
    assert threshold(1000) == pytest.approx(1 - 1 / 3)
    assert threshold(10**6) == 0.7


def test_the_exact_posterior_has_constant_weights():
    gaussian, x = linear_gaussian(rows=20)
    found = khat(gaussian, ExactPosterior(gaussian), x)
    assert found.value.tolist() == [0.0] * 20
    assert len(found.failing) == 0
    exact = log_evidence(gaussian, None, x).value
    torch.testing.assert_close(found.evidence.value, exact)
    assert found.evidence.kind == "estimate"
    posterior = gaussian.posterior(x)
    means = posterior.mean
    assert (found.mean["z"] - means).abs().max() < 5 * found.std["z"].max() / 1000**0.5


@pytest.mark.parametrize(
    ("scale", "shift", "low", "high"),
    [(0.5, 0.0, 0.6, 0.8), (1.0, 3.0, 0.9, 1.2), (2.0, 0.0, -3.0, 0.0), (1.0, 1.0, 0.1, 0.5)],
)
def test_which_faults_it_sees(scale, shift, low, high):
    """One that is too narrow or far away, and none that is too wide."""
    found = khat(model, guide_of(scale, shift), rows(), seed=0)
    assert low < found.value.median().item() < high


def test_expectations_and_evidence_of_a_guide_that_is_not_right():
    x = rows(20)
    found = khat(model, guide_of(0.8, 0.5), x, num_samples=20000, batch_size=3000, seed=0)
    assert (found.mean["z"] - x / 2).abs().max() < 0.04
    assert (found.std["z"] - SCALE).abs().max() < 0.04
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert (found.evidence.value - exact).abs().max() < 0.05


def test_smoothing_is_no_more_than_that_of_the_tail():
    """Sums with smoothed weights are those over all draws at once."""
    x = rows(3)
    found = khat(model, guide_of(0.7), x, num_samples=500, seed=5)
    once = khat(model, guide_of(0.7), x, num_samples=500, batch_size=7, seed=5)
    assert found.value.shape == once.value.shape == (3,)


def test_a_row_alone_and_among_others():
    """Draws of rows are not pooled, with which k would grow with their number."""
    x = rows(100)
    among = khat(model, guide_of(0.6), x, num_samples=5000, seed=0).value[:10]
    alone = [
        khat(model, guide_of(0.6), row[None], num_samples=5000, seed=1 + n).value
        for n, row in enumerate(x[:10])
    ]
    assert torch.cat(alone).mean().item() == pytest.approx(among.mean().item(), abs=0.1)


def shared(x=None, size=None):
    m = pyro.sample("m", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(("scale", "fails"), [(1.0, False), (0.3, True)])
def test_latents_of_all_rows(scale, fails):
    x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def guide(x, size=None):
        sd = scale * (1 + len(x)) ** -0.5
        pyro.sample("m", dist.Normal(x.sum(0) / (1 + len(x)), sd).to_event(1))

    found = khat(shared, guide, x, seed=0)
    assert found.value.shape == (1,)
    assert (len(found.failing) == 1) == fails
    assert found.mean["m"].shape == (2,)
    assert ("fails" in str(found)) == fails
    if not fails:
        torch.testing.assert_close(found.mean["m"], x.sum(0) / 31, atol=0.05, rtol=0)
        torch.testing.assert_close(
            found.std["m"], torch.full((2,), 31**-0.5).double(), atol=0.02, rtol=0
        )


def test_enumerated_latents_beside_those_of_a_guide():
    def mixed(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            k = pyro.sample("k", dist.Bernoulli(HALF), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(z + 0 * k, 1.0), obs=x)

    found = khat(mixed, guide_of(), rows(10), seed=0)
    assert found.value.tolist() == [0.0] * 10
    assert list(found.mean) == ["z"]


def test_the_line_names_the_worst_rows():
    found = khat(model, guide_of(0.5), rows(), seed=0)
    worst = found.value.argmax().item()
    assert f"where the guide fails: rows {worst}, " in str(found)
    assert found.failing[0].item() == worst
    assert (found.value[found.failing] > found.threshold).all()


def test_evidence_says_when_its_error_is_understated():
    """Without variance in its line, and with a warning where weights have no mean either."""
    found = log_evidence(model, guide_of(0.5), rows(), seed=0)
    assert found.is_unreliable
    assert "rows, Monte Carlo error" in str(found)
    assert "understated: weights of infinite variance" in str(found)
    assert found.pareto_k.shape == (200,)
    with pytest.warns(UserWarning, match=r"infinite variance|as good as"):
        assert log_evidence(model, guide_of(0.35), rows(), seed=0).is_unreliable
    good = log_evidence(model, guide_of(0.9), rows(), seed=0)
    assert not good.is_unreliable
    assert "k up to" in str(good)


@pytest.mark.parametrize(
    ("k", "said"), [(0.2, "fine"), (0.6, "usable, with an error that"), (0.9, "too heavy: the gui")]
)
def test_the_verdict_on_one_posterior_is_that_of_its_evidence(k, said):
    found = khat(model, guide_of(), rows(3), seed=0)
    one = dataclasses.replace(found, value=torch.tensor([k]))
    assert f"k {k:.2f} of 1000 draws, {said}" in str(one)


@pytest.mark.parametrize("scale", [0.8, 1.5])
def test_the_error_is_the_spread_of_repeats_where_k_is_small(scale):
    repeats = torch.full((400,), 0.7, dtype=torch.float64)  # rows alike, with draws of their own
    found = log_evidence(model, guide_of(scale), repeats, num_samples=400, seed=0)
    errors = found.row_variance.sqrt().mean().item()
    assert errors == pytest.approx(found.value.std().item(), rel=0.2)


def test_too_few_draws_for_a_tail():
    with pytest.raises(ValueError, match=r"at least 25 draws.* got 24"):
        khat(model, guide_of(), rows(3), num_samples=24)
    assert log_evidence(model, guide_of(), rows(3), num_samples=24).pareto_k is None


def test_a_model_without_latents():
    def plain(x=None, size=None):
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="expected latents that a guide draws"):
        khat(plain, None, torch.zeros(3))


def test_a_row_whose_every_weight_is_zero():
    def bounded(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Uniform(2.0, 3.0, validate_args=False))

    with pytest.raises((FloatingPointError, ValueError), match=r"support|zero"):
        khat(bounded, guide, torch.zeros(3))
