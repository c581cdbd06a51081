r"""An amortised guide of rows of several domains.

.. math::
    q_\phi(y_n \mid x_n) = \mathrm{Categorical}(\pi_\phi(x_n)), \qquad
    q_\phi(z_n \mid x_n, y_n, d_n) = \mathcal{N}(\mu_\phi, \mathrm{diag}(\sigma_\phi^2))

The classifier does not see the domain: it learns from labels of the source and from rows of all.

Shapes: `B` rows, `D` features, `K` latents, `C` classes, `S` domains.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.conditional import LabelNormal
from ppl_models.checks import check_rows
from ppl_models.nn import MLP
from ppl_models.plates import data_plate


class DomainNormal(LabelNormal):
    r"""A guide of a label, where it is not known, and of the latent vector given it and the domain.

    It is a `LabelNormal`, for `DomainVAE`: `label(x)` are the labels of rows of any domain, and
    `elbo(guide.classify)` scores those that are known.

    Arguments:
        num_features, num_classes, num_latents, classifier: As in `LabelNormal`.
        num_domains: The number of domains, `S`.
        encoder: A module from `(B, D + S + C)`, the row and then the domain and the label, each as
            zeros and a one, to `(B, 2 * K)`, means and log-scales. Default: a multilayer perceptron
            with two hidden layers of 128.

    Example:
        >>> guide = DomainNormal(num_features=64, num_classes=10, num_latents=8)
        >>> guide.label(torch.zeros(5, 64)).probs.shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_latents: int,
        num_domains: int = 2,
        encoder: nn.Module | None = None,
        classifier: nn.Module | None = None,
    ) -> None:
        inputs = num_features + num_domains + num_classes
        encoder = MLP(inputs, 2 * num_latents) if encoder is None else encoder
        super().__init__(num_features, num_classes, num_latents, encoder, classifier)
        self.num_domains = num_domains

    def forward(  # type: ignore[override]
        self, x: Tensor, y: Tensor, d: Tensor, size: int | None = None
    ) -> Tensor:
        """Draws labels that `y` does not give, and `z`, of rows `x` of domains `d`."""
        with data_plate(x, size):
            label = pyro.sample("y", self.label(x, y), infer={"enumerate": "parallel"})  # (B,)
            return pyro.sample("z", self.posterior(x, label, d))

    def posterior(  # type: ignore[override]
        self, x: Tensor, y: Tensor, d: Tensor
    ) -> dist.Independent:
        r"""Returns :math:`q(z \mid x, y, d)`, for labels `(B,)`, or `(C, B)` where enumerated."""
        check_rows(x, self.num_features, "DomainNormal", self)
        if d.shape != x.shape[:1]:
            raise ValueError(
                f"DomainNormal: expected one domain for each row, with shape ({len(x)},), got "
                f"{tuple(d.shape)}. Try d.flatten()."
            )
        domain = (d.unsqueeze(-1) == torch.arange(self.num_domains, device=d.device)).to(x.dtype)
        return self._normal(torch.cat([x, domain], 1), y)

    def classify(  # type: ignore[override]
        self, x: Tensor, y: Tensor, d: Tensor | None = None, size: int | None = None
    ) -> None:
        r"""A program: the known labels given the rows, :math:`q(y \mid x)`, for `elbo`."""
        super().classify(x, y, size)
