r"""A graph network as guide: the posterior of each node from the features around it.

.. math:: q(z_i \mid X, A) = \mathcal{N}(\mu_i(X, A), \mathrm{diag}(\sigma_i^2(X, A)))

Shapes: `P` pairs, `N` nodes, `D` features, `E` edges, `K` latents.
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_models.checks import check_means_and_scales
from ppl_models.prompt.lines import in_a_line


class GraphNormal(nn.Module):
    r"""A diagonal Gaussian guide for a model with a latent vector of each node, in plate `"node"`.

    It sees the edges that it is given here, whatever pairs a batch holds: those that are held out
    must not be among them.

    Arguments:
        x: The features of the nodes, `(N, D)`.
        edge_index: Edges in both directions, `(2, E)`, as of `read_graph(graph).edge_index`.
        num_latents: `K`.
        encoder: A module from `(x, edge_index)` to `(N, 2 * K)`, the means and the log-scales, such
            as `ppl_models.nn.GraphNetwork`.
        site: The name of the latent site.

    Raises:
        ValueError: At a call, if the encoder does not give `2 * K` outputs.

    Example:
        >>> import torch
        >>> from ppl_models.nn import GraphNetwork
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> guide = GraphNormal(torch.zeros(3, 5), edges, 2, GraphNetwork(5, 4))
        >>> guide.posterior().mean.shape
        torch.Size([3, 2])
    """

    x: Tensor
    edge_index: Tensor

    __repr__ = in_a_line

    def __init__(
        self,
        x: Tensor,
        edge_index: Tensor,
        num_latents: int,
        encoder: nn.Module,
        site: str = "z",
    ) -> None:
        super().__init__()
        self.num_latents, self.encoder, self.site = num_latents, encoder, site
        self.register_buffer("x", x, persistent=False)
        self.register_buffer("edge_index", edge_index, persistent=False)

    def forward(
        self,
        pairs: Tensor,
        edges: Tensor | None = None,
        counts: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Draws the latents of all nodes, whatever `pairs`, `edges` and `counts`."""
        with pyro.plate("node", len(self.x), dim=-1):
            return pyro.sample(self.site, self.posterior())

    def posterior(self) -> dist.Independent:
        r"""Returns :math:`q(z \mid X, A)`, with batch shape `(N,)` and event shape `(K,)`."""
        outputs = self.encoder(self.x, self.edge_index)
        check_means_and_scales(outputs, self.num_latents, "GraphNormal", "encoder")
        loc, log_scale = outputs.chunk(2, dim=-1)  # (N, K) each
        return dist.Normal(loc, log_scale.exp()).to_event(1)
