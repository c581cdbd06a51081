"""The example of a VAE takes other priors, networks and bounds."""

import pytest

from tests.support.examples import check_pictures, numbers, run


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--prior", "vamp", "--components", "20", "--net", "conv"],
        ["--prior", "mixture", "--particles", "3"],
        ["--prior", "flow"],
    ],
    ids=lambda options: "-".join(options[1::2]),
)
def test_vae_options(options, tmp_path, capsys):
    if "flow" in options:
        pytest.importorskip("zuko")
    run("vae", "--samples", 10, "--epochs", 2, "--outdir", tmp_path, *options)
    printed = capsys.readouterr().out
    (value,) = numbers(r"test log evidence (\S+) ± .* lower bound", printed)
    assert 18 < -value < 36
    check_pictures(tmp_path, count=4)
