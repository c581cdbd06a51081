r"""The evidence of a diffusion model by its probability flow: an estimate.

Noise and rows are joined by a differential equation without chance, along which the density of
noisy rows changes at a known rate, where the denoiser is exact:

.. math::
    \frac{dz}{d\lambda} &= f(z, \lambda) = \tfrac{1}{2} \alpha (\hat{x}(z, \lambda) - \alpha z) \\
    \log p(z_0) &= \log \mathcal{N}(z_1; 0, I)
    - \int_{\lambda_1}^{\lambda_0} \nabla \cdot f(z, \lambda) \, d\lambda

Rows are read off :math:`z_0` with a little noise, which dequantises those with grey levels:

.. math:: \log p(x) \ge \mathbb{E}_{q(z_0 \mid x)} \left[
    \log p(z_0) + \log p(x \mid z_0) - \log q(z_0 \mid x) \right]

This would be a bound; but the denoiser is not exact, so that the flow's density is not that of the
program, steps are finite, and the divergence is estimated by one probe a step: an estimate.

Shapes: `B` rows, `D` features, `N` steps.

References:
    | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
    | https://arxiv.org/abs/2011.13456
    | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
    | https://arxiv.org/abs/2101.09258
"""

import math
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_count, check_devices, check_tensors
from ppl_models.diffusion.denoising import check_data, check_diffusion
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.scoped import modes, own_rng


def probability_flow(
    diffusion: Any,
    *data: Tensor,
    num_steps: int = 100,
    num_samples: int = 1,
    batch_size: int = 1024,
    seed: int | None = None,
) -> Evidence:
    r"""Returns the evidence of rows by the probability flow of a diffusion model: an estimate.

    Each step is one of Heun's method, evenly in the log-SNR, and calls the network twice, forward
    and backward. Compare two numbers of steps: what changes is the error of the solver, which may
    well be on the side that flatters.

    Arguments:
        diffusion: A diffusion model, such as `Diffusion`.
        data: The rows `x`, with shape `(B, D)`, and perhaps their labels, `(B,)`: the estimate is
            then that of :math:`\log p(x \mid y)`.
        num_steps: The number of steps, `N`. Those of the model do not matter, only the log-SNRs
            between which it runs.
        num_samples: How many paths to follow for each row, each from a draw of :math:`z_0`.
        batch_size: How many paths are followed at once.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Returns:
        An `Evidence` of kind `"estimate"`. Its `monte_carlo_error` comes from the paths of a row,
        and is not known (NaN) from one path each.

    Raises:
        TypeError: If it is no diffusion model, or the rows are no floating-point numbers.
        ValueError: If the rows do not fit the model, or a count is not positive.

    Example:
        >>> from ppl_models.diffusion.model import Diffusion
        >>> flow = probability_flow(Diffusion(num_features=3), torch.zeros(10, 3), num_steps=20)
        >>> flow.kind, flow.value.shape
        ('estimate', torch.Size([10]))
    """
    check_diffusion(diffusion, "probability_flow", "log_evidence(model, guide, x)")
    check_count(num_steps=num_steps, num_samples=num_samples, batch_size=batch_size)
    if not data:
        raise ValueError("data: expected rows, got none. Try probability_flow(diffusion, x).")
    check_tensors(data)
    check_devices({"model": diffusion}, data)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(modes([diffusion], training=False))
        if seed is not None:
            stack.enter_context(own_rng("probability_flow", seed, data[0].device))
        discrete = check_data(diffusion, tuple(part[:2] for part in data), data)
        batches = list(zip(*(part.split(batch_size) for part in data), strict=True))
        paths = [
            torch.cat([_path(diffusion, num_steps, *batch) for batch in batches])
            for _ in range(num_samples)
        ]
    draws = torch.stack(paths)  # (S, B)
    variance = draws.var(0) if num_samples > 1 else torch.full_like(draws[0], math.nan)
    return Evidence(
        draws.mean(0),
        kind="estimate",
        num_rows=draws.shape[1],
        num_samples=num_samples,
        num_features=data[0][0].numel() if discrete else None,
        row_variance=variance / num_samples,
        weighted=False,
        row_size=data[0][0].numel(),
    )


def _path(diffusion: Any, num_steps: int, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The estimate of some rows by one path each, (B,), in float64 on the CPU."""
    log_snrs = diffusion.log_snrs()
    ends = torch.stack([log_snrs[0], log_snrs[-1]])
    z = diffusion.noisy(x, ends[0])  # (B, D)
    scale = (-ends[0]).sigmoid().sqrt()
    noise = (z - ends[0].sigmoid().sqrt() * diffusion.standardise(x)) / scale
    log_q = _standard_normal(noise) - x.shape[1] * scale.double().log()
    total = diffusion.read(z, y).log_prob(x).double() - log_q

    def slope(z: Tensor, log_snr: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        """f, and its divergence as far as a probe tells, without bias."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            alpha = log_snr.sigmoid().sqrt()
            f = alpha * (diffusion.denoise(z, log_snr, y) - alpha * z) / 2
            (along,) = torch.autograd.grad(f, z, probe)
        return f.detach(), (along * probe).sum(1).double()

    log_snr = torch.linspace(0, 1, num_steps + 1, dtype=z.dtype, device=z.device)
    log_snr = ends[0] + (ends[1] - ends[0]) * log_snr  # (N + 1,), falling
    for now, after in pairwise(log_snr):
        probe = torch.randint_like(z, 2) * 2 - 1  # exact where the Jacobian is diagonal
        first, first_divergence = slope(z, now, probe)
        second, second_divergence = slope(z + (after - now) * first, after, probe)
        z = z + (after - now) * (first + second) / 2
        # Minus the integral from the last log-SNR to the first is that along this path.
        total = total + (after - now).double() * (first_divergence + second_divergence) / 2
    return (total + _standard_normal(z)).cpu()


def _standard_normal(z: Tensor) -> Tensor:
    """The log-density of N(0, I), in float64."""
    return -(z.double().square() + math.log(2 * math.pi)).sum(1) / 2
