r"""Bayesian linear regression: what a row says of its target.

.. math::
    w_d \sim \mathcal{N}(0, s_d^2), \qquad b \sim \mathcal{N}(0, s_b^2), \qquad
    y_n \mid x_n \sim \mathcal{N}(w^\top x_n + b, \sigma^2)

The weights `w` and the bias `b` are shared by all rows: latent sites `weights` and `bias`. The
target of a row is site `y`; the rows themselves are given, and have no density. The scales of the
priors are in the units of the data: the defaults are meant for standardised features, whose
standard deviation is 1.

Shapes: `B` rows, `D` features, `S` draws.

References:
    | Bayesian Interpolation (MacKay, 1992)
    | https://doi.org/10.1162/neco.1992.4.3.415
    | Pattern Recognition and Machine Learning, chapter 3 (Bishop, 2006)
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_finite, check_float64
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line
from ppl_models.supervised.predictor import (
    Scale,
    check_given,
    linear_predictor,
    register_scale,
    zero_mean,
)


class LinearRegression(nn.Module):
    r"""Linear regression, :math:`y_n \sim \mathcal{N}(w^\top x_n + b, \sigma^2)`.

    Latent sites are `weights`, `(D,)`, `bias` and, unless the noise is known, its standard
    deviation `scale`. With known noise the posterior and the evidence have closed forms, which
    makes it the model to check a guide of shared latents against.

    Arguments:
        num_features: The length of a row, `D`.
        noise: The standard deviation of the noise, :math:`\sigma`, where it is known.
        weights_scale: The prior standard deviation of the weights: one number, or `D`.
        bias_scale: That of the bias.
        noise_scale: The scale of the half-normal prior of :math:`\sigma`, where it is not known.

    Raises:
        TypeError: If a scale is no number.
        ValueError: If a scale is not positive, or has another shape.

    Example:
        >>> truth = torch.tensor([1.0, -2.0, 0.0])
        >>> x = torch.randn(100, 2)
        >>> y = x @ truth[:2] + 0.5 * torch.randn(100)
        >>> model = LinearRegression(num_features=2, noise=0.5)
        >>> posterior = model.posterior(x, y)  # of both weights and the bias
        >>> ((posterior.mean - truth) / posterior.stddev).abs().max() < 5
        tensor(True)
        >>> model.marginal(x).log_prob(y).shape  # the log evidence of all targets together
        torch.Size([])
    """

    weights_scale: Tensor  # s_d, (D,)
    bias_scale: Tensor
    noise_scale: Tensor
    noise: Tensor | None  # sigma

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        noise: Scale | None = None,
        weights_scale: Scale = 1.0,
        bias_scale: Scale = 10.0,
        noise_scale: Scale = 1.0,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        register_scale(self, "weights_scale", weights_scale, num_features)
        register_scale(self, "bias_scale", bias_scale)
        register_scale(self, "noise_scale", noise_scale)
        if noise is None:
            self.noise = None
        else:
            register_scale(self, "noise", noise)

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Draws the weights, and scores `y`, `(B,)`, given rows `x`, `(B, D)`, or draws it."""
        check_given(x, len(self.weights_scale), "LinearRegression")
        _check_targets(y, len(x))
        slopes = zero_mean(self.weights_scale).to_event(1)
        weights = pyro.sample("weights", slopes, infer={"event_dims": ["feature"]})  # (D,)
        bias = pyro.sample("bias", zero_mean(self.bias_scale))
        scale = self.noise
        if scale is None:
            scale = pyro.sample("scale", dist.HalfNormal(self.noise_scale))

        with data_plate(x, size):
            return pyro.sample("y", self.conditional(x, weights, bias, scale), obs=y)

    def conditional(self, x: Tensor, weights: Tensor, bias: Tensor, scale: Tensor) -> dist.Normal:
        """Returns p(y | x, weights, bias, scale), with batch shape `(B,)`.

        Draws have a dimension for the rows, `(S, 1, D)`, `(S, 1)` and `(S, 1)`, and give
        `(S, B)`.
        """
        mean = linear_predictor(x, weights[..., None], bias[..., None])[..., 0]  # (*, B)
        return dist.Normal(mean, scale)

    def posterior(self, x: Tensor, y: Tensor) -> dist.MultivariateNormal:
        r"""Returns the posterior of the weights and the bias, in this order, for known noise.

        With rows :math:`\tilde{x}_n = (x_n, 1)` and prior variances :math:`S`:

        .. math::
            p(w, b \mid x, y) = \mathcal{N}(A^{-1} \tilde{X}^\top y / \sigma^2, A^{-1}), \qquad
            A = S^{-1} + \tilde{X}^\top \tilde{X} / \sigma^2

        It has event shape `(D + 1,)`, and is found in float64, from rows less their mean: far from
        zero float32 has no digits left for the weights.

        Raises:
            ValueError: If the noise is not known, or the data are not finite.
        """
        design, basis, noise = self._design(x)
        _check_targets(y, len(x))
        check_finite(y, "y", minimum=0)
        precision = design.T @ design / noise**2  # of u, but for its prior's, (D + 1, D + 1)
        precision.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(precision)
        mean = basis @ torch.cholesky_solve(design.T @ y.double()[:, None] / noise**2, factor)[:, 0]
        root = torch.linalg.solve_triangular(factor, basis.T, upper=False)  # of A^{-1}, transposed
        upper = torch.linalg.qr(root).R
        upper = upper * upper.diagonal().sign()[:, None]
        return dist.MultivariateNormal(mean.to(x.dtype), scale_tril=upper.T.to(x.dtype))

    def marginal(self, x: Tensor) -> dist.LowRankMultivariateNormal:
        r"""Returns the density of the targets, weights and bias integrated out, for known noise.

        .. math:: p(y \mid x) = \mathcal{N}(0, \tilde{X} S \tilde{X}^\top + \sigma^2 I)

        It is one of all targets together, with event shape `(B,)`: its `log_prob(y)` is the log
        evidence of the whole data, in nats, in float64.

        Raises:
            ValueError: If the noise is not known, or the rows are not finite.
        """
        design, _, noise = self._design(x)
        mean, variance = design.new_zeros(len(x)), (noise**2).expand(len(x))
        return dist.LowRankMultivariateNormal(mean, design, variance)

    def _design(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Rows for standard normal coordinates `u` of the weights and the bias, in float64.

        The first coordinate is the prediction at the mean of the rows; the others see the rows
        less their mean only. Else an offset of the rows would be in all coordinates, and their
        products would differ by less than rounding.

        Returns:
            The rows, (B, D + 1); the basis, with `(w, b) = basis @ u`, (D + 1, D + 1); the noise.
        """
        if self.noise is None:
            raise ValueError(
                "LinearRegression: there is a closed form for known noise only. Try "
                "LinearRegression(num_features, noise=0.5), or a guide and log_evidence."
            )
        check_given(x, len(self.weights_scale), "LinearRegression")
        check_float64(x, "LinearRegression")
        check_finite(x, "x", minimum=0)
        rows = x.double()
        center = rows.sum(0) / max(1, len(rows))
        scale = torch.cat([self.weights_scale, self.bias_scale[None]]).double()  # S^{1/2}
        at_mean = scale * nn.functional.pad(center, (0, 1), value=1.0)  # (D + 1,)
        axes = torch.linalg.qr(torch.cat([at_mean[:, None], torch.eye(len(scale)).to(rows)], 1)).Q
        basis = scale[:, None] * axes
        design = (rows - center) @ basis[:-1]
        design[:, 0] += at_mean @ axes[:, 0]
        return design, basis, self.noise.double()


def _check_targets(y: Tensor | None, num_rows: int) -> None:
    if y is None:
        return
    if not isinstance(y, Tensor) or not y.is_floating_point():
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(
            f"LinearRegression: expected a tensor of floating-point targets, got {kind}. "
            f"Try y.float(), or SoftmaxRegression for labels."
        )
    if y.shape != (num_rows,):
        raise ValueError(
            f"LinearRegression: expected one target for each row, with shape ({num_rows},), got "
            f"{tuple(y.shape)}. Try y.flatten()."
        )
