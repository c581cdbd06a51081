"""What `examples/elbo_identities.py` prints: both sides agree, and are what they are said to be."""

import re

import pytest

from tests.support.examples import check_pictures, numbers, run

FLOAT = r"(-?\d+\.\d+)"


@pytest.mark.parametrize("seed", [0, 1])
def test_elbo_identities(seed, tmp_path, capsys):
    run("elbo_identities", "--draws", 2000, "--seed", seed, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    check_pictures(tmp_path, count=3)

    # Two parts, their sum, the other side, the difference.
    line = rf"^  (\S.*?) +{FLOAT} +{FLOAT} +{FLOAT} +{FLOAT} +(\S+)$"
    rows = {}
    for name, *values in re.findall(line, printed, re.MULTILINE):
        first, second, total, whole, difference = map(float, values)
        assert first + second == pytest.approx(total, abs=2e-6)
        assert total == pytest.approx(whole, abs=2e-9)
        assert abs(difference) < 1e-12
        rows.setdefault(name, []).append((first, second, whole))
    assert len(rows) == 4 + 2 + 2 + 3  # "posterior" and "tables" are there twice
    for name in ("prior", "narrow, elsewhere", "best diagonal", "equal", "at random"):
        assert rows[name][0][1] > 0.01  # no guide but the posterior closes the gap
    assert [gap for _, gap, _ in rows["posterior"]] == [0, 0]
    assert rows["best diagonal"][0][1] < rows["prior"][0][1]
    (likelihood, inference, joint), (_, _, again) = rows["tables"]
    assert joint == again
    assert min(likelihood, inference) > 0

    sizes = []
    for values in re.findall(
        rf"^ +(\d+) +{FLOAT} +{FLOAT} +(\S+) +{FLOAT} ± {FLOAT}, (\S+) errors",
        printed,
        re.MULTILINE,
    ):
        size, closed, exact, difference, mean, error, off = map(float, values)
        assert closed == exact
        assert abs(difference) < 1e-9
        assert abs(mean - closed) < 4 * error + 1e-4
        assert abs(off) < 4
        sizes.append(size)
    assert sizes == [1, 2, 10, 50]

    ratios = []
    line = rf"^ +(\d+) +{FLOAT} +{FLOAT} ± {FLOAT} +{FLOAT} +{FLOAT} ± {FLOAT} +{FLOAT} +1 : (\d+)$"
    for values in re.findall(line, printed, re.MULTILINE):
        size, exact, *estimates, ratio = map(float, values)
        for mean, error, sd in (estimates[:3], estimates[3:]):
            assert abs(mean - exact) < 4.5 * error
            assert error == pytest.approx(sd / 2000**0.5, abs=1e-3)
        # Of moved draws it is known: the precision has 1 + 4 / K on its diagonal, 4 / K off it.
        variance = ((1 + 4 / size) ** 2 + (size - 1) * (4 / size) ** 2) / 4
        assert exact == pytest.approx(4 / size**0.5, abs=1e-4)
        assert estimates[2] ** 2 == pytest.approx(variance, rel=0.15)
        assert ratio == pytest.approx((estimates[5] / estimates[2]) ** 2, abs=0.6, rel=0.01)
        ratios.append(ratio)
    assert len(ratios) == 5
    assert ratios == sorted(ratios)
    assert ratios[0] > 8  # 11 in truth, by the formula of test_elbo_identities.py
    assert ratios[-1] > 100

    assert (
        numbers(
            r"greatest at rate (\S+), the divergence least at (\S+); the mean count is (\S+)\.",
            printed,
        )
        == [0.61] * 3
    )
