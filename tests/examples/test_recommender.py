"""The example of a recommender runs, and what it prints is right."""

import re

from tests.support.examples import check_pictures, numbers, run
from tests.support.oracles import need_data

TINY = ["--films", 150, "--factors", 4, "--epochs", 25, "--draws", 50]


def test_recommender(tmp_path, capsys):
    root = need_data("MovieLens")
    example = run("recommender", *TINY, "--data-root", root, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    ratings, users = numbers(r"MovieLens: (\d+) ratings of 150 films by (\d+) users", printed)
    assert 15_000 < ratings < 30_000
    assert 590 < users <= 610

    row = r" +(\S+) +(\S+) ± (\S+)"
    base, normal, ordered = (
        numbers(rf"(?m)^{name}{row}", printed)
        for name in ("biases, normal noise", "normal", "ordered, own cutpoints")
    )
    assert ordered[0] < base[0]
    assert normal[0] < base[0]
    assert ordered[1] > normal[1] + 3 * ordered[2]
    assert normal[1] > base[1]

    found = re.findall(r"^  (\d\.\d\d)  (.*) \(\d{4}\)$", printed, re.MULTILINE)
    expected = [float(stars) for stars, _ in found]
    assert len(found) == 5
    assert expected == sorted(expected, reverse=True)
    assert "Titanic" not in dict(map(reversed, found))  # they have seen it
    check_pictures(tmp_path, count=3)
    check_titles(example.name_of)


def check_titles(name_of):
    """As people say them."""
    assert name_of("Matrix, The (1999)") == "The Matrix"
    assert name_of("Godfather: Part II, The (1974)") == "The Godfather: Part II"
    assert name_of("Seven (a.k.a. Se7en) (1995)") == "Seven"
    assert name_of("Star Wars: Episode V - The Empire Strikes Back (1980)").endswith("...")
