"""A residual multilayer perceptron."""

from torch import Tensor, nn


class ResidualMLP(nn.Module):
    r"""A deep network that starts as a shallow one.

    .. math:: h_0 = W_0 x + b_0, \qquad h_{l + 1} = h_l + f_l(h_l), \qquad o = W_n h_n + b_n

    Each block :math:`f_l` normalises its input, has one hidden layer, and starts at zero.

    Arguments:
        num_inputs: The length of the last dimension of the input.
        num_outputs: The length of the last dimension of the output.
        width: The length of the hidden vectors.
        num_blocks: The number of blocks.
        dropout: The probability with which a hidden unit is dropped in training.

    References:
        | Identity Mappings in Deep Residual Networks (He et al., 2016)
        | https://arxiv.org/abs/1603.05027

    Example:
        >>> import torch
        >>> ResidualMLP(64, 16)(torch.zeros(5, 64)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        width: int = 128,
        num_blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(num_inputs, width)
        self.blocks = nn.ModuleList([_block(width, dropout) for _ in range(num_blocks)])
        self.last = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def _block(width: int, dropout: float) -> nn.Module:
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    first = nn.Linear(width, width)
    return nn.Sequential(nn.LayerNorm(width), first, nn.ELU(), nn.Dropout(dropout), last)
