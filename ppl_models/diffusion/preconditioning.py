r"""What the network of a diffusion model predicts, and how a row without noise follows from it.

.. math:: \hat{x}(z, \lambda) = c_{\mathrm{skip}} z + c_{\mathrm{out}} F(c_{\mathrm{in}} z, \lambda)

================ ======================= ============================ ==========================
target           c_in                    c_skip                       c_out
================ ======================= ============================ ==========================
`"x0"`           1                       0                            1
`"eps"`          1                       :math:`1 / \alpha`           :math:`-\sigma / \alpha`
`"v"`            1                       :math:`\alpha`               :math:`-\sigma`
`"edm"`          :math:`1 / \tau`        :math:`\alpha s^2 / \tau^2`  :math:`\sigma s / \tau`
================ ======================= ============================ ==========================

where `s` is the standard deviation of the rows and :math:`\tau^2 = \alpha^2 s^2 + \sigma^2` the
variance of noisy ones. Under `"edm"` the network then sees unit variance, and has to predict unit
variance, at any noise. With `s = 1` it is `"v"`, up to the sign of the output.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), on "eps"
    | https://arxiv.org/abs/2006.11239
    | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022), on "v"
    | https://arxiv.org/abs/2202.00512
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), on
    | "edm", in the coordinates z / alpha
    | https://arxiv.org/abs/2206.00364
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.diffusion.schedules import alpha_sigma

TARGETS = ("x0", "eps", "v", "edm")


class Coefficients(NamedTuple):
    """The coefficients of a target, each like the log-SNR."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor


def precondition(target: str, log_snr: Tensor, data_scale: float = 0.5) -> Coefficients:
    r"""Returns the coefficients of a target at a log-SNR.

    Arguments:
        target: One of `"x0"`, `"eps"`, `"v"` and `"edm"`.
        log_snr: :math:`\lambda`, of any shape.
        data_scale: The standard deviation of the rows, `s`, for `"edm"`.

    Example:
        >>> precondition("v", torch.zeros(()))
        Coefficients(c_in=tensor(1.), c_skip=tensor(0.7071), c_out=tensor(-0.7071))
    """
    (alpha, sigma), one = alpha_sigma(log_snr), torch.ones_like(log_snr)
    if target == "x0":
        return Coefficients(one, 0 * one, one)
    if target == "eps":
        return Coefficients(one, 1 / alpha, -sigma / alpha)
    if target == "v":
        return Coefficients(one, alpha, -sigma)
    total = (alpha * data_scale).square() + sigma.square()  # tau^2
    return Coefficients(
        total.rsqrt(), alpha * data_scale**2 / total, sigma * data_scale * total.rsqrt()
    )
