r"""Domain adaptation by a VAE: rows of several domains whose labels are known in the source alone.

.. math::
    y_n &\sim \mathrm{Categorical}(\pi), \qquad z_n \sim \mathcal{N}(0, I), \qquad
    d_n \sim \mathrm{Categorical}(\rho) \\
    x_n \mid y_n, z_n, d_n &\sim p(x \mid \mathrm{decoder}(z_n, y_n, d_n)), \qquad
    \mathrm{decoder} = f(z_n, y_n) + \delta_{d_n} \text{ by default}

Labels and style mean the same in all domains, which differ in how they are drawn: by default in an
offset of what comes out of the decoder. A label that is not known is latent and summed over; the
domain is known of each row.

Shapes: `B` rows, `D` features, `K` latents, `C` classes, `S` domains.

References:
    | The Variational Fair Autoencoder (Louizos et al., 2016), https://arxiv.org/abs/1511.00830
    | DIVA: Domain Invariant Variational Autoencoders (Ilse et al., 2020)
    | https://arxiv.org/abs/1905.10427
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.autoencoders.conditional import one_hot
from ppl_models.autoencoders.semi_supervised import UNKNOWN, SemiSupervisedVAE
from ppl_models.checks import check_at_least, check_labels, check_rows
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood, check_outputs
from ppl_models.nn import MLP
from ppl_models.plates import data_plate

WHERE = "DomainVAE"


class OffsetDecoder(nn.Module):
    r"""A network of latents and label, and an offset of its outputs for each domain.

    .. math:: f(z, y) + \delta_d

    Arguments:
        network: A module from `(B, K + C)` to the outputs, `(B, O)`: f.
        num_domains: The number of domains, `S`.
        num_outputs: The number of outputs, `O`.

    Example:
        >>> decoder = OffsetDecoder(nn.Linear(5, 3), num_domains=2, num_outputs=3)
        >>> decoder(torch.zeros(4, 7)).shape
        torch.Size([4, 3])
    """

    def __init__(self, network: nn.Module, num_domains: int, num_outputs: int) -> None:
        super().__init__()
        self.network = network
        self.offsets = nn.Parameter(torch.zeros(num_domains, num_outputs))  # delta, (S, O)

    def forward(self, inputs: Tensor) -> Tensor:
        given, domain = inputs.split([inputs.shape[1] - len(self.offsets), len(self.offsets)], 1)
        return self.network(given) + domain @ self.offsets


class DomainVAE(SemiSupervisedVAE):
    r"""The generative side, with latent sites `y` and `z`, and the domain at site `d`.

    As a program it takes rows, labels and domains, `model(x, y, d)`, of which labels that are not
    known are -1; labels and domains, `model(y=y, d=d)`, to sample a row of each; or neither,
    `model(size=10)`. Its density is that of the rows, of their domains, and of known labels. Its
    guide is `DomainNormal`.

    Nothing but the shape of the decoder holds the classes of two domains together. One that may do
    anything with the domain may draw rows without labels from other classes, and has a higher
    evidence for it; an offset alone moves all classes alike. `compare_labels` warns of the rest.

    Arguments:
        num_features, num_classes, num_latents, likelihood: As in `SemiSupervisedVAE`.
        num_domains: The number of domains, `S`.
        decoder: A module from `(B, K + C + S)`, the latents and then the label and the domain, each
            as zeros and a one, to `(B, D * likelihood.num_outputs)`. Default: `OffsetDecoder`.

    Raises:
        TypeError: If `likelihood` is none.
        ValueError: If there are no classes, or fewer than two domains.

    Example:
        >>> from guides import DomainNormal
        >>> from ppl_models import elbo
        >>> vae = DomainVAE(num_features=64, num_classes=10, num_latents=8)
        >>> d = torch.tensor([0, 0, 1, 1])
        >>> x, y = vae(y=torch.arange(4), d=d), torch.tensor([0, 1, -1, -1])
        >>> elbo(vae, DomainNormal(64, 10, 8)).loss(x, y, d).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_latents: int,
        num_domains: int = 2,
        likelihood: Likelihood = Bernoulli(),
        decoder: nn.Module | None = None,
    ) -> None:
        check_likelihood(likelihood)
        check_at_least(1, num_classes=num_classes)
        check_at_least(2, num_domains=num_domains)
        if decoder is None:
            inputs, outputs = num_latents + num_classes, num_features * likelihood.num_outputs
            decoder = OffsetDecoder(MLP(inputs, outputs), num_domains, outputs)
        super().__init__(num_features, num_classes, num_latents, likelihood, decoder)
        self.num_domains = num_domains
        self.domain_logits = nn.Parameter(torch.zeros(num_domains))  # log rho, (S,)

    def forward(  # type: ignore[override]
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        d: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Scores rows `x` with labels `y` (-1: unknown) and domains `d`, or draws some."""
        check_rows(x, self.num_features, WHERE)
        self._check_known_labels(x, y)
        self._check_domains(x, y, d)
        classes = dist.Categorical(logits=self.logits)
        domains = dist.Categorical(logits=self.domain_logits)
        prior = dist.Normal(self.prior_loc, torch.ones_like(self.prior_loc)).to_event(1)

        with data_plate(d if x is None else x, size):
            given = y if x is None else None
            label = pyro.sample("y", classes, obs=given, infer={"enumerate": "parallel"})
            if x is not None and y is not None:
                wrong = (y != UNKNOWN) & (label != y)  # (B,), or (C, 1, B) enumerated
                pyro.factor("known", torch.where(wrong, -torch.inf, 0.0).to(x.dtype))
            domain = pyro.sample("d", domains, obs=d)  # (B,)
            z = pyro.sample("z", prior)  # (B, K)
            return pyro.sample("x", self.likelihood(self._drawn(z, label, domain)), obs=x)

    def mean(self, z: Tensor, y: Tensor, d: Tensor) -> Tensor:  # type: ignore[override]
        r"""Returns :math:`\mathbb{E}[x \mid z, y, d]`, `(B, D)`, of labels and domains `(B,)`."""
        check_labels(y, self.num_classes, len(z), WHERE)
        check_labels(d, self.num_domains, len(z), WHERE)
        return self.likelihood(self._drawn(z, y, d)).mean

    def _drawn(self, z: Tensor, y: Tensor, d: Tensor) -> Tensor:
        """The outputs of the decoder, also with dimensions of enumerated labels in front."""
        parts = [z, one_hot(y, self.num_classes, z), one_hot(d, self.num_domains, z)]
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        inputs = torch.cat([part.expand(*shape, -1) for part in parts], -1)
        outputs = self.decoder(inputs.flatten(0, -2)).to(z.dtype)
        check_outputs(outputs, self.num_features, self.likelihood, WHERE)
        return outputs.unflatten(0, shape)

    def _check_domains(self, x: Tensor | None, y: Tensor | None, d: Tensor | None) -> None:
        """Raises unless the domain of each row is known, or none is given to sample."""
        rows = x if x is not None else y
        if rows is not None and d is None:
            raise ValueError(
                f"{WHERE}: expected the domain of each row, got none. Try model(x, y, d), with "
                f"labels of -1 where they are not known, or model(y=y, d=d) to sample rows."
            )
        check_labels(d, self.num_domains, None if rows is None else len(rows), f"{WHERE}, domains")
