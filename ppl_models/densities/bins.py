r"""Bins: their edges by a rule, and the density that is constant in each of them.

Bins are half open, :math:`[e_{j-1}, e_j)`, and the last one is closed, as in `numpy.histogram`.

Shapes: `B` rows, `D` features (1 or 2), `J_d` bins of feature `d`.

References:
    | On Optimal and Data-Based Histograms (Scott, 1979)
    | https://doi.org/10.1093/biomet/66.3.605
    | Multivariate Density Estimation (Scott, 2015), chapter 3
    | https://doi.org/10.1002/9781118575574
"""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_models.checks import check_finite, check_rows


def bin_edges(x: Tensor, num_bins: int | Sequence[int] | None = None) -> tuple[Tensor, ...]:
    r"""Returns edges of bins of equal width from the least to the greatest value of each feature.

    By default their number is that of Scott's rule, which minimises the mean integrated squared
    error of the density for many rows of independent Gaussians. The width of a bin is about

    .. math:: h_d = \sigma_d \left( 12 (2 \sqrt{\pi})^D / N \right)^{1 / (D + 2)}

    and in one dimension the edges are `numpy.histogram_bin_edges(x, "scott")`. For labels or counts
    bins of width one are better: `torch.arange(-0.5, 10)` for the labels 0 to 9.

    Arguments:
        x: The rows, with shape `(B, 1)` or `(B, 2)`.
        num_bins: The number of bins, of all features or of each. Default: by Scott's rule.

    Raises:
        TypeError: If `x` is no tensor, or holds integers.
        ValueError: If `x` is empty, not finite, of another shape, or has a feature with one
            distinct value, or a number of bins is not positive.

    Example:
        >>> bin_edges(torch.tensor([[0.0], [1.0], [4.0]]), num_bins=2)
        (tensor([0., 2., 4.]),)
    """
    num_features = 2 if getattr(x, "ndim", 0) == 2 and x.shape[1] == 2 else 1
    check_countable(x, num_features, "bin_edges")
    counts = None
    if num_bins is not None:
        counts = list(num_bins) if isinstance(num_bins, Sequence) else [num_bins] * num_features
        if len(counts) != num_features or not all(isinstance(j, int) and j > 0 for j in counts):
            raise ValueError(
                f"bin_edges: expected a positive whole number of bins for each of {num_features} "
                f"feature(s), got num_bins={num_bins!r}. Try num_bins=10, or None for Scott's rule."
            )
    low, high = x.amin(0), x.amax(0)
    for d in range(num_features):
        if low[d] == high[d]:
            raise ValueError(
                f"bin_edges: feature {d} has one distinct value, {low[d].item():g}, and no range "
                f"to divide into bins. Try edges of your own around it, such as "
                f"HistogramDensity([{low[d].item() - 0.5:g}, {low[d].item() + 0.5:g}])."
            )
    if counts is None:
        volume = 12 * (2 * math.sqrt(math.pi)) ** num_features / len(x)
        constant = volume ** (1 / (num_features + 2))
        width = x.double().std(0, correction=0) * constant  # h, (D,)
        counts = [math.ceil(j) for j in ((high - low).double() / width).tolist()]
    return tuple(
        torch.linspace(a, b, j + 1, dtype=x.dtype, device=x.device)
        for a, b, j in zip(low.tolist(), high.tolist(), counts, strict=True)
    )


class _Box(constraints.Constraint):
    """Rows whose features lie between their first and last edges."""

    event_dim = 1

    def __init__(self, edges: Sequence[Tensor]) -> None:
        self.low = torch.stack([e[0] for e in edges])  # (D,)
        self.high = torch.stack([e[-1] for e in edges])
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return ((value >= self.low) & (value <= self.high)).all(-1)

    def __repr__(self) -> str:
        sides = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return "bins over " + " x ".join(f"[{a:g}, {b:g}]" for a, b in sides)


