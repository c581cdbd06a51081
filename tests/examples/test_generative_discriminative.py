"""The example runs, and what it prints is right."""

import re

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from tests.support.examples import check_pictures, numbers, run


def by_scikit_learn(model, rows):
    """Mean and standard error over two splits of error (%) and log score."""
    features, labels = load_breast_cancer(return_X_y=True)
    found = []
    for split in range(2):
        x, x_new, y, y_new = train_test_split(
            features[:, :10], labels, train_size=rows, stratify=labels, random_state=split
        )
        center, spread = x.mean(0), x.std(0, ddof=1)
        log_odds = model.fit((x - center) / spread, y).decision_function((x_new - center) / spread)
        error = 100 * ((log_odds > 0) != y_new).mean()
        found.append((error, -np.logaddexp(0, np.where(y_new == 1, -log_odds, log_odds)).mean()))
    return np.mean(found, 0), np.std(found, 0, ddof=1) / 2**0.5


def left_out():
    """log p(label | row) of each iris by Gaussians fitted to the others."""
    features, labels = load_iris(return_X_y=True)
    x = features[:, :2]
    found = []
    for n in range(150):
        joint = []
        for c in range(3):
            part = x[(labels == c) & (np.arange(150) != n)]
            density = multivariate_normal(part.mean(0), np.cov(part.T, ddof=0))
            joint.append(np.log(len(part)) + density.logpdf(x[n]))
        found.append(joint[labels[n]] - np.logaddexp.reduce(joint))
    return np.array(found)


def test_generative_discriminative(tmp_path, capsys):
    tiny = ["--splits", "2", "--epochs", "20", "--draws", "50", "--outdir", tmp_path]
    run("generative_discriminative", "--rows", 20, 60, *tiny)
    printed = capsys.readouterr().out

    peers = {
        1: LinearDiscriminantAnalysis(solver="lsqr"),  # which divides by the number of rows
        2: LogisticRegression(C=1e4, max_iter=10_000),
    }
    for rows in (20, 60):
        lines = re.findall(rf"^{rows} +(-|\S+ ± \S+) +(.*)$", printed, re.MULTILINE)
        assert len(lines) == 2  # errors, log scores
        for kind, (own, rest) in enumerate(lines):
            assert (own == "-") == (rows == 20)  # malignant: 7 rows for 10 features
            cells = [float(number) for number in re.findall(r"-?[\d.]+", rest)]
            assert len(cells) == 6
            for column, peer in peers.items():
                mean, error = (values[kind] for values in by_scikit_learn(peer, rows))
                assert cells[2 * column - 2] == pytest.approx(mean, abs=0.006)
                assert cells[2 * column - 1] == pytest.approx(error, abs=0.006)
            bayesian = cells[4]
            assert 0 <= bayesian < 30 if kind == 0 else -0.6 < bayesian < 0

    assert len(re.findall(r"^(?:weights|bias)\[.*v(?:ersicolor|irginica)\]", printed, re.M)) == 6
    exact = left_out()
    mean, error = numbers(r"generative, own +(\S+) ± (\S+), exact", printed)
    assert mean == pytest.approx(exact.mean(), abs=6e-4)
    assert error == pytest.approx(exact.std(ddof=1) / 150**0.5, abs=6e-4)
    elpd, error = numbers(r"softmax, Bayesian +(\S+) ± (\S+), estimate", printed)
    assert -1.2 < elpd < -0.4
    assert 0 < error < 0.1
    check_pictures(tmp_path, count=2)
