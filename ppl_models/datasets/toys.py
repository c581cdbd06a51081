r"""Toy distributions with known modes, for models that are judged by their samples.

.. math:: x_n \sim \mathcal{N}(m_{c_n}, \sigma^2 I), \qquad c_n \sim \mathrm{Uniform}\{1, \dots, C\}

Shapes: `N` rows, `C` modes.

References:
    | VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning
    | (Srivastava et al., 2017), https://arxiv.org/abs/1705.07761
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.checks import check_count


class Toy(NamedTuple):
    """Rows, and what they were drawn from.

    Attributes:
        x: Rows, `(N, 2)`.
        modes: The centres, `(C, 2)`.
        scale: The standard deviation around each.
    """

    x: Tensor
    modes: Tensor
    scale: float


def ring(num_rows: int, seed: int = 0) -> Toy:
    """Eight modes on a circle of radius 1, with standard deviation 0.01.

    Example:
        >>> x, modes, scale = ring(100)
        >>> x.shape, modes.shape, scale
        (torch.Size([100, 2]), torch.Size([8, 2]), 0.01)
    """
    angle = torch.arange(8) * (2 * torch.pi / 8)
    return _draw(num_rows, torch.stack([angle.cos(), angle.sin()], dim=1), 0.01, seed)


def grid(num_rows: int, seed: int = 0) -> Toy:
    """Twenty-five modes at {-4, -2, 0, 2, 4}^2, with standard deviation 0.05.

    Example:
        >>> grid(100).modes.shape
        torch.Size([25, 2])
    """
    line = torch.arange(-4.0, 5.0, 2.0)
    return _draw(num_rows, torch.cartesian_prod(line, line), 0.05, seed)


def _draw(num_rows: int, modes: Tensor, scale: float, seed: int) -> Toy:
    check_count(num_rows=num_rows)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(modes), (num_rows,), generator=generator)
    noise = torch.randn(num_rows, 2, generator=generator)
    return Toy(modes[chosen] + scale * noise, modes, scale)
