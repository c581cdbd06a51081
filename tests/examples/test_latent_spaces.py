"""The example of latent spaces runs, and its measures measure."""

import pytest
import torch

from tests.support.examples import check_pictures, numbers, run


def test_latent_spaces(tmp_path, capsys):
    example = run("latent_spaces", "--epochs", 15, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    assert "1500 training rows, 297 test rows, 64 binary pixels" in printed
    three = r" +(\S+?)%? +(\S+?)%? +(\S+?)%?\n"
    wrong = numbers(r"wrong pixels of a test row" + three, printed)
    assert all(5 < w < 20 for w in wrong)
    plain, denoising, variational = numbers(r"nearest digit, pixels" + three, printed)
    assert 0.5 < min(plain, denoising, variational) < 6
    divergences = numbers(r"KL\(codes \| prior\), nats" + three, printed)
    assert divergences[2] < 0.5 < divergences[0]  # only the VAE is told where its codes should be
    plain, _, variational = numbers(r"codes off the draws of the prior" + three, printed)
    assert variational < 10 < plain
    (evidence,) = numbers(r"VAE: log evidence (\S+) ± .* lower bound", printed)
    assert 18 < -evidence < 24.6
    assert "it has no density of rows, and so no evidence" in printed
    (gap,) = numbers(r"\+ KL\(q\(z\) \|\| p\(z\)\) +(\S+)", printed)
    assert 0 < gap < 1
    check_pictures(tmp_path, count=4)
    check_its_measures(example)


def check_its_measures(example):
    z = torch.randn(2000, 2)
    assert example.gaussian_kl(z) < 0.01
    moved = torch.tensor([2.0, 0.0]) + 3 * z
    expected = 0.5 * (18 + 4 - 2) - 2 * torch.tensor(3.0).log()
    assert example.gaussian_kl(moved) == pytest.approx(expected.item(), rel=0.05)
    assert example.off(torch.randn(500, 2), z) < 0.05
    assert example.off(moved[:500], z) > 0.3
    assert example.off(moved[:500], moved) < 0.05
    rows = torch.bernoulli(torch.full((50, 9), 0.5))
    flipped = rows.clone()
    flipped[:, 0] = 1 - flipped[:, 0]
    assert example.nearest(rows, rows) == 0
    assert example.wrong(flipped, rows) == pytest.approx(1 / 9)
    assert example.nearest(torch.ones(1, 9), torch.zeros(3, 9)) == 9
