"""Convolutions: flat images of any size, and a likelihood for each pixel."""

import pytest
import torch
from torch import nn

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit
from ppl_models.likelihoods import Categorical, Normal
from ppl_models.nn import ConvDecoder, ConvEncoder

SIZES = [(28, 28), (8, 8), (7, 5), (4, 9)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_convolutions_take_and_give_flat_images_of_any_size(height, width):
    encoder = ConvEncoder(height, width, 6, channels=(4, 8))
    decoder = ConvDecoder(3, height, width, 2, channels=(8, 4))
    assert encoder(torch.rand(5, height * width)).shape == (5, 6)
    assert decoder(torch.rand(5, 3)).shape == (5, height * width * 2)


def jacobian(network, x):
    return torch.autograd.functional.jacobian(network, x)


def test_every_latent_sees_every_pixel_and_every_pixel_every_latent():
    encoder, decoder = ConvEncoder(8, 8, 6).double(), ConvDecoder(3, 8, 8, 2).double()
    x, z = torch.rand(1, 64, dtype=torch.float64), torch.rand(1, 3, dtype=torch.float64)
    assert (jacobian(encoder, x) != 0).all()
    assert (jacobian(decoder, z) != 0).all()


@pytest.mark.parametrize("likelihood", [Normal(own_scale=True), Categorical(3)])
def test_the_outputs_of_a_pixel_meet_its_likelihood(likelihood):
    """A change to the input of the last convolution moves the pixels around it alone."""
    decoder = ConvDecoder(3, 8, 8, likelihood.num_outputs, channels=(4,))
    hidden = torch.zeros(2, 4, 8, 8)
    hidden[1, :, 2, 5] = 1.0

    def finish(h):
        return decoder.last(h).flatten(2).transpose(1, 2).flatten(1)

    density = likelihood(finish(hidden)).base_dist
    parameters = (
        torch.stack([density.loc, density.scale], -1)
        if likelihood.num_outputs == 2
        else density.logits
    )
    change = (parameters[0] - parameters[1]).abs()
    moved = (change > 1e-5).all(-1).view(8, 8)  # less is the rounding of 36 products
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:4, 4:7] = True
    assert torch.equal(moved, expected)

    # and `forward` ends so
    z = torch.randn(2, 3)
    h = nn.functional.interpolate(
        decoder.stages[0](decoder.head(z).unflatten(-1, (4, 4, 4))), size=(8, 8)
    )
    torch.testing.assert_close(decoder(z), finish(h))


def test_a_convolutional_vae_learns():
    """Images with one bright column: the decoder learns which."""
    torch.manual_seed(0)
    x = torch.zeros(32, 8, 8)
    x[torch.arange(32), :, 2 * (torch.arange(32) % 4)] = 1.0
    x = x.flatten(1)
    vae = VAE(64, 2, decoder=ConvDecoder(2, 8, 8, channels=(8, 8), num_blocks=0))
    guide = AmortizedNormal(64, 2, encoder=ConvEncoder(8, 8, 4, channels=(8, 8), num_blocks=0))
    run = fit(elbo(vae, guide), x, epochs=40, batch_size=16, lr=1e-2, seed=0)
    assert run.history["loss"][-1] < 12  # independent pixels: 18 nats; the best: log 4


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"images of 8 x 8 pixels or more for 3 .* got 7 x 9"):
        ConvEncoder(7, 9, 4, channels=(4, 4, 4))
    with pytest.raises(ValueError, match="one stage or more"):
        ConvDecoder(4, 8, 8, channels=())
    with pytest.raises(ValueError, match=r"flat images of 8 x 8 .*\(B, 64\), got \(2, 49\)"):
        ConvEncoder(8, 8, 4)(torch.zeros(2, 49))
