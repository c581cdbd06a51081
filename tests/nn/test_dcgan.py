"""Convolutional nets of GANs: shapes, and that rows stay independent."""

import pytest
import torch

from ppl_models import fit
from ppl_models.gan.game import adversarial
from ppl_models.gan.model import GAN
from ppl_models.nn import ConvDiscriminator, ConvGenerator


@pytest.mark.parametrize(("side", "colours"), [(8, 1), (28, 1), (28, 3), (32, 3), (16, 1)])
def test_shapes(side, colours):
    generator = ConvGenerator(5, side, colours, width=8)
    rows = generator(torch.randn(4, 5))
    assert rows.shape == (4, colours * side**2)
    assert (rows > 0).all()
    assert (rows < 1).all()
    for packing in (1, 2):
        discriminator = ConvDiscriminator(side, colours, width=8, packing=packing)
        assert discriminator(rows.reshape(4 // packing, -1)).shape == (4 // packing, 1)


def test_a_row_does_not_depend_on_the_others():
    torch.manual_seed(0)
    generator, discriminator = ConvGenerator(5, 8, width=8), ConvDiscriminator(8, width=8)
    discriminator.eval()
    z = torch.randn(4, 5)
    torch.testing.assert_close(generator(z)[:2], generator(z[:2]))
    x = torch.rand(4, 64)
    torch.testing.assert_close(discriminator(x)[:2], discriminator(x[:2]))
    # Every pixel counts.
    x.requires_grad_()
    discriminator(x).sum().backward()
    assert (x.grad != 0).all()
    assert generator(z).std(0).min() > 0


def test_spectral_norm_bounds_the_slope():
    torch.manual_seed(0)
    plain = ConvDiscriminator(8, width=8, spectral_norm=False)
    bounded = ConvDiscriminator(8, width=8)
    names = [name for name, _ in bounded.named_parameters()]
    assert sum("original" in name for name in names) == 2
    assert not any("original" in name for name, _ in plain.named_parameters())
    for _ in range(30):
        bounded(torch.rand(2, 64))
    bounded.eval()
    weight = bounded[3].weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_pairs_of_images_are_played_for():
    gan = GAN(
        64, 4, ConvGenerator(4, 8, width=8), ConvDiscriminator(8, width=8, packing=2), packing=2
    )
    run = fit(adversarial(gan, "hinge"), torch.rand(12, 64), epochs=2, batch_size=6, progress=False)
    assert run.steps == 4
    assert gan(size=3).shape == (3, 64)


@pytest.mark.parametrize("side", [4, 9, 27, 18])
def test_sides_that_do_not_halve(side):
    for kind in (lambda: ConvGenerator(5, side), lambda: ConvDiscriminator(side)):
        with pytest.raises(ValueError, match=rf"halves to 4, 5, 6 or 7, got {side}. Try 8, 28"):
            kind()


def test_a_width_that_does_not_divide():
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        ConvGenerator(5, 8, width=12)
