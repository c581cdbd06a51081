"""The plate of the rows: all that models and guides share."""

import pyro
import torch
from torch import Tensor


def data_plate(x: Tensor | None = None, size: int | None = None) -> pyro.plate:
    r"""Returns the plate `"data"`, in which the latents of a row and the row itself live.

    With data, it holds the rows of `x` as a minibatch of `size` rows in all, so that every
    log-density in it counts `size / len(x)` times. Without data, it holds `size` fresh rows.

    .. math::
        \log p(x_{1:N}, z_{1:N} \mid \theta) \approx
        \frac{N}{B} \sum_{b=1}^{B} \log p(x_b, z_b \mid \theta)

    Arguments:
        x: The rows, with shape `(B, *)`, or None.
        size: The number of rows in all, `N`. Default: the rows of `x`.

    Raises:
        ValueError: Where neither is given, or `size` is not positive, or less than the rows of `x`.

    Example:
        >>> with data_plate(torch.zeros(4, 3), size=100):
        ...     z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        >>> z.shape
        torch.Size([4])
    """
    if x is None:
        if size is None:
            raise ValueError(
                "data_plate: expected rows x or a number of rows, got neither. "
                "Try model(x) to score rows, model(size=10) to sample ten."
            )
        if size < 1:
            raise ValueError(f"data_plate: expected size=1 row or more to sample, got size={size}.")
        return pyro.plate("data", size, dim=-1)

    rows = len(x)
    if size is None or size == rows:
        return pyro.plate("data", rows, dim=-1, device=x.device)
    if size < rows:
        raise ValueError(
            f"data_plate: size counts the rows in all, of which x is a part; "
            f"expected at least {rows}, got size={size}."
        )
    # Which rows these are is not known here; `fit` supplies the true indices.
    return pyro.plate("data", size, subsample=torch.arange(rows, device=x.device), dim=-1)
