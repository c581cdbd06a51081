"""The gated PixelCNN: its reach, and the masked convolutions that it stands for."""

import pytest
import torch
from torch.nn import functional as F

from ppl_models.nn import GatedPixelCNN
from tests.support.causality import dependence, shaken


def test_the_reach_of_a_pixelcnn_is_as_stated():
    """`(num_layers + 1) * reach` rows up, and so many pixels to either side there."""
    network = shaken(GatedPixelCNN(4, 9, 1, num_channels=6, num_layers=1))
    seen = dependence(network, 36)[3 * 9 + 4].view(4, 9)  # of the middle pixel of the last row
    expected = torch.zeros(4, 9, dtype=torch.bool)
    expected[1:3, 2:7] = True
    expected[3, 2:4] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("reach", [1, 2])
def test_a_pixelcnn_is_one_of_masked_convolutions(reach):
    """With whole kernels, and masks A and B as in the paper."""
    network, r = shaken(GatedPixelCNN(4, 5, 2, 6, num_layers=2, reach=reach)), reach
    x = torch.randn(3, 20, dtype=torch.float64)

    def masked(image, conv, rows, columns):
        weight = image.new_zeros(conv.out_channels, conv.in_channels, 2 * r + 1, 2 * r + 1)
        weight[:, :, rows, columns] = conv.weight
        return F.conv2d(image, weight, conv.bias, padding=r)

    def gate(a):
        return a[:, :6].tanh() * a[:, 6:].sigmoid()

    image, every, here = x.view(3, 1, 4, 5), slice(None), slice(r, r + 1)
    v = masked(image, network.above, slice(r), every) + network.v_bias
    h = masked(image, network.left, here, slice(r)) + network.h_bias
    for layer in network.layers:
        more_v = masked(v, layer.vertical, slice(r + 1), every)
        more_h = masked(h, layer.horizontal, here, slice(r + 1)) + layer.link(more_v)
        v, h = v + gate(more_v), h + layer.output(gate(more_h))
    expected = network.head(h) + network.out_bias
    torch.testing.assert_close(network(x), expected.view(3, 2, 20).mT)
