r"""A Gaussian guide for the mean and the loadings of a factor model, correlated as features are.

With the means :math:`M` of the loadings, :math:`m_k` their columns:

.. math::
    q(\mu) &= \mathcal{N}(m_0, \, \mathrm{diag}(s_0^2) + M \, \mathrm{diag}(v_0^2) M^\top) \\
    q(w_k) &= \mathcal{N}(m_k, \, \mathrm{diag}(s_k^2) + M \, \mathrm{diag}(v_k^2) M^\top) \\
    q(\tau_k) &= \mathrm{LogNormal}, \qquad q(\psi_d) = \mathrm{LogNormal}

This is the shape that the posterior has with many rows: the mean varies like a mean of rows, with
covariance :math:`(W W^\top + \Psi) / N`, and the loadings of features that go together are too high
or too low together. A guide with independent entries cannot say so. The nearer the features are to
one another, the more it understates: on the cancer data of `examples/factor_analysis_ard.py` it
gives the mean a quarter of its standard error.

Shapes: `D` features, `K` factors.
"""

import math
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ppl_models.checks import check_positive
from ppl_models.prompt.lines import in_a_line


class Transposed(Transform):
    """A matrix turned round, which changes no volume."""

    domain = codomain = constraints.independent(constraints.real, 2)
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return y.mT

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-2])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1], shape[-2]))

    inverse_shape = forward_shape


class FactorNormal(nn.Module):
    r"""A guide for `loc`, `loadings`, `factor_scale` and `noise_variance`, shared by all rows.

    Arguments:
        initial_values: Where to start, by site: `loc` `(D,)`, `loadings` `(D, K)`, and the positive
            `factor_scale` `(K,)` and `noise_variance` `(D,)`, such as `model.initial_values(x)`.
        init_scale: The standard deviation to start with, in the units of the loadings; relative
            for positive sites.

    Raises:
        ValueError: If a site is missing, shapes do not match, or a number is not finite or not
            positive where it should be.

    Example:
        >>> from ppl_models import elbo, fit
        >>> from ppl_models.factors.bayesian import BayesianFactorAnalysis
        >>> x = torch.randn(100, 6)
        >>> model = BayesianFactorAnalysis(num_features=6, num_factors=2)
        >>> guide = FactorNormal(model.initial_values(x))
        >>> run = fit(elbo(model, guide), x, steps=3, lr=0.03)
        >>> guide.loadings.shape
        torch.Size([6, 2])
    """

    __repr__ = in_a_line

    def __init__(self, initial_values: Mapping[str, Tensor], init_scale: float = 0.01) -> None:
        super().__init__()
        _check(initial_values, init_scale)
        start = {name: value.detach().clone() for name, value in initial_values.items()}
        loadings = start["loadings"]
        num_features, num_factors = loadings.shape
        small = math.log(init_scale)

        def fill(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, small).to(loadings))

        self.loc = nn.Parameter(start["loc"])  # m_0, (D,)
        self.loadings = nn.Parameter(loadings)  # M, (D, K)
        self.log_scale = fill(num_factors + 1, num_features)  # log s, that of the mean last
        self.log_along = fill(num_factors + 1, num_factors)  # log v, along the loadings
        self.log_factor_scale = nn.Parameter(start["factor_scale"].log())  # (K,)
        self.factor_scale_log_scale = fill(num_factors)
        self.log_noise_variance = nn.Parameter(start["noise_variance"].log())  # (D,)
        self.noise_variance_log_scale = fill(num_features)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> None:
        """Draws what rows share, whatever the rows `x`."""
        along = self.loadings * self.log_along.exp().unsqueeze(-2)  # (K + 1, D, K)
        own = (2 * self.log_scale).exp()  # s^2, (K + 1, D)

        try:
            loc = dist.LowRankMultivariateNormal(self.loc, along[-1], own[-1])
            columns = dist.LowRankMultivariateNormal(self.loadings.mT, along[:-1], own[:-1])
        except torch.linalg.LinAlgError as error:
            raise FloatingPointError(
                f"FactorNormal: variances from {own.min():.1e} to {own.max():.1e} give no "
                f"covariance: the fit runs away. Try a smaller lr, or double precision."
            ) from error
        pyro.sample("loc", loc)
        # Columns are drawn as rows, (K, D); turned round they have the same density.
        pyro.sample("loadings", dist.TransformedDistribution(columns.to_event(1), [Transposed()]))
        factor_scale = dist.LogNormal(self.log_factor_scale, self.factor_scale_log_scale.exp())
        pyro.sample("factor_scale", factor_scale.to_event(1))
        noise = dist.LogNormal(self.log_noise_variance, self.noise_variance_log_scale.exp())
        pyro.sample("noise_variance", noise.to_event(1))


def _check(values: Mapping[str, Tensor], init_scale: float) -> None:
    names = ("loc", "loadings", "factor_scale", "noise_variance")
    missing = [name for name in names if name not in values]
    if missing or values["loadings"].ndim != 2:
        raise ValueError(
            f"initial_values: expected {', '.join(names)}, with loadings of shape (D, K), got "
            f"{ {name: tuple(value.shape) for name, value in values.items()} }. "
            f"Try model.initial_values(x)."
        )
    num_features, num_factors = values["loadings"].shape
    shapes = {"loc": num_features, "factor_scale": num_factors, "noise_variance": num_features}
    for name in names:
        value = values[name]
        shape = (shapes[name],) if name in shapes else (num_features, num_factors)
        positive = name in ("factor_scale", "noise_variance")
        if value.shape != shape or not value.isfinite().all() or (positive and (value <= 0).any()):
            raise ValueError(
                f"initial_values: expected finite{' positive' if positive else ''} numbers of "
                f"shape {shape} for {name!r}, got {tuple(value.shape)}: {value.flatten()[:3]}... "
                f"Try model.initial_values(x)."
            )
    check_positive(init_scale=init_scale)
