r"""A normalising flow for each row: an invertible network makes its latents of normal numbers.

.. math::
    z = \mu(x) + \sigma(x) \, f(\epsilon; c(x)), \qquad
    q(z \mid x) = \mathcal{N}(\epsilon \mid 0, I) \,
    \left| \det \frac{\partial z}{\partial \epsilon} \right|^{-1}

The encoder gives the mean :math:`\mu`, the scale :math:`\sigma` and the context :math:`c`; the
network :math:`f`, autoregressive splines from zuko, is shared by all rows. It is used the way that
makes draws fast, in one pass with their densities; the density of other values takes `K` passes.

Shapes: `B` rows, `D` features, `K` latents, `C` numbers of context.

References:
    | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
    | https://arxiv.org/abs/1606.04934
    | Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
"""

from collections.abc import Sequence

import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor, nn
from torch.distributions import constraints

from guides.amortized.outputs import AmortizedGuide
from ppl_models.checks import check_count


class AmortizedFlow(AmortizedGuide):
    r"""A normalising flow as a guide, given what the encoder says of each row.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        num_context: How many numbers of a row the flow sees, `C`.
        num_transforms: The number of transforms.
        hidden: The width of each hidden layer of a transform's network.
        encoder: A module from `(B, D)` to `(B, 2 * K + C)`: the means, the log-scales and the
            context. Default: a multilayer perceptron with two hidden layers of 128.
        site: The name of the latent site.

    Raises:
        ImportError: If zuko is not installed.
        ValueError: At a call, if the encoder gives another number of outputs.

    Example:
        >>> guide = AmortizedFlow(num_features=64, num_latents=8)
        >>> guide.posterior(torch.zeros(5, 64)).rsample().shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        num_context: int = 16,
        num_transforms: int = 2,
        hidden: Sequence[int] = (64, 64),
        encoder: nn.Module | None = None,
        site: str = "z",
    ) -> None:
        check_count(num_context=num_context, num_transforms=num_transforms)
        super().__init__(num_features, num_latents, 2 * num_latents + num_context, encoder, site)
        self.num_context, self.num_transforms = num_context, num_transforms
        validate = torch.distributions.Distribution._validate_args
        try:
            import zuko  # here, because it may not be installed
        except ImportError as error:
            raise ImportError(
                "AmortizedFlow: its flow is that of zuko, which is not installed. Try pip install "
                "'ppl-models[flows]'."
            ) from error
        finally:
            # Its import switches the checks of all distributions off.
            torch.distributions.Distribution.set_default_validate_args(validate)
        self.flow = zuko.flows.NSF(
            num_latents, num_context, transforms=num_transforms, hidden_features=hidden
        )

    def family(self, outputs: Tensor) -> "Flow":
        from zuko.distributions import NormalizingFlow
        from zuko.transforms import ComposedTransform

        K = self.num_latents
        loc, log_scale, context = outputs.split([K, K, self.num_context], dim=-1)
        flow = self.flow(context)
        scaled = torch.distributions.AffineTransform(
            -loc * (-log_scale).exp(), (-log_scale).exp(), event_dim=1
        )
        # Of latents to normal numbers; a draw goes the other way, which is the network's own.
        return Flow(NormalizingFlow(ComposedTransform(scaled, flow.transform.inv), flow.base))


class Flow(ZukoToPyro):
    """A distribution of zuko for Pyro, which can be sampled without Pyro, too."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    @property
    def event_shape(self) -> torch.Size:
        return self.dist.base.event_shape  # transforms with numbers for each row would add these

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return self(torch.Size(sample_shape))

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            return self(torch.Size(sample_shape))

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Flow":
        return Flow(self.dist.expand(torch.Size(batch_shape)))
