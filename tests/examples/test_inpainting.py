"""The example of inpainting runs, and what it prints is right."""

import pytest
import torch

from tests.support.examples import check_pictures, numbers, run


def test_inpainting(tmp_path, capsys):
    tiny = ["--epochs", 20, "--draws", 5, "--particles", 20]
    example = run("inpainting", *tiny, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    assert "1500 training rows, 30% of their pixels" in printed
    row = r" +(\S+) +(\S+)% +(\S+)% +(\S+) +(\S+) +(\S+)\n"
    cases = {"three in ten": (19.2, 20.6), "lower half": (32, 21.4), "a quarter": (16, 44.0)}
    for kind, (count, share) in cases.items():
        pixels, wrong, usual, nll, base, draws = numbers(kind + row, printed)
        assert pixels == pytest.approx(count, abs=0.5)
        assert usual == pytest.approx(share, abs=1.5)
        assert 5 < wrong < usual + 6
        assert 1 <= draws <= 20
        assert 0.1 < nll < base + 0.1 < 0.8
    check_pictures(tmp_path, count=3)
    check_what_it_removes(example)


def check_what_it_removes(example):
    x = torch.ones(100, 64)
    lower = example.remove("lower half", x, 0).view(100, 8, 8).isnan()
    assert lower[:, 4:].all()
    assert not lower[:, :4].any()
    quarter = example.remove("a quarter", x, 0).isnan()
    assert (quarter.sum(1) == 16).all()
    some = example.remove("three in ten", x, 3)
    assert some.isnan().double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (some[~some.isnan()] == 1).all()