class PiecewiseConstant(dist.TorchDistribution):
    r"""A density that is constant in each bin, over rows of one or two features.

    It is zero, and its logarithm minus infinity, in bins without probability and outside of all.

    Arguments:
        logits: The unnormalised log-probabilities of the bins, with shape `(J_1,)` or `(J_1, J_2)`.
        edges: The edges of the bins of each feature, with shapes `(J_d + 1,)`.

    Example:
        >>> density = PiecewiseConstant(torch.tensor([0.25, 0.75]).log(), [torch.arange(3.0)])
        >>> density.log_prob(torch.tensor([[0.5], [1.5], [2.5]])).exp()
        tensor([0.2500, 0.7500, 0.0000])
    """

    arg_constraints = {"logits": constraints.real_vector}

    def __init__(
        self, logits: Tensor, edges: Sequence[Tensor], validate_args: bool | None = None
    ) -> None:
        self.edges = tuple(edges)
        self.logits = logits.flatten().log_softmax(0).reshape(logits.shape)
        self._log_density = self.logits - _log_volume(self.edges)
        super().__init__(event_shape=torch.Size([len(self.edges)]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return _Box(self.edges)

    def log_prob(self, value: Tensor) -> Tensor:
        if value.ndim == 0 or value.shape[-1] != len(self.edges):
            raise ValueError(
                f"PiecewiseConstant: expected values of shape (*, {len(self.edges)}), got "
                f"{tuple(value.shape)}. Try x[:, None] for rows of one feature."
            )
        index, inside = locate(value, self.edges)
        return self._log_density.flatten()[index].masked_fill(~inside, -math.inf)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            bins = torch.distributions.Categorical(logits=self.logits.flatten())
            index = torch.unravel_index(bins.sample(torch.Size(sample_shape)), self.logits.shape)
            columns = []
            for edges, j in zip(self.edges, index, strict=True):
                low, high = edges[j], edges[j + 1]
                value = low + (high - low) * torch.rand_like(low)
                # Rounding may give the upper edge, which belongs to the next bin.
                columns.append(torch.minimum(value, high.nextafter(low)))
            return torch.stack(columns, -1)

    def entropy(self) -> Tensor:
        r"""Returns :math:`-\sum_j \pi_j \log (\pi_j / |B_j|)`, the differential entropy in nats."""
        probability = self.logits.exp()
        # 0 log 0 = 0
        return -(probability * self._log_density.masked_fill(probability == 0, 0.0)).sum()


def locate(x: Tensor, edges: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The number of the bin of each row, bins counted line by line, and whether it is in one."""
    index = torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device)
    inside = torch.ones_like(index, dtype=torch.bool)
    for column, e in zip(x.unbind(-1), edges, strict=True):
        column = column.to(e.dtype).contiguous()
        inside &= (column >= e[0]) & (column <= e[-1])
        index = index * (len(e) - 1) + torch.bucketize(column, e[1:-1], right=True)
    return index, inside


def _log_volume(edges: Sequence[Tensor]) -> Tensor:
    """The logarithm of the width or the area of each bin."""
    first, *rest = (e.diff().log() for e in edges)
    return first[:, None] + rest[0] if rest else first


def check_countable(x: Tensor, num_features: int, where: str) -> None:
    """Raises unless `x` holds rows that can be counted."""
    check_shape(x, num_features, where)
    check_finite(x, where)


def check_shape(x: Tensor, num_features: int, where: str) -> None:
    """Raises unless `x` holds rows of `num_features` floating-point numbers."""
    num_dims = x.ndim if isinstance(x, Tensor) else None
    if num_dims == 1:
        raise ValueError(
            f"{where}: expected rows with shape (B, {num_features}), got {tuple(x.shape)}. "
            f"Try x[:, None] for rows of one feature."
        )
    if num_dims == 2 and x.shape[1] > 2:
        raise ValueError(
            f"{where}: expected rows of one feature or two, got {x.shape[1]}. "
            f"Try two of them: x[:, [0, 1]]."
        )
    check_rows(x, num_features, where)
