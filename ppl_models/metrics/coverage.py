r"""How many modes of a known distribution samples reach, and how well they fill them.

Of data with modes :math:`m_c`, normal with standard deviation :math:`\sigma` around each, a sample
is of high quality within :math:`3 \sigma` of the nearest mode, and a mode is captured when it is
the nearest to a sample of high quality. The spread of such samples within a mode, over the one of
true draws, shows what quality hides: modes shrunken to points are all of high quality.

Shapes: `N` rows, `C` modes, `D` features.

References:
    | VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning
    | (Srivastava et al., 2017), https://arxiv.org/abs/1705.07761
    | PacGAN: The power of two samples in generative adversarial networks (Lin et al., 2018)
    | https://arxiv.org/abs/1712.04086
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_models.checks import check_positive
from ppl_models.metrics.rows import check_pair
from ppl_models.prompt.lines import in_words


@dataclass(frozen=True)
class ModeCoverage:
    """Which modes samples reach.

    Attributes:
        captured: The modes with a sample (of high quality, where that is defined).
        num_modes: The modes there are, `C`.
        kl: The divergence KL(samples || data) of the shares of the modes, in nats: 0 is right.
        high_quality: The share of samples within three standard deviations of a mode; NaN for
            labels.
        spread: The root mean square of high-quality samples around the mean of their mode, over
            that of true draws: 1 is right, less means shrunken modes. NaN for labels, and where no
            mode has two samples.

    Example:
        >>> print(ModeCoverage(captured=7, num_modes=8, kl=0.13, high_quality=0.9, spread=0.8))
        7 of 8 modes, KL 0.130 nats, high quality 90.0%, spread 0.80 (1 is right)
    """

    captured: int
    num_modes: int
    kl: float
    high_quality: float = math.nan
    spread: float = math.nan

    __repr__ = in_words

    def __str__(self) -> str:
        text = f"{self.captured} of {self.num_modes} modes, KL {self.kl:.3f} nats"
        if not math.isnan(self.high_quality):
            text += f", high quality {self.high_quality:.1%}, spread {self.spread:.2f} (1 is right)"
        return text


@torch.no_grad()
def mode_coverage(samples: Tensor, modes: Tensor, scale: float) -> ModeCoverage:
    """Returns the modes captured, the share of high quality, and the spread within modes.

    Samples count for the nearest mode; modes of the data are equally likely.

    Arguments:
        samples: Rows of a model, `(N, D)`. Published tables use 2,500.
        modes: The centres, `(C, D)`.
        scale: The standard deviation around each.

    Raises:
        TypeError: If they are no tensors of floating-point numbers.
        ValueError: If `scale` is not positive, or shapes differ.

    Example:
        >>> modes = torch.tensor([[0.0, 0.0], [5.0, 0.0]])
        >>> x = modes[torch.arange(1000) % 2] + 0.1 * torch.randn(1000, 2)
        >>> result = mode_coverage(x, modes, scale=0.1)
        >>> result.captured, result.high_quality > 0.97, abs(result.spread - 1) < 0.1
        (2, True, True)
    """
    check_positive(scale=scale)
    x, centers = check_pair("mode_coverage", 1, samples=samples, modes=modes)
    difference = x[:, None] - centers  # (N, C, D)
    distance, label = difference.square().sum(-1).min(1)  # (N,) each
    good = distance <= (3 * scale) ** 2
    result = label_coverage(label, len(centers))
    counts = torch.bincount(label[good], minlength=len(centers)).double()
    sums = torch.zeros_like(centers).index_add_(0, label[good], x[good])
    mean = sums / counts.clamp(min=1)[:, None]
    squares = (x[good] - mean[label[good]]).square().sum()
    freedom = (counts - 1).clamp(min=0).sum() * x.shape[1]  # a mean for each mode is estimated
    true = scale**2 * _kept_variance(x.shape[1])
    return ModeCoverage(
        captured=int((counts > 0).sum()),
        num_modes=len(centers),
        kl=result.kl,
        high_quality=good.double().mean().item(),
        spread=(squares / freedom / true).sqrt().item() if freedom > 0 else math.nan,
    )


@torch.no_grad()
def label_coverage(labels: Tensor, num_modes: int, shares: Tensor | None = None) -> ModeCoverage:
    """Returns how many labels samples have, and how their shares differ from the data's.

    For stacked MNIST `labels` are the three digits that a classifier reads, as a number below 1000.

    Arguments:
        labels: The mode of each sample, integers from 0 to `num_modes - 1`, `(N,)`.
        num_modes: The number of modes, `C`.
        shares: Those of the data, `(C,)`. Default: equal ones.

    Raises:
        TypeError: If labels are no integers.
        ValueError: If a label is out of range, or a sample has a mode that the data do not.

    Example:
        >>> print(label_coverage(torch.tensor([0, 0, 1, 1]), num_modes=4))  # KL = log 2
        2 of 4 modes, KL 0.693 nats
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"label_coverage: expected a tensor of integers, got {labels!r}.")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            f"label_coverage: expected one label for each sample, got {tuple(labels.shape)}."
        )
    if labels.min() < 0 or labels.max() >= num_modes:
        raise ValueError(
            f"label_coverage: expected labels from 0 to {num_modes - 1}, got "
            f"{labels.min().item()} to {labels.max().item()}."
        )
    counts = torch.bincount(labels, minlength=num_modes).double()
    shares = torch.ones_like(counts) if shares is None else shares.to(counts)
    if shares.shape != counts.shape or not (shares >= 0).all() or shares.sum() <= 0:
        raise ValueError(
            f"label_coverage: expected shares of {num_modes} modes, none negative, got "
            f"{tuple(shares.shape)}."
        )
    if ((counts > 0) & (shares == 0)).any():
        raise ValueError(
            "label_coverage: samples have a mode that the data do not, and the divergence is "
            "infinite. Try shares=None, or shares with a pseudo-count."
        )
    p, q = counts / counts.sum(), shares / shares.sum()
    seen = p > 0
    kl = (p[seen] * (p[seen] / q[seen]).log()).sum().clamp(min=0).item()
    return ModeCoverage(captured=int(seen.sum()), num_modes=num_modes, kl=kl)


def _kept_variance(num_features: int) -> float:
    """The variance of a feature of standard normals that lie within 3 of the mean.

    The ratio of two chi-squared distribution functions at 9.
    """
    half = torch.tensor([num_features / 2 + 1, num_features / 2], dtype=torch.float64)
    above, below = torch.special.gammainc(half, torch.full_like(half, 4.5)).tolist()
    return above / below
