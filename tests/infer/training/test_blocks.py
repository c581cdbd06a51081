"""Steps in blocks of compiled code: the numbers of single steps, or the programs themselves."""

import math
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR

from guides import AmortizedNormal
from ppl_models import VAE, Transformed, data_plate, elbo, fit
from ppl_models.infer.compiled.code import native
from ppl_models.infer.compiled.steps import loop
from ppl_models.infer.compiled.steps import updates as rules
from ppl_models.likelihoods import Normal
from ppl_models.nn import MLP
from tests.support.blocks import assert_same, both, rows, tamper, vae

ADAM = partial(torch.optim.Adam, weight_decay=0.1)
ADAMW = partial(torch.optim.AdamW, betas=(0.8, 0.99), weight_decay=0.2)
NESTEROV = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1)
CLIPPED = partial(ClippedAdam, clip_norm=0.5, lrd=0.99, weight_decay=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 60, "optimizer": ADAM, "clip": 0.5, "ema": 0.9},
        {
            "epochs": 12,
            "batch_size": 8,
            "optimizer": ADAMW,
            "schedule": partial(ExponentialLR, gamma=0.9),
        },
        {"epochs": 12, "batch_size": 5, "optimizer": NESTEROV, "validation": rows(6)},
        {"steps": 33, "batch_size": 5, "optimizer": CLIPPED, "ema": 0.99},
        {"steps": 20, "optimizer": torch.optim.SGD},
    ],
    ids=["adam", "uneven", "validation", "clipped", "sgd"],
)
def test_blocks_give_the_numbers_of_single_steps(options, taken):
    x = rows()
    assert_same(*both(lambda: elbo(*vae(dropout=0.3)), x, lr=0.01, **options))
    assert sum(times for _, times in taken) >= 19
    assert all(block.loop.refused is None for block, _ in taken)


@pytest.mark.parametrize("shared", [False, True])
def test_objectives_in_turn_are_one_body(shared, taken):
    def make():
        torch.manual_seed(0)
        decoder, found = MLP(2, 4, (6,)), []
        for name in ("first", "second"):
            model = VAE(4, 2, Normal(), decoder if shared else MLP(2, 4, (6,))).double()
            found.append(elbo(model, AmortizedNormal(4, 2, MLP(4, 4, (6,))).double()))
            found[-1].name = name
        return found

    assert_same(*both(make, rows(), epochs=5, batch_size=5, lr=0.01, clip=1.0))
    assert bool(taken) is not shared  # two optimisers of one parameter go one by one


def test_transforms_are_a_part_of_the_step(taken):
    x = Transformed(rows().sigmoid(), transform=torch.bernoulli)
    assert_same(*both(lambda: elbo(*vae()), x, epochs=4, batch_size=10))
    assert taken


def counting(x, size=None):
    """The scale of the noise goes down with each call."""
    counting.calls += 1
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    with data_plate(x, size):
        return pyro.sample(
            "x", dist.Normal(loc.expand(4), 1 + 1 / counting.calls).to_event(1), obs=x
        )


def late(x, size=None):
    """Another scale from the fortieth call on."""
    late.calls += 1
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    with data_plate(x, size):
        scale = 1.0 if late.calls < 40 else 2.0
        return pyro.sample("x", dist.Normal(loc.expand(4), scale).to_event(1), obs=x)


def noise_of(draw):
    def model(x, size=None):
        loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc.expand(4) + draw(), 1.0).to_event(1), obs=x)

    return model


def from_the_batch(x, size=None):
    """Reads its batch outside of torch."""
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    scale = torch.from_numpy(np.abs(x.numpy()))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc.expand(4), scale).to_event(1), obs=x)


def branching(x, size=None):
    """One way while the location is small, and another one then."""
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    scale = 1.0 if loc.item() < 0.05 else 3.0
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc.expand(4), scale).to_event(1), obs=x)


OWN, OWN_NUMPY = torch.Generator(), np.random.RandomState()


def by_numpy():
    return 0.1 * np.random.randn()


def by_python():
    return 0.1 * random.random()


def by_a_generator():
    return 0.1 * torch.randn((), generator=OWN, dtype=torch.float64)


def by_numpys_own():
    return 0.1 * OWN_NUMPY.randn()


DECEIVING = {
    "counts": counting,
    "counts to forty": late,
    "numpy": noise_of(by_numpy),
    "python": noise_of(by_python),
    "a generator": noise_of(by_a_generator),
    "numpy's own generator": noise_of(by_numpys_own),
    "reads its batch": from_the_batch,
    "branches": branching,
}


