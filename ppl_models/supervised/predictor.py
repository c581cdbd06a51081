r"""What regressions share: the linear predictor, and the priors of its weights and bias.

.. math::
    \eta_{nk} = w_k^\top x_n + b_k, \qquad
    w_{dk} \sim \mathcal{N}(0, s_d^2), \qquad b_k \sim \mathcal{N}(0, s_b^2)

The scales of the priors are in the units of the data: the defaults are meant for standardised
features, whose standard deviation is 1.

Shapes: `B` rows, `D` features, `K` outputs, `S` draws.
"""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_count, check_no_array, check_rows

Scale = float | Tensor


def linear_predictor(x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Rows (B, D) times weights (D, K) or (S, 1, D, K), plus biases: (B, K) or (S, B, K)."""
    if weights.ndim == 2:
        return x @ weights + bias
    if weights.shape[-3] != 1 or bias.shape[:-1] != weights.shape[:-2]:
        raise ValueError(
            f"weights, bias: expected draws with a dimension for the rows, as in weights[:, None] "
            f"and bias[:, None]; got those of shapes {tuple(weights.shape[:-2])} and "
            f"{tuple(bias.shape[:-1])}."
        )
    return (x @ weights).squeeze(-3) + bias


def zero_mean(scale: Tensor) -> dist.Normal:
    """N(0, s^2). A number for the mean would be copied to the device at each call."""
    return dist.Normal(torch.zeros_like(scale), scale)


def register_scale(module: nn.Module, name: str, value: Scale, *shape: int) -> None:
    """Makes a standard deviation, or one for each feature, a buffer of that shape."""
    for count in shape:
        check_count(num_features=count)
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}.")
    scale = torch.as_tensor(value).detach()
    scale = scale if scale.is_floating_point() else scale.to(torch.get_default_dtype())
    if scale.shape not in ((), shape):
        either = f" or {shape[0]}, one for each feature" if shape else ""
        raise ValueError(f"{name}: expected one number{either}, got shape {tuple(scale.shape)}.")
    if not (scale.isfinite() & (scale > 0)).all():
        raise ValueError(f"{name}: expected positive standard deviations, got {value}.")
    module.register_buffer(name, scale.expand(shape).clone(), persistent=False)


def check_given(x: Tensor, num_features: int, where: str) -> None:
    """Raises unless there are rows, of that many features: they are never sampled."""
    check_no_array(x, where)
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{where}: expected rows x, got {type(x).__name__}. It is a model of y given x: "
            f"model(x) samples y for those rows, model(x, y) scores y."
        )
    check_rows(x, num_features, where)
