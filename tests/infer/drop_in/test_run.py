"""`SVI.run`: the losses and the parameters of as many steps of Pyro's."""

import importlib
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from ppl_models import SVI
from ppl_models.infer.drop_in import run as svi_run

OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.01, "betas": (0.95, 0.999)}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-4, "momentum": 0.9}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99, "clip_norm": 1.0}),
    "by name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "loc" in name else 0.01}),
}


@pytest.fixture
def refused(monkeypatch):
    """Why runs that began blocks did not take them; None for those that did."""
    found, take = [], svi_run.SVIBlocks.take

    def noted(self, num_steps):
        take(self, num_steps)
        found.append(None if self.taken == num_steps else self.loop.refused or self.compiled.reason)

    monkeypatch.setattr(svi_run.SVIBlocks, "take", noted)
    return found


def both(make, args, optim=OPTIMIZERS["Adam"], steps=40):
    """The losses and the parameters of a run, and those of Pyro's steps."""
    found = []
    for ours in (True, False):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide, loss = make()
        svi = (partial(SVI, compile=True) if ours else pyro.infer.SVI)(model, guide, optim(), loss)
        pyro.set_rng_seed(1)
        if ours:
            result = svi.run(steps, *args)
            losses, state = result.losses.tolist(), result.state
            assert result.params.keys() == set(pyro.get_param_store())
            for name, value in result.params.items():
                assert torch.equal(value, pyro.param(name)), name
        else:
            losses, state = [svi.step(*args) for _ in range(steps)], svi.optim.get_state()
        values = {n: pyro.param(n).detach().clone() for n in pyro.get_param_store()}
        found.append((losses, values, state, torch.get_rng_state()))
    return found


def assert_same(first, second, rtol=1e-4):
    np.testing.assert_allclose(first[0], second[0], rtol=rtol)
    assert first[1].keys() == second[1].keys()
    for name, value in first[1].items():
        torch.testing.assert_close(value, second[1][name], rtol=rtol, atol=1e-5)
    assert first[2].keys() == second[2].keys()
    for name, state in first[2].items():
        assert float(state["state"][0].get("step", 0)) == float(
            second[2][name]["state"][0].get("step", 0)
        )
        assert state["param_groups"][0]["lr"] == pytest.approx(
            second[2][name]["param_groups"][0]["lr"]
        )
    assert torch.equal(first[3], second[3])


def regression(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, scale), obs=y)


def of_regression():
    return regression, AutoNormal(regression), Trace_ELBO()


X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_as_many_steps_of_pyros(name, refused):
    assert_same(*both(of_regression, (X, Y), OPTIMIZERS[name]))
    assert refused == [None]


def test_a_second_run_goes_on(refused):
    ends = []
    for parts in ((40,), (10, 30)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide, loss = of_regression()
        svi = SVI(model, guide, OPTIMIZERS["Adam"](), loss, compile=True)
        losses = torch.cat([svi.run(steps, X, Y).losses for steps in parts])
        ends.append(losses)
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


def test_handlers_around_a_run_belong_to_it(refused):
    ends = []
    for ours in (True, False):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide, loss = of_regression()
        with poutine.scale(scale=0.5):
            if ours:
                svi = SVI(model, guide, OPTIMIZERS["Adam"](), loss, compile=True)
                ends.append(svi.run(20, X, Y).losses.tolist())
            else:
                svi = pyro.infer.SVI(model, guide, OPTIMIZERS["Adam"](), loss)
                ends.append([svi.step(X, Y) for _ in range(20)])
    np.testing.assert_allclose(*ends, rtol=1e-4)


def noisy(x, y):
    scale = 1 + np.random.rand()
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


def nothing(x, y):
    pass


def test_a_program_that_draws_by_numpy_is_pyros():
    with pytest.warns(UserWarning, match="SVI: it runs eagerly, not compiled: .* NumPy"):
        found = both(lambda: (noisy, nothing, Trace_ELBO()), (X, Y))
    assert_same(*found)


class Held:
    data = Y

    def model(self, x, y):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=self.data)


def test_data_set_between_two_runs_are_the_new_ones(refused):
    ends = []
    for ours in (True, False):
        pyro.clear_param_store()
        held, losses = Held(), []
        kind = partial(SVI, compile=True) if ours else pyro.infer.SVI
        svi = kind(held.model, nothing, OPTIMIZERS["Adam"](), Trace_ELBO())
        for data in (Y, Y + 3):
            held.data = data
            losses += (
                svi.run(10, X, Y).losses.tolist() if ours else [svi.step(X, Y) for _ in range(10)]
            )
        ends.append(losses)
    np.testing.assert_allclose(*ends, rtol=1e-4)
    assert refused == [None, None]


def test_what_has_no_code_is_pyros(refused):
    found = both(lambda: (regression, AutoNormal(regression), TraceMeanField_ELBO()), (X, Y))
    assert_same(*found, rtol=1e-6)
    assert not refused


