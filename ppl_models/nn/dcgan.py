r"""Convolutional generators and discriminators of square images, given as rows of pixels.

A generator doubles the side of a small image with transposed convolutions, a discriminator halves
it with strided ones: 28 = 7 * 2 * 2, 32 = 4 * 2 * 2 * 2, 8 = 4 * 2. Channels double where sides
halve.

Shapes: `B` rows, `C` colours, `S` pixels a side, `D = C * S * S`, `K` latents, `M` rows a pack.

References:
    | Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
    | (Radford et al., 2016), https://arxiv.org/abs/1511.06434
    | Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018)
    | https://arxiv.org/abs/1802.05957
"""

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as normalised


class ConvGenerator(nn.Sequential):
    """From latents to images with grey levels in [0, 1], `(B, K)` to `(B, D)`.

    Images are normalised over groups of channels, each by itself: rows stay independent, and an
    average of weights needs no other statistics, as it would after normalising over batches.

    Arguments:
        num_latents: The number of latents, `K`.
        side: The pixels of a side, `S`: such as 8, 28 or 32.
        colours: The number of colours, `C`.
        width: The channels before the last layer.

    Raises:
        ValueError: If the side does not halve to 4, 5, 6 or 7, or the width is no multiple of 8.

    Example:
        >>> import torch
        >>> ConvGenerator(16, side=28, width=8)(torch.zeros(5, 16)).shape
        torch.Size([5, 784])
    """

    def __init__(self, num_latents: int, side: int, colours: int = 1, width: int = 64) -> None:
        _check_width(width, "ConvGenerator")
        small, doublings = halvings(side, "ConvGenerator")
        channels = width * 2 ** (doublings - 1)
        layers: list[nn.Module] = [
            nn.Linear(num_latents, channels * small * small),
            nn.Unflatten(1, (channels, small, small)),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
        ]
        for _ in range(doublings - 1):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1),
                nn.GroupNorm(8, channels // 2),
                nn.ReLU(),
            ]
            channels //= 2
        layers.append(nn.ConvTranspose2d(channels, colours, 4, stride=2, padding=1))
        super().__init__(*layers, nn.Sigmoid(), nn.Flatten())


class ConvDiscriminator(nn.Sequential):
    """From images to scores, `(B / M, M * D)` to `(B / M, 1)`.

    Arguments:
        side: The pixels of a side, `S`: such as 8, 28 or 32.
        colours: The number of colours, `C`.
        width: The channels after the first layer.
        packing: How many images it sees at once, `M`, as so many more colours.
        spectral_norm: Whether each layer but the last is divided by its largest singular value,
            as torch estimates it. The last one sets the scale of the scores: bounded too, they
            would be too much alike for the discriminator to teach anything.

    Raises:
        ValueError: If the side does not halve to 4, 5, 6 or 7.

    Example:
        >>> import torch
        >>> ConvDiscriminator(side=28, width=8, packing=2)(torch.zeros(5, 2 * 784)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        side: int,
        colours: int = 1,
        width: int = 64,
        packing: int = 1,
        spectral_norm: bool = True,
    ) -> None:
        def wrap(layer: nn.Module) -> nn.Module:
            return normalised(layer) if spectral_norm else layer

        small, stages = halvings(side, "ConvDiscriminator")
        layers: list[nn.Module] = [nn.Unflatten(1, (packing * colours, side, side))]
        inputs = packing * colours
        for stage in range(stages):
            outputs = width * 2**stage
            layers += [wrap(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            inputs = outputs
        layers += [
            wrap(nn.Conv2d(inputs, inputs, 3, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(inputs * small * small, 1),
        ]
        super().__init__(*layers)


def halvings(side: int, where: str) -> tuple[int, int]:
    """The smallest side, 4 to 7, and how often it doubles to the whole one."""
    small, count = side, 0
    while small > 7 and small % 2 == 0:
        small, count = small // 2, count + 1
    if not 4 <= small <= 7 or count == 0:
        raise ValueError(
            f"{where}: expected a side that halves to 4, 5, 6 or 7, got {side}. "
            f"Try 8, 28 or 32, or torch.nn.functional.pad."
        )
    return small, count


def _check_width(width: int, where: str) -> None:
    if width < 8 or width % 8:
        raise ValueError(f"{where}: expected a width that is a multiple of 8, got {width}. Try 64.")
