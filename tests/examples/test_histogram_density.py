"""What `examples/histogram_density.py` prints, against numpy."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

from tests.support.examples import check_pictures, numbers, run

ROWS = load_diabetes(scaled=False).data[:, [2, 3]]
ORDER = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(0)).numpy()
TRAIN, TEST = ROWS[ORDER[:300]], ROWS[ORDER[300:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("histogram")


@pytest.fixture(scope="module")
def printed(folder) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        run("histogram_density", "--outdir", folder)
    return text.getvalue()


def test_rules_of_probability(printed):
    assert numbers(r"(\d+) people, (\d+) counted and (\d+) held out", printed) == [442, 300, 142]

    # Scott's rule, and the density, by numpy.
    width = ROWS.std(0) * (48 * np.pi / 442) ** 0.25
    shape = np.ceil(np.ptp(ROWS, axis=0) / width).astype(int).tolist()
    assert numbers(r"Scott's rule: (\d+) × (\d+) bins", printed) == shape
    density, *edges = np.histogram2d(
        *TRAIN.T, shape, np.stack([ROWS.min(0), ROWS.max(0)], 1).tolist(), density=True
    )
    j, k = (
        np.clip(np.searchsorted(e, x, "right") - 1, 0, n - 1)
        for e, x, n in zip(edges, TRAIN.T, shape, strict=True)
    )
    best = np.log(density[j, k]).mean()
    assert numbers(r"log evidence (\S+) ± \S+ nats per row, exact", printed) == [round(best, 3)]

    assert numbers(r"proportions sum to +(\S+)", printed) == [1]
    assert numbers(r"integrates to +(\S+)", printed) == [1]
    (worst,) = numbers(r"for each person, up to (\S+)", printed)
    assert worst < 1e-12
    mean, entropy = (
        *numbers(r"of those counted (\S+) nats\n", printed),
        *numbers(r"entropy of the density +(\S+)", printed),
    )
    assert mean == entropy == pytest.approx(best, abs=1e-6)

    probability, count, total = numbers(r"probability (\S+) = (\d+) of (\d+) people", printed)
    assert probability == pytest.approx(count / total, abs=1e-4)
    given, again, column = numbers(r"given the index, (\S+) = (\d+) of the (\d+) people", printed)
    assert given == pytest.approx(count / column, abs=1e-4)
    assert again == count

    lines = re.findall(r"^ *\S+ to +\S+ +(\d+)    (\S+)", printed, re.MULTILINE)
    assert sum(int(people) for people, _ in lines) == 300
    counts = density * np.diff(edges[0])[:, None] * np.diff(edges[1]) * 300
    for row, (people, above) in zip(counts, lines, strict=True):
        assert row.sum() == pytest.approx(int(people))
        assert above == (f"{row[4:].sum() / row.sum():.2f}" if row.sum() else "no")
    fullest = counts.max(1).argmax()
    assert (count, column) == pytest.approx((counts.max(), counts[fullest].sum()))


def test_numbers_of_bins_are_compared(printed):
    line = r"^ *(\d+) × (\d+) +(\d+)% +(\S+) +(\S+) ± (\S+) +(\d+) of 142(.*)$"
    table = re.findall(line, printed, re.MULTILINE)
    assert len(table) == 9
    best, held_out, errors = np.array([row[3:6] for row in table], float).T
    assert (np.diff(best) > 0).all()  # more bins fit those counted better, and the others worse
    assert held_out[-1] < held_out.max() - 5 * errors[-1]
    lost = [int(row[6]) for row in table]
    assert lost == sorted(lost)
    (rule,) = (i for i, row in enumerate(table) if "Scott" in row[7])
    assert held_out[rule] > held_out.max() - 2 * errors[rule]

    # One of them by hand.
    box = np.stack([ROWS.min(0), ROWS.max(0)], 1).tolist()
    counts, *edges = np.histogram2d(*TRAIN.T, 12, box)
    volume = np.diff(edges[0])[0] * np.diff(edges[1])[0]
    new, *_ = np.histogram2d(*TEST.T, 12, box)
    expected = (new * np.log((counts + 1) / (300 + 144) / volume)).sum() / 142
    twelve = next(row for row in table if row[0] == "12")
    assert float(twelve[4]) == pytest.approx(expected, abs=6e-4)
    assert int(twelve[6]) == new[counts == 0].sum()
    assert int(twelve[2]) == round(100 * (counts == 0).mean())

    gap, error = numbers(r"Scott's rule minus the best other .*: (\S+) ± (\S+)", printed)
    others = np.delete(held_out, rule)
    assert gap == pytest.approx(held_out[rule] - others.max(), abs=1.1e-3)
    assert 0 < error < 0.2


def test_pictures(printed, folder):
    check_pictures(folder, count=2)
