"""The example of missing data runs, and what it prints is right."""

import pytest
import torch
from sklearn.datasets import load_breast_cancer

from tests.support.examples import check_pictures, numbers, run

MODELS = ("factor analysis, 10 factors", "one Gaussian", "mixture of 3 Gaussians")


def test_missing_data(tmp_path, capsys):
    tiny = ["--rows", "200", "--components", "2", "--seed", "1"]
    run("missing_data", *tiny, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    check_pictures(tmp_path, count=2)
    assert "30% of the entries are removed at random" in printed
    tumours, _, images = printed.partition("\nDigits: 200 rows")

    # The same entries, removed again.
    x = torch.from_numpy(load_breast_cancer().data)
    x = (x - x.mean(0)) / x.std(0)
    gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    mean = x.where(~gone, torch.nan).nanmean(0)
    expected = (mean - x)[gone].square().mean().sqrt().item()
    (column_mean,) = numbers(r"mean of the column +(\S+)", tumours)
    assert column_mean == pytest.approx(expected, abs=1e-3)

    (regression,) = numbers(r"iterative regression +(\S+)", tumours)
    for name in MODELS:
        error, _, observed, removed, held = numbers(
            rf"{name} +(\S+) +(\S+) +(\S+) +(\S+) +(\d+)%", tumours
        )
        assert error < 0.5 * column_mean
        # Standard normals of 21 observed entries would have about -30 nats.
        assert -15 < observed < 0
        assert -1.419 < removed < 0.5  # that of a standard normal is -1.419
        assert 80 <= held <= 95
        if name == "one Gaussian":
            assert error <= 0.97 * regression

    (column_mean,) = numbers(r"mean of the column +(\S+)", images)
    for name in ("factor analysis, 20 factors", "one Gaussian", "mixture of 2 Gaussians"):
        (error,) = numbers(rf"{name} +(\S+)", images)
        assert error < 0.85 * column_mean
