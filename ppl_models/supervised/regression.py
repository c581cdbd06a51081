r"""Bayesian linear, logistic and softmax regression: what a row says of its target or label.

.. math::
    w_{dk} \sim \mathcal{N}(0, s_d^2), \qquad b_k \sim \mathcal{N}(0, s_b^2), \qquad
    y_n \mid x_n \sim p(y \mid w^\top x_n + b)

The weights `w` and the bias `b` are shared by all rows: latent sites `weights` and `bias`. The
target or label of a row is site `y`; the rows themselves are given, and have no density. The scales
of the priors are in the units of the data: the defaults are meant for standardised features, whose
standard deviation is 1.

Shapes: `B` rows, `D` features, `C` classes, `K` outputs, `S` draws.

References:
    | Bayesian Interpolation (MacKay, 1992)
    | https://doi.org/10.1162/neco.1992.4.3.415
    | Pattern Recognition and Machine Learning, chapters 3 and 4 (Bishop, 2006)
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_at_least, check_count, check_finite, check_labels, check_rows
from ppl_models.linalg import cholesky
from ppl_models.plates import data_plate

Scale = float | Tensor


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

    def __init__(
        self,
        num_features: int,
        noise: Scale | None = None,
        weights_scale: Scale = 1.0,
        bias_scale: Scale = 10.0,
        noise_scale: Scale = 1.0,
    ) -> None:
        super().__init__()
        _keep_scale(self, "weights_scale", weights_scale, num_features)
        _keep_scale(self, "bias_scale", bias_scale)
        _keep_scale(self, "noise_scale", noise_scale)
        if noise is None:
            self.noise = None
        else:
            _keep_scale(self, "noise", noise)

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        _check_given(x, len(self.weights_scale), "LinearRegression")
        _check_targets(y, len(x))
        slopes = _centered(self.weights_scale).to_event(1)
        weights = pyro.sample("weights", slopes, infer={"event_dims": ["feature"]})  # (D,)
        bias = pyro.sample("bias", _centered(self.bias_scale))
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
        mean = _outputs(x, weights[..., None], bias[..., None])[..., 0]  # (*, B)
        return dist.Normal(mean, scale)

    def posterior(self, x: Tensor, y: Tensor) -> dist.MultivariateNormal:
        r"""Returns the posterior of the weights and the bias, in this order, for known noise.

        With rows :math:`\tilde{x}_n = (x_n, 1)` and prior variances :math:`S`:

        .. math::
            p(w, b \mid x, y) = \mathcal{N}(A^{-1} \tilde{X}^\top y / \sigma^2, A^{-1}), \qquad
            A = S^{-1} + \tilde{X}^\top \tilde{X} / \sigma^2

        It has event shape `(D + 1,)`.

        Raises:
            ValueError: If the noise is not known, or the data are not finite.
        """
        design, prior_scale, noise = self._design(x)
        _check_targets(y, len(x))
        check_finite(y, "y", minimum=0)
        precision = prior_scale.pow(-2).diag() + design.T @ design / noise**2  # A, (D + 1, D + 1)
        mean = torch.linalg.solve(precision, design.T @ y / noise**2)  # (D + 1,)
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def marginal(self, x: Tensor) -> dist.LowRankMultivariateNormal:
        r"""Returns the density of the targets, weights and bias integrated out, for known noise.

        .. math:: p(y \mid x) = \mathcal{N}(0, \tilde{X} S \tilde{X}^\top + \sigma^2 I)

        It is one of all targets together, with event shape `(B,)`: its `log_prob(y)` is the log
        evidence of the whole data, in nats.

        Raises:
            ValueError: If the noise is not known, or the rows are not finite.
        """
        design, prior_scale, noise = self._design(x)
        mean, variance = design.new_zeros(len(x)), (noise**2).expand(len(x))
        return dist.LowRankMultivariateNormal(mean, design * prior_scale, variance)

    def _design(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows with a 1 for the bias, (B, D + 1), the prior scales, (D + 1,), the noise."""
        if self.noise is None:
            raise ValueError(
                "LinearRegression: there is a closed form for known noise only. Try "
                "LinearRegression(num_features, noise=0.5), or a guide and log_evidence."
            )
        _check_given(x, len(self.weights_scale), "LinearRegression")
        check_finite(x, "x", minimum=0)
        design = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        return design, torch.cat([self.weights_scale, self.bias_scale[None]]), self.noise


