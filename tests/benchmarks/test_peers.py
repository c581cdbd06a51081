"""NumPyro and hand-written PyTorch, beside which steps are measured, do the same work."""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ppl_models import elbo

ROOT = Path(__file__).parents[2]
PEERS = pytest.mark.skipif(
    not (find_spec("numpyro") and find_spec("funsor")),
    reason="needs NumPyro and funsor, which `make bench-peers` installs in a place of their own",
)


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.speed.peers.{name}")


@pytest.fixture
def cases(peers):
    return {case.name: case for case in peers("steps").cases("cpu")}


def parameters_by_hand(name, model, guide):
    if name.startswith("VAE"):
        return [*guide.encoder.parameters(), *model.decoder.parameters()]
    if "Multivariate" in name:
        return list(guide.parameters())
    return [parameters_to_vector(p.parameters()) for p in (guide.locs, guide.scales)]


@pytest.mark.parametrize("part", ["AutoNormal", "AutoMultivariateNormal", "mixture", "B=16"])
def test_the_loss_by_hand_is_that_of_the_program(peers, cases, part):
    """For parameters that moved and the same draws, which the mixture has in another order."""
    name = next(name for name in cases if part in name)
    model, guide = cases[name].make()
    data, many = cases[name].data, len(cases[name].data[0])
    objective, by_hand = elbo(model, guide), peers("by_hand").written(name)
    objective.prepare(*data, size=many)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        if part == "mixture":  # so that the draws hardly matter
            for scale in guide.scales.parameters():
                scale -= 10
    given = parameters_by_hand(name, model, guide)
    started = [parameter.shape for parameter in by_hand.start]
    assert started == [parameter.shape for parameter in given]

    def mean(loss, draws):
        torch.manual_seed(1)
        return torch.stack([loss().detach() for _ in range(draws)]).mean()

    draws = 100 if part == "mixture" else 1
    ours = mean(lambda: objective.loss(*data, size=many), draws)
    hand = mean(lambda: by_hand.loss(given, data), draws)
    torch.testing.assert_close(hand, ours, atol=5e-3 if part == "mixture" else 0, rtol=1e-5)


def test_a_clock_leaves_out_the_steps_before(peers):
    clock = peers("pyro_side").Clock()
    clock.notes = [(0, 0.0), (10, 7.0), (20, 8.0), (30, 9.0), (40, 11.0)]
    assert clock.per_step(after=15) == 3 / 20
    assert clock.per_step(after=40) == 0
    clock.update(5)
    assert clock.notes[-1][0] == 45


def test_longer_runs_are_forecast_by_the_two_before(peers):
    forecast = peers("total").forecast
    assert forecast({1000: 12.0}, 10_000) == 0
    assert forecast({1000: 12.0, 2000: 14.0}, 10_000) == 30


@PEERS
@pytest.mark.parametrize("part", ["steps", "total"])
def test_it_runs_beside_numpyro(part):
    way, counted = {"steps": ("NumPyro, scanned", 1), "total": ("NumPyro, run", 2)}[part]
    small = ["--only", "regression, AutoN", "--ways", "fit, c", way, "--steps", "10"]
    small += ["--rounds", "1", "--seconds", "0.01", "--warm", "10"]
    command = [sys.executable, "-m", "benchmarks.speed.peers", "--part", part, *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.strip().startswith(("fit", way))]
    assert len(found) == 2 * counted
    assert all(0 < float(line.split()[-1]) < 10 for line in found)  # the losses
