"""Bars count all that is done, vanish, and change no random number; elsewhere there are none."""

import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

from guides import AmortizedNormal, ExactPosterior
from ppl_models import (
    MADE,
    VAE,
    Diffusion,
    FactorAnalysis,
    GaussianMixture,
    LatentDiffusion,
    Run,
    compare,
    data_plate,
    draw_rows,
    elbo,
    fit,
    fit_em,
    from_pyro_svi,
    khat,
    log_evidence,
    sbc,
    tarp,
)
from ppl_models.diffusion.samplers import ancestral, ddim, heun, langevin
from ppl_models.prompt import bars
from ppl_models.prompt.bars import is_watched, progress_bar

X = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)).round()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """What a terminal is sent from now on, with bars at once, each time that they move."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)  # not in a fixture: pytest would take it back
    monkeypatch.setattr(bars, "DELAY", 1e-9)
    monkeypatch.setattr(bars.tqdm, "update", _at_once(bars.tqdm.update))
    return shown


def _at_once(update):
    def moved(self, n=1):
        self.mininterval, self.miniters = 0, 0
        return update(self, n)

    return moved


def last(shown):
    """The name of the last bar, and how far it went, of how much."""
    found = re.findall(r"\r([\w ]+): +\d+%\|.*?\| (\d+)/(\d+) ", shown)
    name, done, total = found[-1]
    return name, int(done), int(total)


def model(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def vae():
    torch.manual_seed(0)
    return VAE(4, 2), AmortizedNormal(4, 2)


def shared(**settings):
    guide = AutoNormal(model)
    guide(X[:, 0])
    return log_evidence(model, guide, X[:, 0], seed=0, num_samples=70, **settings).value


def posterior(**settings):
    found = from_pyro_svi(*vae(), X, num_samples=30, batch_size=100, seed=0, **settings)
    return torch.tensor(found["posterior"]["z"].values)


def ranks(kind, **settings):
    torch.manual_seed(0)
    fa = FactorAnalysis(4, 2)
    guide = ExactPosterior(fa)
    found = kind(fa, guide, num_simulations=25, num_draws=12, batch_size=100, seed=0, **settings)
    return torch.cat([x.flatten() for x in found.ranks.values()])


def refits(**settings):
    def refit(model, x):
        torch.manual_seed(0)
        objective = elbo(model, AutoNormal(model))
        fit(objective, x, steps=2, progress=False)
        return objective.guide

    options = {"size": 5, "num_simulations": 20, "num_draws": 10, "num_jobs": 1, "seed": 0}
    return sbc(model, None, refit=refit, **options, **settings).ranks["loc"]


def diffused(sampler, **settings):
    torch.manual_seed(0)
    return Diffusion(4).sample(5, sampler, num_steps=7, **settings)


def latent(**settings):
    torch.manual_seed(0)
    return LatentDiffusion(VAE(4, 2), Diffusion(2)).sample(5, ddim, 7, **settings)


def autoregressive(**settings):
    torch.manual_seed(0)
    return MADE(4).evidence().sample((5,), **settings)


def rows(**settings):
    return draw_rows(lambda n: torch.randn(len(n), 3), 25, batch_size=10, seed=0, **settings)


CALLS = {
    "log_evidence": (
        lambda **s: log_evidence(*vae(), X, num_samples=50, batch_size=100, seed=0, **s).value,
        ("log_evidence", 1000),
    ),
    "log_evidence, shared": (shared, ("log_evidence", 70)),
    "log_evidence, read": (
        lambda **s: (
            log_evidence(*vae(), DataLoader(TensorDataset(X), 8), num_samples=2, seed=0, **s).value
        ),
        ("log_evidence", 20),
    ),
    "from_pyro_svi": (posterior, ("from_pyro_svi", 600)),
    "khat": (
        lambda **s: khat(*vae(), X, num_samples=50, batch_size=100, seed=0, **s).value,
        ("khat", 1000),
    ),
    "sbc": (lambda **s: ranks(sbc, **s), ("sbc", 300)),
    "tarp": (lambda **s: ranks(tarp, **s), ("tarp", 300)),
    "draw_rows": (rows, ("draw_rows", 25)),
    "ancestral": (lambda **s: diffused(ancestral, **s), ("sample", 7)),
    "ddim": (lambda **s: diffused(ddim, **s), ("sample", 7)),
    "heun": (lambda **s: diffused(heun, **s), ("sample", 13)),
    "langevin": (lambda **s: diffused(langevin, **s), ("sample", 13)),
    "latent diffusion": (latent, ("sample", 7)),
    "autoregressive": (autoregressive, ("sample", 4)),
}


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")
@pytest.mark.parametrize("name", CALLS)
def test_a_bar_counts_all_and_changes_nothing(name, monkeypatch):
    shown = terminal(monkeypatch)
    call, (what, total) = CALLS[name]
    found = call()
    assert last(shown.getvalue()) == (what, total, total)
    shown.truncate(0)
    assert torch.equal(call(progress=False), found)
    assert "|" not in shown.getvalue()


@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")
@pytest.mark.parametrize("name", CALLS)
def test_a_bar_leaves_an_empty_line(name, monkeypatch):
    shown = terminal(monkeypatch)
    CALLS[name][0]()
    assert re.search(r"\r +\r$", shown.getvalue())
    assert "\n" not in shown.getvalue()


@pytest.mark.slow
def test_refits_are_counted(monkeypatch):
    shown = terminal(monkeypatch)
    found = refits()
    assert "refit: 100%" in shown.getvalue()
    assert " 20/20 " in shown.getvalue()
    assert torch.equal(refits(progress=False), found)


def test_bars_are_where_somebody_looks(monkeypatch):
    """On a terminal and in a notebook; not in a file, nor where no bar is wanted."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not is_watched()
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    assert is_watched()
    assert not is_watched(False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not is_watched()
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    assert not is_watched()
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert is_watched()


def test_a_sampler_of_ones_own_has_no_total(monkeypatch):
    shown = terminal(monkeypatch)

    def sampler(denoiser, z, schedule, num_steps):
        return denoiser(z, torch.zeros(()))

    Diffusion(4).sample(5, sampler)
    assert "sample: 1call" in shown.getvalue()


def test_what_is_quick_shows_none(monkeypatch):
    shown = terminal(monkeypatch)
    monkeypatch.setattr(bars, "DELAY", 60.0)
    log_evidence(*vae(), X, num_samples=5)
    assert not shown.getvalue()


def test_there_is_none_but_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(bars, "DELAY", 1e-9)
    with progress_bar("nothing", 3) as advance:
        advance(3)
    monkeypatch.setattr(sys, "stderr", None)  # of a program without a window
    with progress_bar("nothing", 3) as advance:
        advance(3)
    captured = capsys.readouterr()
    assert not captured.err
    assert not captured.out


def test_there_is_none_of_other_processes(monkeypatch):
    shown = terminal(monkeypatch)

    monkeypatch.setattr(bars, "is_first", lambda: False)
    log_evidence(*vae(), X, num_samples=5)
    assert not shown.getvalue()


def test_a_bar_joins_no_other_processes(monkeypatch):
    """One may draw while the others never come to that line."""
    shown = terminal(monkeypatch)
    started = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with progress_bar("half", 2) as advance:
        advance(1)
    assert "half" in shown.getvalue()
    monkeypatch.setenv("RANK", "1")
    assert not is_watched()


def test_an_error_closes_the_bar(monkeypatch):
    shown = terminal(monkeypatch)
    bar = progress_bar("half", 2)
    bar.__enter__()(1)
    bar.__exit__(RuntimeError, RuntimeError(), None)
    assert re.search(r"\r +\r$", shown.getvalue())


@pytest.mark.parametrize(
    "call",
    [
        lambda: fit(elbo(*vae()), X, epochs=2, batch_size=5),
        lambda: fit_em(GaussianMixture(4, 1), X),
        lambda: compare({1: GaussianMixture(4, 1)}, X + 0.1 * torch.randn(20, 4), folds=2),
    ],
    ids=["fit", "fit_em", "compare"],
)
def test_bars_of_fits_vanish(call, monkeypatch):
    shown = terminal(monkeypatch)
    call()
    assert "it" in shown.getvalue()
    assert shown.getvalue().splitlines()[-1].strip() == ""


def test_a_run_says_when_its_first_step_was_taken():
    run = fit(elbo(*vae()), X, steps=3, progress=False)
    assert 0 < run.seconds_to_first_step <= run.seconds
    assert run.seconds_compiling == 0
    em = fit_em(GaussianMixture(4, 1), X, progress=False)
    assert np.isnan(em.seconds_to_first_step)


def test_a_run_says_in_its_line_what_took_long():
    quick = Run({"loss": [2.0]}, 3000, 5.0, None, None, 0.2, 0.3)
    assert repr(quick) == "Run(3000 steps in 5.0 s, loss 2)"
    slow = Run({"loss": [2.0]}, 3000, 44.1, None, None, 3.9, 38.1)
    assert repr(slow) == "Run(3000 steps in 44.1 s (3.9 s to the first, 38.1 s compiling), loss 2)"


@pytest.mark.slow
def test_compiling_is_timed_and_said(monkeypatch):
    shown = terminal(monkeypatch)
    run = fit(elbo(*vae()), X, steps=50, batch_size=5, compile=True)
    assert run.seconds_to_first_step > 0
    assert 0 < run.seconds_compiling < run.seconds
    assert "compiling: " in shown.getvalue()
