r"""Gated masked convolutions: the outputs of a pixel see the pixels before it, and no other.

Pixels are ordered row by row. A stack of masked convolutions has a blind spot, above to the right.
So there are two stacks: the vertical one sees the rows above, the horizontal one the pixels to the
left and what the vertical one saw:

.. math::
    v' &= W_v * v, \qquad h' = W_h * h + W_{vh} v' \\
    v &\leftarrow v + \mathrm{gate}(v'), \qquad h \leftarrow h + W_o \, \mathrm{gate}(h'), \qquad
    \mathrm{gate}(a, b) = \tanh(a) \, \sigma(b)

A convolution whose mask is zero over what comes later is one with a smaller kernel. In the first
layer (mask A) the kernel stops before the pixel, in the others (mask B) at the pixel.

Shapes: `B` rows, images of `H` by `W` pixels, `C` channels, `P` outputs for each pixel.

References:
    | Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016b)
    | https://arxiv.org/abs/1606.05328
"""

from collections.abc import Callable, Generator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gate(x: Tensor) -> Tensor:
    """Returns `tanh(a) * sigmoid(b)` of the two halves of the channels."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class GatedLayer(nn.Module):
    """A layer of both stacks (mask B), for windows that are padded already.

    Arguments:
        num_channels: The channels of each stack, `C`.
        reach: How many pixels a convolution sees above, to the left and to the right, `R`.
        dropout: The probability with which what is added to the stacks is dropped in training.
    """

    def __init__(self, num_channels: int, reach: int, dropout: float) -> None:
        super().__init__()
        wide = 2 * num_channels
        self.vertical = nn.Conv2d(num_channels, wide, (reach + 1, 2 * reach + 1))
        self.horizontal = nn.Conv2d(num_channels, wide, (1, reach + 1))
        self.link = nn.Conv2d(wide, wide, 1)
        self.output = nn.Conv2d(num_channels, num_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def down(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """From `v` padded by R above and at both sides: what to add, and what to hand over."""
        v = self.vertical(v)  # (B, 2 C, H, W)
        return self.dropout(gate(v)), self.link(v)

    def right(self, h: Tensor, link: Tensor) -> Tensor:
        """From `h` padded by R to the left, and what was handed over: what to add."""
        return self.output(self.dropout(gate(self.horizontal(h) + link)))  # (B, C, H, W)

    def pixel(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns `right` for one pixel, from its window `(B, (R + 1) C)` and `(B, 2 C)`.

        Products of matrices are a fraction of the work of a convolution over one place.
        """
        across, output = product(self.horizontal), product(self.output)
        bias, out_bias = cast("Tensor", self.horizontal.bias), cast("Tensor", self.output.bias)

        def right(window: Tensor, link: Tensor) -> Tensor:
            gated = gate(torch.addmm(link, window, across) + bias)
            return torch.addmm(out_bias, self.dropout(gated), output)  # (B, C)

        return right


def product(conv: nn.Conv2d) -> Tensor:
    """A convolution along a row as a matrix: from a window `(B, n I)` to `(B, O)`."""
    weight = conv.weight[:, :, 0]  # (O, I, n)
    return weight.permute(2, 1, 0).flatten(0, 1).contiguous()


