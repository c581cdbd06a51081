r"""A neural classifier: what a row says of its label, and the features it says it by.

.. math::
    h_n = f(x_n), \qquad y_n \mid x_n \sim \mathrm{Categorical}(\mathrm{softmax}(W h_n + b))

The features `h` are what the Fréchet distance and other metrics of samples are computed on: made
here, on the same data, so that no weights come from outside.

Shapes: `B` rows, `D` features of a row, `H` features found, `C` classes.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_at_least, check_labels, check_rows
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class Classifier(nn.Module):
    r"""Labels given rows; the label is site `y`, and rows have no density.

    It has no latents: `fit(elbo(classifier), (x, y))` maximises the likelihood, and
    `log_evidence(classifier, None, x, y)` is the exact :math:`\log p(y \mid x)`.

    Arguments:
        num_features: The length of a row, `D`.
        num_classes: The number of classes, `C`.
        num_hidden: The number of features found, `H`.
        network: A module from `(B, D)` to `(B, H)`, such as `VisionTransformer(28)` of
            `ppl_models.nn`, of which `H` is 64. Default: a multilayer perceptron with a hidden
            layer of 128, and rectifiers.

    Example:
        >>> model = Classifier(num_features=64, num_classes=10)
        >>> model(torch.zeros(5, 64)).shape, model.features(torch.zeros(5, 64)).shape
        (torch.Size([5]), torch.Size([5, 64]))
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_hidden: int = 64,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_at_least(2, num_classes=num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        if network is None:
            network = nn.Sequential(MLP(num_features, num_hidden, (128,), nn.ReLU), nn.ReLU())
        self.network = network  # f
        self.head = nn.Linear(num_hidden, num_classes)  # W, b

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores labels `y`, `(B,)`, of rows `x`, of `size` in all; without them draws some."""
        check_labels(y, self.num_classes, len(x), "Classifier")
        with data_plate(x, size):
            return pyro.sample("y", self.conditional(x), obs=y)

    def conditional(self, x: Tensor) -> dist.Categorical:
        """Returns p(y | x), with batch shape `(B,)`."""
        return dist.Categorical(logits=self.head(self.features(x)))

    def features(self, x: Tensor) -> Tensor:
        """Returns what the classifier sees in rows, `(B, H)`."""
        check_rows(x, self.num_features, "Classifier", self)
        return self.network(x)

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int = 4096) -> Tensor:
        """Returns the most probable label of each row, `(B,)`."""
        check_rows(x, self.num_features, "Classifier", self)
        parts = [self.conditional(part).logits.argmax(1) for part in x.split(batch_size)]
        return torch.cat(parts)