HELD = torch.ones(4, dtype=torch.float64)


def holding(x, size=None):
    """Writes into a part of a tensor that it holds."""
    HELD[1:].mul_(0.99)
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc.expand(4), HELD + 0).to_event(1), obs=x)


@pytest.mark.parametrize("batch_size", [20, 5])
def test_what_a_program_writes_into_is_a_part_of_the_step(batch_size, taken):
    def make():
        HELD.fill_(1.0)
        return elbo(holding)

    ends = []
    for compiled in (True, False):
        pyro.clear_param_store()
        options = {"batch_size": batch_size, "lr": 0.01, "seed": 3, "progress": False}
        run = fit(make(), rows(), steps=60, compile=compiled, **options)
        ends.append((run.history["loss"], HELD.tolist()))
    np.testing.assert_allclose(*(losses for losses, _ in ends), rtol=1e-9)
    np.testing.assert_allclose(*(held for _, held in ends), rtol=1e-9)
    assert taken


def writing(x, size=None):
    """Writes into its rows, another time with each run."""
    x.mul_(0.99)
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc.expand(4), 1.0).to_event(1), obs=x)


def test_a_program_that_writes_into_its_rows_goes_step_by_step(taken):
    ends = []
    for compiled in (True, False):
        pyro.clear_param_store()
        x = rows()
        run = fit(elbo(writing), x, steps=20, seed=3, compile=compiled, progress=False)
        ends.append((run.history["loss"], x))
    np.testing.assert_allclose(*(losses for losses, _ in ends), rtol=1e-9)
    torch.testing.assert_close(*(x for _, x in ends))
    assert not taken


# What they keep of their own moves on when they are looked at, as with each other run of them.
STATEFUL = ("counts", "counts to forty", "a generator", "numpy's own generator")


@pytest.mark.parametrize("name", DECEIVING)
@pytest.mark.parametrize("batch_size", [20, 5])
def test_what_no_code_can_stand_for_runs_by_itself(name, batch_size):
    model = DECEIVING[name]

    def make():
        counting.calls = late.calls = 0
        random.seed(0), np.random.seed(0), OWN_NUMPY.seed(0), OWN.manual_seed(0)
        return elbo(model)

    x = rows() + 1
    options = {"steps": 150, "batch_size": batch_size, "lr": 0.01}
    with pytest.warns(UserWarning, match="it runs eagerly, not compiled"):
        first, second = both(make, x, **options)
    if name not in STATEFUL:
        assert_same(first, second)


def test_code_that_goes_wrong_is_found_and_what_it_did_is_undone(monkeypatch):
    """From the third block on the code moves more than it should."""
    calls = tamper(monkeypatch, right=3, length=8)
    options = {"steps": 70, "lr": 0.01, "ema": 0.9, "schedule": partial(ExponentialLR, gamma=0.95)}
    with pytest.warns(UserWarning, match="a compiled step has another"):
        found = both(lambda: elbo(*vae()), rows(), **options)
    assert_same(*found)
    assert len(calls) > 3


def test_a_wrong_rule_is_found_before_it_moves_anything(monkeypatch):
    def doubled(rates, counts, settings):
        return rules._adam_numbers(2 * rates, counts, settings)

    wrong = rules.Rule(("exp_avg", "exp_avg_sq"), True, doubled, rules._adam)
    monkeypatch.setattr(loop, "rule_of", lambda optimizer, group: wrong)
    with pytest.warns(UserWarning, match="a compiled step has another parameter"):
        found = both(lambda: elbo(*vae()), rows(), steps=20, lr=0.01)
    assert_same(*found)


def sinking(x, size=None):
    """The scale sinks, until there is no logarithm of it."""
    scale = pyro.param("scale", torch.full((4,), 0.5, dtype=torch.float64))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(torch.zeros(4).double(), scale).to_event(1), obs=x)


def test_a_loss_that_is_not_finite_is_found_at_its_step():
    messages = []
    for compiled in (True, False):
        pyro.clear_param_store()
        with pytest.raises(FloatingPointError) as caught:
            fit(
                elbo(sinking),
                torch.zeros(20, 4).double(),
                steps=100,
                lr=0.05,
                optimizer=torch.optim.SGD,
                compile=compiled,
                progress=False,
            )
        messages.append(str(caught.value))
    assert "at step" in messages[0]
    assert messages[0] == messages[1]


