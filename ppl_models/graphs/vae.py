r"""Variational graph autoencoder: edges given latent vectors of nodes, each pair scored once.

.. math::
    z_i \sim p(z) \quad \text{or} \quad p(z \mid x_i), \qquad
    A_{ij} \mid z \sim \mathrm{Bernoulli}(\sigma(\mathrm{decoder}(z_i, z_j))), \quad i < j

The rows are pairs of nodes: in a minibatch each counts as many times as there are pairs for one of
it, and the latents count once, so that the loss is an unbiased estimate of a bound of all pairs.
(That of Kipf & Welling is none: it weighs edges more, has loops, and each pair twice.)

A standard normal prior that does not know the features of nodes has to pay for all that they say
of edges; with `FeaturePrior` the bound is that of :math:`\log p(A \mid X)`.

Shapes: `P` pairs, `N` nodes, `D` features, `K` latents.

References:
    | Variational Graph Auto-Encoders (Kipf & Welling, 2016)
    | https://arxiv.org/abs/1611.07308
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_models.checks import check_count, check_means_and_scales
from ppl_models.graphs.pairs import check_pairs
from ppl_models.plates import data_plate
from ppl_models.priors import StandardNormal
from ppl_models.prompt.lines import in_a_line

WHERE = "VGAE"


class VGAE(nn.Module):
    r"""The generative side of a variational graph autoencoder, with latent site `z` of each node.

    As a program it takes pairs of nodes, and whether there are edges: `model(pairs, edges)`. Its
    guide is `GraphNormal`, a graph network. Pairs that are left out are missing. A third tensor,
    `model(pairs, edges, counts)`, says for how many pairs each stands, where those of a batch were
    not chosen alike: `balanced` makes such batches.

    Arguments:
        num_nodes: `N`.
        num_latents: The length of the latent vector of a node, `K`.
        decoder: A module from the latents of both nodes, `(P, K)` each, to logits `(P,)`.
            Default: `InnerProduct()`.
        prior: A module whose call gives the distribution of all latent vectors, or of one.
            Default: the standard normal distribution.

    Example:
        >>> model = VGAE(num_nodes=4, num_latents=2)
        >>> model(torch.tensor([[0, 1], [3, 2]])).shape
        torch.Size([2])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_nodes: int,
        num_latents: int,
        decoder: nn.Module | None = None,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_count(num_nodes=num_nodes, num_latents=num_latents)
        self.num_nodes, self.num_latents = num_nodes, num_latents
        self.decoder = InnerProduct() if decoder is None else decoder
        self.prior = StandardNormal(num_latents) if prior is None else prior

    def forward(
        self,
        pairs: Tensor,
        edges: Tensor | None = None,
        counts: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Scores `edges` at `pairs`, `(B, 2)`, each as often as `counts` says."""
        check_pairs(pairs, self.num_nodes, WHERE)
        with pyro.plate("node", self.num_nodes, dim=-1):
            z = pyro.sample("z", self.prior(), infer={"event_dims": ["latent"]})  # (N, K)
        with data_plate(pairs, size), poutine.scale(scale=_scale(counts, size)):
            i, j = pairs.unbind(1)
            logits = self.decoder(z[i], z[j])
            if logits.shape != i.shape:
                raise ValueError(
                    f"{WHERE}: expected its decoder to give a logit for each of {len(i)} pairs, "
                    f"with shape ({len(i)},), got {tuple(logits.shape)}. Try .squeeze(-1)."
                )
            return pyro.sample("edges", dist.Bernoulli(logits=logits), obs=edges)


def _scale(counts: Tensor | None, size: int | None) -> float | Tensor:
    """What rows count beside the plate, by which each counts `size` over their number."""
    if counts is None:
        return 1.0
    return counts * (len(counts) / (size or len(counts)))


class InnerProduct(nn.Module):
    r"""The logit :math:`a + g \, z_i^\top z_j`, of which intercept and scale are learned.

    Arguments:
        intercept: Where `a` starts: the logit of how many pairs are joined, about.
        scale: Where `g` starts.

    Example:
        >>> InnerProduct(intercept=-3.0)(torch.zeros(2, 5), torch.ones(2, 5))
        tensor([-3., -3.], grad_fn=<AddBackward0>)
    """

    __repr__ = in_a_line

    def __init__(self, intercept: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.intercept = nn.Parameter(torch.tensor(float(intercept)))  # a
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))  # log g

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Returns the logits of edges, `(*,)`, from their ends `one` and `other`, `(*, K)` each."""
        return self.intercept + self.log_scale.exp() * (one * other).sum(-1)


class Nearness(InnerProduct):
    r"""The logit :math:`a - g \, |z_i - z_j|^2`, of which intercept and scale are learned.

    Nodes near one another are joined: a prior that spreads them out says that most are not.

    Arguments:
        intercept: Where `a` starts: the logit of how many pairs at one place are joined.
        scale: Where `g` starts.

    Example:
        >>> Nearness(intercept=1.0)(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([-1.], grad_fn=<SubBackward0>)
    """

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Returns the logits of edges, `(*,)`, from their ends `one` and `other`, `(*, K)` each."""
        return self.intercept - self.log_scale.exp() * (one - other).square().sum(-1)


class FeaturePrior(nn.Module):
    r"""The prior :math:`\mathcal{N}(m(x_i), \mathrm{diag}(s^2(x_i)))` of the latents of each node.

    Arguments:
        x: The features of the nodes, `(N, D)`.
        num_latents: `K`.
        network: A module from `(N, D)` to `(N, 2 * K)`, the means and the log-scales.

    Example:
        >>> FeaturePrior(torch.zeros(4, 3), 2, nn.Linear(3, 4))().batch_shape
        torch.Size([4])
    """

    x: Tensor

    __repr__ = in_a_line

    def __init__(self, x: Tensor, num_latents: int, network: nn.Module) -> None:
        super().__init__()
        self.num_latents, self.network = num_latents, network
        self.register_buffer("x", x, persistent=False)

    def forward(self) -> dist.Independent:
        """Returns the distribution of the latent vectors of all nodes."""
        outputs = self.network(self.x)
        check_means_and_scales(outputs, self.num_latents, "FeaturePrior", "network")
        loc, log_scale = outputs.chunk(2, dim=-1)  # (N, K) each
        return dist.Normal(loc, log_scale.exp()).to_event(1)
