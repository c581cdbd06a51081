"""All families in one table, in a few seconds of training."""

import re

import pytest

from tests.support.examples import check_pictures, load

FAMILIES = ("VAE", "VAE, mixture prior", "MADE", "PixelCNN", "Diffusion", "GAN")


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")
def test_compare(tmp_path, capsys):
    load("compare").main(["--rows", "60", "--effort", "0.01", "--outdir", str(tmp_path)])
    printed = capsys.readouterr().out
    kinds = {}
    for name in FAMILIES:
        row = re.search(rf"(?m)^{name} {{2,}}(.*)$", printed)[1]
        kinds[name] = re.search("none: a GAN has no likelihood|lower bound|exact", row)[0]
        numbers = [float(n.replace(",", "")) for n in re.findall(r"-?[\d,]+\.?\d*", row)]
        assert len(numbers) == (7 if name == "GAN" else 9)
        if name != "GAN":
            assert 2 < numbers[0] < 20  # bits/dim, after hardly any training
    bounds = ("VAE", "VAE, mixture prior", "Diffusion")
    assert {name for name in kinds if kinds[name] == "lower bound"} == set(bounds)
    assert {name for name in kinds if kinds[name] == "exact"} == {"MADE", "PixelCNN"}
    check_pictures(printed, tmp_path, 1)
