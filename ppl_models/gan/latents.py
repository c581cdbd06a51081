r"""Distributions of the latent vector of a row, for models that only draw from it.

.. math::
    z = (\epsilon, e_{c_1}, \dots, e_{c_J}), \qquad \epsilon \sim \mathcal{N}(0, \tau^2 I), \quad
    c_j \sim \mathrm{Uniform}\{1, \dots, C_j\}

where :math:`e_c` is the one-hot vector of :math:`c`. A network maps a connected space to a
connected one, so that a generator with normal latents alone leaves bridges between modes that are
apart; with categories beside them it need not.

Shapes: `K` latents.

References:
    | InfoGAN: Interpretable Representation Learning by Information Maximizing Generative
    | Adversarial Nets (Chen et al., 2016), https://arxiv.org/abs/1606.03657
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_models.checks import check_positive
from ppl_models.prompt.lines import in_a_line


class NormalOneHotLatents(nn.Module):
    """Normals, followed by one-hot vectors of uniform categories.

    Arguments:
        num_normal: How many normals, 0 for none.
        num_categories: The number of categories of each one-hot vector, `C_j`. All lengths
            together are the number of latents, `K`.
        scale: The standard deviation of the normals. Small ones begin as noise around what the
            categories give, so that few categories come to lie across two modes.

    Raises:
        ValueError: If a number is too small.

    Example:
        >>> z = NormalOneHotLatents(2, (3, 4))().sample((5,))
        >>> z.shape, z[:, 2:5].sum(1), z[:, 5:].sum(1)
        (torch.Size([5, 9]), tensor([1., 1., 1., 1., 1.]), tensor([1., 1., 1., 1., 1.]))
    """

    scale: Tensor  # tau

    __repr__ = in_a_line

    def __init__(self, num_normal: int, num_categories: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        check_positive(scale=scale)
        if num_normal < 0 or not num_categories or min(num_categories) < 2:
            raise ValueError(
                f"NormalOneHotLatents: expected 0 normals or more, and one-hot vectors of 2 "
                f"categories or more, got num_normal={num_normal}, "
                f"num_categories={tuple(num_categories)}. Try StandardNormal for normals alone."
            )
        self.num_normal, self.num_categories = num_normal, tuple(num_categories)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return NormalOneHot(self.num_normal, self.num_categories, self.scale)


class NormalOneHot(dist.TorchDistribution):
    """The distribution of `NormalOneHotLatents`.

    Its density is over the normals, times the probability of the categories.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(
        self,
        num_normal: int,
        num_categories: Sequence[int],
        scale: Tensor,
        batch_shape: torch.Size = torch.Size(),
    ) -> None:
        self.num_normal, self.num_categories, self.scale = num_normal, num_categories, scale
        event_shape = torch.Size([num_normal + sum(num_categories)])
        super().__init__(batch_shape, event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "NormalOneHot":
        shape = torch.Size(batch_shape)
        return NormalOneHot(self.num_normal, self.num_categories, self.scale, shape)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        dtype, device = self.scale.dtype, self.scale.device
        parts = [self.scale * torch.randn(*shape, self.num_normal, dtype=dtype, device=device)]
        for count in self.num_categories:
            category = torch.randint(count, shape, device=device)
            parts.append(nn.functional.one_hot(category, count).to(dtype))
        return torch.cat(parts, dim=-1)  # (*, K)

    def log_prob(self, value: Tensor) -> Tensor:
        normal = dist.Normal(torch.zeros_like(self.scale), self.scale)
        total = normal.log_prob(value[..., : self.num_normal]).sum(-1)
        uniform = torch.tensor(self.num_categories, dtype=value.dtype).log().sum()
        return total - uniform.to(value.device)