class LogisticRegression(nn.Module):
    r"""Logistic regression of two classes, :math:`p(y_n = 1) = 1 / (1 + e^{-w^\top x_n - b})`.

    Latent sites are `weights`, `(D,)`, and `bias`; labels are 0 and 1.

    Arguments:
        num_features: The length of a row, `D`.
        weights_scale: The prior standard deviation of the weights: one number, or `D`. A weight
            of 1 multiplies the odds of class 1 by e for one more unit of its feature.
        bias_scale: That of the bias.

    Raises:
        TypeError: If a scale is no number.
        ValueError: If a scale is not positive, or has another shape.

    Example:
        >>> model = LogisticRegression(num_features=2)
        >>> x, draws = torch.randn(7, 2), (torch.randn(50, 1, 2), torch.randn(50, 1))
        >>> model(x).shape, model.conditional(x, *draws).probs.mean(0).shape
        (torch.Size([7]), torch.Size([7, 2]))
    """

    weights_scale: Tensor  # s_d, (D,)
    bias_scale: Tensor

    def __init__(
        self, num_features: int, weights_scale: Scale = 1.0, bias_scale: Scale = 10.0
    ) -> None:
        super().__init__()
        _keep_scale(self, "weights_scale", weights_scale, num_features)
        _keep_scale(self, "bias_scale", bias_scale)

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        _check_given(x, len(self.weights_scale), "LogisticRegression")
        check_labels(y, 2, len(x), "LogisticRegression")
        slopes = _centered(self.weights_scale).to_event(1)
        weights = pyro.sample("weights", slopes, infer={"event_dims": ["feature"]})  # (D,)
        bias = pyro.sample("bias", _centered(self.bias_scale))

        with data_plate(x, size):
            return pyro.sample("y", self.conditional(x, weights, bias), obs=y)

    def conditional(self, x: Tensor, weights: Tensor, bias: Tensor) -> dist.Categorical:
        """Returns p(y | x, weights, bias), with batch shape `(B,)` and `probs` `(B, 2)`.

        Draws have a dimension for the rows, `(S, 1, D)` and `(S, 1)`, and give `(S, B)`. The mean
        of their `probs` over the draws are the predictive probabilities.
        """
        return _classes(_outputs(x, weights[..., None], bias[..., None]))


