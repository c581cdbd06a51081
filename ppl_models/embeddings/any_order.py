r"""Words in an order that is drawn: masked words whose bound is of a density.

.. math::
    \sigma &\sim \mathrm{Uniform}(S_L) \\
    x \mid \sigma &\sim \prod_{t=1}^{L} p(x_{\sigma_t} \mid x_{\sigma_1}, \dots, x_{\sigma_{t-1}})

Any set of words may be hidden, and the network foresees one of them from the others. The order is
a latent of the row, so that there is an evidence, the mean over all orders, and

.. math::
    \log p(x) \ge \mathbb{E}_{\sigma} \left[ \log p(x \mid \sigma) \right]

with the uniform distribution, which has no parameters, as the guide. The order is that of uniform
keys, `keys`, one for each place.

Shapes: `B` rows, `L` words of a row, `V` words known.

References:
    | A Deep and Tractable Density Estimator (Uria et al., 2014), https://arxiv.org/abs/1310.1757
    | Autoregressive Diffusion Models (Hoogeboom et al., 2022), https://arxiv.org/abs/2110.02037
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_models.checks import check_at_least
from ppl_models.embeddings.masked import check_rows_of_words, word_logits
from ppl_models.embeddings.vocabulary import NO_WORD
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class AnyOrderWords(nn.Module):
    r"""Rows of words, in an order that is a latent of the row, with site `keys`.

    The guide is `model.masking`: `fit(elbo(model, model.masking), x)`. A row takes `L` passes
    through the network, one for each word.

    Arguments:
        num_words, length, network: As `MaskedWords` takes them.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> from ppl_models import log_evidence
        >>> from ppl_models.embeddings.neighbours import SelfMaskedTransformer
        >>> network = SelfMaskedTransformer(num_words=3, length=4, num_dims=8, num_heads=2)
        >>> model = AnyOrderWords(num_words=3, length=4, network=network)
        >>> x = torch.tensor([[1, 3, 2, 2], [2, 2, 1, 3]])
        >>> log_evidence(model, model.masking, x, num_samples=100).kind
        'lower bound'
    """

    zero: Tensor

    __repr__ = in_a_line

    def __init__(self, num_words: int, length: int, network: nn.Module) -> None:
        super().__init__()
        check_at_least(2, num_words=num_words, length=length)
        self.num_words, self.length, self.network = num_words, length, network
        self.register_buffer("zero", torch.zeros(length), persistent=False)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, L)`, of `size` in all; without them draws `size` rows."""
        check_rows_of_words(x, self.num_words, self.length, "AnyOrderWords")
        with data_plate(x, size):
            order = self._draw_keys().argsort(-1)  # (B, L)
            return pyro.sample("x", WordsInOrder(self.network, self.num_words, order), obs=x)

    def masking(self, x: Tensor, size: int | None = None) -> None:
        """The guide, a Pyro program: all orders are alike, whatever the words."""
        with data_plate(x, size):
            self._draw_keys()

    def _draw_keys(self) -> Tensor:
        uniform = dist.Uniform(self.zero, torch.ones_like(self.zero))
        return pyro.sample("keys", uniform.to_event(1))


class WordsInOrder(dist.TorchDistribution):
    """Rows of words, each word given those that come before it in the order of its row.

    Arguments:
        network: As `MaskedWords` takes it.
        num_words: The number of words known, `V`.
        order: The places of a row as they are filled, `(*, L)`.

    Example:
        >>> from ppl_models.embeddings.neighbours import BagOfNeighbours
        >>> order = torch.tensor([[2, 0, 1]])
        >>> density = WordsInOrder(BagOfNeighbours(num_words=3, num_dims=8), 3, order)
        >>> density.log_prob(density.sample()).shape
        torch.Size([1])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, network: nn.Module, num_words: int, order: Tensor, validate_args: bool | None = None
    ) -> None:
        self.network, self.num_words, self.order = network, num_words, order
        super().__init__(order.shape[:-1], order.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(1, self.num_words), 1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "WordsInOrder":
        order = self.order.expand(*batch_shape, -1)
        return WordsInOrder(self.network, self.num_words, order, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of rows in nats, `(*,)`, given their orders."""
        if self._validate_args:
            self._validate_sample(value)
        order, value = torch.broadcast_tensors(self.order, value.long())
        rank = order.argsort(-1)  # of each place, (*, L)
        steps = torch.arange(order.shape[-1], device=order.device)
        known = rank.unsqueeze(-2) < steps.unsqueeze(-1)  # (*, steps, places)
        rows = value.unsqueeze(-2).where(known, NO_WORD)  # (*, L, L)
        logits = word_logits(self.network, rows.flatten(0, -2), self.num_words)
        logits = logits.unflatten(0, rows.shape[:-1])  # (*, steps, places, V)
        here = order[..., None, None].expand(*order.shape, 1, self.num_words)
        chosen = logits.gather(-2, here).squeeze(-2).log_softmax(-1)  # (*, steps, V)
        words = value.gather(-1, order).unsqueeze(-1) - 1
        return chosen.gather(-1, words).squeeze(-1).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))  # (*, L)
        order = self.order.expand(shape).reshape(-1, shape[-1])
        rows, each = torch.full_like(order, NO_WORD), torch.arange(len(order), device=order.device)
        for place in order.unbind(-1):
            logits = word_logits(self.network, rows, self.num_words)[each, place]
            rows[each, place] = 1 + dist.Categorical(logits=logits).sample()
        return rows.reshape(shape)
