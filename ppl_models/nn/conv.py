r"""Convolutional networks between images as flat rows and vectors.

The encoder halves the image at each stage, the decoder doubles it,

.. math::
    28 \times 28 \leftrightarrow 14 \times 14 \leftrightarrow 7 \times 7, \qquad
    8 \times 8 \leftrightarrow 4 \times 4 \leftrightarrow 2 \times 2

and both have residual blocks :math:`h + f(h)` at each size. There is no batch normalisation: what
a network makes of a row must not depend on the other rows of its batch.

Shapes: `B` rows, images of `H` by `W` pixels, `C` channels, `P` outputs for each pixel.

References:
    | Identity Mappings in Deep Residual Networks (He et al., 2016)
    | https://arxiv.org/abs/1603.05027
"""

from collections.abc import Sequence
from math import ceil
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualConv(nn.Module):
    """A residual block over `(B, C, H, W)`. It starts as the identity.

    Arguments:
        num_channels: The number of channels, `C`.
        dropout: The probability with which a channel is dropped in training.
    """

    def __init__(self, num_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        last = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        first = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.body = nn.Sequential(nn.ELU(), first, nn.ELU(), nn.Dropout2d(dropout), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConvEncoder(nn.Module):
    r"""From flat images `(B, H W)` to vectors `(B, num_outputs)`.

    Arguments:
        height, width: The size of an image, `H` and `W`.
        num_outputs: The length of a vector: two for each latent in `AmortizedNormal`.
        channels: The channels of each stage; each halves the image.
        num_blocks: The number of residual blocks of each stage.
        dropout: The probability with which a channel is dropped in training.

    Raises:
        ValueError: If the image is too small for so many stages.

    Example:
        >>> import torch
        >>> from guides import AmortizedNormal
        >>> guide = AmortizedNormal(784, 40, encoder=ConvEncoder(28, 28, num_outputs=80))
        >>> guide.posterior(torch.zeros(5, 784)).mean.shape
        torch.Size([5, 40])
    """

    def __init__(
        self,
        height: int,
        width: int,
        num_outputs: int,
        channels: Sequence[int] = (32, 64),
        num_blocks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.height, self.width = height, width
        *_, (rows, columns) = _sizes(height, width, len(channels))
        layers: list[nn.Module] = []
        before = 1
        for count in channels:
            layers.append(nn.Conv2d(before, count, 3, stride=2, padding=1))
            layers += [ResidualConv(count, dropout) for _ in range(num_blocks)]
            layers.append(nn.ELU())
            before = count
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(before * rows * columns, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.height * self.width:
            raise ValueError(
                f"ConvEncoder: expected flat images of {self.height} x {self.width} pixels, with "
                f"shape (B, {self.height * self.width}), got {tuple(x.shape)}."
            )
        return self.head(self.stages(x.unflatten(-1, (1, self.height, self.width))).flatten(1))


class ConvDecoder(nn.Module):
    r"""From vectors `(B, num_inputs)` to outputs of flat images, `(B, H W P)`.

    The outputs of a pixel lie beside one another, as likelihoods take them.

    Arguments:
        num_inputs: The length of a vector: the number of latents.
        height, width: The size of an image, `H` and `W`.
        num_outputs: The number of outputs for each pixel, `P`: `likelihood.num_outputs`.
        channels: The channels of each stage, from the vector to the image; each doubles it.
        num_blocks: The number of residual blocks of each stage.
        dropout: The probability with which a channel is dropped in training.

    Raises:
        ValueError: If the image is too small for so many stages.

    Example:
        >>> from ppl_models import VAE
        >>> vae = VAE(784, 40, decoder=ConvDecoder(40, 28, 28))
        >>> vae(size=5).shape
        torch.Size([5, 784])
    """

    def __init__(
        self,
        num_inputs: int,
        height: int,
        width: int,
        num_outputs: int = 1,
        channels: Sequence[int] = (64, 32),
        num_blocks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sizes = _sizes(height, width, len(channels))[::-1]
        rows, columns = self.sizes[0]
        self.head = nn.Linear(num_inputs, channels[0] * rows * columns)
        stages = []
        for count, after in zip(channels, [*channels[1:], channels[-1]], strict=True):
            blocks = [ResidualConv(count, dropout) for _ in range(num_blocks)]
            stages.append(nn.Sequential(*blocks, nn.ELU(), nn.Conv2d(count, after, 3, padding=1)))
        self.stages = nn.ModuleList(stages)
        self.last = nn.Sequential(nn.ELU(), nn.Conv2d(channels[-1], num_outputs, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        h = self.head(z).unflatten(-1, (-1, *self.sizes[0]))  # (B, C, H / 4, W / 4)
        for stage, size in zip(cast("list[nn.Module]", self.stages), self.sizes[1:], strict=True):
            h = F.interpolate(stage(h), size=size)  # twice as large, to the pixel
        return self.last(h).flatten(2).transpose(1, 2).flatten(1)  # (B, H W P)


def _sizes(height: int, width: int, stages: int) -> list[tuple[int, int]]:
    """The sizes of the image, halved once for each stage."""
    if stages < 1 or min(height, width) < 2**stages:
        raise ValueError(
            f"channels: expected one stage or more, and images of {2**stages} x {2**stages} pixels "
            f"or more for {stages} of them, got {height} x {width}. Try channels=(32,)."
        )
    return [(ceil(height / 2**k), ceil(width / 2**k)) for k in range(stages + 1)]
