"""All families in one table, in a few seconds of training."""

import re

from tests.support.examples import check_pictures, run

KINDS = {
    "VAE": "lower bound",
    "VAE with mixture prior": "lower bound",
    "MADE": "exact",
    "PixelCNN": "exact",
    "Diffusion": "lower bound",
    "GAN": "none",
}
PAIR = r"(?m)^(.+) less (.+?) +([+-]\d+\.\d+) ± (\d+\.\d+)  (exact|\w+ bound|estimate) +(.+)$"


def test_compare(tmp_path, capsys):
    example = run("compare", "--rows", 60, "--effort", 0.01, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    evidences = example.evidences
    assert "GAN: none, it has no density" in printed
    assert {name: e.kind for name, e in evidences.items()} | {"GAN": "none"} == KINDS
    for name, evidence in evidences.items():
        (said,) = re.findall(rf"(?m)^{name} {{2,}}.*  {evidence.kind}  .* (\d+\.\d+)$", printed)
        assert 2 < float(said) < 20  # bits/dim, after hardly any training
    highest = max(evidences, key=lambda name: evidences[name].mean)
    assert re.search(rf"(?m)^{highest} .* highest ", printed)
    check_pairs(re.findall(PAIR, printed), evidences)
    for name in [*KINDS, "training rows"]:
        (row,) = re.findall(rf"(?m)^{name} +((?:\d\.\d{{3}} *){{4}})(.*)$", printed)
        assert all(0 <= float(number) <= 2 for number in row[0].split())  # a density may pass 1
        assert bool(row[1]) == (name != "training rows")
    check_pictures(tmp_path, count=1)


def check_pairs(pairs, evidences):
    assert len(pairs) == 10
    for name, other, mean, error, kind, order in pairs:
        first, second = KINDS[name], KINDS[other]
        rows = (evidences[name].value - evidences[other].value).double()
        assert abs(float(mean) - rows.mean()) < 0.01
        assert abs(float(error) - rows.std() / 60**0.5) < 0.01
        if first == second:
            assert kind == (first if first == "exact" else "estimate")
        else:
            assert kind == ("lower bound" if second == "exact" else "upper bound")
        above = kind == "lower bound" and float(mean) > 1
        below = kind == "upper bound" and float(mean) < -1
        if kind == "exact" or above or below:
            assert order == "proven"
        else:
            assert order != "proven" or abs(float(mean)) <= 1
