"""Samplers on a Gaussian whose score is known: their moments, exactly, and how fast they converge.

There a sampler is a linear map of the noise it starts from and the noise it draws. Rows that hold
one unit of noise each read that map off, and so the variance of what comes out, without chance.
"""

from itertools import pairwise

import pytest
import torch

from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.samplers import ancestral, ddim, guided, heun, langevin
from ppl_models.diffusion.schedules import Cosine, Linear, LogLinear, alpha_sigma, step_back
from ppl_models.likelihoods import Categorical

F64 = torch.float64
VARIANCES = torch.tensor([0.4, 0.2, 0.07, 0.03], dtype=F64)  # of the rows; their sum is 0.7
SAMPLERS = [ancestral, ddim, heun, langevin]
WITH_CHANCE = (ancestral, langevin)


def denoiser(mean=0.0, variances=VARIANCES):
    """E[x | z_t] of rows from N(mean, variances)."""

    def denoise(z, log_snr):
        alpha, sigma = alpha_sigma(log_snr)
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        return mean + gain * (z - alpha * mean)

    return denoise


def scales(sampler, schedule, num_steps, variances=VARIANCES, **options):
    """The exact standard deviations of what a sampler returns, (D,)."""
    units = torch.zeros(num_steps if sampler in WITH_CHANCE else 1, 4, dtype=F64)
    units[0] = 1.0  # the noise it starts from; each other row holds that of one draw
    drawn = []

    def noise(like):
        drawn.append(len(drawn) + 1)
        unit = torch.zeros_like(like)
        unit[drawn[-1]] = 1.0
        return unit

    if sampler in WITH_CHANCE:
        options["noise"] = noise
    drawn_rows = sampler(denoiser(0.0, variances), units, schedule, num_steps, **options)
    return drawn_rows.square().sum(0).sqrt()


def frechet(sampler, schedule, num_steps, **options):
    """The squared Frechet distance between N(0, VARIANCES) and what a sampler returns."""
    off = scales(sampler, schedule, num_steps, **options) - VARIANCES.sqrt()
    return off.square().sum().item()


def limit(sampler, schedule, step_size=0.1):
    """The scales that a sampler tends to as its steps become many, in closed form, (D,).

    They are not quite those of the rows: it starts from N(0, 1) where the noisy rows have the
    variance v_1, and ends with the mean given a little noise. The flow scales what it starts from,
    by sqrt(v_0 / v_1); the ancestral draws forget it, but for the covariance of z_0 and z_1; the
    corrector has forgotten it, and has a bias of its own, v / (1 - r sigma^2 / 2v) for v.
    """
    ends = schedule(torch.tensor([0.0, 1.0], dtype=F64))
    (alpha, last_alpha), (sigma, last_sigma) = alpha_sigma(ends)
    first = alpha**2 * VARIANCES + sigma**2  # v_0
    last = last_alpha**2 * VARIANCES + last_sigma**2  # v_1
    if sampler is ancestral:
        kept = last_alpha / alpha * first / last
        reached = first + kept**2 * (1 - last)
    elif sampler is langevin:
        reached = first / (1 - step_size * sigma**2 / (2 * first))
    else:
        reached = first / last
    return alpha * VARIANCES / first * reached.sqrt()


def error(sampler, schedule, num_steps, **options):
    """How far the scales are from those of infinitely many steps."""
    off = scales(sampler, schedule, num_steps, **options) - limit(sampler, schedule, **options)
    return off.norm().item()


@pytest.mark.parametrize(("sampler", "order"), [(ancestral, 1), (ddim, 1), (heun, 2)])
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), LogLinear(9.0, -9.0)])
def test_moments_converge_in_the_order_of_the_sampler(sampler, order, schedule):
    """Halving the step halves the error of the scales, and quarters that of Heun."""
    errors = [error(sampler, schedule, steps) for steps in (161, 321, 641)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.08)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.06)
    assert errors[2] < (1e-4 if order == 2 else 0.02)


@pytest.mark.parametrize("step_size", [0.3, 0.6])
def test_corrected_moments_converge(step_size):
    """In the first order, in the end: the bias of a step fades where there is little noise left,
    and each level is left before it is quite reached."""
    schedule = LogLinear(3.0, -9.0)
    errors = [error(langevin, schedule, steps, step_size=step_size) for steps in (641, 1281)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] < 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), LogLinear(9.0, -9.0)])
def test_moments_come_near_those_of_the_rows(sampler, schedule):
    distances = [frechet(sampler, schedule, steps) for steps in (10, 20, 40, 80)]
    assert all(a > 2 * b for a, b in pairwise(distances))
    assert frechet(sampler, schedule, 320) < 5e-4
    ends = limit(sampler, schedule) - VARIANCES.sqrt()  # from the ends of the schedule alone
    assert ends.square().sum() < 4e-7


