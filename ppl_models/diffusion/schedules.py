r"""Noise schedules: how fast a row turns into noise.

A row turns into noise between the times 0 and 1, and keeps unit variance on the way (variance
preserving). All that a schedule says is the log of the signal-to-noise ratio, which falls:

.. math::
    q(z_t \mid x) = \mathcal{N}(\alpha_t x, \sigma_t^2 I), \qquad
    \alpha_t^2 = \mathrm{sigmoid}(\lambda_t), \quad \sigma_t^2 = \mathrm{sigmoid}(-\lambda_t), \quad
    \lambda_t = \log (\alpha_t^2 / \sigma_t^2)

Any callable from times, of any shape, to log-SNRs is a schedule.

Shapes: `B` rows, `D` features, `K` knots.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
    | https://arxiv.org/abs/2006.11239
    | Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021)
    | https://arxiv.org/abs/2102.09672
    | Variational Diffusion Models (Kingma et al., 2021)
    | https://arxiv.org/abs/2107.00630
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppl_models.checks import check_count
from ppl_models.prompt.lines import in_a_line

Schedule = Callable[[Tensor], Tensor]


class Linear:
    r"""Ho et al.: noise is added at a rate that grows linearly in time.

    .. math::
        \alpha_t^2 = \exp(-\beta_0 u - (\beta_1 - \beta_0) u^2 / 2), \qquad u = u_0 + (1 - u_0) t

    Arguments:
        first_rate: The rate at the start, :math:`\beta_0`.
        last_rate: The rate at the end, :math:`\beta_1`. The defaults are Ho's thousand steps in
            the limit of many.
        start: The time :math:`u_0` at which it begins, Ho's first step: at 0 there is no noise,
            and the log-SNR is infinite.

    Raises:
        ValueError: Unless the rates are positive and `start` is between 0 and 1.

    Example:
        >>> Linear()(torch.tensor([0.0, 0.5, 1.0]))
        tensor([  9.1154,  -2.4606, -10.0500])
    """

    __repr__ = in_a_line

    def __init__(
        self, first_rate: float = 0.1, last_rate: float = 20.0, start: float = 1e-3
    ) -> None:
        if not (first_rate > 0 and last_rate > 0 and 0 < start < 1):
            raise ValueError(
                f"Linear: expected positive rates and a start between 0 and 1, got "
                f"{first_rate}, {last_rate} and {start}. Try Linear()."
            )
        self.first_rate, self.last_rate, self.start = first_rate, last_rate, start

    def __call__(self, t: Tensor) -> Tensor:
        u = self.start + (1 - self.start) * t
        exponent = self.first_rate * u + (self.last_rate - self.first_rate) * u**2 / 2
        return -exponent.expm1().log()


class Cosine:
    r"""Nichol & Dhariwal: the signal falls as a cosine, slowly at both ends.

    .. math::
        \alpha_t = \cos \phi_t, \quad \sigma_t = \sin \phi_t, \quad \lambda_t = -2 \log \tan \phi_t

    with an angle linear in time, between those of `first` and `last` instead of 0 and
    :math:`\pi / 2`, where the log-SNR is infinite.

    Arguments:
        first: The log-SNR at time 0. The default is that of Nichol & Dhariwal's offset `s = 0.008`.
        last: The log-SNR at time 1.

    Raises:
        ValueError: Unless `first` is larger than `last`.

    Example:
        >>> Cosine(first=9.0, last=-9.0)(torch.tensor([0.0, 0.5, 1.0])).round(decimals=3).abs()
        tensor([9., 0., 9.])
    """

    __repr__ = in_a_line

    def __init__(self, first: float = 8.76, last: float = -9.0) -> None:
        _check_ends(first, last, "Cosine")
        self.first, self.last = first, last

    def __call__(self, t: Tensor) -> Tensor:
        start, end = (math.atan(math.exp(-end / 2)) for end in (self.first, self.last))
        return -2 * (start + (end - start) * t).tan().log()


class LogLinear:
    r"""The log-SNR falls linearly, :math:`\lambda_t = \lambda_0 + (\lambda_1 - \lambda_0) t`.

    Arguments:
        first: The log-SNR at time 0, high enough for the row to be read off: neighbouring levels
            are :math:`\delta e^{\lambda_0 / 2}` standard deviations apart, :math:`\delta` being
            the distance between them.
        last: The log-SNR at time 1, low enough for the row to be forgotten.

    Raises:
        ValueError: Unless `first` is larger than `last`.

    Example:
        >>> LogLinear(8.0, -4.0)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([ 8.,  2., -4.])
    """

    __repr__ = in_a_line

    def __init__(self, first: float = 8.5, last: float = -5.0) -> None:
        _check_ends(first, last, "LogLinear")
        self.first, self.last = first, last

    def __call__(self, t: Tensor) -> Tensor:
        return self.first + (self.last - self.first) * t


class Learned(nn.Module):
    r"""A learned schedule: piecewise linear in time, falling whatever its parameters.

    .. math:: \lambda_t = \lambda_0 - e^r \sum_k \mathrm{softmax}(w)_k \min(\max(K t - k, 0), 1)

    It starts as `LogLinear(first, last)`. Both ends are learned too.

    Arguments:
        first: The log-SNR at time 0, to start from.
        last: The log-SNR at time 1, to start from.
        num_knots: The number of pieces, `K`.

    Raises:
        ValueError: Unless `first` is larger than `last`, and there is a piece.

    Example:
        >>> Learned(8.0, -4.0)(torch.tensor([0.0, 0.5, 1.0])).detach().round(decimals=3)
        tensor([ 8.,  2., -4.])
    """

    __repr__ = in_a_line

    def __init__(self, first: float = 8.5, last: float = -5.0, num_knots: int = 16) -> None:
        super().__init__()
        _check_ends(first, last, "Learned")
        check_count(num_knots=num_knots)
        self.first = nn.Parameter(torch.tensor(float(first)))  # lambda_0
        self.log_range = nn.Parameter(torch.tensor(math.log(first - last)))  # r
        self.shares = nn.Parameter(torch.zeros(num_knots))  # w, (K,)

    def forward(self, t: Tensor) -> Tensor:
        pieces = torch.arange(len(self.shares), dtype=t.dtype, device=t.device)
        passed = (len(self.shares) * t[..., None] - pieces).clamp(0, 1)  # (*, K)
        return self.first - self.log_range.exp() * (passed * self.shares.softmax(0)).sum(-1)


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns :math:`\alpha` and :math:`\sigma`, whose squares sum to one, like `log_snr`.

    Example:
        >>> alpha_sigma(torch.zeros(()))
        (tensor(0.7071), tensor(0.7071))
    """
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def step_back(z: Tensor, x: Tensor, log_snr: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the mean and the scale of :math:`q(z_s \mid z_t, x)` at an earlier time `s < t`.

    .. math::
        q(z_s \mid z_t, x) = \mathcal{N}(
        \alpha_s ((1 - c) z_t / \alpha_t + c x), \; c \sigma_s^2 I),
        \qquad c = 1 - e^{\lambda_t - \lambda_s}

    Arguments:
        z: The noisy rows :math:`z_t`, with shape `(B, D)`.
        x: The rows without noise, or what a denoiser takes for them, likewise.
        log_snr: :math:`\lambda_t`, one number, or `(B, 1)`.
        earlier: :math:`\lambda_s`, larger, alike.
    """
    (alpha_t, _), (alpha_s, sigma_s) = alpha_sigma(log_snr), alpha_sigma(earlier)
    kept = (log_snr - earlier).exp()  # 1 - c
    share = -(log_snr - earlier).expm1()  # c, without cancellation
    return alpha_s * (kept / alpha_t * z + share * x), share.sqrt() * sigma_s


def log_snrs(schedule: Schedule, num_steps: int, like: Tensor, check: bool = True) -> Tensor:
    """Returns the log-SNR at the times `0, 1 / T, ..., 1`, with shape `(T + 1,)`, falling.

    Arguments:
        schedule: A noise schedule.
        num_steps: The number of steps, `T`.
        like: A tensor whose dtype and device the result has.
        check: Whether to look at the result: False for a schedule that was checked before.

    Raises:
        TypeError: If the schedule cannot be called.
        ValueError: If the number of steps is no positive whole number, or the log-SNRs are not
            finite, or do not fall from each step to the next.

    Example:
        >>> log_snrs(LogLinear(8.0, -4.0), 3, like=torch.zeros(()))
        tensor([ 8.,  4.,  0., -4.])
    """
    check_count(num_steps=num_steps)
    if isinstance(schedule, type) or not callable(schedule):
        raise TypeError(
            f"schedule: expected a callable from times to log-SNRs, got {schedule!r}. "
            f"Try LogLinear(), Cosine(), Linear() or Learned()."
        )
    t = torch.arange(num_steps + 1, dtype=like.dtype, device=like.device) / num_steps
    values = schedule(t)  # (T + 1,)
    if not check:
        return values
    if not isinstance(values, Tensor):
        raise TypeError(
            f"schedule: expected a tensor of log-SNRs, one for each time, got {values!r}. "
            f"Try LogLinear(), Cosine(), Linear() or Learned()."
        )
    if values.shape != t.shape or not values.isfinite().all():
        raise ValueError(
            f"schedule: expected a finite log-SNR for each of {len(t)} times, got shape "
            f"{tuple(values.shape)}, {int((~values.isfinite()).sum())} of them not finite. "
            f"Try a schedule that stops short of no noise, and of noise alone."
        )
    rising = (values.diff() >= 0).nonzero()
    if len(rising):
        step = int(rising[0])
        raise ValueError(
            f"schedule: expected log-SNRs that fall over {num_steps} steps, got "
            f"{values[step].item():g} at time {t[step].item():g} and {values[step + 1].item():g} "
            f"at {t[step + 1].item():g}. Try LogLinear(); fewer steps, where they are too many to "
            f"tell apart in {like.dtype}."
        )
    return values


def _check_ends(first: float, last: float, where: str) -> None:
    if not (math.isfinite(first) and math.isfinite(last) and first > last):
        raise ValueError(
            f"{where}: the log-SNR falls from first to last; expected first > last, both finite, "
            f"got {first} and {last}."
        )
