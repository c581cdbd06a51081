r"""Convolutional networks that are told how noisy their input is, and perhaps its label.

Both take rows and a log-SNR for each, and see a row as an image.

.. math:: h \leftarrow h + f_2(f_1(h) \, (1 + a(\lambda, y)) + b(\lambda, y))

is a residual block, :math:`f` a normalisation, a non-linearity and a convolution each.

Shapes: `B` rows, `H x W` pixels, `C` channels, `E` the length of the embedding.

References:
    | U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015)
    | https://arxiv.org/abs/1505.04597
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
    | https://arxiv.org/abs/2006.11239
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppl_models.nn.time_mlp import Condition


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity, scaled and shifted between by an embedding.

    Arguments:
        channels: The channels of input and output, `C`.
        num_times: The length of the embedding, `E`.
        dropout: The share of channels left out in training, before the second convolution.
    """

    def __init__(self, channels: int, num_times: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(1, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second_norm = nn.GroupNorm(1, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(num_times, 2 * channels)
        _zero_init(self.second)  # a block starts as the identity

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        inner = self.first(functional.silu(self.first_norm(h)))  # (B, C, H, W)
        gain, shift = self.modulation(time)[..., None, None].chunk(2, dim=1)  # (B, C, 1, 1)
        inner = self.second_norm(inner) * (1 + gain) + shift
        return h + self.second(self.dropout(functional.silu(inner)))


class SpatialMixing(nn.Module):
    """Each pixel sees every other: one linear map of the pixels, the same for all channels.

    Arguments:
        channels: The channels, `C`.
        num_pixels: The pixels, `H * W`.
    """

    def __init__(self, channels: int, num_pixels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.pixels = nn.Linear(num_pixels, num_pixels)
        self.channels = nn.Conv2d(channels, channels, 1)
        _zero_init(self.channels)

    def forward(self, h: Tensor) -> Tensor:
        mixed = self.pixels(self.norm(h).flatten(2)).view_as(h)
        return h + self.channels(functional.silu(mixed))


class ResNet(nn.Module):
    """Residual blocks at full size, with a spatial mixing layer in the middle: for small images.

    Arguments:
        shape: The height and the width of the image in a row.
        num_outputs: The numbers for each pixel, next to one another in the output.
        channels: The channels, `C`.
        num_blocks: The number of residual blocks.
        dropout: The share of channels left out in training.
        num_times: The length of the embedding, even.
        num_classes: The number of labels that it may be told, or 0.

    Example:
        >>> network = ResNet((8, 8), num_outputs=17)
        >>> network(torch.zeros(5, 64), torch.zeros(5)).shape
        torch.Size([5, 1088])
    """

    def __init__(
        self,
        shape: tuple[int, int],
        num_outputs: int = 1,
        channels: int = 32,
        num_blocks: int = 4,
        dropout: float = 0.0,
        num_times: int = 32,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        _check_shape(shape, "ResNet")
        self.num_classes = num_classes
        self.shape = shape
        self.condition = Condition(num_times, num_classes)
        self.start = nn.Conv2d(1, channels, 3, padding=1)
        # Convolutions cannot tell where a pixel is; a digit's border is always empty.
        self.position = nn.Parameter(torch.zeros(channels, *shape))
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, num_times, dropout) for _ in range(num_blocks)
        )
        self.mixing = SpatialMixing(channels, shape[0] * shape[1])
        self.end = _head(channels, num_outputs)

    def forward(self, x: Tensor, log_snr: Tensor, y: Tensor | None = None) -> Tensor:
        time = self.condition(log_snr, y)  # (B, E)
        h = self.start(_as_images(x, self.shape)) + self.position  # (B, C, H, W)
        for i, block in enumerate(self.blocks):
            if i == len(self.blocks) // 2:
                h = self.mixing(h)
            h = block(h, time)
        return self.end(h).movedim(1, -1).flatten(1)  # (B, H * W * num_outputs)


class UNet(nn.Module):
    """Residual blocks at full, half, quarter ... size, each level joined to the one above.

    Arguments:
        shape: The height and the width of the image in a row.
        num_outputs: The numbers for each pixel, next to one another in the output.
        channels: The channels of each level, the finest first; each level halves the image.
        dropout: The share of channels left out in training.
        num_times: The length of the embedding, even.
        num_classes: The number of labels that it may be told, or 0.

    Raises:
        TypeError: If `shape` or `channels` is none.
        ValueError: If the image cannot be halved so often.

    Example:
        >>> network = UNet((8, 8), channels=(16, 32))
        >>> network(torch.zeros(5, 64), torch.zeros(5)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        shape: tuple[int, int],
        num_outputs: int = 1,
        channels: tuple[int, ...] = (32, 64),
        dropout: float = 0.0,
        num_times: int = 32,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        _check_shape(shape, "UNet")
        if isinstance(channels, int) or not channels:
            raise TypeError(
                f"UNet: expected the channels of each level, the finest first, got "
                f"channels={channels!r}. Try channels=(32, 64)."
            )
        self.num_classes = num_classes
        smallest = 2 ** (len(channels) - 1)
        if any(length % smallest for length in shape):
            raise ValueError(
                f"UNet: {len(channels)} levels halve the image {len(channels) - 1} times; expected "
                f"sides that are multiples of {smallest}, got {shape[0]} x {shape[1]}. Try padding "
                f"the images, or fewer channels={channels}."
            )
        self.shape = shape
        self.condition = Condition(num_times, num_classes)
        self.start = nn.Conv2d(1, channels[0], 3, padding=1)

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(c, num_times, dropout) for c in channels)

        pairs = list(pairwise(channels))  # of a level and the one below
        self.down, self.up = blocks(), blocks()
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.join = nn.ModuleList(nn.Conv2d(2 * a, a, 1) for a, _ in pairs)
        self.mixing = SpatialMixing(channels[-1], shape[0] * shape[1] // smallest**2)
        self.end = _head(channels[0], num_outputs)

    def forward(self, x: Tensor, log_snr: Tensor, y: Tensor | None = None) -> Tensor:
        time = self.condition(log_snr, y)  # (B, E)
        h = self.start(_as_images(x, self.shape))  # (B, C, H, W)
        kept = []
        for down, shrink in zip(self.down[:-1], self.shrink, strict=True):
            h = down(h, time)
            kept.append(h)
            h = shrink(h)
        h = self.up[-1](self.mixing(self.down[-1](h, time)), time)
        for i in reversed(range(len(kept))):
            h = self.join[i](torch.cat([kept[i], self.grow[i](h)], 1))
            h = self.up[i](h, time)
        return self.end(h).movedim(1, -1).flatten(1)  # (B, H * W * num_outputs)


def _check_shape(shape: object, where: str) -> None:
    whole = isinstance(shape, tuple) and all(isinstance(n, int) and n > 0 for n in shape)
    if not whole or len(shape) != 2:  # type: ignore[arg-type]
        raise TypeError(
            f"{where}: expected the height and the width of the images in a row, got "
            f"shape={shape!r}. Try {where}((8, 8))."
        )


def _zero_init(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _head(channels: int, num_outputs: int) -> nn.Sequential:
    head = nn.Conv2d(channels, num_outputs, 1)
    _zero_init(head)  # it starts as what is known without a network
    return nn.Sequential(nn.GroupNorm(1, channels), nn.SiLU(), head)


def _as_images(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Rows as images of one channel, (B, 1, H, W)."""
    if x.shape[1] != shape[0] * shape[1]:
        raise ValueError(
            f"network: expected rows of {shape[0]} x {shape[1]} = {shape[0] * shape[1]} pixels, "
            f"got {x.shape[1]}. Try another shape=."
        )
    return x.unflatten(1, (1, *shape))
