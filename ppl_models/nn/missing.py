"""Rows of which some entries are missing, for networks that take numbers."""

import torch
from torch import Tensor, nn


class MissingInput(nn.Module):
    r"""A network on rows with NaN: zeros in their place, and beside them which entries are there.

    .. math:: f(\tilde{x}, m), \qquad
        \tilde{x}_d = x_d \, m_d, \quad m_d = 1 \text{ where } x_d \text{ was observed, else } 0

    Arguments:
        network: A module that takes `(B, 2 * D)`; or `(B, D)`, where `mask` is off.
        mask: Whether it is told which entries are there. Without, what is missing looks like a
            zero.

    Example:
        >>> encoder = MissingInput(nn.Linear(2 * 3, 4))
        >>> encoder(torch.tensor([[1.0, float("nan"), 0.0]])).isfinite().all()
        tensor(True)
    """

    def __init__(self, network: nn.Module, mask: bool = True) -> None:
        super().__init__()
        self.network, self.mask = network, mask

    def forward(self, x: Tensor) -> Tensor:
        missing = x.isnan()
        filled = torch.where(missing, 0.0, x)
        if not self.mask:
            return self.network(filled)
        return self.network(torch.cat([filled, (~missing).to(x.dtype)], -1))
