"""Variational autoencoders: decoders that are, and are not, of the right shape."""

import pytest
import torch
from torch import nn

from ppl_models import VAE
from ppl_models.diffusion.latent import LatentDiffusion
from ppl_models.diffusion.model import Diffusion
from ppl_models.nn import MLP


def test_a_decoder_of_another_shape_has_no_means_either():
    model = LatentDiffusion(VAE(4, 2, decoder=MLP(2, 1)), Diffusion(2, num_steps=2))
    for call in (lambda: model(size=3), lambda: model.vae.mean(torch.zeros(3, 2))):
        with pytest.raises(ValueError, match=r"shape \(B, 4\), got \(3, 1\)"):
            call()


def test_an_empty_network_is_the_identity():
    vae = VAE(3, 3, decoder=nn.Sequential())
    z = torch.randn(2, 3)
    torch.testing.assert_close(vae.mean(z), z.sigmoid())
