r"""Networks from the neighbours of a word to the word, which they do not look at.

`Neighbours` knows which neighbour stands where; `BagOfNeighbours` only which words are near. In a
`SelfMaskedTransformer` each place asks all others, in several layers whose questions alone change,
so that no word comes back to its own place by way of another.

Shapes: `B` rows, `L` words of a row, `K` dimensions of a word vector, `R` neighbours on each side,
`V` words known.

References:
    | A Neural Probabilistic Language Model (Bengio et al., 2003)
    | https://www.jmlr.org/papers/v3/bengio03a.html
    | Using the Output Embedding to Improve Language Models (Press & Wolf, 2017)
    | https://arxiv.org/abs/1608.05859
    | Efficient Estimation of Word Representations in Vector Space (Mikolov et al., 2013)
    | https://arxiv.org/abs/1301.3781: the bag of neighbours
    | Fast and Accurate Deep Bidirectional Language Representations for Unsupervised Learning
    | (Shin et al., 2020), https://arxiv.org/abs/2004.08097: the transformer
"""

import torch
from torch import Tensor, nn

from ppl_models.checks import check_count
from ppl_models.embeddings.vocabulary import NO_WORD


class BagOfNeighbours(nn.Module):
    """The mean vector of the words near by, in whatever order, to the logits of the word.

    Arguments:
        num_words: The number of words known, `V`.
        num_dims: The length of a word vector, `K`.
        reach: How many words on each side are near, `R`.
        dropout: The probability with which a number of the mean is dropped in training.

    Example:
        >>> BagOfNeighbours(num_words=3, num_dims=8)(torch.tensor([[1, 3, 2, 2]])).shape
        torch.Size([1, 4, 3])
    """

    sees_itself = False

    def __init__(
        self, num_words: int, num_dims: int = 128, reach: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_count(num_words=num_words, num_dims=num_dims, reach=reach)
        self.reach = reach
        self.vectors = word_vectors(num_words, num_dims)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(num_dims, num_words))

    def forward(self, x: Tensor) -> Tensor:
        near = neighbours(x, self.reach)  # (B, L, 2 R)
        count = (near != NO_WORD).sum(-1, keepdim=True).clamp(min=1)
        return self.head(self.vectors(near).sum(-2) / count.sqrt())


class Neighbours(nn.Module):
    r"""The vectors of the words near by, side by side, to the logits of the word.

    .. math:: o = E h + b, \qquad h = f(e_{x_{i-R}}, \dots, e_{x_{i-1}}, e_{x_{i+1}}, \dots)

    The vectors that words are known by, and those that they are foreseen by, are the same `E`.

    Arguments:
        num_words: The number of words known, `V`.
        num_dims: The length of a word vector, `K`.
        reach: How many words on each side are near, `R`.
        num_hidden: The width of the hidden layer.
        dropout: The probability with which a unit of it, or a number of a word vector, is dropped
            in training.

    Example:
        >>> Neighbours(num_words=3, num_dims=8)(torch.tensor([[1, 3, 2, 2]])).shape
        torch.Size([1, 4, 3])
    """

    sees_itself = False

    def __init__(
        self,
        num_words: int,
        num_dims: int = 128,
        reach: int = 4,
        num_hidden: int = 512,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_count(num_words=num_words, num_dims=num_dims, reach=reach, num_hidden=num_hidden)
        self.reach = reach
        self.vectors = word_vectors(num_words, num_dims)  # E
        self.network = nn.Sequential(  # f
            nn.Dropout(dropout),
            nn.Linear(2 * reach * num_dims, num_hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(num_hidden, num_dims),
        )
        self.bias = nn.Parameter(torch.zeros(num_words))  # b

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.network(self.vectors(neighbours(x, self.reach)).flatten(-2))  # (B, L, K)
        return hidden @ self.vectors.weight[1:].T + self.bias


class SelfMaskedTransformer(nn.Module):
    """A small transformer in which no place looks at its own word.

    Arguments:
        num_words: The number of words known, `V`.
        length: The longest row, `L`.
        num_dims: The width of it, `K`.
        num_layers: How often each place asks the others.
        num_heads: The heads of each layer; a divisor of the width.
        dropout: The probability with which a unit is dropped in training.

    Example:
        >>> network = SelfMaskedTransformer(num_words=3, length=4, num_dims=8, num_heads=2)
        >>> network(torch.tensor([[1, 3, 2, 2]])).shape
        torch.Size([1, 4, 3])
    """

    sees_itself = False

    def __init__(
        self,
        num_words: int,
        length: int,
        num_dims: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_count(num_words=num_words, length=length, num_dims=num_dims, num_layers=num_layers)
        self.vectors = nn.Embedding(num_words + 1, num_dims, padding_idx=NO_WORD)
        self.places = nn.Parameter(torch.randn(length, num_dims))
        self.layers = nn.ModuleList(
            _Asking(num_dims, num_heads, dropout) for _ in range(num_layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(num_dims), nn.Linear(num_dims, num_words))

    def forward(self, x: Tensor) -> Tensor:
        places = self.places[: x.shape[1]]
        words = nn.functional.pad(self.vectors(x) + places, (0, 0, 1, 0))  # and one to find nothing
        blind = nn.functional.pad(torch.eye(x.shape[1], device=x.device), (1, 0)).bool()
        hidden = nn.functional.pad(x == NO_WORD, (1, 0), value=False)
        seen = ~(blind | hidden.unsqueeze(1)).unsqueeze(1)  # (B, 1, L, L + 1)
        asked = places.expand(*x.shape, -1)
        for layer in self.layers:
            asked = layer(asked, words, seen)
        return self.head(asked)


class _Asking(nn.Module):
    """A layer of attention from questions to words, which stay as they are."""

    def __init__(self, num_dims: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, nn.Dropout(dropout)
        self.norm, self.other_norm = nn.LayerNorm(num_dims), nn.LayerNorm(num_dims)
        self.query, self.out = nn.Linear(num_dims, num_dims), nn.Linear(num_dims, num_dims)
        self.key_value = nn.Linear(num_dims, 2 * num_dims)
        self.network = nn.Sequential(
            nn.Linear(num_dims, 4 * num_dims), nn.GELU(), nn.Linear(4 * num_dims, num_dims)
        )

    def forward(self, asked: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        key, value = map(self._heads, self.key_value(words).chunk(2, -1))
        query = self._heads(self.query(self.norm(asked)))
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        asked = asked + self.dropout(self.out(found.transpose(1, 2).flatten(-2)))
        return asked + self.dropout(self.network(self.other_norm(asked)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, L, K / heads)


def word_vectors(num_words: int, num_dims: int) -> nn.Embedding:
    """Returns vectors to learn, small ones, and zero for no word."""
    vectors = nn.Embedding(num_words + 1, num_dims, padding_idx=NO_WORD)
    with torch.no_grad():
        vectors.weight.mul_(0.1)
    return vectors


def neighbours(x: Tensor, reach: int) -> Tensor:
    """Returns the words near each place, without the one there, `(B, L, 2 R)`.

    Example:
        >>> neighbours(torch.tensor([[5, 6, 7]]), reach=1)
        tensor([[[0, 6],
                 [5, 7],
                 [6, 0]]])
    """
    windows = nn.functional.pad(x, (reach, reach), value=NO_WORD).unfold(1, 2 * reach + 1, 1)
    return torch.cat([windows[..., :reach], windows[..., reach + 1 :]], -1)
