r"""Word vectors learned with the labels of sentences.

.. math::
    h_n = f(v_{x_{n1}}, \dots, v_{x_{nL}}), \qquad
    y_n \mid x_n \sim \mathrm{Categorical}(\mathrm{softmax}(W h_n + b))

A word is known by its vector `v` alone, learned with the rest (tuned), or kept as it came from
elsewhere (static).

Shapes: `B` sentences, `L` words, `V` words known, `K` dimensions, `H` features, `C` classes.

References:
    | Convolutional Neural Networks for Sentence Classification (Kim, 2014), on static and tuned
    | https://arxiv.org/abs/1408.5882
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppl_models.checks import check_at_least, check_count, check_labels, listed
from ppl_models.embeddings.neighbours import word_vectors
from ppl_models.embeddings.networks import AveragedWords
from ppl_models.embeddings.vocabulary import NO_WORD
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

WHERE = "SentenceClassifier"


class SentenceClassifier(nn.Module):
    r"""Labels given sentences; the label is site `y`, and sentences have no density.

    It has no latents: `fit(elbo(model), (x, y))` maximises the likelihood, and
    `log_evidence(model, None, x, y)` is the exact :math:`\log p(y \mid x)`. Rows are numbers of
    words, as `Vocabulary.encode` gives them, with zeros where there is no word.

    The word vectors are `model.vectors.weight`, `(V + 1, K)`, with that of no word first. To start
    from others, copy them there; `freeze(model, "vectors")` keeps them as they are.

    Arguments:
        num_words: The number of words known, `V`.
        num_classes: The number of classes, `C`.
        num_dims: The length of a word vector, `K`.
        network: A module from word vectors `(B, L, K)`, and where there are words, `(B, L)`, to
            features `(B, H)`, with `H` as its attribute `num_outputs`. Default: `AveragedWords`.

    Raises:
        ValueError: If a size is not positive, or there is one class only.

    Example:
        >>> from ppl_models.embeddings.vocabulary import Vocabulary
        >>> sentences = [["who", "was", "Galileo"], ["how", "far", "is", "it"]]
        >>> vocabulary = Vocabulary.of(sentences)
        >>> model = SentenceClassifier(len(vocabulary), num_classes=6)
        >>> model.conditional(vocabulary.encode(sentences)).logits.shape
        torch.Size([2, 6])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_words: int,
        num_classes: int,
        num_dims: int = 100,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_count(num_words=num_words, num_dims=num_dims)
        check_at_least(2, num_classes=num_classes)
        self.num_words, self.num_classes, self.num_dims = num_words, num_classes, num_dims
        self.vectors = word_vectors(num_words, num_dims)  # v
        self.network = AveragedWords(num_dims) if network is None else network  # f
        self.head = nn.Linear(_num_features(self.network), num_classes)  # W, b

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores labels `y`, `(B,)`, of rows `x`, of `size` in all; without them draws some."""
        density = self.conditional(x)
        check_labels(y, self.num_classes, len(x), WHERE)
        with data_plate(x, size):
            return pyro.sample("y", density, obs=y)

    def conditional(self, x: Tensor) -> dist.Categorical:
        """Returns p(y | x), with batch shape `(B,)`."""
        return dist.Categorical(logits=self.head(self.features(x)))

    def features(self, x: Tensor) -> Tensor:
        """Returns what the classifier sees in sentences, `(B, H)`."""
        check_words(x, self.num_words, WHERE)
        return self.network(self.vectors(x), x != NO_WORD)

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int = 1024) -> Tensor:
        """Returns the most probable label of each sentence, `(B,)`."""
        check_words(x, self.num_words, WHERE)
        parts = [self.conditional(part).logits.argmax(1) for part in x.split(batch_size)]
        return torch.cat(parts)


def _num_features(network: nn.Module) -> int:
    found = getattr(network, "num_outputs", None)
    if not isinstance(found, int):
        raise ValueError(
            f"{WHERE}: expected a network that says how many features it gives, got "
            f"{type(network).__name__} with num_outputs={found!r}. Try network.num_outputs = H."
        )
    return found


def check_words(x: Tensor, num_words: int, where: str) -> None:
    """Raises unless rows are numbers of words, from 0 to `num_words`, and none of them is empty.

    Raises:
        TypeError: If they are no integers.
        ValueError: If the shape is another, a number is that of no word, or a row is empty.

    Example:
        >>> check_words(torch.tensor([[3, 1, 0]]), num_words=3, where="model")
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.int64, torch.int32):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{where}: expected rows of numbers of words, of type int64, got {got}. "
            f"Try Vocabulary.of(sentences).encode(sentences)."
        )
    if x.ndim != 2:
        raise ValueError(f"{where}: expected rows of words, (B, L), got {tuple(x.shape)}.")
    if x.device.type != "cpu" or get_proxy_mode() is not None:
        return  # to look at them would make a GPU wait, and no graph can hold it
    if (strange := (x < 0) | (x > num_words)).any():
        raise ValueError(
            f"{where}: expected numbers of words from 0 to {num_words}, got {int(strange.sum())} "
            f"of {x.numel()} others, such as {x[strange][0].item()}. Try num_words="
            f"len(vocabulary), and the vocabulary whose unknown token stands for other words."
        )
    if (empty := (x == NO_WORD).all(1)).any():
        rows = empty.nonzero().flatten().tolist()
        raise ValueError(
            f"{where}: expected one word or more in each row, got {len(rows)} of {len(x)} without "
            f"any (rows {listed(rows)}). Try leaving them out."
        )
