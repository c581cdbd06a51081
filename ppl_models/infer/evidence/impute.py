r"""What is missing of rows, drawn given what is there.

.. math::
    x_m \sim p(x_m \mid x_o) = \int p(x_m \mid z) \, p(z \mid x_o) \, dz

where :math:`o` are the entries of a row that were observed and :math:`m` those that are missing.
The latents come from the guide, and are drawn again by their importance weights
:math:`p(x_o, z) / q(z \mid x_o)`: as the number of particles grows they are draws of the
posterior, whatever the guide.

Shapes: `B` rows, `D` features, `S` draws, `P` particles.

References:
    | Using the SIR Algorithm to Simulate Posterior Distributions (Rubin, 1988)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.programs import sites


def impute(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    num_samples: int = 1,
    *,
    num_particles: int = 100,
    seed: int | None = None,
) -> Tensor:
    """Returns rows whose missing entries are drawn; those observed stay as they are.

    For models with latents of rows and `missing="marginalise"`, such as `VAE`. Mixtures and factor
    models have a method `impute`, which is exact.

    Arguments:
        model: A Pyro program of rows with NaN.
        guide: Its guide, which takes such rows.
        x: Rows with NaN where entries are missing, `(B, D)`.
        num_samples: The number of draws, `S`.
        num_particles: The number of draws from the guide that each is chosen from, for each row,
            `P`. Two draws may have the same latents, the more often the fewer there are.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Returns:
        The rows, with shape `(S, B, D)`.

    Raises:
        ValueError: If latents are shared by all rows, or the data do not fit the model.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE
        >>> from ppl_models.nn import MLP, MissingInput
        >>> guide = AmortizedNormal(3, 2, encoder=MissingInput(MLP(6, 4)))
        >>> x = torch.tensor([[1.0, float("nan"), 0.0]])
        >>> impute(VAE(3, 2, missing="marginalise"), guide, x, num_samples=10).shape
        torch.Size([10, 1, 3])
    """
    check_count(num_samples=num_samples, num_particles=num_particles)
    with sampling(model, guide, (x,), seed) as joint:
        if not joint.tiled:
            raise ValueError(
                "impute: expected latents of rows, and a guide that takes any rows (an amortised "
                "one), so that each row has weights of its own."
            )
        size = max(1, 100_000 // num_particles)
        parts = [_impute(joint, rows, num_samples, num_particles) for rows in _slices(len(x), size)]
    return torch.cat(parts, 1)


def _impute(joint: Joint, rows: slice, num_samples: int, num_particles: int) -> Tensor:
    draws = joint.draw(rows, num_particles)
    log_weight = draws.log_weight.T  # of particles, (B, P)
    chosen = torch.distributions.Categorical(logits=log_weight).sample((num_samples,))  # (S, B)
    trace = joint.predictive(draws, joint.latents(draws))
    x = joint.data[0][rows]
    for name in sites.observed_sites(draws.model):
        site = trace.nodes[name]
        fresh = joint.unstack(draws, site, site["value"], x.ndim - 1)  # (P, B, D)
        if fresh.shape[1:] == x.shape:
            every = chosen.to(fresh.device).unsqueeze(-1).expand(-1, -1, x.shape[1])
            return torch.where(x.isnan(), fresh.gather(0, every), x)
    raise ValueError("impute: expected the model to return rows of the shape of x at a site.")


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
