r"""PixelCNN: an image pixel by pixel, by gated masked convolutions.

.. math:: p(x) = \prod_{i=1}^{H} \prod_{j=1}^{W} p(x_{ij} \mid o_{ij}(x_{<ij}))

where :math:`x_{<ij}` are the pixels of the rows above, and those to the left.

Shapes: `B` rows, each a flat image of `H` by `W` pixels.

References:
    | Pixel Recurrent Neural Networks (van den Oord et al., 2016a)
    | https://arxiv.org/abs/1601.06759
    | Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016b)
    | https://arxiv.org/abs/1606.05328
"""

from ppl_models.autoregressive.model import AutoregressiveModel, check_dropout
from ppl_models.checks import check_count
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.nn import GatedPixelCNN


class PixelCNN(AutoregressiveModel):
    r"""A gated PixelCNN of two stacks, without a blind spot, over flat images; no latents.

    Its evidence is exact, and a draw takes the arithmetic of one pass, in `H W` steps.

    Arguments:
        height, width: The size of an image, `H` and `W`; a row has `H W` features.
        likelihood: What the outputs of a pixel mean.
        num_channels: The channels of each stack.
        num_layers: The number of gated layers. A pixel is seen from `(num_layers + 1) * reach`
            rows below, so that small images are seen whole.
        reach: How many pixels a convolution sees in each direction.
        dropout: The probability with which a unit is dropped in training.

    Raises:
        TypeError: If `likelihood` is none.
        ValueError: If a size is not positive, or `dropout` no probability less than one.

    Example:
        >>> import torch
        >>> model = PixelCNN(height=8, width=8, likelihood=Bernoulli(), num_channels=8)
        >>> x = model(size=5)  # five fresh images
        >>> x.shape, model.evidence().log_prob(x).shape
        (torch.Size([5, 64]), torch.Size([5]))
    """

    def __init__(
        self,
        height: int,
        width: int,
        likelihood: Likelihood = Bernoulli(),
        num_channels: int = 32,
        num_layers: int = 4,
        reach: int = 1,
        dropout: float = 0.0,
    ) -> None:
        check_likelihood(likelihood)
        check_count(height=height, width=width, num_channels=num_channels)
        check_count(num_layers=num_layers, reach=reach)
        check_dropout("PixelCNN", dropout)
        network = GatedPixelCNN(
            height, width, likelihood.num_outputs, num_channels, num_layers, reach, dropout
        )
        super().__init__(network, likelihood, height * width)
        self.height, self.width = height, width
        self.num_channels, self.num_layers, self.reach = num_channels, num_layers, reach
