"""Networks of noisy images: what their outputs see, and sizes that do not fit."""

import pytest
import torch
from torch import nn

from ppl_models.nn import ResNet, UNet


@pytest.mark.parametrize(
    "network", [ResNet((4, 4), channels=4, num_blocks=2), UNet((4, 4), channels=(4, 8))]
)
def test_convolutional_networks_see_every_pixel_and_the_time(network):
    """Whatever they start as: each output depends on each input, and on the log-SNR."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 16)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, torch.zeros(1)), x)
    assert (jacobian[0, :, 0].abs() > 0).all()
    assert not torch.equal(network(x, torch.zeros(1)), network(x, torch.ones(1)))
    two = network(x.repeat(2, 1), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(two[1:], network(x, torch.ones(1)))


@pytest.mark.parametrize("kind", [ResNet, UNet])
def test_outputs_of_a_pixel_are_next_to_one_another(kind):
    """In the order of `Categorical`: pixel by pixel, level by level."""
    torch.manual_seed(0)
    network = kind((4, 4), num_outputs=3)
    head = network.end[-1]
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    output = network(torch.zeros(1, 16), torch.zeros(1))
    torch.testing.assert_close(output, torch.tensor([1.0, 2.0, 3.0]).repeat(16)[None])


def test_unet_refuses_odd_sizes():
    with pytest.raises(ValueError, match="multiples of 2, got 7 x 8"):
        UNet((7, 8))
    with pytest.raises(ValueError, match="8 x 8 = 64 pixels, got 49"):
        UNet((8, 8))(torch.zeros(1, 49), torch.zeros(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: UNet(8),
            r"UNet: expected the height and the width.*shape=8. Try UNet\(\(8, 8\)\)",
        ),
        (lambda: UNet((8, 8, 1)), r"UNet: expected the height and the width"),
        (
            lambda: UNet((8, 8), channels=8),
            r"UNet: expected the channels of each level.*channels=8",
        ),
        (lambda: ResNet(64), r"ResNet: expected the height and the width.*shape=64"),
    ],
)
def test_arguments_of_another_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()
