"""Noise schedules: what they promise, and the noising process as Gaussians."""

import math

import pytest
import torch

from ppl_models.diffusion.schedules import (
    Cosine,
    Learned,
    Linear,
    LogLinear,
    alpha_sigma,
    log_snrs,
    step_back,
)

SCHEDULES = [Linear(), Cosine(), LogLinear(), Learned()]
LIKE = torch.zeros((), dtype=torch.float64)


def every_schedule(function):
    return pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)(function)


@every_schedule
def test_snr_falls_from_clean_to_noise(schedule):
    if isinstance(schedule, Learned):
        schedule.double()
    values = log_snrs(schedule, 1000, LIKE)
    assert (values.diff() < 0).all()
    alpha, sigma = alpha_sigma(values)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close(2 * (alpha / sigma).log(), values)
    assert alpha[0] > 0.999
    assert sigma[-1] > 0.995


@pytest.mark.parametrize("seed", range(5))
def test_learned_schedule_falls_whatever_its_parameters(seed):
    torch.manual_seed(seed)
    schedule = Learned(num_knots=7).double()
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter.normal_(std=2.0)
        assert (log_snrs(schedule, 200, LIKE).diff() < 0).all()


def test_learned_schedule_has_its_knots_where_they_are_said_to_be():
    schedule = Learned(6.0, -4.0, num_knots=2).double()
    with torch.no_grad():
        schedule.shares.copy_(torch.tensor([0.0, math.log(3.0)]))  # a quarter, three quarters
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    expected = torch.tensor([6.0, 4.75, 3.5, -0.25, -4.0], dtype=torch.float64)
    torch.testing.assert_close(schedule(t), expected, atol=1e-6, rtol=0)
    schedule(t).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in schedule.parameters())


def test_linear_is_the_product_of_hos_thousand_steps():
    """1 - beta multiplied up, beta from 1e-4 to 0.02."""
    rates = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - rates).cumprod(0)  # alpha^2 after each step
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, _ = alpha_sigma(Linear()((u - 1e-3) / (1 - 1e-3)))
    torch.testing.assert_close(alpha, kept.sqrt(), atol=2e-3, rtol=0)


def test_cosine_is_nichols_up_to_its_ends():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, _ = alpha_sigma(Cosine(8.76, -30.0)(t))
    s = 0.008
    torch.testing.assert_close(alpha, ((t + s) / (1 + s) * math.pi / 2).cos(), atol=1e-4, rtol=0)


@every_schedule
def test_step_back_is_bayes_rule(schedule):
    """q(z_s | z_t, x) q(z_t | x) = q(z_t | z_s) q(z_s | x), whatever the three."""
    torch.manual_seed(1)
    if isinstance(schedule, Learned):
        schedule.double()
    late, early = schedule(torch.tensor([0.7, 0.4], dtype=torch.float64)).detach()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(late), alpha_sigma(early)
    x, z_s, z_t = torch.randn(3, 50, dtype=torch.float64)
    ratio = alpha_t / alpha_s
    step = (sigma_t**2 - ratio**2 * sigma_s**2).sqrt()  # of q(z_t | z_s)

    def density(mean, scale, value):
        return torch.distributions.Normal(mean, scale).log_prob(value)

    mean, scale = step_back(z_t, x, late, early)
    left = density(mean, scale, z_s) + density(alpha_t * x, sigma_t, z_t)
    right = density(ratio * z_s, step, z_t) + density(alpha_s * x, sigma_s, z_s)
    torch.testing.assert_close(left, right)


def test_a_schedule_that_rises_is_refused():
    with pytest.raises(ValueError, match="fall over 10 steps, got -1 at time 0 and"):
        log_snrs(lambda t: t - 1, 10, LIKE)
    with pytest.raises(ValueError, match="fall over 2 steps"):
        log_snrs(lambda t: 1 - 2 * (t - 0.5).abs(), 2, LIKE)


def test_too_many_steps_are_refused():
    """Float32 cannot tell the log-SNRs of so many steps apart."""
    with pytest.raises(ValueError, match=r"too many to tell apart in torch\.float32"):
        log_snrs(LogLinear(8.5, 8.49), 100_000, torch.zeros(()))


@pytest.mark.parametrize("num_steps", [0, -3, 2.5])
def test_a_number_of_steps_is_positive_and_whole(num_steps):
    with pytest.raises(ValueError, match="positive whole number"):
        log_snrs(LogLinear(), num_steps, LIKE)


def test_infinite_log_snrs_are_refused():
    with pytest.raises(ValueError, match="1 of them not finite"):
        log_snrs(lambda t: -t.log(), 4, LIKE)


@pytest.mark.parametrize("schedule", [LogLinear, "cosine", None])
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(TypeError, match=r"Try LogLinear\(\)"):
        log_snrs(schedule, 4, LIKE)


@pytest.mark.parametrize("kind", [Cosine, LogLinear, Learned])
def test_ends_the_wrong_way_round_are_refused(kind):
    with pytest.raises(ValueError, match="first > last"):
        kind(-5.0, 8.0)


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match="positive rates"):
        Linear(first_rate=0.0)
    with pytest.raises(ValueError, match="num_knots: expected a positive whole number, got 0"):
        Learned(num_knots=0)