class GatedPixelCNN(nn.Module):
    r"""A network from flat images `(B, H W)` to outputs `(B, H W, P)`, causal row by row.

    Arguments:
        height, width: The size of an image, `H` and `W`.
        num_outputs: The outputs for each pixel, `P`.
        num_channels: The channels of each stack, `C`.
        num_layers: The number of gated layers after the first convolutions.
        reach: How many pixels a convolution sees above, to the left and to the right; kernels
            before masking are `2 * reach + 1` wide.
        dropout: The probability with which a channel of a pixel is dropped in training.

    Example:
        >>> network = GatedPixelCNN(height=2, width=3, num_outputs=1)
        >>> x = torch.zeros(1, 6, requires_grad=True)
        >>> (gradient,) = torch.autograd.grad(network(x)[0, 4].sum(), x)
        >>> gradient.ne(0).view(2, 3)  # of the outputs of the middle pixel of the second row
        tensor([[ True,  True,  True],
                [ True, False, False]])
    """

    def __init__(
        self,
        height: int,
        width: int,
        num_outputs: int,
        num_channels: int = 32,
        num_layers: int = 4,
        reach: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.height, self.width, self.reach = height, width, reach
        # Mask A: the rows above, and the pixels to the left, without the pixel itself.
        self.above = nn.Conv2d(1, num_channels, (reach, 2 * reach + 1), bias=False)
        self.left = nn.Conv2d(1, num_channels, (1, reach), bias=False)
        # What is usual at a place: convolutions alone know of places by the padding only.
        self.v_bias = nn.Parameter(torch.zeros(num_channels, height, width))
        self.h_bias = nn.Parameter(torch.zeros(num_channels, height, width))
        layers = [GatedLayer(num_channels, reach, dropout) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 1),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(num_channels, num_outputs, 1),
        )
        self.out_bias = nn.Parameter(torch.zeros(num_outputs, height, width))

    def forward(self, x: Tensor) -> Tensor:
        r, x = self.reach, x.unflatten(1, (1, self.height, self.width))
        v = self.above(F.pad(x[:, :, :-1], (r, r, r, 0))) + self.v_bias  # (B, C, H, W)
        h = self.left(F.pad(x[..., :-1], (r, 0, 0, 0))) + self.h_bias  # (B, C, H, W)
        for layer in cast("list[GatedLayer]", self.layers):
            more, link = layer.down(F.pad(v, (r, r, r, 0)))
            v = v + more
            h = h + layer.right(F.pad(h, (r, 0, 0, 0)), link)
        return (self.head(h) + self.out_bias).flatten(2).transpose(1, 2)  # (B, H W, P)

    def walk(self, rows: int) -> Generator[Tensor, Tensor, None]:
        """Yields the outputs `(B, P)` of each pixel, and is sent its values `(B,)`.

        Every unit is computed once: of the vertical stack a row of the image at a time, of the
        horizontal one a pixel at a time. So a draw takes no more arithmetic than a pass.
        """
        r, channels, layers = self.reach, len(self.v_bias), cast("list[GatedLayer]", self.layers)
        x = self.v_bias.new_zeros(rows, 1, self.height + r, self.width + 2 * r)  # padded
        # The vertical stack below each layer: the rows that its convolution still sees.
        stacks = [x.new_zeros(rows, channels, r + 1, self.width + 2 * r) for _ in layers]
        left, pixels, head = product(self.left), [layer.pixel() for layer in layers], self._head()
        places = (self.h_bias.permute(1, 2, 0), self.out_bias.permute(1, 2, 0))  # (H, W, *)
        for i in range(self.height):
            v = self.above(x[:, :, i : i + r]) + self.v_bias[:, i : i + 1]  # (B, C, 1, W)
            links = []
            for k, layer in enumerate(layers):
                stacks[k] = torch.cat([stacks[k][:, :, 1:], F.pad(v, (r, r))], dim=2)
                more, link = layer.down(stacks[k])
                v = v + more
                links.append(link[:, :, 0].permute(2, 0, 1).contiguous())  # (W, B, 2 C)
            row = [x.new_zeros(rows, self.width + r, channels) for _ in layers]
            for j in range(self.width):
                h = torch.addmm(places[0][i, j], x[:, 0, i + r, j : j + r], left)  # (B, C)
                for k, right in enumerate(pixels):
                    row[k][:, j + r] = h
                    h = h + right(row[k][:, j : j + r + 1].flatten(1), links[k][j])
                x[:, 0, i + r, j + r] = yield head(h) + places[1][i, j]  # (B, P)

    def _head(self) -> Callable[[Tensor], Tensor]:
        """The head of one pixel, `(B, C)`."""
        _, first, _, dropout, last = cast("tuple[Any, nn.Conv2d, Any, Any, nn.Conv2d]", self.head)
        inner, outer = product(first), product(last)
        biases = cast("tuple[Tensor, Tensor]", (first.bias, last.bias))

        def head(h: Tensor) -> Tensor:
            hidden = torch.addmm(biases[0], h.relu(), inner).relu()
            return torch.addmm(biases[1], dropout(hidden), outer)

        return head
