r"""Bayesian logistic and softmax regression: what a row says of its label.

.. math::
    w_{dc} \sim \mathcal{N}(0, s_d^2), \qquad b_c \sim \mathcal{N}(0, s_b^2), \qquad
    y_n \mid x_n \sim \mathrm{Categorical}(\mathrm{softmax}(w^\top x_n + b))

The weights `w` and the biases `b` are shared by all rows: latent sites `weights` and `bias`. The
label of a row is site `y`; the rows themselves are given, and have no density. The scales of the
priors are in the units of the data: the defaults are meant for standardised features, whose
standard deviation is 1.

Shapes: `B` rows, `D` features, `C` classes, `S` draws.

References:
    | Pattern Recognition and Machine Learning, chapter 4 (Bishop, 2006)
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_at_least, check_labels
from ppl_models.linalg import cholesky
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line
from ppl_models.supervised.predictor import (
    Scale,
    check_given,
    linear_predictor,
    register_scale,
    zero_mean,
)


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

    __repr__ = in_a_line

    def __init__(
        self, num_features: int, weights_scale: Scale = 1.0, bias_scale: Scale = 10.0
    ) -> None:
        super().__init__()
        self.num_features = num_features
        register_scale(self, "weights_scale", weights_scale, num_features)
        register_scale(self, "bias_scale", bias_scale)

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Draws the weights, and scores `y`, `(B,)`, given rows `x`, `(B, D)`, or draws it."""
        check_given(x, len(self.weights_scale), "LogisticRegression")
        check_labels(y, 2, len(x), "LogisticRegression")
        slopes = zero_mean(self.weights_scale).to_event(1)
        weights = pyro.sample("weights", slopes, infer={"event_dims": ["feature"]})  # (D,)
        bias = pyro.sample("bias", zero_mean(self.bias_scale))

        with data_plate(x, size):
            return pyro.sample("y", self.conditional(x, weights, bias), obs=y)

    def conditional(self, x: Tensor, weights: Tensor, bias: Tensor) -> dist.Categorical:
        """Returns p(y | x, weights, bias), with batch shape `(B,)` and `probs` `(B, 2)`.

        Draws have a dimension for the rows, `(S, 1, D)` and `(S, 1)`, and give `(S, B)`. The mean
        of their `probs` over the draws are the predictive probabilities.
        """
        return _categorical(linear_predictor(x, weights[..., None], bias[..., None]))


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

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        weights_scale: Scale = 1.0,
        bias_scale: Scale = 10.0,
    ) -> None:
        super().__init__()
        check_at_least(2, num_classes=num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        register_scale(self, "weights_scale", weights_scale, num_features)
        register_scale(self, "bias_scale", bias_scale)
        correlation = (1 + torch.eye(num_classes - 1)) / 2
        self.register_buffer("correlation", correlation, persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Draws the weights, and scores `y`, `(B,)`, given rows `x`, `(B, D)`, or draws it."""
        check_given(x, len(self.weights_scale), "SoftmaxRegression")
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
        return _categorical(linear_predictor(x, weights, bias))


def _categorical(logits: Tensor) -> dist.Categorical:
    """The classes, given the logits (*, C - 1) of all but class 0, whose logit is 0."""
    return dist.Categorical(logits=nn.functional.pad(logits, (1, 0)))
