r"""A network of the rows, whose outputs for a row are read as the distribution of its latents.

.. math:: q_\phi(z_n \mid x_n) = f(z_n \mid \eta_n), \qquad \eta_n = \phi(x_n)

The family :math:`f` says which posteriors there may be, and the network which one a row gets:
`inference_gap` tells what each of them costs.

Shapes: `B` rows, `D` features, `K` latents, `E` outputs.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
    | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
    | https://arxiv.org/abs/1801.03558
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_models.checks import check_count, check_rows
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class AmortizedGuide(nn.Module):
    """What amortised guides share; a guide of another family has a `family` of its own.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        num_outputs: How many numbers the family takes for a row, `E`.
        encoder: A module from `(B, D)` to `(B, E)`. Default: a multilayer perceptron with two
            hidden layers of 128.
        site: The name of the latent site.
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        num_outputs: int,
        encoder: nn.Module | None,
        site: str,
    ) -> None:
        super().__init__()
        check_count(num_features=num_features, num_latents=num_latents)
        self.num_features, self.num_latents = num_features, num_latents
        self.num_outputs = num_outputs
        self.site = site
        self.encoder = MLP(num_features, num_outputs) if encoder is None else encoder

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Draws a latent vector for each row `x`, of `size` in all, whatever `y` beside it."""
        with data_plate(x, size):
            return pyro.sample(self.site, self.posterior(x))

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        r"""Returns :math:`q_\phi(z \mid x)`, under the name that exact models use.

        For `x` of shape `(B, D)` it has batch shape `(B,)` and event shape `(K,)`.
        """
        check_rows(x, self.num_features, type(self).__name__, self)
        outputs = self.encoder(x).to(x.dtype)  # (B, E)
        self.check_outputs(outputs)
        return self.family(outputs)

    def family(self, outputs: Tensor) -> dist.TorchDistribution:
        """Returns the distributions of rows whose outputs are `(B, E)`."""
        raise NotImplementedError

    def check_outputs(self, outputs: Tensor) -> None:
        """Raises unless the encoder gave as many numbers for a row as the family takes."""
        if outputs.ndim < 2 or outputs.shape[-1] != self.num_outputs:
            raise ValueError(
                f"{type(self).__name__}: expected its encoder to give {self.num_outputs} numbers "
                f"for each row, as its family of {self.num_latents} latents takes, with shape "
                f"(B, {self.num_outputs}), got {tuple(outputs.shape)}. Try a network with "
                f"{self.num_outputs} outputs."
            )
