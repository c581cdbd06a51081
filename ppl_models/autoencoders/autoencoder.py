r"""Autoencoders: a network that squeezes a row through a narrow code, and one that undoes it.

.. math::
    z_n = \mathrm{encoder}(x_n), \qquad
    \min \frac{1}{N} \sum_n \ell(x_n, \mathrm{decoder}(z_n))

where the loss is the squared error of the row, or minus the logarithm of a likelihood. A denoising
autoencoder sees a noisy row and is asked for the clean one,

.. math::
    \min \frac{1}{N} \sum_n \mathbb{E}_{\tilde{x} \sim c(\cdot \mid x_n)}
    \left[ \ell(x_n, \mathrm{decoder}(\mathrm{encoder}(\tilde{x}))) \right]

With squared errors and wide networks its best answer is :math:`\mathbb{E}[x \mid \tilde{x}]`,
which for small normal noise is :math:`\tilde{x} + \sigma^2 \nabla \log p(\tilde{x})`.

Neither is a density: codes come without a prior and rows without a probability. What the decoder
makes of a draw from :math:`\mathcal{N}(0, I)` is not determined by the training; see `VAE`.

Shapes: `B` rows, `D` features, `K` latents.

References:
    | Reducing the Dimensionality of Data with Neural Networks (Hinton & Salakhutdinov, 2006)
    | https://doi.org/10.1126/science.1127647
    | Stacked Denoising Autoencoders (Vincent et al., 2010)
    | https://www.jmlr.org/papers/v11/vincent10a.html
    | What Regularized Auto-Encoders Learn from the Data-Generating Distribution
    | (Alain & Bengio, 2014)
    | https://arxiv.org/abs/1211.4246
"""

from collections.abc import Callable
from typing import NoReturn

import pyro.distributions as dist
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from ppl_models.autoencoders.corruption import MaskingNoise
from ppl_models.checks import check_rows
from ppl_models.likelihoods import Likelihood, check_likelihood, check_outputs
from ppl_models.nn import MLP
from ppl_models.prompt.lines import in_a_line