@pytest.mark.parametrize("stops", [1, 7, 30])
def test_a_resumed_run_goes_on_bit_for_bit(stops, tmp_path, taken):
    options = {"batch_size": 8, "lr": 0.01, "seed": 3, "compile": True, "progress": False}
    whole, part = vae(0.2), vae(0.2)
    fit(elbo(*whole), rows(), steps=40, **options)
    path = tmp_path / "run"
    fit(elbo(*part), rows(), steps=stops, checkpoint=path, **options)
    again = vae(0.2)
    fit(elbo(*again), rows(), steps=40, checkpoint=path, resume=True, **options)
    for first, second in zip(whole, again, strict=True):
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), name


def test_runs_killed_in_mid_block_go_on_bit_for_bit():
    """Two of them; `python -m tests.support.kills` takes twenty."""
    command = [sys.executable, "-m", "tests.support.kills", "--kills", "2"]
    root = Path(__file__).parents[3]
    found = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=900, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.count("the same bit for bit") == 2


def test_without_the_loop_in_cpp_the_code_runs_call_by_call(monkeypatch, taken):
    monkeypatch.setattr(native, "ENTRY", "of_another_version")
    assert_same(*both(lambda: elbo(*vae()), rows(), steps=20, lr=0.01))
    assert taken


class Weighted(nn.Module):
    """A guide whose scale a schedule sets, too."""

    def __init__(self):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(4).double()), 1.0

    def forward(self, x, size=None):
        pyro.sample("loc", dist.Normal(self.loc, self.scale).to_event(1))


def centred(x, size=None):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1))
    with data_plate(x, size):
        pyro.sample("x", dist.Normal(loc.expand(len(x), 4), 1.0).to_event(1), obs=x)


def test_a_schedule_that_sets_a_number_of_the_program_runs_step_by_step(taken):
    """It cannot be asked for the rates of a block ahead: the number would be that of its end."""

    def run(compiled):
        pyro.clear_param_store()
        guide = Weighted()

        def falls(step):
            guide.scale = 1.0 if step < 30 else 0.5
            return 1.0

        return fit(
            elbo(centred, guide),
            rows(),
            steps=40,
            seed=0,
            lr=0.01,
            compile=compiled,
            progress=False,
            schedule=lambda optimizer: LambdaLR(optimizer, falls),
        )

    losses = [run(compiled).history["loss"] for compiled in (True, False)]
    np.testing.assert_allclose(*losses, rtol=1e-9)
    assert "schedule" in taken[-1][0].loop.refused


@pytest.mark.parametrize("rate", [lambda t: 1 / (1 + t), lambda t: math.cos(min(t, 30) / 30)])
def test_schedules_of_lambdas_that_compute_are_a_part_of_blocks(rate, taken):
    schedule = partial(LambdaLR, lr_lambda=rate)
    assert_same(*both(lambda: elbo(*vae()), rows(), steps=20, lr=0.01, schedule=schedule))
    assert taken[-1][0].loop.refused is None


def test_a_schedule_that_moves_more_than_the_rate_runs_step_by_step(taken):
    schedule = partial(OneCycleLR, max_lr=0.1, total_steps=30)
    assert_same(*both(lambda: elbo(*vae()), rows(), steps=20, lr=0.01, schedule=schedule))
    assert len({block for block, _ in taken}) == 1
    assert taken[0][0].loop.refused


def test_without_a_compiler_steps_go_as_before(monkeypatch, taken):
    def absent(*_):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(native, "_compile", absent)
    monkeypatch.setattr(native.kept, "find", lambda key: None)
    assert_same(*both(lambda: elbo(*vae()), rows(), steps=5, lr=0.01))
    assert not taken


def test_the_compiler_says_nothing(capfd):
    fit(elbo(*vae()), rows(), steps=3, seed=0, compile=True, progress=False)
    assert capfd.readouterr() == ("", "")


def test_what_is_true_or_false_is_compared_as_a_number():
    one, other = (
        loop.Move("buffer", torch.tensor(x), torch.tensor(True), 0.0) for x in (True, False)
    )
    assert (one.distance(other), one.change(other)) == (1.0, 1.0)
    assert one.is_near(one)
    assert not one.is_near(other)


class Saturated(nn.Module):
    """What is left of the gradient of a unit near one is the rounding of `tanh`."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Linear(4, 64)
        nn.init.constant_(self.unit.bias, 8.0)

    def forward(self, x=None, size=None):
        with data_plate(x, size):
            loc = torch.tanh(self.unit(x))[:, :4]
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def test_units_that_are_saturated_are_no_difference():
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    fit(elbo(Saturated()), x, steps=400, lr=1e-3, progress=False, compile=True)  # no warning
