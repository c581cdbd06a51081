"""The example of transfer runs, and its numbers are those of the closed forms."""

import re

import pytest
import torch

from tests.support.examples import check_pictures, numbers, run


def test_transfer(tmp_path, capsys):
    tiny = ["--epochs", 2, "--steps", 100, "--labels", 2, "--outdir", tmp_path]
    example = run("transfer", *tiny)
    printed = capsys.readouterr().out
    assert "1500 training rows, 297 test rows" in printed
    first, last, mean = numbers(
        r"8 of 16 patches hidden: squared error of a row (\S+), then (\S+);\n"
        r"of the mean picture (\S+)\n",
        printed,
    )
    assert 0 < mean < last < first

    for kind in ("from scratch", "warm start, tuned", "warm start, frozen"):
        accuracy, nats = numbers(rf"{kind} +(\S+)% +(\S+)\n", printed)
        assert 5 < accuracy < 60
        assert 1 < nats < 3

    days = re.findall(r"^ +(\d) +(\d+) +(-\S+) +(-\S+) +(\S+) standard", printed, re.MULTILINE)
    assert [int(count) for _, count, *_ in days] == [15, 30, 60]
    for _, _, bound, exact, off in days:
        assert float(bound) == pytest.approx(float(exact), abs=0.05)
        assert float(off) < 0.05
    (whole,) = numbers(r"all 105 patients at once: (\S+) nats, exact", printed)
    assert sum(float(exact) for *_, exact, _ in days) == pytest.approx(whole, abs=2e-3)
    check_pictures(tmp_path, count=4)
    check_rollout(example.rollout)


def check_rollout(rollout):
    """Two layers of which the first moves patch 2 to patch 1, and the class reads patch 1."""
    attention = torch.eye(3).repeat(1, 2, 1, 1, 1)  # (B, L, A, T, T): a class and two patches
    attention[0, 0, 0, 1] = torch.tensor([0.0, 0.0, 1.0])
    attention[0, 1, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(rollout(attention), torch.tensor([[0.5, 0.5]]))
