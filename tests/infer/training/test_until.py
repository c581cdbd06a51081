"""Runs that end where their loss no longer falls: when, and always at the same step."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

from guides import AmortizedNormal
from ppl_models import GAN, VAE, Convergence, adversarial, convergence, data_plate, elbo
from ppl_models.infer.training.ends.drift import (
    LEAST,
    UntilConverged,
    drift,
    losses_of,
    next_look,
)
from tests.support.runs import quiet


def falling(epochs, scale, noise, generator):
    n = np.arange(epochs)
    return list(10 * np.exp(-n / scale) + noise * generator.normal(size=epochs))


def test_a_slope_is_known_as_well_as_it_says():
    """In units of its error, over 500 runs of noise alone: 1.15 is that of t with 8 degrees."""
    generator = np.random.default_rng(0)
    found = [drift(list(generator.normal(size=400))) for _ in range(500)]
    spread = np.std([d.gain / d.standard_error for d in found])
    assert spread == pytest.approx(math.sqrt(8 / 6), abs=0.15)
    assert np.mean([d.gain > d.standard_error for d in found]) < 0.25


def test_errors_of_neighbours_that_are_alike_make_it_larger():
    """The same errors around no trend, in a wave and mixed up."""
    wave = [math.cos(2 * math.pi * n / 9) for n in range(10)]
    mixed = [wave[n] for n in (0, 5, 1, 6, 2, 7, 3, 8, 4, 9)]
    errors = [drift([0.0] * 10 + values).standard_error for values in (wave, mixed)]
    assert errors[0] > 1.4 * errors[1]


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("scale", [5, 50, 500])
def test_a_run_ends_after_its_descent_and_not_before(scale, noise):
    """Not in the first epochs, whose noise hides it, and not long after, when it is over."""
    losses = falling(30 * scale + 8000, scale, noise, np.random.default_rng(scale))
    end, look = UntilConverged("elbo"), 0
    while not (look and end.reached({"loss": losses[:look]})):
        look = next_look(look)
        assert look < len(losses)
    left = 10 * math.exp(-look / scale)
    assert left < 0.02 * noise
    assert look < max(30 * scale, 8000)


def test_a_constant_loss_has_converged():
    assert drift([3.0] * 40).converged
    assert drift([3.0 + 1e-8 * (n % 2) for n in range(40)]).converged


def test_what_a_drift_says():
    assert str(drift([1.0 / n for n in range(1, 101)])).startswith(
        "not converged: over the last 50"
    )
    within = Convergence(gain=0.02, standard_error=0.012, limit=0.1, epochs=100)
    assert not within.converged
    assert str(within).startswith("not known: over the last 100 epochs the loss moved by 0.02 ±")
    rising = drift([float(n) for n in range(40)])
    assert not rising.converged
    assert str(rising).startswith("getting worse: over the last 20 epochs the loss rose by 20")
    few = drift(list(np.random.default_rng(0).normal(size=40)))
    assert not few.converged
    assert "which more epochs would tell from none" in str(few)
    assert str(drift([2.0, *[1.0] * 59])).startswith("converged: over the last 30 epochs")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([1.0] * 19, r"expected the losses of 20 epochs or more, .* got 19"),
        ([1.0] * 20 + [math.nan], r"got others in epochs 20"),
    ],
)
def test_losses_that_show_nothing(losses, message):
    with pytest.raises(ValueError, match=message):
        drift(losses)


def mean_of(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)


X = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 2
OPTIONS = {"lr": 0.02, "seed": 0, "until": "converged"}


def of_mean(**options):
    objective = elbo(mean_of, AutoNormal)
    return objective, quiet(objective, X, **{"epochs": 4000, **OPTIONS, **options})


def test_it_ends_at_the_posterior():
    objective, run = of_mean()
    assert run.converged
    assert LEAST < run.steps < 4000
    loc, scale = objective.guide.locs.m, objective.guide.scales.m
    assert loc.item() == pytest.approx(X.sum().item() / 41, abs=0.05)
    assert scale.item() == pytest.approx(41**-0.5, rel=0.15)


def test_it_is_the_same_run_up_to_there():
    objective, run = of_mean()
    other, cut = of_mean(until=None, epochs=run.steps)
    assert run.history == cut.history
    assert cut.converged is None
    assert torch.equal(objective.guide.locs.m, other.guide.locs.m)


def test_it_ends_at_the_same_step_compiled(graphs_as_traced, taken):
    eager, blocks = of_mean(compile=False)[1], of_mean(compile=True)[1]
    assert eager.steps == blocks.steps
    assert len(taken) > 1
    assert max(steps for _, steps in taken) > 20


@pytest.mark.parametrize("compile", [False, True])
def test_a_resumed_run_ends_at_the_same_step_bit_for_bit(compile, tmp_path, graphs_as_traced):
    whole, run = of_mean(compile=compile)
    path = tmp_path / "run"
    with pytest.warns(UserWarning, match=r"after 100 epochs it is not"):
        of_mean(compile=compile, epochs=100, checkpoint=path)
    resumed, again = of_mean(compile=compile, checkpoint=path, resume=True)
    assert again.steps == run.steps
    assert again.history == run.history
    assert torch.equal(whole.guide.locs.m, resumed.guide.locs.m)
    # What has ended stays so.
    last = of_mean(compile=compile, checkpoint=path, resume=True)[1]
    assert last.steps == run.steps
    with pytest.raises(ValueError, match="until='converged', now None"):
        of_mean(compile=compile, checkpoint=path, resume=True, until=None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compile", [False, True])
def test_it_looks_at_epochs_and_not_at_steps(compile, stream, graphs_as_traced):
    """With minibatches, the last of which is uneven."""
    data = DataLoader(TensorDataset(X), batch_size=16) if stream else X
    width = None if stream else 16
    run = quiet(elbo(mean_of, AutoNormal), data, epochs=900, batch_size=width, compile=compile,
                **OPTIONS)  # fmt: skip
    assert run.converged
    assert run.steps % 3 == 0
    epochs = 0
    while epochs < run.steps // 3:
        epochs = next_look(epochs)
    assert epochs == run.steps // 3


def test_beside_validation_and_patience():
    x = torch.rand(60, 4).round()
    pair, options = (VAE(4, 2), AmortizedNormal(4, 2)), {"validation": x, "patience": 3}
    run = quiet(elbo(*pair), x, epochs=60, lr=0.01, seed=0, until="converged", **options)
    assert run.steps < 60
    assert run.converged is False


def test_a_run_that_still_falls_is_warned_of():
    with pytest.warns(UserWarning, match=r"fit: after 100 epochs it is not converged: over the"):
        assert of_mean(epochs=100)[1].converged is False
    with pytest.warns(UserWarning, match=r"after 5 epochs it is not known, as 20 are looked at"):
        assert of_mean(epochs=5)[1].converged is False


@pytest.mark.parametrize("until", [True, "convergence", 1e-3, "Converged"])
def test_no_other_ends(until):
    with pytest.raises(ValueError, match=r"until: expected 'converged' or None, got"):
        of_mean(until=until)


def test_games_do_not_converge():
    with pytest.raises(ValueError, match=r"until: expected one objective, .* got 2"):
        quiet(adversarial(GAN(2, 2)), torch.randn(9, 2), steps=3, until="converged")


def test_what_is_descended_is_looked_at_of_several_numbers():
    """With a weight on the divergence, the history has the bound as well."""
    objective = elbo(VAE(4, 2), AmortizedNormal(4, 2), beta=2.0)
    x = torch.rand(60, 4).round()
    with pytest.warns(UserWarning, match=r"after 25 epochs it is not"):
        run = quiet(objective, x, epochs=25, lr=0.02, seed=0, until="converged")
    name = "elbo with beta=2 (not the bound)"
    assert losses_of(run.history, name) == run.history[name]
    with pytest.raises(ValueError, match=r"got those of 'elbo with beta=2 .*, 'elbo'\. Try conv"):
        convergence(run)
    assert convergence(run, name) == drift(run.history[name])
