"""What a network sees of missing entries."""

import torch
from torch import nn

from ppl_models.nn import MissingInput


def test_what_a_network_sees_of_missing_entries():
    x = torch.tensor([[1.0, torch.nan, 0.0]])
    shown = MissingInput(nn.Identity())(x)
    assert shown.tolist() == [[1.0, 0.0, 0.0, 1.0, 0.0, 1.0]]
    assert MissingInput(nn.Identity(), mask=False)(x).tolist() == [[1.0, 0.0, 0.0]]
