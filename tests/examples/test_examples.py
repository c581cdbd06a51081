"""The examples run, and what they print is right."""

import re

import pytest
import torch

from tests.support.examples import EXAMPLES, check_pictures, numbers, run
from tests.support.oracles import need_data


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_factor_analysis_grades(seed, tmp_path, capsys):
    run("factor_analysis_grades", "--seed", seed, "--outdir", tmp_path)
    printed = capsys.readouterr().out
    assert "simulated" in printed

    evidence, _ = numbers(r"log evidence (\S+) ± (\S+) nats per row, exact", printed)
    peer, difference = numbers(r"scikit-learn's maximum is (\S+); ours differs by (\S+)", printed)
    assert evidence == peer
    assert abs(difference) < 1e-8

    row = r" +(\S+) ± (\S+) +(\S+)" * 2 + r" +(\d+)%"
    for subject in ("mathematics", "physics", "history"):
        loading, error, true_loading, noise, noise_error, true_noise, share = numbers(
            subject + row, printed
        )
        assert loading > 0  # the convention
        assert abs(loading - true_loading) < 3 * error < 3
        assert abs(noise - true_noise) < 3 * noise_error < 4
        assert share / 100 == pytest.approx(loading**2 / (loading**2 + noise**2), abs=0.02)

    inside, students = numbers(r"(\d+) of (\d+) intervals hold the true ability", printed)
    assert 0.8 < inside / students < 0.97  # 89%, with loadings that are estimates

    # ArviZ's table of draws against the closed form, student by student.
    exact = re.findall(r"student (\d+), .*\n +(\S+) ± (\S+),", printed)
    assert len(exact) == 3
    for student, mean, sd in exact:
        found, spread = numbers(rf"z\[{student}, ability\] +(\S+) +(\S+)", printed)
        assert found == pytest.approx(float(mean), abs=0.1)
        assert spread == pytest.approx(float(sd), rel=0.2)
    check_pictures(tmp_path, count=2)


def test_vae(tmp_path, capsys):
    tiny = ["--samples", 20, "--outdir", tmp_path]
    run("vae", *tiny, "--epochs", 2)
    printed = capsys.readouterr().out
    assert "1500 training rows, 297 test rows, 64 pixels" in printed
    (floor,) = numbers(r"independent pixels give (\S+) nats", printed)
    assert floor == pytest.approx(24.585, abs=2e-3)
    value, error, bits = numbers(
        r"test log evidence (\S+) ± (\S+) nats per row, lower bound .* (\S+) bits/dim", printed
    )
    assert 20 < -value < 35
    assert 0 < error < 1
    assert bits == pytest.approx(-value / (64 * 0.6931), abs=1e-3)
    assert len(re.findall(r"^z\[0, \d\]", printed, re.MULTILINE)) == 8
    assert (tmp_path / "vae-digits-posterior.nc").stat().st_size > 10_000
    check_pictures(tmp_path, count=4)

    # The finished run goes on from its checkpoint: there is nothing left to do.
    run("vae", *tiny, "--epochs", 2, "--resume")
    again = capsys.readouterr().out
    assert numbers(r"test NLL (\S+) nats", again) == numbers(r"test NLL (\S+) nats", printed)
    with pytest.raises(ValueError, match="horizon"):
        run("vae", *tiny, "--epochs", 3, "--resume")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """All that the example of a VAE names."""
    tiny = ["--samples", 2, "--epochs", 1, "--latents", 2]
    return run("vae", *tiny, "--outdir", tmp_path_factory.mktemp("vae"))


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist", "binary-mnist"])
def test_vae_reads_the_other_data(data, vae):
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "binary-mnist": "BinaryMNIST"}
    train, test, labels, how = vae.load(data, need_data(folder[data]))
    assert len(train) == (50_000 if data == "binary-mnist" else 60_000)
    assert test.shape == (10_000, 784)
    assert set(test.unique().tolist()) == {0.0, 1.0}
    assert labels is None or labels.unique().tolist() == list(range(10))
    assert "draw" in how or "file" in how


def test_own_model(tmp_path, capsys):
    example = run("own_model", "--outdir", tmp_path, "--samples", 500)
    printed = capsys.readouterr().out

    mean, sd = numbers(r"fitted posterior +(\S+) ± (\S+)", printed)
    exact_mean, exact_sd = numbers(r"exact posterior +(\S+) ± (\S+)", printed)
    assert exact_mean == pytest.approx(124 / 201, abs=1e-4)
    assert exact_sd == pytest.approx(124**0.5 / 201, abs=1e-4)
    assert mean == pytest.approx(exact_mean, abs=0.5 * exact_sd)
    assert sd == pytest.approx(exact_sd, rel=0.2)

    bound, rest = numbers(r"log evidence (\S+) nats of all (\d+) rows", printed)
    (exact,) = numbers(r"exact value: (\S+) nats", printed)
    assert rest == 200
    assert bound == pytest.approx(exact, abs=0.05)
    check_pictures(tmp_path, count=3)

    # The evidence again, by integration over the rate.
    rate = torch.linspace(0.01, 3, 20_000, dtype=torch.float64)
    joint = torch.distributions.Gamma(2.0, 1.0).log_prob(rate)
    for count in example.counts.double():
        joint += torch.distributions.Poisson(rate).log_prob(count)
    integral = torch.trapezoid((joint - joint.max()).exp(), rate).log() + joint.max()
    assert exact == pytest.approx(integral.item(), abs=2e-3)


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")
def test_own_model_unfitted_is_found_out(tmp_path, capsys):
    """With a single step the printed difference says that the posterior is wrong."""
    run("own_model", "--outdir", tmp_path, "--samples", 100, "--epochs", 1)
    (shift,) = numbers(r"difference +(\S+) standard deviations", capsys.readouterr().out)
    assert abs(shift) > 5


@pytest.mark.parametrize("name", ["autoregressive", "gan"])
def test_a_missing_data_folder_is_one_line(name, tmp_path, monkeypatch, capsys):
    """Its images cannot be fetched there: the folder is a file."""
    file = tmp_path / "file"
    file.touch()
    data = "binary-mnist" if name == "autoregressive" else "mnist"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(name, "--data", data, "--data-root", file)
    assert "Traceback" not in capsys.readouterr().err
    said = end.value.code  # a text, which Python prints before it ends with 1
    assert said.startswith("error: ")
    assert "\n" not in said
    assert str(file) in said
    assert "Try fetching" in said


def test_all_examples_with_a_data_folder_say_in_one_line_where_it_should_be():
    line = r"except FileNotFoundError as error:  # no data: one line says where they should be\s+"
    line += re.escape('raise SystemExit(f"error: {error}") from None')
    with_folder = [f.read_text() for f in EXAMPLES.glob("*.py") if '"--data-root"' in f.read_text()]
    assert len(with_folder) == 11
    assert all(re.search(line, text) for text in with_folder)
