r"""Noise that a denoising autoencoder learns to take away: callables from rows to noisy rows.

Each is a small object, called with rows `(B, D)`, anew at every step of the training. Any callable
like it will do.

References:
    | Stacked Denoising Autoencoders (Vincent et al., 2010)
    | https://www.jmlr.org/papers/v11/vincent10a.html
"""

import torch
from torch import Tensor

from ppl_models.checks import check_positive
from ppl_models.prompt.lines import in_a_line


class GaussianNoise:
    r"""Adds a normal draw to each feature: :math:`\tilde{x}_d \sim \mathcal{N}(x_d, \sigma^2)`.

    Arguments:
        scale: The standard deviation, :math:`\sigma`, in the units of the data.

    Raises:
        ValueError: If it is not positive.

    Example:
        >>> GaussianNoise(0.1)(torch.zeros(1000, 4)).std() < 0.11
        tensor(True)
    """

    __repr__ = in_a_line

    def __init__(self, scale: float) -> None:
        check_positive(scale=scale)
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x)


class MaskingNoise:
    """Sets features to zero, each with the same probability, which tells nothing of their values.

    Arguments:
        probability: With which a feature is set to zero.

    Raises:
        ValueError: If it is not between 0 and 1.

    Example:
        >>> MaskingNoise(0.3)(torch.ones(1000, 4)).mean() > 0.6
        tensor(True)
    """

    __repr__ = in_a_line

    def __init__(self, probability: float) -> None:
        self.probability = _checked(probability, "MaskingNoise")

    def __call__(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.probability)


class SaltAndPepper:
    """Sets features to the least or the largest value there is, with equal chances.

    Arguments:
        probability: With which a feature is set to either.
        low, high: Those values: 0 and 1 for images.

    Raises:
        ValueError: If the probability is not between 0 and 1, or `low` is not below `high`.

    Example:
        >>> SaltAndPepper(1.0)(torch.full((20, 3), 0.5)).unique().tolist()
        [0.0, 1.0]
    """

    __repr__ = in_a_line

    def __init__(self, probability: float, low: float = 0.0, high: float = 1.0) -> None:
        self.probability = _checked(probability, "SaltAndPepper")
        if not low < high:
            raise ValueError(f"SaltAndPepper: expected low < high, got {low!r} and {high!r}.")
        self.low, self.high = low, high

    def __call__(self, x: Tensor) -> Tensor:
        extreme = torch.where(torch.rand_like(x) < 0.5, self.low, self.high)
        return torch.where(torch.rand_like(x) < self.probability, extreme, x)


def _checked(probability: float, where: str) -> float:
    if not 0 < probability <= 1:
        raise ValueError(
            f"{where}: expected a probability above 0, at most 1, got {probability!r}. Try 0.3."
        )
    return probability
