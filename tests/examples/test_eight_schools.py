"""The example of eight schools runs, and what it prints is right."""

import numpy as np
import pytest

from tests.support.examples import check_pictures, numbers, run

pytest.importorskip("nutpie")
TINY = ["--steps", 60, "--samples", 200, "--draws", 1000, "--pyro-draws", 0]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of guides that are hardly fitted
def test_eight_schools(tmp_path, capsys):
    example = run("eight_schools", *TINY, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    pattern = r"(?m)^{} +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) "
    mu, mu_sd, tau, tau_sd, *_ = numbers(pattern.format("reference"), printed)
    assert (mu, mu_sd, tau, tau_sd) == pytest.approx((4.4, 3.3, 3.6, 3.2), abs=0.1)  # as published
    *_, far = numbers(pattern.format("nuts"), printed)
    assert far < 0.15  # a few hundred effective draws
    np.testing.assert_allclose(example.exact.quantiles[2, :2], [4.4, 2.8], atol=0.2)
    check_pictures(tmp_path, count=1)
