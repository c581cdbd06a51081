r"""Latent positions: nodes have places, and those that are near one another are joined.

.. math::
    z_i &\sim \mathcal{N}(0, I), \qquad a \sim \mathcal{N}(0, 5^2), \qquad
    g \sim \mathrm{LogNormal}(0, 1) \\
    A_{ij} \mid z &\sim \mathrm{Bernoulli}(\sigma(a - g \, |z_i - z_j|))
    \quad \text{or} \quad \mathrm{Bernoulli}(\sigma(a + g \, z_i^\top z_j))

Distances and products stay the same where all positions are turned, or mirrored: compare them
after a rotation, such as `ppl_models.align`.

Shapes: `P` pairs, `N` nodes, `K` latents.

References:
    | Latent Space Approaches to Social Network Analysis (Hoff et al., 2002)
    | https://doi.org/10.1198/016214502388618906
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_choice, check_count
from ppl_models.graphs.pairs import check_pairs
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

WHERE = "LatentPositions"
WIDTH = 5.0  # of the prior of the intercept: any density of edges


class LatentPositions(nn.Module):
    r"""Positions of nodes, with latent sites `z` of each, `intercept` and `scale`.

    As a program it takes pairs of nodes, and whether there are edges: `model(pairs, edges)`. Any
    guide serves, such as Pyro's `AutoNormal`. Pairs that are left out are missing.

    Arguments:
        num_nodes: `N`.
        num_latents: The length of a position, `K`.
        similarity: `"distance"`, or `"inner product"`.

    Raises:
        ValueError: If an argument is none of these.

    Example:
        >>> model = LatentPositions(num_nodes=4, num_latents=2)
        >>> model(torch.tensor([[0, 1], [3, 2]])).shape
        torch.Size([2])
    """

    zeros: Tensor

    __repr__ = in_a_line

    def __init__(self, num_nodes: int, num_latents: int, similarity: str = "distance") -> None:
        super().__init__()
        check_count(num_nodes=num_nodes, num_latents=num_latents)
        check_choice("similarity", similarity, ["distance", "inner product"])
        self.num_nodes, self.num_latents = num_nodes, num_latents
        self.similarity = similarity
        self.register_buffer("zeros", torch.zeros(num_latents), persistent=False)

    def forward(
        self, pairs: Tensor, edges: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Scores `edges`, 0. or 1., at `pairs` of nodes, `(B, 2)`, of `size` in all."""
        check_pairs(pairs, self.num_nodes, WHERE)
        zero, one = self.zeros.new_zeros(()), self.zeros.new_ones(())
        intercept = pyro.sample("intercept", dist.Normal(zero, WIDTH * one))  # a
        scale = pyro.sample("scale", dist.LogNormal(zero, one))  # g
        with pyro.plate("node", self.num_nodes, dim=-1):
            law = dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)
            z = pyro.sample("z", law, infer={"event_dims": ["latent"]})  # (N, K)
        with data_plate(pairs, size):
            i, j = pairs.unbind(1)
            logits = intercept + scale * self._similarity(z[i], z[j])  # (P,)
            return pyro.sample("edges", dist.Bernoulli(logits=logits), obs=edges)

    def _similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """How near pairs of positions are, (P,)."""
        if self.similarity == "inner product":
            return (one * other).sum(-1)
        # The root has no gradient at zero, where two positions are the same.
        return -((one - other).square().sum(-1) + 1e-12).sqrt()
