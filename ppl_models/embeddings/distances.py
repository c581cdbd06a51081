r"""Embedding of distances: a map of items, of which only how far apart they are is known.

.. math::
    z_i &\sim \mathcal{N}(0, I_K) \\
    d_{ij} \mid z &\sim \lVert s (z_i - z_j) + \sigma \epsilon_{ij} \rVert,
    \qquad \epsilon_{ij} \sim \mathcal{N}(0, I_K)

Each distance scatters around :math:`s \lVert z_i - z_j \rVert` as that of two Gaussian points does,
so that it has a density on the positive numbers, a non-central chi one (`NoncentralChi`). The scale
`s` and the noise :math:`\sigma` are in the units of the distances, and learned with the rest. A
distance that is not known is a row that is not there.

Nothing tells how a map is turned, or reflected: a guide finds one orientation of many alike, and
the evidence of the others is missing from its bound. Draws are aligned by `procrustes` before they
are summarised.

Shapes: `n` items, `B` pairs of them, `K` dimensions.

References:
    | Extensions of the law of comparative judgment to discriminable and multidimensional stimuli
    | (Hefner, 1958), as in Probabilistic Multidimensional Scaling: Complete and Incomplete Data
    | (Zinnes & MacKay, 1983), https://doi.org/10.1007/BF02293861
    | Bayesian Multidimensional Scaling and Choice of Dimension (Oh & Raftery, 2001)
    | https://doi.org/10.1198/016214501753208690
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppl_models.checks import check_at_least, check_count, check_positive, listed
from ppl_models.embeddings.classical import classical_scaling
from ppl_models.embeddings.noncentral import NoncentralChi
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class DistanceEmbedding(nn.Module):
    r"""Positions of items given distances, with latent site `z`, `(n, K)`, shared by all rows.

    A row is a pair of items, and the site `distance` what is observed of it: data are `(pairs,
    distances)`, as `distance_pairs(table)` gives them.

    Arguments:
        num_items: The number of items, `n`.
        num_latents: The number of dimensions, `K`.
        noise: The standard deviation of the scatter, where it is known. Exact distances have none,
            and a likelihood without a maximum as it is learned: give a small one there.

    Raises:
        ValueError: If a size or `noise` is not positive, or there are not more items than
            dimensions.

    Example:
        >>> from pyro.infer.autoguide import AutoNormal, init_to_value
        >>> from ppl_models import elbo, fit
        >>> from ppl_models.embeddings.tables import distance_pairs
        >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [3.0, 4.0]])
        >>> data = distance_pairs(torch.cdist(corners, corners))
        >>> model = DistanceEmbedding(num_items=4, num_latents=2, noise=0.1)
        >>> start = init_to_value(values={"z": model.initialise(*data)})
        >>> guide = AutoNormal(model, init_loc_fn=start, init_scale=0.05)
        >>> run = fit(elbo(model, guide), data, steps=3)
        >>> model.positions(guide.median(*data)["z"]).shape
        torch.Size([4, 2])
    """

    log_noise: Tensor

    __repr__ = in_a_line

    def __init__(self, num_items: int, num_latents: int = 2, noise: float | None = None) -> None:
        super().__init__()
        check_at_least(2, num_items=num_items)
        check_count(num_latents=num_latents)
        if num_latents >= num_items:
            raise ValueError(
                f"DistanceEmbedding: expected fewer dimensions than the {num_items} items, got "
                f"num_latents={num_latents}. Try num_latents=2."
            )
        self.num_items, self.num_latents = num_items, num_latents
        self.log_scale = nn.Parameter(torch.zeros(()))  # log s
        if noise is None:
            self.log_noise = nn.Parameter(torch.tensor(math.log(0.1)))  # log sigma
        else:
            check_positive(noise=noise)
            self.register_buffer("log_noise", torch.tensor(math.log(noise)))

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Observes the distances `y`, `(B,)`, of the pairs `x`, `(B, 2)`."""
        self._check_pairs(x)
        _check_distances(y, len(x))
        zero = self.log_scale.new_zeros(self.num_latents)
        prior = dist.Normal(zero, torch.ones_like(zero)).to_event(1)

        with pyro.plate("item", self.num_items):
            z = pyro.sample("z", prior, infer={"event_dims": ["axis"]})  # (n, K)
        with data_plate(x, size):
            return pyro.sample("distance", self.conditional(x, z), obs=y)

    def conditional(self, pairs: Tensor, z: Tensor) -> NoncentralChi:
        """Returns p(d | z) of pairs `(B, 2)`, given latents `(*, n, K)`; batch shape `(*, B)`."""
        squares = (z[..., pairs[:, 0], :] - z[..., pairs[:, 1], :]).square().sum(-1)  # (*, B)
        apart = squares.clamp(min=torch.finfo(z.dtype).tiny).sqrt()
        return NoncentralChi(self.num_latents, self.positions(apart), self.log_noise.exp())

    def positions(self, z: Tensor) -> Tensor:
        """Returns latents in the units of the distances, `s z`, of any shape."""
        return self.log_scale.exp() * z

    @torch.no_grad()
    def initialise(self, pairs: Tensor, distances: Tensor) -> Tensor:
        """Sets scale and noise by classical scaling, and returns its latents `z`, `(n, K)`.

        A guide should start there: from random positions many maps end in one that is folded.
        """
        self._check_pairs(pairs)
        table = distances.new_full((self.num_items, self.num_items), torch.nan)
        table[pairs[:, 0], pairs[:, 1]] = table[pairs[:, 1], pairs[:, 0]] = distances
        positions = classical_scaling(table, self.num_latents)
        scale = positions.square().mean().sqrt()
        self.log_scale.copy_(scale.log())
        if isinstance(self.log_noise, nn.Parameter):
            apart = (positions[pairs[:, 0]] - positions[pairs[:, 1]]).norm(dim=1)
            error = (distances - apart).square().mean().sqrt()
            self.log_noise.copy_(error.clamp(min=0.01 * scale).log())
        return (positions / scale).to(self.log_scale)

    def _check_pairs(self, pairs: Tensor) -> None:
        """Raises unless pairs are of two items each, of those there are."""
        where = "DistanceEmbedding"
        if not isinstance(pairs, Tensor) or pairs.is_floating_point() or pairs.is_complex():
            got = pairs.dtype if isinstance(pairs, Tensor) else type(pairs).__name__
            raise TypeError(
                f"{where}: expected pairs of items as a tensor of integers, got {got}. "
                f"Try data=distance_pairs(table) for a table of distances."
            )
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(
                f"{where}: expected pairs of shape (B, 2), got {tuple(pairs.shape)}. "
                f"Try distance_pairs(table)."
            )
        if pairs.device.type != "cpu" or get_proxy_mode() is not None:
            return  # to look at them would make a GPU wait, and no graph can hold it
        wrong = ((pairs < 0) | (pairs >= self.num_items)).any(1) | (pairs[:, 0] == pairs[:, 1])
        if wrong.any():
            rows = wrong.nonzero().flatten().tolist()
            raise ValueError(
                f"{where}: expected pairs of two items from 0 to {self.num_items - 1}, got "
                f"{len(rows)} others, such as {pairs[rows[0]].tolist()} (rows {listed(rows)}). "
                f"Try num_items as their number, and no item with itself."
            )


def _check_distances(distances: Tensor | None, num_pairs: int) -> None:
    if distances is None:
        return
    if not isinstance(distances, Tensor) or not distances.is_floating_point():
        kind = distances.dtype if isinstance(distances, Tensor) else type(distances).__name__
        raise TypeError(
            f"DistanceEmbedding: expected distances as floating-point numbers, got {kind}. "
            f"Try distances.float()."
        )
    if distances.shape != (num_pairs,):
        raise ValueError(
            f"DistanceEmbedding: expected one distance for each pair, with shape ({num_pairs},), "
            f"got {tuple(distances.shape)}. Try distance_pairs(table) for a table."
        )
