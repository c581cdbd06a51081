"""What all networks share: rows apart, and randomness in training only."""

import pytest
import torch
from torch import nn

from ppl_models.nn import MLP, ConvDecoder, ConvEncoder, ResidualMLP
from ppl_models.nn.conv import ResidualConv

NETWORKS = {
    "encoder": lambda: (ConvEncoder(8, 8, 6), 64),
    "decoder": lambda: (ConvDecoder(3, 8, 8, 2), 3),
    "residual": lambda: (ResidualMLP(5, 4), 5),
    "mlp": lambda: (MLP(5, 4, dropout=0.5), 5),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_row_does_not_depend_on_the_others(make):
    network, inputs = make()
    network.double().eval()
    for parameter in network.parameters():  # residual blocks start at zero
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(6, inputs, dtype=torch.float64)
    whole = network(x)
    for n in range(6):
        torch.testing.assert_close(network(x[n : n + 1])[0], whole[n])


@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_dropout_is_in_training_only(dropout):
    x = torch.randn(3, 64)
    networks = [
        MLP(64, 4, dropout=dropout),
        ResidualMLP(64, 4, dropout=dropout),
        ConvEncoder(8, 8, 4, dropout=dropout),
    ]
    for network in networks:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
        assert torch.equal(network(x), network(x)) == (dropout == 0)
        network.eval()
        assert torch.equal(network(x), network(x))


def test_residual_blocks_start_as_the_identity():
    x = torch.randn(2, 3, 6, 6)
    block = ResidualConv(3)
    bias = block.body[-1].bias.view(3, 1, 1)
    torch.testing.assert_close(block(x), x + bias)
    network = ResidualMLP(5, 4, width=7, num_blocks=3)
    y = torch.randn(6, 5)
    torch.testing.assert_close(network(y), network.last(network.first(y)))
