r"""A network of sets as guide: the latents of each group from the rows of that group.

.. math::
    h_g = \frac{1}{n_g} \sum_{n : g_n = g} \phi(x_n), \qquad
    q(z_g \mid x_{1:N}, \theta) = \mathcal{N}(\mu_g, \mathrm{diag}(\sigma_g^2)), \qquad
    (\mu_g, \log \sigma_g) = \rho(h_g, \log(1 + n_g), \theta)

with :math:`n_g` rows in group `g`, in whatever order: any function of a set, by networks that are
wide enough. :math:`\theta` are latents that all groups share, if they are given.

Shapes: `B` rows, `D` features, `G` groups, `E` numbers of a set, `K` latents, `S` shared numbers.

References:
    | Deep Sets (Zaheer et al., 2017), https://arxiv.org/abs/1703.06114
    | Amortized Variational Inference for Simple Hierarchical Models (Agrawal & Domke, 2021)
    | https://arxiv.org/abs/2111.03144
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppl_models.checks import check_at_least, check_count, check_means_and_scales, check_rows
from ppl_models.nn import MLP
from ppl_models.prompt.lines import in_a_line

WIDTH = 64  # E, of the encoder that is made here


class GroupNormal(nn.Module):
    r"""A diagonal Gaussian guide for a model with a latent vector of each group.

    It is called as the model is: with rows, and last the group of each, such as `(x, group)` or
    `(x, y, group)`, of which it sees all but the last as features. The latents are in the plate
    `pyro.plate("group", G, dim=-1)` of the model, and vectors, by `.to_event(1)`. A group without
    rows gets what the network makes of none: the prior, once it is fitted to data with such groups.

    A minibatch of rows holds a part of each group, and the posterior of a part is not that of the
    group: it would make of the loss no bound. So minibatches are refused, unless all `data` are
    given here: then the network sees these at each call, whatever rows it is called with. Of other
    rows, `posterior` gives theirs, and `GroupNormal(..., encoder=guide.encoder, head=guide.head)`
    is a guide.

    Arguments:
        num_features: The number of features of a row, `D`, outcomes among them.
        num_latents: The length of the latent vector of a group, `K`.
        num_groups: The number of groups, `G`.
        data: All the data, as the model takes them, where they come in minibatches.
        encoder: :math:`\phi`, a module from `(B, D)` to `(B, E)`. Default: a multilayer perceptron
            with two hidden layers of 128, and `E = 64`.
        head: :math:`\rho`, a module from `(G, E + 1 + S)` to `(G, 2 * K)`, the means and the
            log-scales. Default: likewise a perceptron, for `E = 64`.
        num_shared: The number of shared numbers, `S`, that stand in `x` after the features of each
            row, where `SharedAndLocal` gives them.
        site: The name of the latent site.

    Raises:
        TypeError: At a call, if groups are no whole numbers.
        ValueError: If a number is not positive; at a call, if a group is unknown, if rows or the
            outputs of a network have another shape, or at a minibatch without `data`.

    Example:
        >>> from ppl_models import data_plate, elbo, fit
        >>> def model(x, group, size=None):
        ...     with pyro.plate("group", 3, dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     with data_plate(x, size):
        ...         pyro.sample("x", dist.Normal(z[group], 1.0).to_event(1), obs=x)
        >>> x, group = torch.randn(8, 2), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
        >>> guide = GroupNormal(num_features=2, num_latents=2, num_groups=3)
        >>> run = fit(elbo(model, guide), (x, group), steps=3)
        >>> guide.posterior(x, group).mean.shape
        torch.Size([3, 2])
    """

    rows: Tensor | None
    group: Tensor | None

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        num_groups: int,
        data: Sequence[Tensor] = (),
        encoder: nn.Module | None = None,
        head: nn.Module | None = None,
        num_shared: int = 0,
        site: str = "z",
    ) -> None:
        super().__init__()
        check_count(num_features=num_features, num_latents=num_latents, num_groups=num_groups)
        check_at_least(0, num_shared=num_shared)
        self.num_features, self.num_latents, self.num_groups = num_features, num_latents, num_groups
        self.num_shared, self.site = num_shared, site
        self.encoder = MLP(num_features, WIDTH) if encoder is None else encoder
        self.head = MLP(WIDTH + 1 + num_shared, 2 * num_latents) if head is None else head
        self.width = WIDTH if head is None else None  # that the encoder must have
        rows, group = self._rows(*data) if data else (None, None)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("group", group, persistent=False)

    def forward(self, x: Tensor, *others: Tensor, size: int | None = None) -> Tensor:
        """Draws the latents of all groups, from rows `x` and, among `others`, their groups."""
        own, shared = self._parted(x)
        rows, group = self._rows(own, *others)
        if self.rows is not None and self.group is not None:
            rows, group = self.rows, self.group
        elif size not in (None, len(x)):
            raise ValueError(
                f"GroupNormal: expected all rows, got {len(x)} of {size}: a minibatch holds a part "
                f"of each group. Try batch_size={size}, or GroupNormal(..., data=(x, group)) with "
                f"all of them, which it then sees at each step."
            )
        with pyro.plate("group", self.num_groups, dim=-1):
            return pyro.sample(self.site, self._normals(rows, group, shared))

    def posterior(self, x: Tensor, *others: Tensor) -> dist.Independent:
        r"""Returns :math:`q(z \mid x)`, with batch shape `(G,)` and event shape `(K,)`."""
        own, shared = self._parted(x)
        return self._normals(*self._rows(own, *others), shared)

    def _normals(self, rows: Tensor, group: Tensor, shared: Tensor) -> dist.Independent:
        outputs = self.head(self._sets(rows, group, shared)).to(rows.dtype)  # (G, 2 * K)
        check_means_and_scales(outputs, self.num_latents, "GroupNormal", "head")
        loc, log_scale = outputs.chunk(2, dim=-1)  # (G, K) each
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def _sets(self, rows: Tensor, group: Tensor, shared: Tensor) -> Tensor:
        """What the head sees of each group, `(G, E + 1 + S)`."""
        embedded = self.encoder(rows).to(rows.dtype)  # (B, E)
        if embedded.ndim != 2 or self.width not in (None, embedded.shape[-1]):
            raise ValueError(
                f"GroupNormal: expected its encoder to give {self.width or 'E'} numbers for each "
                f"row, got {tuple(embedded.shape)}. Try as many outputs, or a head for others."
            )
        none = rows.new_zeros(self.num_groups)
        count = none.index_add(0, group, torch.ones_like(rows[:, 0]))[:, None]  # n, (G, 1)
        total = none[:, None].expand(-1, embedded.shape[1]).index_add(0, group, embedded)  # (G, E)
        mean, shared = total / count.clamp(min=1), shared.expand(self.num_groups, -1)
        return torch.cat([mean, count.log1p(), shared], 1)

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The own numbers of rows, `(B, *)`, and those that all share, `(S,)`."""
        x, own = x.reshape(len(x), -1), x[0].numel() - self.num_shared
        return x[:, :own], x[0, own:]

    def _rows(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        """The features of rows, `(B, D)`, and their groups."""
        *parts, group = data
        if not parts:
            raise ValueError(
                "GroupNormal: expected rows and after them the group of each, got one tensor. Try "
                "data of (x, group), or (x, y, group)."
            )
        rows = torch.cat([v.reshape(len(v), -1).to(parts[0].dtype) for v in parts], 1)
        check_rows(rows, self.num_features, "GroupNormal")
        _check_groups(group, self.num_groups, len(rows))
        return rows, group


def _check_groups(group: Tensor, num_groups: int, num_rows: int) -> None:
    """Raises unless there is one known group for each row, by its number."""
    is_whole = not (group.is_floating_point() or group.is_complex() or group.dtype == torch.bool)
    if not is_whole or group.shape != (num_rows,):
        raise (ValueError if is_whole else TypeError)(
            f"GroupNormal: expected the group of each row last, as whole numbers of shape "
            f"({num_rows},), got {group.dtype} of shape {tuple(group.shape)}. Try data of "
            f"(x, group), and group.flatten().long()."
        )
    if group.device.type != "cpu" or get_proxy_mode() is not None:
        return  # where to look is to wait, and no graph can hold a check
    low, high = int(group.min()), int(group.max())
    if low < 0 or high >= num_groups:
        raise ValueError(
            f"GroupNormal: expected groups from 0 to {num_groups - 1}, got {low} to {high}. Try "
            f"num_groups as the number of groups, or group.unique(return_inverse=True)[1], which "
            f"numbers them from 0 on."
        )
