"""The example of autoregressive models runs, and what it prints is right."""

import math

import pytest
import torch

from tests.support.examples import check_pictures, numbers, run
from tests.support.oracles import grey_digits, need_data

TINY = ["--epochs", 2, "--channels", 5, "--layers", 1]


def check_numbers(printed: str, num_features: int) -> float:
    """The test NLL, after checking what is printed beside it."""
    value, _, bits = numbers(
        r"test log evidence (\S+) ± (\S+) nats per row, exact, (\S+) bits/dim", printed
    )
    nll, same_bits = numbers(r"test NLL (\S+) nats per row, (\S+) bits/dim \(exact; ", printed)
    assert nll == -value
    assert bits == same_bits == pytest.approx(nll / num_features / math.log(2), abs=1e-4)
    return nll


@pytest.mark.parametrize("model", ["made", "pixelcnn", "pixelrnn"])
def test_digits(model, tmp_path, capsys):
    tiny = [*TINY, "--model", model, "--outdir", tmp_path]
    example = run("autoregressive", *tiny)
    printed = capsys.readouterr().out
    assert "1350 training rows, 150 validation rows, 297 test rows, 64 pixels" in printed
    assert "(exact; 17 grey levels)" in printed
    assert f"{example.data.test.unique().numel()} grey levels" in printed
    nll = check_numbers(printed, 64)
    assert 95 < nll < 64 * math.log(17)  # better than equal levels
    (floor,) = numbers(r"independent pixels give (\S+) nats", printed)
    assert floor == pytest.approx(104.969, abs=0.1)  # of all 1500 rows
    check_pictures(tmp_path, count=3)
    check_the_floor(example)
    check_that_a_few_rows_are_of_all_digits(example)
    check_completions(example)

    # The finished run goes on from its checkpoint: there is nothing left to do.
    run("autoregressive", *tiny, "--resume")
    assert check_numbers(capsys.readouterr().out, 64) == nll
    with pytest.raises(ValueError, match="horizon"):
        run("autoregressive", *tiny, "--epochs", 3, "--resume")


def test_the_checkpoint_lies_where_it_is_wanted(tmp_path, capsys):
    path = tmp_path / "deep" / "run.safetensors"
    tiny = [*TINY, "--model", "made", "--outdir", tmp_path, "--checkpoint", path]
    run("autoregressive", *tiny, "--rows", 100)
    assert "100 training rows, 100 validation rows, 100 test rows" in capsys.readouterr().out
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("data", "how"), [("binary-mnist", "fixed file of Larochelle"), ("mnist", "a fresh draw each")]
)
def test_mnist(data, how, tmp_path, capsys):
    root = need_data("BinaryMNIST" if data == "binary-mnist" else "MNIST")
    tiny = [*TINY, "--data", data, "--data-root", root, "--outdir", tmp_path]
    run("autoregressive", *tiny, "--rows", 40, "--layers", 1)
    printed = capsys.readouterr().out
    assert "40 training rows, 40 validation rows, 40 test rows, 784 pixels" in printed
    assert f"(exact; binary by {how}" in printed or f"(exact; binary by the {how}" in printed
    assert 100 < check_numbers(printed, 784) < 784 * math.log(2) * 1.2
    check_pictures(tmp_path, count=3)


def check_that_a_few_rows_are_of_all_digits(example):
    """Those of the fixed file of MNIST are sorted: the first would all be zeros, and cheap."""
    x = torch.arange(10.0).repeat_interleave(7).unsqueeze(1)
    assert example.spread(x, 10).flatten().tolist() == list(range(10))
    assert example.spread(x, 35).unique().numel() == 10
    assert len(example.spread(x, 35)) == 35
    assert torch.equal(example.spread(x, None), x)
    assert torch.equal(example.spread(x, 1000), x)


def check_the_floor(example):
    """Of the same rows, by another way."""
    train, test = (x * 16 for x in grey_digits())
    train, nats = train[:1350], 0.0
    for d in range(64):
        for level in range(17):
            p = ((train[:, d] == level).sum().item() + 1) / (1350 + 17)
            nats -= (test[:, d] == level).sum().item() * math.log(p)
    assert example.independent_pixels(example.data) == pytest.approx(nats / 297, rel=1e-5)


def check_completions(example):
    """What is given stays, the rest is drawn, and of levels."""
    x = example.data.test[:20]
    drawn = example.complete(x, 32)
    assert torch.equal(drawn[:, :32], x[:, :32])
    assert not torch.equal(drawn[:, 32:], x[:, 32:])
    assert ((16 * drawn - (16 * drawn).round()).abs() < 1e-5).all()
