r"""Gaussians over rows of which some entries are missing: NaN stands for what was not observed.

.. math::
    \log p(x_o) = \log \int \mathcal{N}(x \mid \mu, \Sigma) \, dx_m
    = \log \mathcal{N}(x_o \mid \mu_o, \Sigma_{oo})

where :math:`o` are the observed entries of a row and :math:`m` the missing ones. Exact where
whether an entry is missing does not depend on its value, given the observed ones.

Shapes: `B` rows, `D` features, `M` missing entries in a row, at most.

References:
    | Inference and Missing Data (Rubin, 1976)
    | https://doi.org/10.1093/biomet/63.3.581
"""

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_models.checks import check_choice
from ppl_models.linalg import cholesky

MAX_NUMBERS = 2**23  # in the matrices of rows that are worked on at once: 64 MiB


def check_missing(missing: str) -> None:
    """Raises unless `missing` says what to do with NaN."""
    check_choice("missing", missing, ("error", "marginalise"))


def observed_mean(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns the means of what was observed of rows, `(D,)`, each times its weight.

    Example:
        >>> x = torch.tensor([[0.0, float("nan")], [4.0, 5.0]])
        >>> observed_mean(x), observed_mean(x, torch.tensor([3.0, 1.0]))
        (tensor([2., 5.]), tensor([1., 5.]))
    """
    if weight is None:
        return x.nanmean(0)
    times = weight[:, None] * ~x.isnan()  # (B, D)
    return (times * x.nan_to_num()).sum(0) / times.sum(0)


class _RealOrMissing(constraints.Constraint):
    def check(self, value: Tensor) -> Tensor:
        return ~value.isinf()


real_or_missing = _RealOrMissing()


class MarginalNormal(dist.Normal):
    r"""Normals of which the entries that are NaN count nothing.

    Example:
        >>> density = MarginalNormal(torch.zeros(2), 1.0).to_event(1)
        >>> density.log_prob(torch.tensor([0.0, float("nan")]))
        tensor(-0.9189)
    """

    support = real_or_missing

    def log_prob(self, value: Tensor) -> Tensor:
        missing = value.isnan()
        # The gradient of a NaN that is masked afterwards would still be NaN.
        return super().log_prob(value.where(~missing, self.loc)).where(~missing, 0.0)


class _OrMissing(constraints.Constraint):
    """A constraint of single numbers that also lets NaN through."""

    def __init__(self, base: constraints.Constraint) -> None:
        self.base, self.is_discrete = base, base.is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.base.check(value) | value.isnan()

    def __repr__(self) -> str:
        return f"{self.base}, or NaN"


class Observed(dist.TorchDistribution):
    r"""Independent numbers of which those that are NaN count nothing.

    Arguments:
        base: A distribution with no event dimensions.

    Example:
        >>> density = Observed(dist.Bernoulli(torch.tensor([0.5, 0.1]))).to_event(1)
        >>> density.log_prob(torch.tensor([1.0, float("nan")]))
        tensor(-0.6931)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base: dist.TorchDistribution) -> None:
        self.base = base
        super().__init__(base.batch_shape, validate_args=False)

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        return _OrMissing(self.base.support)

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Observed":
        return Observed(self.base.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        missing = value.isnan()
        # Something of the support in their places: the gradient of a NaN that is masked
        # afterwards would still be NaN.
        filled = torch.where(missing, self.base.sample(), value)
        return self.base.log_prob(filled).where(~missing, 0.0)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape))


def observed_only(density: dist.TorchDistribution) -> dist.TorchDistribution:
    """The density of the features of a row that are not NaN, where features are independent.

    Raises:
        TypeError: If they are not.
    """
    if not isinstance(density, dist.Independent) or density.base_dist.event_shape:
        raise TypeError(
            f"missing: expected a likelihood of independent features, as to_event(1) makes them, "
            f"got {type(density).__name__}. Try missing='error', and complete rows."
        )
    return Observed(density.base_dist).to_event(1)