class AutoEncoder(nn.Module):
    r"""An autoencoder, trained by `fit(reconstruction(autoencoder), x)`.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its code, `K`.
        encoder: A module from `(B, D)` to `(B, K)`. Default: a multilayer perceptron with two
            hidden layers of 128.
        decoder: A module from `(B, K)` to `(B, D)`, or `(B, D * likelihood.num_outputs)`.
            Default: likewise.
        likelihood: What the outputs of the decoder mean; the loss is then
            :math:`-\log p(x \mid \mathrm{decoder}(z))`, in nats per row. Default: None, for outputs
            that are the row itself; the loss is then the squared error of a row,
            :math:`\lVert x - \mathrm{decoder}(z) \rVert^2`, in the units of the data, squared.

    Raises:
        TypeError: If `likelihood` is none.

    Example:
        >>> import torch
        >>> autoencoder = AutoEncoder(num_features=64, num_latents=2)
        >>> x = torch.zeros(5, 64)
        >>> autoencoder.encode(x).shape, autoencoder(x).shape
        (torch.Size([5, 2]), torch.Size([5, 64]))
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        if likelihood is not None:
            check_likelihood(likelihood)
        self.num_features = num_features
        self.num_latents = num_latents
        self.likelihood = likelihood
        num_outputs = num_features * (1 if likelihood is None else likelihood.num_outputs)
        self.encoder = MLP(num_features, num_latents) if encoder is None else encoder
        self.decoder = MLP(num_latents, num_outputs) if decoder is None else decoder

    def forward(self, x: Tensor) -> Tensor:
        """Returns the rows `x` again, as they come out of their codes, `(B, D)`."""
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """Returns the codes of rows, `(B, K)`."""
        check_rows(x, self.num_features, type(self).__name__, self)
        codes = self.encoder(x).to(x.dtype)
        if codes.shape != (len(x), self.num_latents):
            raise ValueError(
                f"{type(self).__name__}: expected its encoder to give codes of shape "
                f"(B, {self.num_latents}), got {tuple(codes.shape)}. Try a network with "
                f"{self.num_latents} outputs, without scales: these are of AmortizedNormal."
            )
        return codes

    def decode(self, z: Tensor) -> Tensor:
        """Returns the rows of codes, `(B, D)`; with a likelihood, its means."""
        outputs = self._outputs(z)
        return outputs if self.likelihood is None else self.likelihood(outputs).mean

    def reconstruction_loss(self, x: Tensor) -> Tensor:
        """Returns the loss of each row, `(B,)`: squared errors, or nats with a likelihood."""
        return self._loss(x, self.encode(x))

    def evidence(self) -> NoReturn:
        """There is none.

        Raises:
            ValueError: Says why.
        """
        raise ValueError(
            f"{type(self).__name__}: it has no density of rows, and so no evidence: its codes have "
            f"no prior. What `reconstruction` reports takes the code as given, and compares with "
            f"no evidence. Try VAE(num_features, num_latents), which has a lower bound."
        )

    def _outputs(self, z: Tensor) -> Tensor:
        check_rows(z, self.num_latents, f"{type(self).__name__}.decode")
        outputs = self.decoder(z).to(z.dtype)
        return check_outputs(outputs, self.num_features, self.likelihood, type(self).__name__)

    def _loss(self, x: Tensor, z: Tensor) -> Tensor:
        outputs = self._outputs(z)
        if self.likelihood is None:
            return (x - outputs).square().sum(1)
        density = self.likelihood(outputs)
        if is_validation_enabled():
            _check_support(x, density, type(self).__name__)
        return -density.log_prob(x)


class DenoisingAutoEncoder(AutoEncoder):
    r"""An autoencoder that sees noisy rows and is asked for the clean ones.

    The noise is drawn anew in `reconstruction_loss`, and nowhere else: `encode`, `denoise` and a
    call take rows as they are.

    Arguments:
        num_features, num_latents, encoder, decoder, likelihood: As in `AutoEncoder`.
        noise: A callable from rows to noisy rows, `GaussianNoise(scale)`,
            `MaskingNoise(probability)` or `SaltAndPepper(probability)` of
            `ppl_models.autoencoders.corruption`. Default: three in ten features are set to
            zero.

    Raises:
        TypeError: If `noise` cannot be called.

    Example:
        >>> import torch
        >>> from ppl_models.autoencoders.corruption import SaltAndPepper
        >>> autoencoder = DenoisingAutoEncoder(64, 16, noise=SaltAndPepper(0.2))
        >>> autoencoder.denoise(torch.zeros(5, 64)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        likelihood: Likelihood | None = None,
        noise: Callable[[Tensor], Tensor] = MaskingNoise(0.3),
    ) -> None:
        super().__init__(num_features, num_latents, encoder, decoder, likelihood)
        if isinstance(noise, type) or not callable(noise):
            raise TypeError(
                f"noise: expected a callable from rows to noisy rows, got {noise!r}. Try "
                f"GaussianNoise(0.3), MaskingNoise(0.3) or SaltAndPepper(0.2) of "
                f"ppl_models.autoencoders.corruption."
            )
        self.noise = noise

    def denoise(self, x: Tensor) -> Tensor:
        """Returns what the rows are without their noise, `(B, D)`."""
        return self(x)

    def reconstruction_loss(self, x: Tensor) -> Tensor:
        """Returns the loss of each clean row, `(B,)`, from the code of a noisy one."""
        check_rows(x, self.num_features, type(self).__name__, self)
        noisy = self.noise(x)
        if noisy.shape != x.shape:
            raise ValueError(
                f"noise: expected noisy rows of the shape of the rows, {tuple(x.shape)}, got "
                f"{tuple(noisy.shape)}."
            )
        return self._loss(x, self.encode(noisy))


def _check_support(x: Tensor, density: dist.TorchDistribution, where: str) -> None:
    base = density.base_dist if hasattr(density, "base_dist") else density
    inside = base.support.check(x)
    if not inside.all():
        rows = int((~inside).flatten(1).any(1).sum())
        raise ValueError(
            f"{where}: {rows} of {len(x)} rows lie outside the support of its likelihood "
            f"({base.support}), such as {x[~inside][0].item():g}. Try binarize(x) for grey levels "
            f"under Bernoulli(), or likelihood=None for squared errors."
        )
