r"""The variational bound of a diffusion model with many steps, without running them in turn.

.. math::
    \log p(x) \ge \mathbb{E}[\log p(x \mid z_0)] - \mathrm{KL}(q(z_T \mid x) \,\|\, p(z_T))
    - \sum_{t=1}^{T} \mathbb{E} \left[ \mathrm{KL}(
    q(z_{t-1} \mid z_t, x) \,\|\, p(z_{t-1} \mid z_t)) \right]

Each :math:`z_t` is drawn directly from :math:`q(z_t \mid x)`, and the steps are a sum that may be
sampled: one step from each of `S` equal parts of the `T` steps. This gives the bound itself;
`log_evidence(diffusion, diffusion.noising, x)` runs the program, and weights its draws.

Shapes: `B` rows, `S` draws, `T` steps.

References:
    | Variational Diffusion Models (Kingma et al., 2021)
    | https://arxiv.org/abs/2107.00630
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_count, check_devices, check_tensors
from ppl_models.diffusion.denoising import check_data, check_diffusion
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.scoped import modes, own_rng


@torch.no_grad()
def variational_bound(
    diffusion: Any,
    *data: Tensor,
    num_steps: int | None = None,
    num_samples: int | None = None,
    batch_size: int = 4096,
    seed: int | None = None,
) -> Evidence:
    r"""Returns the variational bound of rows under a diffusion model, in nats: a lower bound.

    Arguments:
        diffusion: A diffusion model, such as `Diffusion`.
        data: The rows `x`, with shape `(B, D)`, and perhaps their labels, `(B,)`: the bound is
            then that of :math:`\log p(x \mid y)`.
        num_steps: The number of steps, `T`. Default: that of the model. Unless the network was
            trained for few, the bound rises with it.
        num_samples: How many noisy rows are denoised for each row, even. Default: one for each
            step, or two where there are few. With fewer than the steps it is a draw of the bound;
            `monte_carlo_error` is then larger, and says so.
        batch_size: How many noisy rows are denoised at once.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Returns:
        An `Evidence` of kind `"lower bound"`. Its `monte_carlo_error` compares neighbouring steps,
        which overstates it a little.

    Raises:
        TypeError: If it is no diffusion model, or the rows are no floating-point numbers.
        ValueError: If the rows do not fit the model, or a count is not positive.

    Example:
        >>> from ppl_models.diffusion.model import Diffusion
        >>> bound = variational_bound(Diffusion(num_features=3), torch.zeros(10, 3), num_steps=50)
        >>> bound.kind, bound.value.shape, bound.num_samples
        ('lower bound', torch.Size([10]), 50)
    """
    check_diffusion(diffusion, "variational_bound", "log_evidence(model, guide, x)")
    steps = diffusion.num_steps if num_steps is None else num_steps
    check_count(num_steps=steps, batch_size=batch_size)
    draws = max(steps + steps % 2, 2) if num_samples is None else num_samples
    check_count(num_samples=draws)
    if draws % 2:
        raise ValueError(f"num_samples: expected an even number, got {draws}. Try {draws + 1}.")
    if not data:
        raise ValueError("data: expected rows, got none. Try variational_bound(diffusion, x).")
    check_tensors(data)
    check_devices({"model": diffusion}, data)

    with ExitStack() as stack:
        stack.enter_context(modes([diffusion], training=False))
        if seed is not None:
            stack.enter_context(own_rng("variational_bound", seed, data[0].device))
        discrete = check_data(diffusion, tuple(part[:2] for part in data), data)
        batches = zip(*(part.split(batch_size) for part in data), strict=True)
        parts = [_bound(diffusion, steps, draws, batch_size, *batch) for batch in batches]
    value, variance = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return Evidence(
        value,
        kind="lower bound",
        num_rows=len(value),
        num_samples=draws,
        num_features=data[0][0].numel() if discrete else None,
        row_variance=variance,
        weighted=False,
        row_size=data[0][0].numel(),
    )


def _bound(
    diffusion: Any,
    steps: int,
    draws: int,
    batch_size: int,
    x: Tensor,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The bound of some rows and its variance over draws, (B,) each, in float64."""
    count = 4 + draws // 10  # a reading varies less than a step
    readings = torch.stack([diffusion.reconstruction(x, y).double() for _ in range(count)])
    value = readings.mean(0) - diffusion.prior_divergence(x).double()
    variance = readings.var(0) / count

    # Parts of the steps in pairs of neighbours, whose difference tells how much a draw varies.
    most = max(2, batch_size // len(x) // 2 * 2)
    for start in range(0, draws, most):
        parts = torch.arange(start, min(start + most, draws), device=x.device)  # (K,)
        u = parts[:, None] + torch.rand(len(parts), len(x), dtype=torch.float64, device=x.device)
        step = 1 + (u * steps / draws).long().clamp(max=steps - 1)  # (K, B)
        rows, labels = x.repeat(len(parts), 1), None if y is None else y.repeat(len(parts))
        terms = diffusion.step_divergence(rows, step.flatten(), labels, steps).double()
        terms = terms.view_as(step) * (steps / draws)
        value = value - terms.sum(0)
        variance = variance + (terms[0::2] - terms[1::2]).square().sum(0)
    return value, variance