class MarginalMultivariateNormal(dist.MultivariateNormal):
    r"""A multivariate normal whose density is that of the entries that are not NaN.

    Example:
        >>> density = MarginalMultivariateNormal(torch.zeros(2), torch.eye(2) * 4)
        >>> density.log_prob(torch.tensor([2.0, float("nan")]))
        tensor(-2.1121)
    """

    support = constraints.independent(real_or_missing, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        if not value.isnan().any():
            return super().log_prob(value)
        shape = torch.broadcast_shapes(value.shape, self.loc.shape)
        numbers = shape.numel() * shape[-1]
        if value.ndim > 1 and len(value) == shape[0] > 1 and numbers > MAX_NUMBERS:
            rows = max(1, MAX_NUMBERS * len(value) // numbers)
            whole = self.expand(shape[:-1])
            parts = zip(*(t.split(rows) for t in (value, whole.loc, whole.scale_tril)), strict=True)
            return torch.cat([type(self)(m, scale_tril=f).log_prob(v) for v, m, f in parts])
        observed = (~value.isnan()).to(self.loc.dtype)  # 1 or 0, (*, D)
        difference = (value.nan_to_num() - self.loc) * observed
        # The covariance of what was observed; what was not has unit variance, and adds nothing.
        pairs = observed[..., None, :] * observed[..., None]
        covariance = self.covariance_matrix * pairs + torch.diag_embed(1 - observed)
        factor = cholesky(covariance)  # (*, D, D)
        whitened = torch.linalg.solve_triangular(factor, difference[..., None], upper=False)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * math.log(2 * math.pi) * observed.sum(-1)
        return -0.5 * whitened[..., 0].square().sum(-1) - log_det - constant


class Completion(NamedTuple):
    """What Gaussians say of the missing entries of rows, given the observed ones."""

    log_prob: Tensor  # of the observed entries, (B, K)
    places: Tensor  # which entries are missing, those that are not first, (B, M)
    present: Tensor  # whether there is an entry there, (B, M)
    shift: Tensor  # the mean of the missing entries less that of all rows, (B, K, M)
    factor: Tensor  # the Cholesky factor of their precision, (B, K, M, M)


def complete(x: Tensor, locs: Tensor, scale_tril: Tensor, most: int | None = None) -> Completion:
    r"""Returns the conditionals of the missing entries of rows under `K` Gaussians.

    With the precision :math:`P = \Sigma^{-1}`,

    .. math::
        x_m \mid x_o \sim \mathcal{N}(\mu_m - P_{mm}^{-1} P_{mo} (x_o - \mu_o), P_{mm}^{-1})

    Arguments:
        x: Rows with NaN where entries are missing, `(B, D)`.
        locs: `(K, D)`.
        scale_tril: Cholesky factors of the covariances, `(K, D, D)`.
        most: The largest number of missing entries of a row, where it is known.
    """
    missing = x.isnan()  # (B, D)
    if most is None:
        most = int(missing.sum(1).max())
    places = missing.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[
        :, :most
    ]  # (B, M)
    present = missing.gather(1, places)  # (B, M)
    precision = torch.cholesky_inverse(scale_tril)  # P, (K, D, D)

    difference = (x.nan_to_num()[:, None] - locs) * ~missing[:, None]  # (B, K, D)
    pulled = torch.einsum("bkd,kde->bke", difference, precision)  # P_{.o} (x_o - mu_o)
    at = places[:, None].expand(-1, len(locs), -1)  # (B, K, M)
    pull = pulled.gather(2, at) * present[:, None]

    pairs = present[:, :, None] & present[:, None]  # (B, M, M)
    block = precision[:, places[:, :, None], places[:, None]].transpose(0, 1)  # P_mm, (B, K, M, M)
    block = block * pairs[:, None] + torch.diag_embed((~present).to(x.dtype))[:, None]
    factor = cholesky(block)
    shift = -torch.cholesky_solve(pull[..., None], factor)[..., 0]  # (B, K, M)

    square = (difference * pulled).sum(2) + (pull * shift).sum(2)
    log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(1)  # of Sigma^(1/2), (K,)
    log_det = log_det + factor.diagonal(dim1=-2, dim2=-1).log().sum(2)  # of Sigma_oo^(1/2)
    observed = (~missing).to(x.dtype).sum(1, keepdim=True)  # how many, (B, 1)
    constant = 0.5 * math.log(2 * math.pi) * observed
    return Completion(-0.5 * square - log_det - constant, places, present, shift, factor)


class MarginalLowRankMultivariateNormal(dist.LowRankMultivariateNormal):
    r"""A multivariate normal of low rank whose density is that of the entries that are not NaN.

    One covariance serves all rows.

    Example:
        >>> loadings, variance = torch.ones(2, 1), torch.ones(2)
        >>> density = MarginalLowRankMultivariateNormal(torch.zeros(2), loadings, variance)
        >>> density.log_prob(torch.tensor([1.0, float("nan")]))  # of N(0, 2)
        tensor(-1.5155)
    """

    support = constraints.independent(real_or_missing, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        if not value.isnan().any():
            return super().log_prob(value)
        difference = value - self.loc  # (*, D)
        loadings, variance = self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag
        rows = difference.reshape(-1, difference.shape[-1])  # (B, D)
        parts = rows.split(max(1, MAX_NUMBERS // loadings.numel()))
        found = [condition(part, torch.zeros_like(variance), loadings, variance) for part in parts]
        return torch.cat([part.log_prob for part in found]).reshape(difference.shape[:-1])


class Conditional(NamedTuple):
    """What the observed entries of rows say of their factors."""

    log_prob: Tensor  # of the observed entries, (B,)
    mean: Tensor  # of the factors, (B, K)
    factor: Tensor  # the Cholesky factor of their precision, (B, K, K)


def condition(x: Tensor, loc: Tensor, loadings: Tensor, variance: Tensor) -> Conditional:
    r"""Returns the factors of rows given their observed entries :math:`o`, in factor analysis.

    .. math::
        z \mid x_o \sim \mathcal{N} \Big( M^{-1} \sum_{d \in o} w_d \psi_d^{-1} (x_d - \mu_d), \;
        M^{-1} \Big), \qquad M = I + \sum_{d \in o} \psi_d^{-1} w_d w_d^\top

    Arguments:
        x: Rows with NaN where entries are missing, `(B, D)`.
        loc: The mean, `(D,)`.
        loadings: `(D, K)`.
        variance: Of the noise, `(D,)`.
    """
    missing = x.isnan()
    observed = (~missing).to(loc.dtype)  # 1 or 0, (B, D)
    scale = variance.sqrt()
    whitened = loadings / scale[:, None]  # (D, K)
    products = (whitened[:, :, None] * whitened[:, None]).flatten(1)  # (D, K K)
    identity = torch.eye(whitened.shape[1], dtype=loc.dtype, device=loc.device)
    precision = identity + (observed @ products).unflatten(1, identity.shape)  # M, (B, K, K)
    factor = cholesky(precision)

    difference = torch.where(missing, 0.0, x - loc) / scale  # (B, D)
    mean = torch.cholesky_solve((difference @ whitened)[..., None], factor)[..., 0]  # (B, K)
    # Two sums of squares: the difference of large numbers that equals them would lose digits.
    rest = difference - observed * (mean @ whitened.T)
    square = rest.square().sum(1) + mean.square().sum(1)
    log_det = observed @ variance.log() + 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = observed.sum(1) * math.log(2 * math.pi)
    return Conditional(-0.5 * (square + log_det + constant), mean, factor)
