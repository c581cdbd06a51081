"""The example of a GAN runs, and what it prints is right."""

import pytest

from tests.support.examples import check_pictures, numbers, run
from tests.support.oracles import need_data

NUMBER = r" +(-?\d+\.\d+)"


def test_gan(tmp_path, capsys):
    tiny = ["--classifier-epochs", 5, "--latents", 4, "--outdir", tmp_path, "--steps", 30]
    run("gan", *tiny)
    printed = capsys.readouterr().out
    assert "1500 training rows, 297 test rows, 8 x 8 pixels" in printed
    (accuracy,) = numbers(r"test accuracy (\S+)%", printed)
    assert accuracy > 80
    assert "30 steps of each player" in printed
    (value,) = numbers(r"value of the hinge game (\S+):", printed)
    assert -2.5 < value < 0
    assert "evidence: none. GAN: it has no likelihood" in printed

    rows = {
        name: numbers(rf"(?m)^{name}" + NUMBER * 5, printed)
        for name in ("samples", "training rows", "test rows", "uniform noise")
    }
    for values in rows.values():
        assert all(0 <= value <= 1 for value in (values[0], values[1], values[3]))
    # Real rows are like real rows; noise, and samples after 30 steps, are not.
    assert rows["training rows"][4] < rows["test rows"][4]
    assert rows["test rows"][0] > 0.85
    assert rows["test rows"][3] > 0.7
    for name in ("samples", "uniform noise"):
        assert rows[name][3] < 0.5 * rows["test rows"][3]
        assert rows[name][4] > 3 * rows["test rows"][4]
    captured, modes = numbers(r"(\d+) of (\d+) modes, KL", printed)
    assert 1 <= captured <= modes == 10
    check_pictures(tmp_path, count=3)

    # The finished run goes on from its checkpoint: there is nothing left to do.
    run("gan", *tiny, "--resume")
    again = capsys.readouterr().out
    assert numbers(rf"(?m)^samples{NUMBER * 5}", again) == rows["samples"]


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """All that the example names."""
    tiny = ["--classifier-epochs", 1, "--latents", 2, "--steps", 2]
    return run("gan", *tiny, "--outdir", tmp_path_factory.mktemp("gan"))


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist"])
def test_gan_reads_the_other_data(data, gan):
    root = need_data({"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[data])
    (x, y), (x_test, _) = gan.load(data, root)
    assert x.shape == (60_000, 784)
    assert x_test.shape == (10_000, 784)
    assert y.unique().tolist() == list(range(10))
