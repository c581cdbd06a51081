r"""MADE: a masked autoencoder that gives all conditionals of a row in one pass.

.. math:: p(x) = \prod_{d=1}^{D} p(x_d \mid o_d(x_1, \dots, x_{d-1}))

where the outputs :math:`o_d` are those of a multilayer perceptron, some of whose connections are
cut.

Shapes: `B` rows, `D` features.

References:
    | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
    | https://arxiv.org/abs/1502.03509
"""

from collections.abc import Sequence

from ppl_models.autoregressive.model import AutoregressiveModel, check_dropout
from ppl_models.checks import check_count
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.nn import MaskedMLP


class MADE(AutoregressiveModel):
    r"""A masked autoencoder for rows of any features, in their order; no latents.

    Its evidence is exact, and a draw takes the arithmetic of one pass.

    Arguments:
        num_features: The length of a row, `D`.
        likelihood: What the outputs of a feature mean.
        hidden: The width of each hidden layer. Where one is narrower than `D - 1`, some features
            are seen by few units.
        dropout: The probability with which a hidden unit is dropped in training.

    Raises:
        TypeError: If `likelihood` is none.
        ValueError: If a size is not positive, or `dropout` no probability less than one.

    Example:
        >>> import torch
        >>> model = MADE(num_features=64, likelihood=Bernoulli())
        >>> x = model(size=5)  # five fresh rows
        >>> x.shape, model.evidence().log_prob(x).shape
        (torch.Size([5, 64]), torch.Size([5]))
    """

    def __init__(
        self,
        num_features: int,
        likelihood: Likelihood = Bernoulli(),
        hidden: Sequence[int] = (256,),
        dropout: float = 0.0,
    ) -> None:
        check_likelihood(likelihood)
        check_count(num_features=num_features)
        for width in hidden:
            check_count(hidden=width)
        check_dropout("MADE", dropout)
        network = MaskedMLP(num_features, likelihood.num_outputs, hidden, dropout)
        super().__init__(network, likelihood, num_features)
        self.hidden = tuple(hidden)
