r"""Networks over word vectors: from the words of a sentence to its features, or to each word's.

Shapes: `B` rows, `L` words of a row, `K` dimensions of a word vector, `H` features, `V` words.

References:
    | Bag of Tricks for Efficient Text Classification (Joulin et al., 2017)
    | https://arxiv.org/abs/1607.01759
    | Deep Unordered Composition Rivals Syntactic Methods for Text Classification
    | (Iyyer et al., 2015), on leaving out words: https://doi.org/10.3115/v1/P15-1162
    | Convolutional Neural Networks for Sentence Classification (Kim, 2014)
    | https://arxiv.org/abs/1408.5882
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AveragedWords(nn.Module):
    r"""The sum of the vectors of the words that are there, over the root of their number.

    Over the root, the features of long sentences vary as much as those of short ones.

    Arguments:
        num_dims: The length of a word vector, `K`.
        dropout: The probability with which a feature is dropped in training.
        word_dropout: That with which a word is.

    Example:
        >>> AveragedWords(8)(torch.ones(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 8])
    """

    def __init__(self, num_dims: int, dropout: float = 0.5, word_dropout: float = 0.2) -> None:
        super().__init__()
        self.num_outputs = num_dims
        self.dropout, self.word_dropout = nn.Dropout(dropout), nn.Dropout(word_dropout)

    def forward(self, vectors: Tensor, here: Tensor) -> Tensor:
        keep = (self.word_dropout(here.to(vectors.dtype)) > 0).to(vectors.dtype)  # (B, L)
        total = (keep.unsqueeze(1) @ vectors).squeeze(1)  # (B, K)
        return self.dropout(total / keep.sum(1, keepdim=True).clamp(min=1).sqrt())


class TextCNN(nn.Module):
    """Convolutions of several widths, of each channel the largest value in the sentence.

    Arguments:
        num_dims: The length of a word vector, `K`.
        widths: How many words in a row a convolution sees.
        num_channels: The channels of each width.
        dropout: The probability with which a feature is dropped in training.

    Example:
        >>> TextCNN(8)(torch.ones(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 300])
    """

    def __init__(
        self,
        num_dims: int,
        widths: Sequence[int] = (3, 4, 5),
        num_channels: int = 100,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_outputs = num_channels * len(widths)
        self.layers = nn.ModuleList(
            nn.Conv1d(num_dims, num_channels, width, padding=width) for width in widths
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor, here: Tensor) -> Tensor:
        # A window without a word is among those of any sentence, so that longer rows add none.
        x = (vectors * here.unsqueeze(-1)).mT  # (B, K, L), zeros where no word is
        found = [layer(x).relu().amax(-1) for layer in self.layers]
        return self.dropout(torch.cat(found, 1))
