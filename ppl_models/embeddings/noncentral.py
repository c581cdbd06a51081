r"""The non-central chi distribution: how far two points of a Gaussian cloud each lie apart.

.. math::
    d = \lVert \delta + \sigma \epsilon \rVert, \qquad \epsilon \sim \mathcal{N}(0, I_K),
    \qquad d^2 / \sigma^2 \sim \chi^2_K(\lVert \delta \rVert^2 / \sigma^2)

With :math:`r = d / \sigma` and :math:`\nu = \lVert \delta \rVert / \sigma` its density is

.. math::
    p(d) = \frac{r^{K - 1} e^{-(r^2 + \nu^2) / 2}}{2^{K / 2 - 1} \Gamma(K / 2) \, \sigma} \;
    {}_0F_1(; K / 2; r^2 \nu^2 / 4)

where the last factor is a power series for small :math:`r \nu`, and Hankel's expansion of the
Bessel function :math:`I_{K / 2 - 1}` for large. For two dimensions it is named after Rice.

References:
    | Extensions of the law of comparative judgment to discriminable and multidimensional stimuli
    | (Hefner, 1958), as in Probabilistic Multidimensional Scaling: Complete and Incomplete Data
    | (Zinnes & MacKay, 1983), https://doi.org/10.1007/BF02293861
    | Digital Library of Mathematical Functions, 10.25.2 and 10.40.1: https://dlmf.nist.gov/10.40
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from ppl_models.checks import check_count


class NoncentralChi(dist.TorchDistribution):
    r"""Distances that scatter around an offset, as those between two Gaussian points do.

    Arguments:
        num_dims: The number of dimensions, `K`.
        offset: The distance between the centers, not negative, `(*)`.
        scale: The standard deviation of the difference in each dimension, positive, `(*)`.

    Example:
        >>> density = NoncentralChi(2, torch.tensor(3.0), torch.tensor(0.1))
        >>> density.log_prob(torch.tensor([2.9, 3.0]))
        tensor([0.8668, 1.3838])
    """

    arg_constraints = {"offset": constraints.nonnegative, "scale": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(
        self,
        num_dims: int,
        offset: Tensor,
        scale: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        check_count(num_dims=num_dims)
        self.num_dims = num_dims
        self.offset, self.scale = broadcast_all(offset, scale)
        super().__init__(self.offset.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "NoncentralChi":
        offset, scale = self.offset.expand(batch_shape), self.scale.expand(batch_shape)
        return NoncentralChi(self.num_dims, offset, scale, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of distances in nats, with the shape of the batch."""
        if self._validate_args:
            self._validate_sample(value)
        r, nu, half = value / self.scale, self.offset / self.scale, self.num_dims / 2
        constant = (1 - half) * math.log(2) - math.lgamma(half)
        radial = constant + (self.num_dims - 1) * r.log() - (r - nu).square() / 2
        return radial + _log_series(half, r * nu) - self.scale.log()

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(*shape, self.num_dims, dtype=self.scale.dtype, device=self.scale.device)
        along, across = noise[..., 0], noise[..., 1:]
        squared = (self.offset + self.scale * along).square()
        return (squared + (self.scale[..., None] * across).square().sum(-1)).sqrt()


def _log_series(b: float, y: Tensor) -> Tensor:
    r"""Returns :math:`\log {}_0F_1(; b; y^2 / 4) - y`, for `y` from 0 on."""
    border = 30 + 2 * b * b  # Hankel's terms fall at least fourfold from there on
    small = _power_series(b, y.clamp(max=border), int(border) + 30)
    return torch.where(y < border, small, _hankel(b, y.clamp(min=border)))


def _power_series(b: float, y: Tensor, num_terms: int) -> Tensor:
    k = torch.arange(num_terms, dtype=y.dtype, device=y.device)
    coefficients = math.lgamma(b) - torch.lgamma(k + 1) - torch.lgamma(k + b)
    log_half = (y.clamp(min=torch.finfo(y.dtype).tiny) / 2).log()
    return (coefficients + 2 * k * log_half[..., None]).logsumexp(-1) - y


def _hankel(b: float, y: Tensor, num_terms: int = 20) -> Tensor:
    mu, term = 4 * (b - 1) ** 2, torch.ones_like(y)
    total = term
    for k in range(1, num_terms):
        term = term * ((2 * k - 1) ** 2 - mu) / (8 * k * y)
        total = total + term
    power = (b - 1) * (math.log(2) - y.log())
    return math.lgamma(b) + power - (2 * math.pi * y).log() / 2 + total.log()
