r"""Recurrent networks over images: the outputs of a pixel see pixels before it alone.

Pixels are ordered row by row. A convolutional LSTM goes over the image, by rows or by diagonals:

.. math::
    (o, f, i, g) &= W_x * x_t + W_h * h_{t-1} \\
    c_t &= \sigma(f) \, c_{t-1} + \sigma(i) \tanh(g), \qquad h_t = \sigma(o) \tanh(c_t)

The row LSTM goes down; the state of a pixel sees three states of the row above, so that the pixels
it sees form a triangle, one pixel wider on either side for each row further up: the rest is its
blind spot. The diagonal BiLSTM goes from both upper corners; the state of a pixel sees those above
and beside it. As the direction from the right passes pixels that come later, its states count one
row further down; there they may see their own pixel too, without which the last pixel of a row
would be seen late. So it sees all pixels before.

Shapes: `B` rows, images of `H` by `W` pixels, `C` channels, `P` outputs for each pixel.

References:
    | Pixel Recurrent Neural Networks (van den Oord et al., 2016a)
    | https://arxiv.org/abs/1601.06759
"""

from collections.abc import Callable, Generator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# What computes a layer at row `i` and column `j` from `(B, C, 1, 1)` below, in the order of pixels.
Walker = Callable[[int, int, Tensor], Tensor]


