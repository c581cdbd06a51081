"""Recurrent networks of pixels: what they see."""

import torch

from ppl_models.nn import RecurrentPixels, RowLSTM
from tests.support.causality import dependence, shaken


def test_a_row_lstm_sees_a_triangle():
    network = shaken(RecurrentPixels(4, 9, 1, RowLSTM, num_channels=5, num_layers=1))
    seen = dependence(network, 36)[3 * 9 + 4].view(4, 9)
    expected = torch.zeros(4, 9, dtype=torch.bool)
    expected[0, :8] = expected[1, :7] = expected[2, 1:6] = expected[3, 2:4] = True
    assert torch.equal(seen, expected)
