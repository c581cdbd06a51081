r"""PixelRNN: an image pixel by pixel, by recurrent layers over the rows or the diagonals.

.. math:: p(x) = \prod_{i=1}^{H} \prod_{j=1}^{W} p(x_{ij} \mid o_{ij}(x_{<ij}))

where :math:`x_{<ij}` are the pixels of the rows above, and those to the left.

Shapes: `B` rows, each a flat image of `H` by `W` pixels.

References:
    | Pixel Recurrent Neural Networks (van den Oord et al., 2016a)
    | https://arxiv.org/abs/1601.06759
"""

from ppl_models.autoregressive.model import AutoregressiveModel, check_dropout
from ppl_models.checks import check_choice, check_count
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.nn import DiagonalBiLSTM, RecurrentPixels, RowLSTM

LAYERS: dict[str, type[RowLSTM] | type[DiagonalBiLSTM]] = {
    "row": RowLSTM,
    "diagonal": DiagonalBiLSTM,
}


class PixelRNN(AutoregressiveModel):
    r"""A PixelRNN over flat images; no latents.

    Its evidence is exact, and a draw takes the arithmetic of one pass, in `H W` steps.

    Arguments:
        height, width: The size of an image, `H` and `W`; a row has `H W` features.
        likelihood: What the outputs of a pixel mean.
        order: `"diagonal"` (diagonal BiLSTM), whose pixels see all pixels before them, or `"row"`
            (row LSTM), which takes fewer steps and does not see far to the right.
        num_channels: The channels of each layer.
        num_layers: The number of recurrent layers.
        dropout: The probability with which a unit is dropped in training.

    Raises:
        TypeError: If `likelihood` is none.
        ValueError: If a size is not positive, `order` is another word, or `dropout` no probability
            less than one.

    Example:
        >>> import torch
        >>> model = PixelRNN(height=4, width=4, likelihood=Bernoulli(), num_channels=8)
        >>> x = model(size=5)  # five fresh images
        >>> x.shape, model.evidence().log_prob(x).shape
        (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self,
        height: int,
        width: int,
        likelihood: Likelihood = Bernoulli(),
        order: str = "diagonal",
        num_channels: int = 32,
        num_layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        check_likelihood(likelihood)
        check_count(height=height, width=width, num_channels=num_channels, num_layers=num_layers)
        check_dropout("PixelRNN", dropout)
        check_choice("order", order, LAYERS)
        network = RecurrentPixels(
            height,
            width,
            likelihood.num_outputs,
            LAYERS[order],
            num_channels,
            num_layers,
            dropout,
        )
        super().__init__(network, likelihood, height * width)
        self.height, self.width, self.order = height, width, order
        self.num_channels, self.num_layers = num_channels, num_layers
