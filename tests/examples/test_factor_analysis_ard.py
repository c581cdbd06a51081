"""The example of Bayesian factor analysis runs, and what it prints is right."""

import re

import pytest
import torch
from sklearn.datasets import load_wine

from tests.support.examples import check_pictures, numbers, run

TINY = ["--steps", "150", "--samples", "60", "--outdir"]


def test_three_abilities_are_found_behind_the_tests(tmp_path, capsys):
    run("factor_analysis_ard", "--data", "tests", *TINY, tmp_path)
    printed = capsys.readouterr().out
    assert "225 rows to fit, 75 held out, 12 features" in printed
    assert "nats of all 225 rows" in printed
    assert "lower bound" in printed

    rows = re.findall(r"^ +(\d)  +(\S+) +(\S+) to (\S+) +(\d+)%$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == list("12345678")
    assert all(float(low) <= float(mean) <= float(high) for _, mean, low, high, _ in rows)
    assert [int(row[4]) for row in rows] == [100, 100, 100, 0, 0, 0, 0, 0]
    assert "relevant (probability): 3: 100%" in printed

    # Every ability is a factor of its own, and the first factor's table is that of ArviZ.
    found = re.findall(r"(verbal|spatial|speed) +(0\.\d+) \(factor (\d)\)", printed)
    assert sorted(factor for _, _, factor in found) == ["1", "2", "3"]
    assert all(float(congruence) > 0.95 for _, congruence, _ in found)
    for test in ("verbal 1", "spatial 2", "speed 3"):
        (first,) = numbers(rf"\n{test} +(-?\d\.\d+)", printed)
        mean, _ = numbers(rf"loading\[{test}\] +(\S+) +(\S+)", printed)
        assert mean == pytest.approx(first, abs=0.006)

    (inside,) = numbers(r"(\d+)% of its entries", printed)
    assert inside > 90
    peers = dict(re.findall(r"factor analysis, (\d) factors? +(\S+)  exact", printed))
    ours, error = numbers(r"Bayes, at most 8 factors +(\S+)  estimate.*error (\S+)\n", printed)
    assert ours > float(peers["3"]) - 0.1
    assert ours > float(peers["1"]) + 1
    assert 0 < error < 0.1
    difference, _ = numbers(r"the best of these: (\S+) ± (\S+) \(", printed)
    best = max([*map(float, peers.values()), *numbers(r"full covariance +(\S+)  exact", printed)])
    assert difference == pytest.approx(ours - best, abs=2e-3)
    check_pictures(tmp_path, count=4)


def test_wine(tmp_path, capsys):
    run("factor_analysis_ard", "--data", "wine", "--factors", 6, "--seed", 1, *TINY, tmp_path)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^loading\[", printed, re.MULTILINE)) == 13
    assert len(re.findall(r"factor analysis, \d factors? .*exact", printed)) == 6
    check_pictures(tmp_path, count=4)

    torch.manual_seed(1)  # the full Gaussian again
    x = torch.from_numpy(load_wine().data)
    order = torch.randperm(178)
    train, test = x[order[:133]], x[order[133:]]
    full = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.T))
    expected = full.log_prob(test).mean() + train.std(0).log().sum()
    (value,) = numbers(r"full covariance +(\S+)  exact", printed)
    assert value == pytest.approx(expected.item(), abs=1e-3)


def test_one_ability_at_most(tmp_path):
    """There is nothing to rotate then, and no second factor to draw."""
    tiny = ["--factors", 1, "--steps", 5, "--samples", 10, "--outdir", tmp_path]
    example = run("factor_analysis_ard", "--data", "tests", *tiny)
    check_pictures(tmp_path, count=4)

    rows, features, groups = example.load("cancer")  # the one of its data that no test fits
    assert rows.shape == (569, 30)
    assert features[0] == "mean radius"
    assert {name: int(members.sum()) for name, members in groups.items()} == {
        "malignant": 212,
        "benign": 357,
    }
