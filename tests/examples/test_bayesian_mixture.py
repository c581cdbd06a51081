"""The example of a Bayesian mixture runs, and what it prints is right."""

import re

import numpy as np
import pytest
from sklearn.datasets import load_iris

from tests.support.examples import check_pictures, numbers, run

TINY = ["--components", "5", "--steps", "30", "--samples", "40"]


def test_bayesian_mixture(tmp_path, capsys):
    run("bayesian_mixture", *TINY, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    assert "petals of 150 irises" in printed

    # Three kinds, under both priors, as there are.
    for prior in ("Dirichlet", "Dirichlet process"):
        probability = numbers(rf"(?m)^{prior} {{4,}}" + r"(\S+) +" * 4 + r"(\S+)$", printed)
        assert sum(probability) == pytest.approx(1.0, abs=0.03)
        assert int(np.argmax(probability)) + 1 == 3
        bound, rows = numbers(rf"(?m)^{prior}: log evidence (\S+) nats of all (\d+) rows", printed)
        assert rows == 150
        assert -160 < bound < -140
    assert len(re.findall("lower bound .40 importance samples", printed)) == 2

    # Each table of components: flowers add up, three are used and two are not.
    rows = re.findall(r"^(\d) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", printed, re.MULTILINE)
    values = np.array(rows, dtype=float).reshape(2, 5, 6)
    np.testing.assert_allclose(values[..., 1].sum(1), 1.0, atol=0.01)
    np.testing.assert_allclose(values[..., 4].sum(1), 150, atol=0.05)
    assert (np.diff(values[..., 1]) <= 0).all()
    np.testing.assert_array_equal(values[:, :3, 5], 1.0)
    assert values[:, 3:, 5].max() < 0.5

    # One component is setosa, which is apart from the others: its moments are plain.
    iris = load_iris()
    setosa = iris.data[iris.target == 0, 2:]
    centers = [numbers(rf"(?m)^center\[{k}, petal length\] +(\S+) ", printed)[0] for k in range(3)]
    k = int(np.argmin(centers))
    for name, truth in (("center", setosa.mean(0)), ("sd", setosa.std(0))):
        for feature, expected in zip(("length", "width"), truth, strict=True):
            (mean,) = numbers(rf"(?m)^{name}\[{k}, petal {feature}\] +(\S+) ", printed)
            assert mean == pytest.approx(expected, rel=0.2 if name == "sd" else 0.1)

    species = [
        numbers(rf"(?m)^{name} +(\d+) +(\d+) +(\d+)$", printed) for name in iris.target_names
    ]
    table = np.array(species)
    assert table.sum(1).tolist() == [50, 50, 50]
    assert table.max(1).sum() >= 143
    assert len(set(table.argmax(1))) == 3

    ranks = re.findall(r"^(\d components?) +(\d) ", printed, re.MULTILINE)
    assert {name for name, _ in ranks} == {
        "1 component", "2 components", "3 components", "5 components",
    }  # fmt: skip
    assert dict(ranks)["1 component"] == "3"
    assert dict(ranks)["2 components"] == "2"
    check_pictures(tmp_path, count=3)
