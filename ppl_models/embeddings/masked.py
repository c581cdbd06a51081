r"""Masked words: each word of a row given all others, which is self-supervision.

.. math:: \mathrm{PL}(x) = \prod_{i=1}^{L} p(x_i \mid x_{-i})

This is a pseudo-likelihood, no density of rows: the conditionals that a network has learned need
not be those of any joint distribution, and even if they are, their product counts the ties between
words twice. It is consistent: where the true conditionals can be learned, they maximise it. By word
its inverse is the "perplexity" of masked language models, which does not compare with that of
left-to-right ones. For a bound of a density see `AnyOrderWords`.

Shapes: `B` rows, `L` words of a row, `V` words known.

References:
    | Statistical Analysis of Non-Lattice Data (Besag, 1975)
    | https://doi.org/10.2307/2987782
    | BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al., 2019)
    | https://arxiv.org/abs/1810.04805
    | Exposing the Implicit Energy Networks behind Masked Language Models (Goyal et al., 2022)
    | https://arxiv.org/abs/2106.02736
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_models.checks import check_at_least
from ppl_models.embeddings.sentences import check_words
from ppl_models.embeddings.vocabulary import NO_WORD
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

SWEEPS = 5  # of a draw, through all words of a row


class MaskedWords(nn.Module):
    r"""Rows of words by their conditionals, as site `x`; no latents.

    `fit(elbo(model), x)` maximises the pseudo-likelihood, and `log_evidence(model, None, x)` is of
    the kind `"pseudo-likelihood"`, after a look at whether the network keeps its promise: that the
    conditional of a word does not depend on the word itself.

    Arguments:
        num_words: The number of words known, `V`; rows hold numbers from 1 to `V`.
        length: The number of words of a row, `L`.
        network: A module from rows `(B, L)`, with zeros for words that are hidden, to the logits of
            all words at each place, `(B, L, V)`. One that does not look at a word to foresee it
            has an attribute `sees_itself = False`, and gives all conditionals of a row in one
            pass, such as `Neighbours`, `BagOfNeighbours` and `SelfMaskedTransformer`. Any other is
            run once for each place, with a zero there.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> from ppl_models import log_evidence
        >>> from ppl_models.embeddings.neighbours import BagOfNeighbours
        >>> model = MaskedWords(num_words=3, length=4, network=BagOfNeighbours(3, num_dims=8))
        >>> log_evidence(model, None, torch.tensor([[1, 3, 2, 2], [2, 2, 1, 3]])).kind
        'pseudo-likelihood'
    """

    __repr__ = in_a_line

    def __init__(self, num_words: int, length: int, network: nn.Module) -> None:
        super().__init__()
        check_at_least(2, num_words=num_words, length=length)
        self.num_words, self.length, self.network = num_words, length, network

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, L)`, of `size` in all; without them draws `size` rows."""
        check_rows_of_words(x, self.num_words, self.length, "MaskedWords")
        with data_plate(x, size):
            return pyro.sample("x", self.pseudo_likelihood(), obs=x)

    def pseudo_likelihood(self) -> "PseudoLikelihood":
        """Returns what stands in for a distribution over rows of shape `(L,)`."""
        return PseudoLikelihood(self.network, self.num_words, self.length)

    def conditionals(self, x: Tensor) -> dist.Categorical:
        r"""Returns :math:`p(x_i \mid x_{-i})` over word numbers less one, batch shape `(B, L)`."""
        check_rows_of_words(x, self.num_words, self.length, "MaskedWords")
        return self.pseudo_likelihood().conditionals(x)


