"""The example of graphs runs, and what it prints is right."""

import re

import pytest
from matplotlib.figure import Figure

from ppl_models.datasets import karate
from tests.support.examples import check_pictures, load, numbers


@pytest.mark.filterwarnings("ignore:log_evidence. 50 draws have weights without variance")
def test_graphs(tmp_path, capsys):
    tiny = ["--steps", "30", "--samples", "50", "--outdir", str(tmp_path)]
    load("graphs").main(tiny)
    printed = capsys.readouterr().out
    assert "karate club: 34 members, 78 friendships" in printed
    (one,) = numbers(r"(?m)^one block +(\S+)  lower bound$", printed)
    assert one == pytest.approx(-229.51, abs=0.01)
    (two,) = numbers(r"(?m)^two blocks +(\S+)  lower bound$", printed)
    assert -203.5 < two < -201.5
    assert len(re.findall("lower bound$", printed, re.MULTILINE)) == 4
    assert "two blocks: members [0, 1, 2, 32, 33] against the rest" in printed
    (apart,) = numbers(r"corrected for degrees: (\d+) of 34 members", printed)
    assert apart <= 2
    (low,) = numbers(r"(?m)^density\[0\] +(\S+) ", printed)
    assert low == pytest.approx(23 / 408, abs=0.02)  # of the 406 pairs apart from the hubs
    (area,) = numbers(r"area under the curve: (\S+)", printed)
    assert area > 0.7
    check_pictures(printed, tmp_path, count=3)


def test_the_picture_of_football(tmp_path, capsys, monkeypatch):
    """On the club, for the data may not be there."""
    example = load("graphs")
    drawn = {}
    monkeypatch.setattr(example, "save", lambda figure, name, args: drawn.update({name: figure}))
    parser = type("Args", (), {"seed": 0})
    example.draw_football(*karate(), parser)
    assert isinstance(drawn["graphs-football.png"], Figure)
    assert "adjusted Rand index" in capsys.readouterr().out