def of_a_default_run(steps, **options):
    """The losses of `SVI.run`, and those of as many steps of Pyro's."""
    found = []
    for kind in (partial(SVI, **options), pyro.infer.SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide, loss = of_regression()
        svi = kind(model, guide, OPTIMIZERS["Adam"](), loss)
        ours = kind is not pyro.infer.SVI
        found.append(
            svi.run(steps, X, Y).losses.tolist() if ours else [svi.step(X, Y) for _ in range(steps)]
        )
    return found


@pytest.fixture
def pays(monkeypatch):
    """Compiling pays from 25 steps on."""
    module = importlib.import_module("ppl_models.infer.drop_in.svi")
    monkeypatch.setattr(module, "LEAST", 20)
    monkeypatch.setattr(module, "pays", lambda steps, *counts: steps >= 25)


@pytest.mark.parametrize(("steps", "options"), [(26, {}), (40, {"compile": False}), (3, {})])
def test_runs_that_do_not_pay_are_pyros(steps, options, pays, refused):
    ours, pyros = of_a_default_run(steps, **options)
    assert ours == pyros
    assert not refused


def test_a_run_that_pays_has_the_numbers_of_both_ways(pays, refused):
    ours, pyros = of_a_default_run(40)
    assert ours[:2] == pyros[:2]
    np.testing.assert_allclose(ours, pyros, rtol=1e-4)
    assert refused == [None]


def test_a_run_that_nobody_asked_to_compile_is_silent(pays):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyro.clear_param_store()
        svi = SVI(noisy, nothing, OPTIMIZERS["Adam"](), Trace_ELBO())
        assert svi.run(40, X, Y).losses.isfinite().all()


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="compile: expected True, False or 'auto', got 'always'"):
        SVI(regression, nothing, OPTIMIZERS["Adam"](), Trace_ELBO(), compile="always")


def test_code_that_goes_wrong_is_undone(monkeypatch):
    run, calls = svi_run.SVIBlocks._run, []

    def tampered(self, kind, times):
        losses = run(self, kind, times)
        calls.append(times)
        if len(calls) > 1:
            pyro.get_param_store()._params["AutoNormal.locs.weights"].data.add_(0.1)
        return losses

    monkeypatch.setattr(svi_run.SVIBlocks, "_run", tampered)
    with pytest.warns(UserWarning, match="a compiled step has another"):
        found = both(of_regression, (X, Y))
    assert_same(*found, rtol=1e-6)


def constrained(x, y):
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


@pytest.mark.parametrize("steps", [1, 30])
def test_parameters_are_those_of_the_end(steps, refused):
    assert_same(*both(lambda: (constrained, nothing, Trace_ELBO()), (X, Y), steps=steps))


def test_parameters_that_modules_keep_for_themselves():
    left = []
    for parts in ([30], [10, 20]):
        with pyro.settings.context(module_local_params=True):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            guide = AutoNormal(regression)
            svi = SVI(regression, guide, OPTIMIZERS["Adam"](), Trace_ELBO(), compile=True)
            *_, result = [svi.run(steps, X, Y) for steps in parts]
            assert torch.equal(result.params["AutoNormal.locs.weights"], guide.locs.weights)
            assert torch.equal(result.params["AutoNormal.scales.scale"], guide.scales.scale)
            left.append(torch.get_rng_state())
    assert torch.equal(*left)  # to read them draws nothing


def test_rates_go_on_from_where_code_went_wrong(monkeypatch, refused):
    """Of ClippedAdam, which lowers them: after a block that was right and one that was not."""
    run, calls = svi_run.SVIBlocks._run, []

    def tampered(self, kind, times):
        losses = run(self, kind, times)
        calls.append(times)
        if len(calls) > 5:
            pyro.get_param_store()._params["AutoNormal.locs.weights"].data.add_(0.1)
        return losses

    monkeypatch.setattr(svi_run.SVIBlocks, "_run", tampered)
    monkeypatch.setattr("ppl_models.infer.compiled.steps.loop.LONGEST", 8)
    with pytest.warns(UserWarning, match="a compiled step has another"):
        found = both(of_regression, (X, Y), OPTIMIZERS["ClippedAdam"])
    assert_same(*found)
    assert max(calls) == 8


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_numbers_of_steps_that_are_none(count):
    svi = SVI(regression, AutoNormal(regression), OPTIMIZERS["Adam"](), Trace_ELBO())
    with pytest.raises(ValueError, match="num_steps"):
        svi.run(count, X, Y)


def test_modules_and_their_buffers(refused):
    def make():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 1))

        def model(x, y):
            pyro.module("network", network)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(network(x)[:, 0], 1.0), obs=y)

        return model, nothing, Trace_ELBO()

    assert_same(*both(make, (X, Y), steps=25))
    assert refused == [None]
