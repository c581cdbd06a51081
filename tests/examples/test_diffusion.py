"""The example of diffusion runs, and what it prints is right."""

import math

import pytest
import torch

from ppl_models.datasets import digits
from tests.support.examples import check_pictures, numbers, run

BOUND = r": log evidence (\S+) ± (\S+) nats per row, lower bound \(4 draws, .*\), (\S+) bits/dim"


def test_diffusion(tmp_path, capsys):
    tiny = ["--channels", 4, "--draws", 4, "--num-steps", 20, "--flow-steps", 8]
    tiny += ["--train-rows", 256, "--test-rows", 50, "--outdir", tmp_path]
    example = run("diffusion", *tiny, "--epochs", 3)
    printed = capsys.readouterr().out
    assert "256 training rows, 50 test rows, 64 pixels in 17 grey levels" in printed

    # The floor, pixel by pixel.
    train, test = digits()
    (floor,) = numbers(r"independent pixels give (\S+) bits/dim", printed)
    counts = torch.full((64, 17), 1 / 17, dtype=torch.float64)
    for row in (16 * train[:256]).long():
        counts[torch.arange(64), row] += 1
    p = (counts / 257)[torch.arange(64), (16 * test[:50]).long()]
    assert floor == pytest.approx(-p.log2().mean().item(), abs=1e-4)

    untrained, _, _ = numbers(r"untrained, T = 20, first 50 test rows" + BOUND, printed)
    value, error, bits = numbers(r"labels unknown, log p\(x\)" + BOUND, printed)
    given, _, _ = numbers(r"labels given, log p\(x \| y\)" + BOUND, printed)
    (both,) = numbers(r"log p\(x \| y\) - log 10: (\S+) bits/dim", printed)
    assert untrained < value < -150
    assert bits == pytest.approx(-value / (64 * math.log(2)), abs=1e-4)
    assert both == pytest.approx((math.log(10) - given) / (64 * math.log(2)), abs=1e-4)
    assert 0 < error < 20
    estimate = r" {} steps: log evidence (\S+) ± .*, estimate \(1 draw, .* unknown.*\), (\S+) bits"
    flows = [numbers(estimate.format(steps), printed)[0] for steps in (4, 8)]
    assert -200 < flows[1] < flows[0] < -80  # few steps flatter
    check_pictures(tmp_path, count=4)

    # The finished run goes on from its checkpoint: there is nothing left to do.
    run("diffusion", *tiny, "--epochs", 3, "--resume")
    again = numbers(r"labels unknown, log p\(x\)" + BOUND, capsys.readouterr().out)
    assert again == [value, error, bits]
    with pytest.raises(ValueError, match="horizon"):
        run("diffusion", *tiny, "--epochs", 4, "--resume")
    check_large_images(example)


def check_large_images(example):
    """The model of MNIST: rows of 784 pixels, 256 levels, and labels."""
    diffusion = example.build("mnist", channels=2, num_steps=1000)
    x, y = torch.randint(256, (3, 784)) / 255, torch.tensor([0, 5, 9])
    loss = example.denoising(diffusion).loss(x, y)
    assert math.isfinite(loss.item())
    drawn = diffusion.sample(3, example.heun, 2, y=y, guidance=2.0)
    assert drawn.shape == (3, 784)
    assert ((255 * drawn - (255 * drawn).round()).abs() < 1e-3).all()