class SoftmaxRegression(nn.Module):
    r"""Softmax regression, :math:`p(y_n = c) \propto e^{w_c^\top x_n + b_c}`.

    Adding the same to the weights of all classes changes nothing; so class 0 is the reference,
    :math:`w_0 = b_0 = 0`, and the others are differences to it. A priori they are differences of
    independent normals of variance :math:`s^2 / 2`, one for each class: so renaming the classes
    changes no prediction, and with two of them this is `LogisticRegression`. Latent sites are
    `weights`, `(D, C - 1)`, and `bias`, `(C - 1,)`.

    Arguments:
        num_features: The length of a row, `D`.
        num_classes: The number of classes, `C`.
        weights_scale: The prior standard deviation of each weight, `s`: one number, or `D`.
        bias_scale: That of each bias.

    Raises:
        TypeError: If a scale is no number.
        ValueError: If there are fewer than two classes, or a scale is not positive or has another
            shape.

    Example:
        >>> model = SoftmaxRegression(num_features=2, num_classes=3)
        >>> x, draws = torch.randn(7, 2), (torch.randn(50, 1, 2, 2), torch.randn(50, 1, 2))
        >>> model(x).shape, model.conditional(x, *draws).probs.mean(0).shape
        (torch.Size([7]), torch.Size([7, 3]))
    """

    weights_scale: Tensor  # s_d, (D,)
    bias_scale: Tensor
    correlation: Tensor  # of the differences, (C - 1, C - 1)

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        weights_scale: Scale = 1.0,
        bias_scale: Scale = 10.0,
    ) -> None:
        super().__init__()
        check_at_least(2, num_classes=num_classes)
        _keep_scale(self, "weights_scale", weights_scale, num_features)
        _keep_scale(self, "bias_scale", bias_scale)
        correlation = (1 + torch.eye(num_classes - 1)) / 2
        self.register_buffer("correlation", correlation, persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        _check_given(x, len(self.weights_scale), "SoftmaxRegression")
        check_labels(y, len(self.correlation) + 1, len(x), "SoftmaxRegression")
        zero, factor = self.correlation.new_zeros(()), cholesky(self.correlation)
        slopes = dist.MultivariateNormal(
            zero.expand(len(factor)), scale_tril=self.weights_scale[:, None, None] * factor
        ).to_event(1)
        offsets = dist.MultivariateNormal(
            zero.expand(len(factor)), scale_tril=self.bias_scale * factor
        )
        names = {"event_dims": ["feature", "class"]}
        weights = pyro.sample("weights", slopes, infer=names)  # (D, C - 1)
        bias = pyro.sample("bias", offsets, infer={"event_dims": ["class"]})  # (C - 1,)

        with data_plate(x, size):
            return pyro.sample("y", self.conditional(x, weights, bias), obs=y)

    def conditional(self, x: Tensor, weights: Tensor, bias: Tensor) -> dist.Categorical:
        """Returns p(y | x, weights, bias), with batch shape `(B,)` and `probs` `(B, C)`.

        Draws have a dimension for the rows, `(S, 1, D, C - 1)` and `(S, 1, C - 1)`, and give
        `(S, B)`. The mean of their `probs` over the draws are the predictive probabilities.
        """
        return _classes(_outputs(x, weights, bias))


def _outputs(x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Rows (B, D) times weights (D, K) or (S, 1, D, K), plus biases: (B, K) or (S, B, K)."""
    if weights.ndim == 2:
        return x @ weights + bias
    if weights.shape[-3] != 1 or bias.shape[:-1] != weights.shape[:-2]:
        raise ValueError(
            f"weights, bias: expected draws with a dimension for the rows, as in weights[:, None] "
            f"and bias[:, None]; got those of shapes {tuple(weights.shape[:-2])} and "
            f"{tuple(bias.shape[:-1])}."
        )
    return (x @ weights).squeeze(-3) + bias


def _centered(scale: Tensor) -> dist.Normal:
    """N(0, s^2). A number for the mean would be copied to the device at each call."""
    return dist.Normal(torch.zeros_like(scale), scale)


def _classes(logits: Tensor) -> dist.Categorical:
    """The classes, given the logits (*, C - 1) of all but class 0, whose logit is 0."""
    return dist.Categorical(logits=nn.functional.pad(logits, (1, 0)))


def _keep_scale(module: nn.Module, name: str, value: Scale, *shape: int) -> None:
    """Makes a standard deviation, or one for each feature, a buffer of that shape."""
    for count in shape:
        check_count(num_features=count)
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}.")
    scale = torch.as_tensor(value).detach()
    scale = scale if scale.is_floating_point() else scale.to(torch.get_default_dtype())
    if scale.shape not in ((), shape):
        either = f" or {shape[0]}, one for each feature" if shape else ""
        raise ValueError(f"{name}: expected one number{either}, got shape {tuple(scale.shape)}.")
    if not (scale.isfinite() & (scale > 0)).all():
        raise ValueError(f"{name}: expected positive standard deviations, got {value}.")
    module.register_buffer(name, scale.expand(shape).clone(), persistent=False)


def _check_given(x: Tensor, num_features: int, where: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{where}: expected rows x, got {type(x).__name__}. It is a model of y given x: "
            f"model(x) samples y for those rows, model(x, y) scores y."
        )
    check_rows(x, num_features, where)


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
