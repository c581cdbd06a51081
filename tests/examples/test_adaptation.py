"""The example of domain adaptation runs, and what it prints of labels is right."""

import re

import pytest
import torch

from ppl_models.datasets import semeion
from tests.support.examples import check_pictures, numbers, run
from tests.support.oracles import need_data


def test_adaptation(tmp_path, capsys, monkeypatch):
    root = need_data("Semeion") and need_data("MNIST")
    small = ["--rows", 600, "--epochs", 5, "--outdir", tmp_path]
    third = lambda root: [part[::3] for part in semeion(root)]  # noqa: E731
    monkeypatch.setattr("ppl_models.datasets.semeion", third)
    example = run("adaptation", "--data-root", root, *small)
    printed = capsys.readouterr().out
    assert "600 digits of MNIST with labels" in printed
    assert "531 digits of Semeion, without" in printed
    (before,) = numbers(r"(?m)^source only +(-\S+)$", printed)
    (right,) = numbers(r"(?m)^source only +(\S+)%$", printed)
    assert -60 < before < -40
    assert 30 < right < 80  # by chance: 10
    numbered = re.findall(r"(?m)^(\S.*?) +(-\S+) +(\S+) ± (\S+) +(\S+) ± (\S+) +(\S+)$", printed)
    told = re.findall(r"(?m)^(\S.*?) +(better|worse|undecided)(, warned of)? +\S+%$", printed)
    names = ["CORAL", "label shift", "adversarial", "DomainVAE"]
    assert [row[0] for row in numbered] == [row[0] for row in told] == names
    rows = [(*row, *more[1:]) for row, more in zip(numbered, told, strict=True)]
    for _, evidence, difference, error, back, wrong, further, verdict, warned in rows:
        assert abs(float(evidence) - before - float(difference)) < 0.02
        if verdict == "better":
            assert float(difference) > 3 * float(error) - 0.02
            assert float(back) > -3 * float(wrong) - 0.002
            assert float(further) <= 0
        assert bool(warned) == (verdict in ("worse", "undecided"))
    values = re.findall(r"as rows of (\w+) +(-\S+) ± (\S+), lower bound", printed)
    assert [name for name, *_ in values] == ["MNIST", "Semeion"]
    assert float(values[1][1]) > float(values[0][1])
    check_pictures(tmp_path, count=3)
    check_neighbours(example.neighbours)


def check_neighbours(neighbours):
    digit, domain = torch.arange(40) % 2, (torch.arange(40) >= 20).long()
    apart = torch.stack([10.0 * digit, 1.0 * domain], 1) + 0.01 * torch.randn(40, 2)
    assert neighbours(apart, digit, domain) == (1, 1)
    shifted = apart + torch.stack([10.0 * domain, 0.0 * domain], 1)
    right, _ = neighbours(shifted, digit, domain)
    assert right == pytest.approx(0.5)  # those that are moved beside the others
