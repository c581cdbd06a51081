"""Networks of noise levels and labels."""

import pytest
import torch
from torch import nn

from ppl_models.nn import Condition, ResNet, TimeMLP, UNet


@pytest.mark.parametrize(
    "network",
    [
        TimeMLP(16, 16, num_classes=3),
        ResNet((4, 4), channels=4, num_blocks=2, num_classes=3),
        UNet((4, 4), channels=(4, 8), num_classes=3),
    ],
    ids=lambda network: type(network).__name__,
)
def test_networks_see_the_label_of_each_row(network):
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.eval()
    x, log_snr = torch.randn(1, 16).expand(4, 16), torch.zeros(4)
    known = network(x, log_snr, torch.tensor([0, 1, 2, 1]))
    unknown = network(x, log_snr)
    torch.testing.assert_close(known[1], known[3])
    assert ((known[:3] - torch.cat([known[1:3], unknown[:1]])).abs().amax(1) > 1e-3).all()


def test_labels_are_left_out_in_training_alone():
    condition = Condition(8, num_classes=3, left_out=0.25)
    log_snr, y = torch.zeros(8000), torch.ones(8000, dtype=torch.long)
    unknown, known = condition(log_snr[:1])[0], condition.eval()(log_snr, y)
    # Sums of 8 products in float32: a row alone and one of 8,000 may be rounded apart.
    near = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(known, known[:1].expand(8000, 8), **near)
    drawn = condition.train()(log_snr, y)
    left_out = (drawn - unknown).abs().amax(1) < 1e-5
    assert left_out.double().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(drawn[~left_out], known[~left_out], **near)