@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_heun_beats_ancestral_at_equal_calls(schedule):
    """18 steps of Heun and 35 ancestral ones call the network 35 times."""
    assert 10 * frechet(heun, schedule, 18) < frechet(ancestral, schedule, 35)


def test_heun_36_matches_ancestral_200():
    assert frechet(heun, Cosine(), 36) < frechet(ancestral, Cosine(), 200)


@pytest.mark.parametrize(
    ("sampler", "calls"), [(ancestral, 10), (ddim, 10), (heun, 19), (langevin, 19)]
)
def test_network_calls(sampler, calls):
    count = []

    def counted(z, log_snr):
        count.append(log_snr)
        return denoiser()(z, log_snr)

    sampler(counted, torch.randn(3, 4, dtype=F64), Cosine(), 10)
    assert len(count) == calls
    assert count[0] == Cosine()(torch.ones((), dtype=F64))
    assert count[-1] == Cosine()(torch.zeros((), dtype=F64))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_goes_from_noise_to_a_row(sampler):
    z = torch.randn(3, 4, dtype=F64)
    expected = denoiser(2.0)(z, Cosine()(torch.ones((), dtype=F64)))
    torch.testing.assert_close(sampler(denoiser(2.0), z, Cosine(), 1), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_random_draws_have_the_exact_moments(sampler):
    """The noise is drawn as it should be: afresh at each step, of unit scale."""
    torch.manual_seed(2)
    z = torch.randn(20_000, 4, dtype=F64)
    x = sampler(denoiser(1.5), z, Cosine(), 12)
    expected = scales(sampler, Cosine(), 12)
    torch.testing.assert_close(x.std(0), expected, rtol=0.03, atol=0)
    torch.testing.assert_close(x.mean(0), torch.full((4,), 1.5, dtype=F64), atol=0.03, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_a_known_row_is_found_in_any_number_of_steps(sampler, schedule):
    x = torch.randn(3, 4, dtype=F64)
    for steps in (1, 2, 7):
        got = sampler(lambda z, log_snr: x, torch.randn(3, 4, dtype=F64), schedule, steps)
        torch.testing.assert_close(got, x)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), LogLinear(9.0, -9.0)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_few_steps_end_within_the_rows_and_many_have_their_scale(sampler, schedule, scale):
    """A step from much noise to little is stable: heun in 2 had a scale of 45 for 0.5."""
    variances = torch.full((4,), scale**2, dtype=F64)
    most = {heun: 1.25, langevin: 1.06}.get(sampler, 1.02)
    enough, near = {heun: (18, 0.06), ddim: (50, 0.06)}.get(sampler, (50, 0.12))
    for steps in (1, 2, 3, 4, 7, 12, 18, 50):
        off = scales(sampler, schedule, steps, variances) / scale - 1
        assert (off < most - 1).all()
        assert steps < enough or (off.abs() < near).all()


@pytest.mark.parametrize(("first", "last"), [(-8.0, 5.0), (-2.0, 3.0), (2.0, 9.0), (1.0, 1.5)])
def test_a_step_of_heun_by_hand(first, last):
    """Between what the denoiser says at both ends, beyond them by `alpha / 2 sigma` at most."""
    seen = []

    def denoise(z, log_snr):
        seen.append(z)
        return log_snr.expand_as(z)

    z = torch.randn(3, 4, dtype=F64)
    heun(denoise, z, LogLinear(last, first), 2)
    (alpha, last_alpha), (sigma, last_sigma) = alpha_sigma(torch.tensor([first, last], dtype=F64))
    share = (sigma / alpha) / (2 * last_sigma / last_alpha)
    share = min(share, 1 + alpha / (2 * sigma))
    x = first + share * (last - first)
    expected = last_alpha * x + last_sigma * (z - alpha * x) / sigma
    torch.testing.assert_close(seen[-1], expected)


def test_corrector_mends_a_bad_predictor():
    """At equal steps it comes nearer than its predictor, at twice the calls."""
    z = torch.randn(1, 4, dtype=F64)
    few = LogLinear(9.0, -9.0)
    small = frechet(langevin, few, 20, step_size=1e-9)
    assert small == pytest.approx(frechet(ddim, few, 20), rel=1e-3)
    assert frechet(langevin, few, 200, step_size=0.3) < frechet(ddim, few, 200)
    with pytest.raises(ValueError, match="step_size"):
        langevin(denoiser(), z, few, 3, step_size=0.0)


def test_corrector_leaves_the_density_of_a_level_up_to_its_step():
    """z + r (alpha x_hat - z) + sqrt(2 r) sigma e keeps N(0, v) up to a bias of order r."""
    log_snr = torch.tensor(-0.5, dtype=F64)
    alpha, sigma = alpha_sigma(log_snr)
    total = alpha**2 * VARIANCES + sigma**2  # v
    schedule = LogLinear(-0.5, -0.500001)  # a predictor that does nothing

    def variance(step_size):
        start = total.sqrt() * torch.tensor([[1.0], [0.0]], dtype=F64)
        unit = torch.tensor([[0.0], [1.0]], dtype=F64)
        noise = lambda z: unit.expand_as(z)  # noqa: E731
        out = langevin(denoiser(), start, schedule, 2, noise=noise, step_size=step_size)
        gain = denoiser()(torch.ones(4, dtype=F64), log_snr)  # undoes the last denoising
        return (out / gain).square().sum(0)

    for step_size in (0.1, 0.01):
        pull = step_size * sigma**2 / total
        expected = (1 - pull) ** 2 * total + 2 * step_size * sigma**2
        torch.testing.assert_close(variance(step_size), expected, rtol=1e-4, atol=0)
        bias = variance(step_size) / total - 1
        assert (bias.abs() < 1.1 * step_size**2).all()


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_guidance_moves_the_mean_of_gaussians(strength):
    """Denoisers of N(m, C) are affine in m: guided, they are that of m_u + w (m_c - m_u)."""
    both = guided(denoiser(1.0), denoiser(-0.5), strength)
    z, log_snr = torch.randn(5, 4, dtype=F64), torch.tensor(0.3, dtype=F64)
    expected = denoiser(-0.5 + strength * 1.5)
    torch.testing.assert_close(both(z, log_snr), expected(z, log_snr))
    x = heun(both, z, Cosine(), 20)
    torch.testing.assert_close(x, heun(expected, z, Cosine(), 20))


def test_samples_of_a_model_are_in_the_units_of_its_data():
    def network(z, log_snr):
        alpha, sigma = alpha_sigma(log_snr[:, None])
        return alpha / (alpha**2 + sigma**2) * z  # E[x | z] of unit variance

    model = Diffusion(2, network, Cosine(), "x0", num_steps=20, loc=5.0, scale=3.0)
    x = model.sample(4000, heun)
    torch.testing.assert_close(x.mean(0), torch.full((2,), 5.0), atol=0.2, rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((2,), 3.0), atol=0.2, rtol=0)

    # The program itself, whose few steps leave the rows too narrow, by this much.
    log_snr = model.log_snrs().double()
    ones, variance = torch.ones((), dtype=F64), 1.0
    for late, early in pairwise(log_snr.flip(0)):
        gain, scale = step_back(ones, alpha_sigma(late)[0], late, early)
        variance = gain**2 * variance + scale**2
    alpha, sigma = alpha_sigma(log_snr[0])
    narrow = (variance / alpha**2 + sigma**2 / alpha**2).sqrt().item()
    assert narrow == pytest.approx(0.902, abs=1e-3)
    literal = model(size=20_000)
    torch.testing.assert_close(literal.mean(0), torch.full((2,), 5.0), atol=0.07, rtol=0)
    torch.testing.assert_close(literal.std(0), torch.full((2,), 3 * narrow), atol=0.05, rtol=0)
    many = Diffusion(2, network, Cosine(), "x0", num_steps=300, loc=5.0, scale=3.0)(size=20_000)
    torch.testing.assert_close(many.std(0), torch.full((2,), 3.0), atol=0.08, rtol=0)

    levels = Diffusion(2, target="levels", likelihood=Categorical(5)).sample(50, ddim, num_steps=3)
    assert ((4 * levels - (4 * levels).round()).abs() < 1e-5).all()
    assert levels.min() >= 0
    assert levels.max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_refuse(sampler):
    z = torch.zeros(3, 4)
    for steps in (0, -1, 2.5):
        with pytest.raises(ValueError, match="positive whole number"):
            sampler(denoiser(), z, Cosine(), steps)
    with pytest.raises(ValueError, match="too many to tell apart"):
        sampler(denoiser(), z, LogLinear(8.0, 7.999), 200_000)
    with pytest.raises(ValueError, match="that fall"):
        sampler(denoiser(), z, lambda t: t, 10)
    with pytest.raises(TypeError, match="callable denoiser"):
        sampler(None, z, Cosine(), 10)


def test_guidance_needs_two_denoisers():
    with pytest.raises(TypeError, match="for the conditional one"):
        guided(None, denoiser(), 2.0)


def test_arguments_of_another_kind():
    with pytest.raises(TypeError, match=r"sampler: expected a function.*got None. Try anc"):
        Diffusion(3).sample(5, None)
