r"""A masked multilayer perceptron: its outputs for feature `d` see the features before `d` alone.

Each unit has a degree `m`: it sees the features `1, ..., m`. A unit of a hidden layer is connected
to the units below of the same degree or less, an output of feature `d` to those of degree less than
`d`. The units of a layer are sorted by degree.

Shapes: `B` rows, `D` features, `P` outputs for each feature, `H` hidden units.

References:
    | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
    | https://arxiv.org/abs/1502.03509
"""

from bisect import bisect_right
from collections.abc import Generator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedLinear(nn.Linear):
    """A linear layer without the connections where the mask is zero.

    Arguments:
        mask: Which connections there are, zeros and ones, with shape `(outputs, inputs)`.

    Example:
        >>> layer = MaskedLinear(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> _ = torch.nn.init.ones_(layer.weight), torch.nn.init.zeros_(layer.bias)
        >>> layer(torch.tensor([[1.0, 10.0]]))  # the first output sees the first input alone
        tensor([[ 1., 11.]], grad_fn=<AddmmBackward0>)
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)
        # The default bounds are of all inputs; units with few connections deserve larger ones.
        bound = mask.sum(1, keepdim=True).clamp(min=1).rsqrt()
        with torch.no_grad():
            self.weight.uniform_(-1.0, 1.0).mul_(bound)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedMLP(nn.Module):
    r"""A network from rows `(B, D)` to outputs `(B, D, P)`, causal from the first feature on.

    Arguments:
        num_features: The length of a row, `D`.
        num_outputs: The outputs for each feature, `P`.
        hidden: The width of each hidden layer.
        dropout: The probability with which a hidden unit is dropped in training.

    Example:
        >>> network = MaskedMLP(num_features=4, num_outputs=2)
        >>> x = torch.zeros(1, 4, requires_grad=True)
        >>> (gradient,) = torch.autograd.grad(network(x)[0, 2].sum(), x)
        >>> gradient.ne(0)  # of the third feature's outputs
        tensor([[ True,  True, False, False]])
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        hidden: Sequence[int] = (256,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features, self.num_outputs = num_features, num_outputs
        below = torch.arange(1, num_features + 1)
        features = below.repeat_interleave(num_outputs)  # of each output
        self.degrees: list[list[int]] = []  # of the units of each hidden layer, rising
        layers: list[MaskedLinear] = []
        for width in hidden:
            degree = 1 + torch.arange(width) * max(1, num_features - 1) // width
            layers.append(MaskedLinear((degree[:, None] >= below).float()))
            self.degrees.append(degree.tolist())
            below = degree
        layers.append(MaskedLinear((features[:, None] > below).float()))
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.dropout(layer(x).relu())
        return last(x).unflatten(1, (self.num_features, self.num_outputs))

    def walk(self, rows: int) -> Generator[Tensor, Tensor, None]:
        """Yields the outputs `(B, P)` of each feature, and is sent its values `(B,)`.

        Each unit is computed once, as soon as the features that it sees are known, so that a draw
        takes no more arithmetic than a pass.
        """
        layers = cast("list[MaskedLinear]", self.layers)
        *hidden, last = [(layer.weight * layer.mask, layer.bias) for layer in layers]
        widths = [self.num_features, *(len(degree) for degree in self.degrees)]
        units = [last[0].new_zeros(rows, width) for width in widths]  # the features come first
        known = [0] * len(widths)
        for d in range(self.num_features):
            for i, (weight, bias) in enumerate(hidden):
                stop = bisect_right(self.degrees[i], d)
                new = slice(known[i + 1], stop)  # those of degree d
                below = units[i][:, : known[i]]
                units[i + 1][:, new] = F.linear(below, weight[new, : known[i]], bias[new]).relu()
                known[i + 1] = stop
            ours = slice(d * self.num_outputs, (d + 1) * self.num_outputs)
            seen = units[-1][:, : known[-1]]
            units[0][:, d] = yield F.linear(seen, last[0][ours, : known[-1]], last[1][ours])
            known[0] = d + 1
