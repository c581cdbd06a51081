"""The published protocol of IWAE: its numbers, and that it goes on where it stopped."""

import importlib
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from ppl_models import Transformed, log_evidence
from ppl_models.scoped import mix

# Its fits are of a few steps, and so are their guides.
pytestmark = pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")

ROWS, TEST = 60, 12


@pytest.fixture
def iwae(monkeypatch):
    """The benchmark, on 60 rows of noise: 3 steps a pass, 9840 in all."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    module = importlib.import_module("benchmarks.quality.iwae_mnist")

    def mnist(root, binarize, seed):
        assert binarize == "fresh"
        grey = torch.rand(ROWS + TEST, 784, generator=torch.Generator().manual_seed(1))
        test = torch.bernoulli(grey[ROWS:], generator=torch.Generator().manual_seed(seed))
        return Transformed(grey[:ROWS], transform=torch.bernoulli), test

    monkeypatch.setattr(module.datasets, "mnist", mnist)
    monkeypatch.setattr(module, "FIRST", 4)
    monkeypatch.setattr(module, "SETTLED", 2)
    monkeypatch.setattr(module, "PART", 5)
    return module


def run(module, folder, *options):
    module.main(["--folder", str(folder), *options])
    return json.loads(next(folder.glob("*.json")).read_text())


def test_the_learning_rates_are_those_of_the_paper(iwae):
    steps_a_pass = 60_000 // iwae.BATCH
    table = [10 ** (-i / 7) for i in range(8) for _ in range(3**i)]  # one number a pass
    assert len(table) == 3280
    assert len(table) * steps_a_pass == 9_840_000
    for number, expected in enumerate(table):
        for step in (0, steps_a_pass - 1):
            assert iwae.factor(number * steps_a_pass + step, steps_a_pass) == expected
    assert iwae.factor(9_839_999, steps_a_pass) == pytest.approx(0.1)


def test_the_scheduler_gives_each_step_its_rate(iwae):
    (weight,) = parameters = [torch.nn.Parameter(torch.zeros(1))]
    weight.grad = torch.ones(1)
    optimizer = iwae.ADAM(parameters, lr=1e-3)
    scheduler = iwae.Schedule(3, "cpu")(optimizer)
    for step in range(30):
        assert optimizer.param_groups[0]["lr"] == 1e-3 * iwae.factor(step, 3)
        optimizer.step()
        scheduler.step()


def test_adam_is_that_of_a_sum_over_the_rows(iwae):
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = iwae.ADAM([weight], lr=1e-3)
    expected, first, second = weight.detach().clone(), 0.0, 0.0
    for step in range(1, 6):
        total = torch.randn(3).double() * torch.tensor([1e-5, 1e-4, 3.0])  # gradient of the sum
        first = 0.9 * first + 0.1 * total
        second = 0.999 * second + 0.001 * total**2
        mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
        expected -= 1e-3 * mean / (square.sqrt() + 1e-4)
        weight.grad = total / iwae.BATCH
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_the_start_is_that_of_the_authors(iwae):
    images = torch.rand(50, 784)
    images[:, :10], images[:, 10:20] = 0.0, 1.0
    model, guide = iwae.programs(images)
    for network, sizes in (
        (guide.encoder, [784, 200, 200, 100]),
        (model.decoder, [50, 200, 200, 784]),
    ):
        layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
        assert [layers[0].in_features, *(layer.out_features for layer in layers)] == sizes
        for layer in layers:
            fan_out = 50 if layer is guide.encoder[-1] else layer.out_features
            bound = math.sqrt(6 / (layer.in_features + fan_out))
            for half in layer.weight.detach().chunk(2):
                assert 0.98 * bound < half.abs().max() <= bound
                assert half.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
            if layer is not model.decoder[-1]:
                assert not layer.bias.any()
    odds = model.decoder[-1].bias.sigmoid()
    torch.testing.assert_close(odds[20:], images.mean(0)[20:])
    torch.testing.assert_close(odds[:20], torch.tensor([0.001, 0.999]).repeat_interleave(10))


@pytest.mark.parametrize("particles", [1, 5])
def test_stopped_and_resumed_it_gives_the_same_numbers(iwae, particles, tmp_path, capsys):
    options = ["--particles", str(particles), "--steps", "13", "--samples", "20"]
    whole = run(iwae, tmp_path / "whole", *options)
    assert whole["finished"]
    assert whole["steps"] == 13
    capsys.readouterr()

    calls, parts = 0, {"finished": False}
    while not parts["finished"]:
        calls += 1
        parts = run(iwae, tmp_path / "parts", *options, "--minutes", "0")
        printed = capsys.readouterr().out
        assert ("call again" in printed) is not parts["finished"]
        assert ("| published |" in printed) is parts["finished"]
    # 4 steps a call, the last with 5 test rows, then 5 and 2.
    assert calls == 6
    for name in ("NLL", "standard error over rows", "Monte Carlo error", "test rows"):
        assert parts[name] == whole[name]
    a, b = (
        tmp_path / name / f"k{particles}-seed0-13-steps.safetensors" for name in ("whole", "parts")
    )
    first, second = (iwae.files.read(path) for path in (a, b))
    assert first["step"] == second["step"] == 13
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name]), name

    assert parts["speed"]["seconds a step"] > 0
    assert whole["speed"]["measured over"] == 9 - 2  # the second part took all that was left
    assert parts["speed"]["measured over"] == 4 - 2
    again = run(iwae, tmp_path / "parts", *options)  # all is there already
    assert again == parts


def test_a_shortened_run_says_so(iwae, tmp_path, capsys):
    found = run(iwae, tmp_path, "--steps", "3", "--samples", "4", "--test-rows", "7")
    printed = capsys.readouterr().out
    assert not found["protocol"]
    assert found["test rows"] == 7
    assert found["machine"]
    assert "SHORTENED run, not the published protocol, 3 of 9,840 steps" in printed
    assert "this run is SHORTENED" in printed.splitlines()[-1]
    assert "86.76" in printed

    evidence = iwae.files.read(tmp_path / "k1-seed0-3-steps-evidence.safetensors")["evidence"]
    value, variance = evidence["value"], evidence["row_variance"]
    assert 450 < found["NLL"] < 650  # 543 for independent pixels of ink 1/2
    assert found["NLL"] == pytest.approx(-value.mean().item())
    assert found["standard error over rows"] == pytest.approx(value.std().item() / 7**0.5)
    assert found["Monte Carlo error"] == pytest.approx(variance.sum().sqrt().item() / 7)


@pytest.mark.parametrize("less", [("--steps", "5"), ("--test-rows", "3"), ("--samples", "9")])
def test_each_way_to_shorten_it_counts(iwae, less, tmp_path, monkeypatch):
    monkeypatch.setattr(iwae, "ENDS", [1, 2])
    samples = () if less[0] == "--samples" else ("--samples", "5000")
    monkeypatch.setattr(iwae, "log_evidence", partial(cheap, iwae.log_evidence))
    assert not run(iwae, tmp_path, *less, *samples)["protocol"]


def cheap(evidence, *args, num_samples, **options):
    return evidence(*args, num_samples=2, **options)


def test_more_particles_are_those_of_the_bound(iwae, tmp_path, monkeypatch):
    asked, real = [], iwae.iwae
    monkeypatch.setattr(iwae, "iwae", lambda *a: asked.append(a[-1]) or real(*a))
    run(iwae, tmp_path / "1", "--steps", "1", "--samples", "2")
    assert asked == []
    run(iwae, tmp_path / "7", "--steps", "1", "--samples", "2", "--particles", "7")
    assert asked == [7]


@pytest.mark.slow
def test_the_protocol_is_called_so(iwae, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(iwae, "ENDS", [1, 2])
    monkeypatch.setattr(iwae, "AT_ONCE", {"cpu": 20_000})
    found = run(iwae, tmp_path, "--particles", "50")
    printed = capsys.readouterr().out
    assert found["protocol"]
    assert (found["steps"], found["samples"], found["test rows"]) == (6, 5000, TEST)
    assert found["published NLL"] == 84.78
    assert "SHORTENED" not in printed
    assert "lower bound" in found["kind"]


def test_the_parts_of_the_evaluation_are_rows_of_the_whole(iwae, tmp_path):
    torch.manual_seed(0)
    model, guide = iwae.programs(torch.rand(9, 784))
    rows, clock = torch.bernoulli(torch.rand(TEST, 784)), iwae.Clock(None)
    path, of = tmp_path / "evidence", {"steps": 3}
    found = iwae.evaluate(model, guide, rows, 6, path, clock, seed=2, of=of)
    parts = [
        log_evidence(model, guide, part, num_samples=6, seed=mix(2, start))
        for start, part in zip((0, 5, 10), rows.split(5), strict=True)
    ]
    assert torch.equal(found.value, torch.cat([part.value for part in parts]))
    assert torch.equal(found.row_variance, torch.cat([part.row_variance for part in parts]))
    assert (found.kind, found.num_rows, found.num_features) == ("lower bound", TEST, 784)

    with torch.no_grad():
        model.decoder[-1].bias += 1.0  # another model: what is kept is not of it
    assert torch.equal(
        iwae.evaluate(model, guide, rows, 6, path, clock, seed=2, of=of).value, found.value
    )
    other = iwae.evaluate(model, guide, rows, 6, path, clock, seed=2, of={"steps": 4})
    assert not torch.equal(other.value, found.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(iwae, tmp_path):
    found = run(iwae, tmp_path, "--device", "cuda", "--steps", "5", "--samples", "20")
    assert found["device"] == "cuda"
    assert 400 < found["NLL"] < 700
