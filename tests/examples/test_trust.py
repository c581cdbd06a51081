"""The answers of every diagnostic, of a VAE that has hardly been fitted."""

import re

from tests.support.examples import check_pictures, numbers, run


def test_trust(tmp_path, capsys):
    tiny = ["--epochs", 20, "--rows", 60, "--simulations", 200, "--samples", 200]
    run("trust", *tiny, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    assert "nothing wrong was found" in printed
    assert "not converged" in printed
    right, narrow = map(float, re.findall(r"k of 60 rows, 200 draws each: median (\S+),", printed))
    assert narrow > right + 0.2
    gap, approximation, amortisation = numbers(
        r"gap (\S+) nats per row = approximation (\S+) \+ amortisation (\S+),", printed
    )
    assert abs(gap - approximation - amortisation) < 2e-3
    assert printed.count("SBC of 200 simulations") == 2
    assert "draws too likely" in printed
    check_pictures(tmp_path, count=4)