class PseudoLikelihood(dist.TorchDistribution):
    """The product of the conditionals of a network, which is no density of rows.

    That it says so, by `is_pseudo_likelihood`, makes it the kind of an evidence. Draws are of Gibbs
    sweeps through the conditionals, from words that are independent.

    Arguments:
        network: As `MaskedWords` takes it.
        num_words, length: As there.

    Example:
        >>> from ppl_models.embeddings.neighbours import BagOfNeighbours
        >>> density = PseudoLikelihood(BagOfNeighbours(3, num_dims=8), num_words=3, length=4)
        >>> density.log_prob(density.sample((5,))).shape
        torch.Size([5])
    """

    is_pseudo_likelihood = True
    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        network: nn.Module,
        num_words: int,
        length: int,
        batch_shape: torch.Size | tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.network, self.num_words = network, num_words
        shape = torch.Size(batch_shape), torch.Size([length])
        super().__init__(*shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(1, self.num_words), 1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "PseudoLikelihood":
        length = self.event_shape[0]
        return type(self)(self.network, self.num_words, length, batch_shape, False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log pseudo-likelihood of rows in nats, `(*,)`, for rows `(*, L)`."""
        if self._validate_args:
            self._validate_sample(value)
        found = self.log_conditionals(value, value).sum(-1)  # (*,)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def log_conditionals(self, value: Tensor, given: Tensor) -> Tensor:
        r"""Returns :math:`\log p(x_i \mid x'_{-i})` of each word, `(*, L)`, given other rows."""
        rows = given.reshape(-1, self.event_shape[0]).long()  # (B, L)
        logits = self.conditionals(rows).logits.unflatten(0, given.shape[:-1])
        chosen, every = torch.broadcast_tensors(value.long().unsqueeze(-1) - 1, logits)
        return every.gather(-1, chosen[..., :1]).squeeze(-1)

    def conditionals(self, rows: Tensor) -> dist.Categorical:
        """Returns the distribution of each word given the others, with batch shape `(B, L)`."""
        if getattr(self.network, "sees_itself", True):
            return dist.Categorical(logits=self._one_by_one(rows))
        return dist.Categorical(logits=word_logits(self.network, rows, self.num_words))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))  # (*, L)
        device = next(self.network.parameters()).device
        rows = torch.randint(1, self.num_words + 1, (shape[:-1].numel(), shape[-1]), device=device)
        for i in [*range(shape[-1])] * SWEEPS:
            rows[:, i] = NO_WORD
            logits = word_logits(self.network, rows, self.num_words)[:, i]
            rows[:, i] = 1 + dist.Categorical(logits=logits).sample()
        return rows.reshape(shape)

    def _one_by_one(self, rows: Tensor) -> Tensor:
        """The logits of a network that is run once for each place, (B, L, V)."""
        length = rows.shape[1]
        own = torch.eye(length, dtype=torch.bool, device=rows.device)
        hidden = rows.unsqueeze(1).masked_fill(own, NO_WORD)  # (B, L, L)
        logits = word_logits(self.network, hidden.flatten(0, 1), self.num_words)
        return logits.unflatten(0, rows.shape).diagonal(dim1=1, dim2=2).movedim(-1, 1)


def word_logits(network: nn.Module, rows: Tensor, num_words: int) -> Tensor:
    """Returns the outputs of a network, `(B, L, V)`, after a look at their shape."""
    logits = network(rows)
    if logits.shape != (*rows.shape, num_words):
        raise ValueError(
            f"network: expected the logits of {num_words} words at each place of rows "
            f"{tuple(rows.shape)}, with shape {(*rows.shape, num_words)}, got "
            f"{tuple(logits.shape)}. Try num_words=len(vocabulary) in both."
        )
    return logits


def check_rows_of_words(x: Tensor | None, num_words: int, length: int, where: str) -> None:
    """Raises unless `x` is None or holds rows of so many words, none of them missing."""
    if x is None:
        return
    check_words(x, num_words, where)
    if x.shape[1] != length:
        raise ValueError(
            f"{where}: expected rows of {length} words, with shape (B, {length}), got "
            f"{tuple(x.shape)}. Try x[: len(x) // {length} * {length}].view(-1, {length}) for the "
            f"words of a text, or length={x.shape[1]}."
        )