class ConvolutionalLSTM(nn.Module):
    """A step of an LSTM over `n` pixels at once, each of which sees `kernel` states.

    Arguments:
        num_channels: The channels of the states, `C`.
        kernel: How many states of the step before a pixel sees.
    """

    def __init__(self, num_channels: int, kernel: int) -> None:
        super().__init__()
        self.state = nn.Conv1d(num_channels, 4 * num_channels, kernel)

    def forward(self, given: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """From the input's part `(B, 4 C, n)`, `h` padded `(B, C, n + kernel - 1)` and `c`."""
        o, f, i, g = (given + self.state(h)).chunk(4, dim=1)  # (B, C, n) each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class RowLSTM(nn.Module):
    """A residual layer that goes down row by row.

    Arguments:
        num_channels: The channels of the image, `C`.
        dropout: The probability with which what is added to the image is dropped in training.

    Example:
        >>> layer = RowLSTM(num_channels=4, dropout=0.0)
        >>> layer(torch.randn(2, 4, 8, 8), torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, num_channels: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Conv2d(num_channels, 4 * num_channels, (1, 2))  # mask B
        self.cell = ConvolutionalLSTM(num_channels, 3)
        self.output = nn.Conv2d(num_channels, num_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, below: Tensor, x: Tensor) -> Tensor:
        """From what is below the layer, `(B, C, H, W)`, and the image, not looked at here."""
        given = self.input(F.pad(below, (1, 0)))  # (B, 4 C, H, W)
        h = c = torch.zeros_like(below[:, :, 0])  # (B, C, W)
        states = []
        for i in range(below.shape[2]):
            h, c = self.cell(given[:, :, i], F.pad(h, (1, 1)), c)
            states.append(h)
        return below + self.output(self.dropout(torch.stack(states, 2)))

    def walker(self, x: Tensor) -> Walker:
        """Returns what computes the layer pixel by pixel, for images that grow meanwhile."""
        rows, _, height, width = x.shape
        size = (rows, self.output.in_channels, height + 1)  # with a row of zeros above
        line = x.new_zeros(*size, width + 1)  # what is below, with a column of zeros to the left
        h, c = x.new_zeros(*size, width + 2), x.new_zeros(*size, width)

        def walk(i: int, j: int, below: Tensor) -> Tensor:
            line[:, :, i, j + 1] = below[..., 0, 0]
            given = self.input(line[:, :, i : i + 1, j : j + 2])[:, :, 0]  # (B, 4 C, 1)
            new = self.cell(given, h[:, :, i, j : j + 3], c[:, :, i, j : j + 1])
            h[:, :, i + 1, j + 1 : j + 2], c[:, :, i + 1, j : j + 1] = new
            return below + self.output(new[0].unsqueeze(-1))

        return walk


class DiagonalBiLSTM(nn.Module):
    """A residual layer that goes from both upper corners, diagonal by diagonal.

    Arguments:
        num_channels: The channels of the image, `C`.
        dropout: The probability with which what is added to the image is dropped in training.

    Example:
        >>> layer = DiagonalBiLSTM(num_channels=4, dropout=0.0)
        >>> layer(torch.randn(2, 4, 8, 8), torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, num_channels: int, dropout: float) -> None:
        super().__init__()
        wide = 4 * num_channels
        self.from_left = nn.Conv2d(num_channels, wide, 1)
        self.from_right = nn.Conv2d(num_channels + 1, wide, 1)  # sees the pixel too
        self.left = ConvolutionalLSTM(num_channels, 2)
        self.right = ConvolutionalLSTM(num_channels, 2)
        self.output = nn.Conv2d(num_channels, num_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, below: Tensor, x: Tensor) -> Tensor:
        """From what is below the layer, `(B, C, H, W)`, and the image, `(B, 1, H, W)`."""
        left = scan(self.left, self.from_left(below))  # (B, C, H, W)
        right = scan(self.right, self.from_right(torch.cat([below, x], 1)).flip(-1)).flip(-1)
        right = F.pad(right[:, :, :-1], (0, 0, 1, 0))  # each row has the states of that above
        return below + self.output(self.dropout(left + right))

    def walker(self, x: Tensor) -> Walker:
        """Returns what computes the layer pixel by pixel, for images that grow meanwhile."""
        rows, _, _, width = x.shape
        channels = self.output.in_channels
        line = x.new_zeros(rows, channels, 1, width)  # what is below, of one row
        above, left = x.new_zeros(2, rows, channels, width)  # states of that row and of this one
        right = x.new_zeros(rows, channels, width + 1)  # of the row above, from the right
        zero = x.new_zeros(rows, channels, 1)
        cell = zero

        def walk(i: int, j: int, below: Tensor) -> Tensor:
            nonlocal cell
            if j == 0:  # the row above is complete
                above.copy_(left)
                if i > 0:
                    seen = torch.cat([line, x[:, :, i - 1 : i]], 1)
                    given, cell = self.from_right(seen)[:, :, 0], zero
                    for k in reversed(range(width)):
                        pixel = slice(k, k + 1)  # its window: the state above, and that beside it
                        state, cell = self.right(given[..., pixel], right[..., k : k + 2], cell)
                        right[..., pixel] = state
                cell = zero
            beside = left[..., j - 1] if j else zero[..., 0]
            window = torch.stack([above[..., j], beside], -1)  # (B, C, 2)
            state, cell = self.left(self.from_left(below)[:, :, 0], window, cell)
            left[..., j], line[:, :, 0, j] = state[..., 0], below[..., 0, 0]
            return below + self.output((state + right[..., j : j + 1]).unsqueeze(-1))

        return walk


def scan(cell: ConvolutionalLSTM, given: Tensor) -> Tensor:
    """The states `(B, C, H, W)` of an LSTM from the upper left, for the input's part of them.

    On a diagonal all pixels are computed at once, from the diagonal before.
    """
    rows, channels, height, width = len(given), given.shape[1] // 4, *given.shape[2:]
    steps = height + width - 1
    # Row i is moved i pixels to the right, so that diagonals become columns.
    skewed = torch.stack(
        [F.pad(given[:, :, i], (i, height - 1 - i)) for i in range(height)], 2
    )  # (B, 4 C, H, H + W - 1)
    line = torch.arange(height, device=given.device)
    h = c = given.new_zeros(rows, channels, height)
    columns = []
    for t in range(steps):
        h, c = cell(skewed[..., t], F.pad(h, (1, 0)), c)
        started = (line <= t).to(h.dtype)  # left of the image there is no state
        h, c = h * started, c * started
        columns.append(h)
    states = torch.stack(columns, 3)  # (B, C, H, H + W - 1)
    return torch.stack([states[:, :, i, i : i + width] for i in range(height)], 2)


class RecurrentPixels(nn.Module):
    r"""A network from flat images `(B, H W)` to outputs `(B, H W, P)`, causal row by row.

    Arguments:
        height, width: The size of an image, `H` and `W`.
        num_outputs: The outputs for each pixel, `P`.
        layer: `RowLSTM` or `DiagonalBiLSTM`.
        num_channels: The channels of each layer, `C`.
        num_layers: The number of recurrent layers.
        dropout: The probability with which a channel of a pixel is dropped in training.

    Example:
        >>> network = RecurrentPixels(height=2, width=3, num_outputs=1)
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
        layer: type[RowLSTM] | type[DiagonalBiLSTM] = DiagonalBiLSTM,
        num_channels: int = 32,
        num_layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.height, self.width = height, width
        # Mask A: three pixels above, and the one to the left, without the pixel itself.
        self.above = nn.Conv2d(1, num_channels, (1, 3), bias=False)
        self.left = nn.Conv2d(1, num_channels, 1, bias=False)
        self.place = nn.Parameter(torch.zeros(num_channels, height, width))  # what is usual there
        self.layers = nn.ModuleList([layer(num_channels, dropout) for _ in range(num_layers)])
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 1),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(num_channels, num_outputs, 1),
        )
        self.out_place = nn.Parameter(torch.zeros(num_outputs, height, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (1, self.height, self.width))
        h = self.above(F.pad(x[:, :, :-1], (1, 1, 1, 0))) + self.left(F.pad(x[..., :-1], (1, 0)))
        h = h + self.place  # (B, C, H, W)
        for layer in self.layers:
            h = layer(h, x)
        return (self.head(h) + self.out_place).flatten(2).transpose(1, 2)  # (B, H W, P)

    def walk(self, rows: int) -> Generator[Tensor, Tensor, None]:
        """Yields the outputs `(B, P)` of each pixel, and is sent its values `(B,)`.

        Every unit is computed once, so that a draw takes no more arithmetic than a pass.
        """
        x = self.place.new_zeros(rows, 1, self.height + 1, self.width + 2)  # padded
        layers = cast("list[RowLSTM | DiagonalBiLSTM]", self.layers)
        walkers = [layer.walker(x[:, :, 1:, 1:-1]) for layer in layers]
        for i in range(self.height):
            for j in range(self.width):
                h = self.above(x[:, :, i : i + 1, j : j + 3])
                h = h + self.left(x[:, :, i + 1 : i + 2, j : j + 1])
                h = h + self.place[:, i : i + 1, j : j + 1]  # (B, C, 1, 1)
                for walk in walkers:
                    h = walk(i, j, h)
                outputs = self.head(h) + self.out_place[:, i : i + 1, j : j + 1]
                x[:, 0, i + 1, j + 1] = yield outputs[..., 0, 0]
