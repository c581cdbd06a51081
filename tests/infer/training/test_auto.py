"""`compile="auto"`: steps of the program, then compiled ones from a step on that counts decide."""

import importlib
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, elbo
from ppl_models import fit as fit_by_default
from ppl_models.infer.training import blocks, choice
from ppl_models.likelihoods import Normal
from ppl_models.nn import MLP

module = importlib.import_module("ppl_models.infer.training.fit")
fit = partial(fit_by_default, progress=False, seed=3, lr=0.01)
pytestmark = pytest.mark.usefixtures("graphs_as_traced")


@pytest.fixture
def pays(monkeypatch):
    """Compiling pays from 25 steps on."""
    monkeypatch.setattr(choice, "LEAST", 20)
    monkeypatch.setattr(choice, "pays", lambda steps, *counts: steps >= 25)


@pytest.fixture
def taken(monkeypatch):
    """The steps after which blocks were taken."""
    found, run = [], blocks.Blocks._run
    monkeypatch.setattr(
        blocks.Blocks,
        "_run",
        lambda self, *args: (found.append(self.descent.step_number), run(self, *args))[1],
    )
    return found


def pair():
    torch.manual_seed(0)
    model = VAE(4, 2, Normal(), MLP(2, 4, (6,)))
    return model.double(), AmortizedNormal(4, 2, MLP(4, 4, (6,))).double()


X = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(steps=40, programs=None, **options):
    programs = programs or pair()
    found = fit(elbo(*programs), X, steps=steps, batch_size=20, **options)
    return found, [x.clone() for p in programs for x in p.state_dict().values()]


def same(first, second):
    return all(map(torch.equal, first, second))


def test_a_run_has_the_numbers_of_both_ways(pays, taken):
    auto, tensors = run()
    assert taken == [2]
    assert auto.eager_because is None
    eager, of_eager = run(compile=False)
    compiled, of_compiled = run(compile=True)
    assert auto.history["loss"][:2] == eager.history["loss"][:2]
    for other, others in ((eager, of_eager), (compiled, of_compiled)):
        np.testing.assert_allclose(auto.history["loss"], other.history["loss"], rtol=1e-9)
        torch.testing.assert_close(tensors, others, rtol=1e-9, atol=1e-9)


def test_a_run_is_the_same_each_time(pays, taken):
    first, second = run(), run()
    assert first[0].history == second[0].history
    assert same(first[1], second[1])
    assert taken == [2, 2]


def test_short_runs_are_those_of_the_program(pays, taken):
    auto, tensors = run(steps=24)
    eager, others = run(steps=24, compile=False)
    assert auto.history == eager.history
    assert same(tensors, others)
    assert "22 steps to come of" in auto.eager_because
    assert "10 steps to come" in run(steps=10)[0].eager_because
    assert eager.eager_because is None
    assert not taken


@pytest.mark.parametrize("stops", [1, 2, 3, 30])
def test_a_resumed_run_goes_on_bit_for_bit(pays, taken, stops, tmp_path, monkeypatch):
    whole, tensors = run()
    path, check = tmp_path / "run", module._Loop._goes_on
    with monkeypatch.context() as patched:  # as if it was stopped
        patched.setattr(
            module._Loop,
            "_goes_on",
            lambda self, total: check(self, total) and self.descent.step_number < stops,
        )
        patched.setattr("ppl_models.infer.compiled.steps.loop.LONGEST", max(stops - 2, 1))
        run(checkpoint=path)
    resumed, others = run(checkpoint=path, resume=True)
    assert resumed.steps == 40
    assert resumed.history == whole.history
    assert same(tensors, others)


def test_a_run_that_goes_on_for_longer_may_be_compiled_then(pays, taken, tmp_path):
    run(steps=10, checkpoint=tmp_path / "run")
    assert not taken
    found, _ = run(steps=50, checkpoint=tmp_path / "run", resume=True)
    assert taken == [11]
    again, _ = run(steps=60, checkpoint=tmp_path / "run", resume=True)  # 10 of them new
    assert taken == [11, 50]
    assert found.eager_because is again.eager_because is None


@pytest.mark.parametrize("written", [True, False])
def test_a_run_goes_on_as_it_was_written(taken, written, tmp_path):
    whole, tensors = run(compile=written)
    run(steps=10, compile=written, checkpoint=tmp_path / "run")
    resumed, others = run(checkpoint=tmp_path / "run", resume=True)
    assert resumed.history == whole.history
    assert same(tensors, others)
    assert len(taken) == (3 if written else 0)


def drawing(x, size=None):
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    with data_plate(x, size):
        noise = 0 * np.random.rand()
        return pyro.sample("x", dist.Normal(loc.expand(4) + noise, 1.0).to_event(1), obs=x)


def test_a_program_without_code_runs_by_itself_in_silence(pays, taken, tmp_path):
    found = []
    for compile in ("auto", False):
        pyro.clear_param_store()
        options = {"checkpoint": tmp_path / str(compile)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = fit(elbo(drawing), X, steps=40, compile=compile, **options)
        found.append((result.history, pyro.param("loc").item()))
        if compile == "auto":
            assert "NumPy" in result.eager_because
            again = fit(elbo(drawing), X, steps=90, resume=True, **options)
            assert again.eager_because == result.eager_because  # it is not tried anew
    assert found[0] == found[1]
    assert not taken


def test_a_program_that_was_to_be_compiled_says_why_it_was_not():
    pyro.clear_param_store()
    with pytest.warns(UserWarning, match="runs eagerly"):
        result = fit(elbo(drawing), X, steps=40, compile=True)
    assert "NumPy" in result.eager_because


def test_code_that_goes_wrong_is_left_in_silence(pays, monkeypatch):
    taking = blocks.Blocks._run

    def tampered(self, planned):
        taking(self, planned)
        self.descent.parameters[0][0].data.add_(0.1)
        for kind in self.used.values():
            kind.step.native._call = lambda *inputs: None  # moves nothing

    with monkeypatch.context() as patched:
        patched.setattr(blocks.Blocks, "_run", tampered)
        auto, tensors = run()
    eager, others = run(compile=False)
    assert "a compiled step has another" in auto.eager_because
    assert auto.history == eager.history
    assert same(tensors, others)


def test_rows_that_come_one_by_one_stay_so(pays, monkeypatch):
    monkeypatch.setattr(choice, "blocks_of", lambda *args, **options: None)
    found, _ = run()
    assert "one by one" in found.eager_because


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="compile: expected True, False or 'auto', got 'always'"):
        run(compile="always")


def test_a_loader_trains_as_ever(pays):
    losses = []
    for compile in ("auto", False):
        loader = DataLoader(TensorDataset(X), batch_size=5, shuffle=True)
        losses.append(fit(elbo(*pair()), loader, epochs=10, compile=compile).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-9)
