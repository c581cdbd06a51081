"""Samplers by compiled steps: the rows of the sampler itself, whatever is asked for."""

from functools import partial

import pytest
import torch
from torch import nn

from ppl_models.autoencoders.vae import VAE
from ppl_models.diffusion import repeated
from ppl_models.diffusion.latent import LatentDiffusion
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.samplers import ancestral, ddim, heun, langevin
from ppl_models.diffusion.schedules import Cosine, Learned
from ppl_models.infer.compiled.code import repeat
from ppl_models.likelihoods import Categorical
from ppl_models.nn import TimeMLP, UNet
from tests.support.causality import shaken
from tests.support.interpreted import Interpreted

ROWS = 6
SAMPLERS = [ancestral, ddim, heun, langevin, partial(langevin, step_size=0.3)]


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(repeat, "Native", Interpreted)
    monkeypatch.setattr(Interpreted, "made", 0)
    return Interpreted


def model(classes=0, dtype=torch.float64, **options):
    network = TimeMLP(5, 5, hidden=(8,), num_classes=classes)
    return shaken(Diffusion(5, network, num_steps=20, **options)).to(dtype)


def both(diffusion, *args, seed=1, **options):
    """Rows by the sampler, and by compiled steps; random numbers end alike."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(seed)
        found.append(diffusion.sample(ROWS, *args, compile=compiled, **options))
        found.append(torch.get_rng_state())
    assert torch.equal(found[1], found[3])
    return found[0], found[2]


def assert_same(diffusion, *args, **options):
    theirs, ours = both(diffusion, *args, **options)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}[ours.dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_rows_are_those_of_the_sampler(dtype):
    diffusion = model(dtype=dtype)
    assert_same(diffusion, ancestral)
    with torch.no_grad():
        for p in diffusion.parameters():
            p.mul_(1.1)  # weights are live
    before = len(repeat._kept[diffusion])
    assert_same(diffusion, ancestral, num_steps=33, seed=2)
    assert len(repeat._kept[diffusion]) == before


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler, interpreted):
    assert_same(model(), sampler)
    assert interpreted.made == 1


@pytest.mark.parametrize("target", ["x0", "eps", "edm", "v"])
def test_every_target(target, interpreted):
    assert_same(model(target=target, schedule=Cosine()), heun)
    assert interpreted.made == 1


def test_levels(interpreted):
    network = TimeMLP(5, 15, hidden=(8,))
    diffusion = Diffusion(5, network, target="levels", likelihood=Categorical(3), num_steps=20)
    assert_same(shaken(diffusion), ancestral)
    assert interpreted.made == 1


def test_images(interpreted):
    diffusion = Diffusion(16, UNet((4, 4), channels=(4, 8)), num_steps=8, schedule=Learned())
    assert_same(shaken(diffusion), ddim)
    assert interpreted.made == 1


def test_labels_and_guidance_are_inputs(interpreted):
    diffusion = model(classes=3)
    y = torch.arange(ROWS) % 3
    assert_same(diffusion, heun, y=y)
    assert_same(diffusion, heun, y=y.flip(0))
    assert interpreted.made == 1
    for strength in (2.0, -1.0, 0.5):
        assert_same(diffusion, heun, y=y, guidance=strength)
    assert interpreted.made == 2


def test_other_numbers_of_steps_are_the_same_code(interpreted):
    diffusion = model()
    for steps in (5, 21, 1000):
        assert_same(diffusion, ddim, num_steps=steps)
    assert interpreted.made == 1
    assert_same(diffusion, ddim, num_steps=1100)  # a longer table
    assert interpreted.made == 2


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_taken_as_they_come(steps, interpreted):
    assert_same(model(), ancestral, num_steps=steps)
    assert interpreted.made == 0


def test_attributes_that_change_are_seen(interpreted):
    diffusion = model(target="edm")
    assert_same(diffusion, ancestral)
    diffusion.data_scale = 0.7
    assert_same(diffusion, ancestral)
    diffusion.network.body = nn.Linear(5 + 16, 5, dtype=torch.float64)
    assert_same(diffusion, ancestral)
    assert interpreted.made == 3


def test_dropout_is_off_and_modes_are_as_before(interpreted):
    diffusion = model()
    diffusion.network.body.add_module("drop", nn.Dropout(0.5))
    diffusion.train()
    assert_same(diffusion, ddim)
    assert all(module.training for module in diffusion.modules())


class Counts(nn.Module):
    """A network that is another from its third call on."""

    def __init__(self, limit):
        super().__init__()
        self.linear, self.calls, self.limit = nn.Linear(5, 5), 0, limit

    def forward(self, z, log_snr):
        self.calls += 1
        return self.linear(z) * (2.0 if self.calls > self.limit else 1.0)


def test_a_network_that_changes_on_the_way_is_seen_at_the_end(interpreted):
    """Steps by code are no calls: that they count shows where the last step is another."""
    diffusion = Diffusion(5, Counts(limit=10), num_steps=20)
    torch.manual_seed(1)
    theirs = diffusion.sample(ROWS, ddim)
    diffusion.network.calls = 0
    diffusion.network.limit = 2  # once for the trace, once for the first step
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="draws are not compiled.*other numbers than by itself"):
        ours = diffusion.sample(ROWS, ddim, compile=True)
    assert ours.shape == theirs.shape


def test_without_a_compiler_the_sampler_runs(monkeypatch):
    def refuses(*_):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(repeat, "Native", refuses)
    diffusion = model()
    with pytest.warns(UserWarning, match="Diffusion: draws are not compiled, but go step by step"):
        assert_same(diffusion, ancestral)
    assert_same(diffusion, ancestral)  # and says so once


def test_rows_that_are_not_finite_are_an_error(interpreted):
    diffusion = model()
    with torch.no_grad():
        next(diffusion.network.body.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="6 of 6 rows hold NaN"):
        diffusion.sample(ROWS, ancestral, compile=True)


@pytest.mark.parametrize("sampler", [lambda *_: None, partial(ddim, num_steps=3).func.__call__])
def test_samplers_whose_steps_are_not_known(sampler):
    with pytest.raises(TypeError, match=r"compile: expected ancestral, ddim, heun or langevin"):
        model().sample(ROWS, sampler, compile=True)


def test_the_sampler_s_own_errors_come_first(interpreted):
    with pytest.raises(ValueError, match="num_steps"):
        model().sample(ROWS, ddim, num_steps=0, compile=True)
    with pytest.raises(ValueError, match="step_size"):
        model().sample(ROWS, partial(langevin, step_size=2.0), compile=True)


def test_latent_diffusion(interpreted):
    latent = LatentDiffusion(VAE(7, 5), model(dtype=torch.float32))
    found = []
    for compiled in (False, True):
        torch.manual_seed(1)
        found.append(latent.sample(ROWS, heun, compile=compiled))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert interpreted.made == 1


def test_every_sampler_has_its_step():
    assert {function.__name__ + "_step" for function in repeated.STEPS} == {
        step.__name__ for step in repeated.STEPS.values()
    }
