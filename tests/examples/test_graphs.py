"""The example of graphs runs, and what it prints is right."""

import re

import networkx as nx
import pytest

from ppl_models.datasets import karate
from tests.support.examples import check_pictures, numbers, run


def as_football(folder):
    """The club in the place of the teams, for their file may not be there."""
    source, club = karate()
    nx.set_node_attributes(source, dict(enumerate(club.tolist())), "value")
    (folder / "Graphs").mkdir()
    nx.write_gml(source, folder / "Graphs" / "football.gml")
    return folder


def test_graphs(tmp_path, capsys):
    tiny = ["--steps", 30, "--samples", 50, "--outdir", tmp_path]
    run("graphs", *tiny, "--data-root", as_football(tmp_path))
    printed = capsys.readouterr().out
    assert "karate club: 34 members, 78 friendships" in printed
    (one,) = numbers(r"(?m)^one block +(\S+)  lower bound +\S+ of 50$", printed)
    assert one == pytest.approx(-229.51, abs=0.01)
    (two,) = numbers(r"(?m)^two blocks +(\S+)  lower bound +\S+ of 50$", printed)
    assert -203.5 < two < -201.5
    drawn = re.findall(r"lower bound +(\S+) of (\d+)$", printed, re.MULTILINE)
    assert len(drawn) == 4
    assert all(1 <= float(effective) <= int(count) for effective, count in drawn)
    assert "two blocks: members [0, 1, 2, 32, 33] against the rest" in printed
    (apart,) = numbers(r"corrected for degrees: (\d+) of 34 members", printed)
    assert apart <= 2
    (low,) = numbers(r"(?m)^density\[0\] +(\S+) ", printed)
    assert low == pytest.approx(23 / 408, abs=0.02)  # of the 406 pairs apart from the hubs
    (area,) = numbers(r"area under the curve: (\S+)", printed)
    assert area > 0.7
    (index,) = numbers(r"12 blocks; adjusted Rand index (\S+)", printed)
    assert -0.5 < index < 1
    check_pictures(tmp_path, count=4)
