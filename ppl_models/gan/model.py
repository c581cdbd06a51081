r"""Generative adversarial network: a generator, and a discriminator that teaches it.

.. math::
    z_n &\sim p(z), \qquad x_n = G(z_n) \\
    \min_G \max_D V(G, D) &= \mathbb{E}_{x \sim \mathrm{data}}[\log D(x)]
    + \mathbb{E}_{z \sim p(z)}[\log (1 - D(G(z)))]

The model samples rows but has no density: a generator maps the latents onto a thin set, and a row
of data almost surely lies beside it. With :math:`D(x) = \sigma(s(x))` the discriminator gives the
score :math:`s`. It may look at `M` rows at once (packing): rows of a generator that has lost modes
are too much alike, which shows in a pack and not in a row.

Shapes: `B` rows, `D` features, `K` latents, `M` rows a pack.

References:
    | Generative Adversarial Nets (Goodfellow et al., 2014)
    | https://arxiv.org/abs/1406.2661
    | PacGAN: The power of two samples in generative adversarial networks (Lin et al., 2018)
    | https://arxiv.org/abs/1712.04086
"""

from functools import partial
from typing import NoReturn

import pyro
from torch import Tensor, nn

from ppl_models.checks import check_count, check_rows
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.priors import StandardNormal
from ppl_models.prompt.lines import in_a_line

_LEAKY = partial(nn.LeakyReLU, 0.2)


class GAN(nn.Module):
    r"""Both players of the game, with latent site `z`; as a program, the generator alone.

    `adversarial(gan)` gives the objectives that `fit` takes turns over. Judge the samples by
    `ppl_models.metrics`: a GAN has no evidence.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        generator: A module from `(B, K)` to `(B, D)`. Default: a multilayer perceptron with two
            hidden layers of 128, leaky rectifiers and linear outputs.
        discriminator: A module from `(B / M, M * D)` to a score for each pack, `(B / M, 1)`.
            Default: a multilayer perceptron like that.
        latents: A module whose call without arguments gives the distribution of `z`. Default:
            `StandardNormal(num_latents)`.
        packing: How many rows the discriminator sees at once, `M`.

    Raises:
        ValueError: If `packing` is not positive, or the latents are not `K`.

    Example:
        >>> import torch
        >>> gan = GAN(num_features=2, num_latents=3)
        >>> gan(size=5).shape, gan.discriminate(torch.zeros(4, 2)).shape
        (torch.Size([5, 2]), torch.Size([4]))
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        latents: nn.Module | None = None,
        packing: int = 1,
    ) -> None:
        super().__init__()
        check_count(packing=packing)
        self.num_features, self.num_latents, self.packing = num_features, num_latents, packing
        self.latents = StandardNormal(num_latents) if latents is None else latents
        if self.latents().event_shape != (num_latents,):
            raise ValueError(
                f"GAN: expected latents of shape ({num_latents},), got "
                f"{tuple(self.latents().event_shape)}. Try num_latents="
                f"{self.latents().event_shape.numel()}."
            )
        if generator is None:
            generator = MLP(num_latents, num_features, activation=_LEAKY)
        if discriminator is None:
            discriminator = MLP(packing * num_features, 1, activation=_LEAKY)
        self.generator, self.discriminator = generator, discriminator

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Draws `size` rows; rows `x` have no density, and are an error."""
        if x is not None:
            self.evidence()
        with data_plate(None, size):
            z = pyro.sample("z", self.latents())  # (B, K)
            rows = self.generator(z)  # (B, D)
            if rows.shape != (len(z), self.num_features):
                raise ValueError(
                    f"GAN: expected the generator to give ({len(z)}, {self.num_features}) for "
                    f"{len(z)} latent vectors, got {tuple(rows.shape)}. Try .flatten(1) at its "
                    f"end, or num_features={rows[0].numel()}."
                )
            return pyro.deterministic("x", rows, event_dim=1)

    def discriminate(self, x: Tensor) -> Tensor:
        r"""Returns the scores :math:`s`, the logits of "these rows are data", `(B / M,)`.

        Arguments:
            x: Rows of shape `(B, D)`; each `M` in a row are a pack.

        Raises:
            ValueError: If `B` is no multiple of `M`, or a shape is wrong.
        """
        check_rows(x, self.num_features, "GAN", self)
        if len(x) % self.packing:
            raise ValueError(
                f"GAN: expected a multiple of packing={self.packing} rows, got {len(x)}."
            )
        scores = self.discriminator(x.reshape(-1, self.packing * self.num_features))
        packs = len(x) // self.packing
        if scores.numel() != packs:
            raise ValueError(
                f"GAN: expected the discriminator to give one score for each of {packs} packs, "
                f"with shape ({packs}, 1), got {tuple(scores.shape)}."
            )
        return scores.reshape(packs)

    def evidence(self) -> NoReturn:
        """Raises: there is none, and this says why.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "GAN: it has no likelihood, and so no evidence: its rows are functions of the "
            "latents, without a density that a row of data could be scored by. Try gan(size=10) "
            "for samples, and ppl_models.metrics to judge them, such as prdc(data, samples)."
        )
