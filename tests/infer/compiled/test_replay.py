"""Recorded steps: the numbers of steps that are run one by one, and never those of an old setting.

A GPU is not needed: `SimulatedRecorder` records and replays operations on the CPU as a CUDA graph
does. `test_cuda.py` has what needs one.
"""

import gc
import weakref
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.dct_adam import DCTAdam
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR
from torch.utils.data import TensorDataset

from guides import AmortizedNormal
from ppl_models import GAN, VAE, Transformed, adversarial, data_plate, descend, elbo, fit
from ppl_models.infer.compiled import graph as compiling
from ppl_models.infer.compiled import replay as replaying
from ppl_models.infer.compiled.traced import evaluations
from ppl_models.infer.drop_in import loss as dropping
from ppl_models.infer.training import descent as descending
from ppl_models.infer.training.batches import Chosen
from ppl_models.infer.training.descent import Descent
from ppl_models.nn import MLP
from tests.support.every_objective import COMPILED
from tests.support.oracles import state
from tests.support.replay import SimulatedRecorder
from tests.support.tutorials import PROGRAMS, CompiledSVI, run

X = torch.bernoulli(torch.full((50, 6), 0.4))


@pytest.fixture(autouse=True)
def recorder(monkeypatch):
    """Steps on the CPU are recorded, and graphs run as they are, without a compiler."""
    found = SimulatedRecorder()
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    monkeypatch.setattr(descending, "recorder_for", lambda device: found)
    return found


def vae():
    torch.manual_seed(0)
    return elbo(VAE(6, 2), AmortizedNormal(6, 2))


def end(objective, data=X, recorded=True, **settings):
    """The losses of a fit, and all tensors at its end."""
    settings = {"epochs": 8, "batch_size": 16, "lr": 1e-2, "seed": 0} | settings
    run = fit(objective, data, compile=recorded, **settings)
    named = [(name, p.detach().clone()) for name, p in objective.named_parameters()]
    return run.history, dict(named) | state(*objective.modules().values())


def same(ours, others):
    assert ours[0].keys() == others[0].keys()
    for name, values in ours[0].items():
        assert values == pytest.approx(others[0][name], rel=1e-5)
    for name, value in ours[1].items():
        torch.testing.assert_close(value, others[1][name], rtol=1e-4, atol=1e-5)


# --- the same numbers -----------------------------------------------------------------------------

OPTIONS = {
    "as it comes": {},
    "clipped": {"clip": 0.1},
    "averaged": {"ema": 0.9},
    "cosine": {"schedule": CosineAnnealingLR},
    "exponential": {"schedule": partial(ExponentialLR, gamma=0.9)},
    "SGD": {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
    "AdamW": {"optimizer": partial(torch.optim.AdamW, fused=True, weight_decay=0.1)},
    "bfloat16": {"amp": True},
    "validated": {"validation": X[:10], "patience": 5},
    "all rows as one batch": {"batch_size": None},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, recorder):
    options = OPTIONS[name]
    ours, others = (end(vae(), recorded=on, **options) for on in (True, False))
    if name == "bfloat16":  # it multiplies the rounding of the learning rate
        assert ours[0]["loss"] == pytest.approx(others[0]["loss"], rel=1e-3)
    else:
        same(ours, others)
    kinds = 1 if "batch_size" in options else 2  # the last batch has two rows
    steps = 8 if "batch_size" in options else 32
    assert recorder.launches == {"run": 3 * kinds, "record": kinds, "replay": steps - 3 * kinds}


@pytest.mark.parametrize("name", COMPILED)
def test_models(name, recorder):
    make, data, _ = COMPILED[name]
    results = []
    for on in (True, False):
        pyro.clear_param_store()
        torch.manual_seed(0)
        half = len(data[0]) // 2
        results.append(end(make(), data, on, epochs=3, batch_size=half, lr=1e-3))
    same(*results)
    assert recorder.launches["replay"] == 3


@pytest.mark.parametrize(
    "data",
    [
        Transformed(0.1 + 0.8 * X, transform=torch.bernoulli),
        Transformed(X, transform=lambda x: torch.bernoulli(0.1 + 0.8 * x)),
        TensorDataset(X),
        torch.utils.data.DataLoader(TensorDataset(X), batch_size=16),
    ],
    ids=["binarised afresh", "transformed", "dataset", "loader"],
)
def test_sources(data, recorder):
    settings = {"batch_size": None if isinstance(data, torch.utils.data.DataLoader) else 16}
    same(*(end(vae(), data, on, **settings) for on in (True, False)))
    assert recorder.launches["replay"] == 26


def test_a_transform_with_a_will_of_its_own(recorder):
    """What is not torch's own runs before the recorded step, each time."""
    ends = []
    for on in (True, False):
        calls = []

        def flip(x, calls=calls):
            calls.append(1)
            return x if len(calls) % 3 else 1 - x

        ends.append(end(vae(), Transformed(X, transform=flip), on))
        assert len(calls) >= 32
    same(*ends)
    assert recorder.launches["replay"] == 26


def test_a_resumed_run_goes_on(tmp_path, recorder):
    whole = end(vae(), schedule=partial(ExponentialLR, gamma=0.95))
    parts = {"schedule": partial(ExponentialLR, gamma=0.95), "checkpoint": tmp_path / "run"}
    end(vae(), epochs=None, steps=14, **parts)  # in the middle of the fourth epoch
    same(end(vae(), resume=True, **parts), whole)


def test_steps_that_people_drive_themselves(recorder):
    ends = []
    for compile in (True, False):
        torch.manual_seed(1)
        losses = list(descend(vae(), [X] * 9, lr=0.1, compile=compile))
        ends.append([step["elbo"].item() for step in losses])  # read when all is done
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
    assert recorder.launches["replay"] == 6


def test_draws_are_new_in_each_replay(recorder):
    batch = Chosen((X,), torch.arange(50), 50)
    descent = Descent(vae(), batch.gathered(), lr=1e-12, compile=True)
    found = [descent.step(batch)["elbo"].item() for _ in range(8)]
    assert len(set(found)) == 8
    assert recorder.launches["replay"] == 5


def test_nothing_is_kept_after_the_end(recorder):
    """A GPU would run full: no cycle of objects holds the recordings, or the data in them."""
    data = X.clone()
    gone = weakref.ref(data)
    gc.disable()
    try:
        end(vae(), data)
        del data
        assert gone() is None
    finally:
        gc.enable()


def test_nothing_is_kept_after_an_interruption(recorder):
    """Nor would graphs be destroyed while the next fit records its own."""
    kept = []

    def interrupted(o):
        return torch.optim.lr_scheduler.LambdaLR(o, lambda step: step_or_stop(step))

    def step_or_stop(step):
        if step == 20:
            raise KeyboardInterrupt
        return 1.0

    gc.disable()
    try:
        for run in (
            lambda data: end(vae(), data, schedule=interrupted),
            lambda data: list(
                descend(vae(), [data] * 30, lr=0.1, schedule=interrupted, compile=True)
            ),
            lambda data: next(descend(vae(), [data] * 30, lr=0.1, compile=True)),
        ):
            data = X.clone()
            kept.append(weakref.ref(data))
            with suppress(KeyboardInterrupt):
                run(data)
            del data
        assert [gone() for gone in kept] == [None] * 3
    finally:
        gc.enable()


# --- what a recording holds, and may change -------------------------------------------------------


def changing(objective, change, steps=12, compile=True, **options):
    """The losses of steps between which something changes, each with draws of its own."""
    batch = Chosen((X,), torch.arange(50), 50)
    descent = Descent(objective, batch.gathered(), compile=compile, **options)
    found = []
    for step in range(steps):
        change(step, descent)
        torch.manual_seed(step)
        found.append(descent.step(batch)["elbo"].item())
    return found, descent


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = 1.0
        self.loc = nn.Parameter(torch.zeros(6))
        self.width = nn.Parameter(torch.ones(6), requires_grad=False)
        self.shift = torch.zeros(6)
        self.register_buffer("other", torch.zeros(6))

    def forward(self, x=None, size=None):
        loc = self.loc + self.shift + self.other
        with data_plate(x, size), pyro.poutine.scale(scale=self.weight):
            return pyro.sample("x", dist.Normal(loc, self.width).to_event(1), obs=x)


def number(step, descent):
    if step == 7:
        descent.objectives[0]._model.program.weight = 2.0


def memory(step, descent, name="loc"):
    if step == 7:
        getattr(descent.objectives[0]._model.program, name).data = 2 * torch.ones(6)


def frozen(step, descent):
    memory(step, descent, "width")


def attribute(step, descent):
    memory(step, descent, "shift")


def buffer(step, descent):
    memory(step, descent, "other")


def rate(step, descent):
    descent.optimizers[0].param_groups[0]["lr"] = 0.1 if step < 7 else 0.2


def decay(step, descent):
    descent.optimizers[0].param_groups[0]["weight_decay"] = 0.0 if step < 7 else 0.9


def reloaded(step, descent):
    if step == 7:
        optimizer = descent.optimizers[0]
        other = {k: {n: 0 * v for n, v in s.items()} for k, s in optimizer.state.items()}
        saved = optimizer.state_dict()
        saved["state"] = dict(enumerate(other.values()))
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    "change", [number, memory, frozen, attribute, buffer, rate, decay, reloaded]
)
def test_what_changes_counts_at_once(change, recorder):
    ours, descent = changing(elbo(Weighted()), change, lr=0.1)
    others, _ = changing(elbo(Weighted()), change, compile=False, lr=0.1)
    constant, _ = changing(elbo(Weighted()), lambda *_: None, compile=False, lr=0.1)
    assert ours == pytest.approx(others, rel=1e-5)
    assert others[7:] != pytest.approx(constant[7:], rel=1e-3)
    assert descent.replay.reason is None
    assert recorder.launches["record"] == (1 if change is rate else 2)


def test_rows_of_other_tensors_are_not_mixed_up(recorder):
    first = Chosen((X,), torch.arange(50), 50).gathered()
    descents = [Descent(elbo(Weighted()), first, lr=0.1, compile=on) for on in (True, False)]
    found = []
    for descent in descents:
        steps = [Chosen((X + n % 2,), torch.arange(50), 50) for n in range(12)]
        found.append([descent.step(chosen)["elbo"].item() for chosen in steps])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_setting_that_changes_at_every_step(recorder):
    settings = {"schedule": lambda o, n: OneCycleLR(o, 0.01, n + 1), "epochs": 40}
    with pytest.warns(UserWarning, match="not recorded as CUDA graphs: a setting of the optimi"):
        ours = end(vae(), **settings)
    same(ours, end(vae(), recorded=False, **settings))
    assert recorder.launches["record"] == 0


def test_learning_rates_that_an_optimiser_cannot_read_from_the_device(recorder):
    settings = {"optimizer": torch.optim.SGD, "schedule": partial(ExponentialLR, gamma=0.99)}
    with pytest.warns(UserWarning, match="not recorded as CUDA graphs: a setting of the optimi"):
        ours = end(vae(), epochs=40, **settings)
    same(ours, end(vae(), epochs=40, recorded=False, **settings))


class Reading(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["params"][0].grad.norm().item() > 0:
            super().step(closure)


@pytest.mark.parametrize("optimizer", [Reading, torch.optim.RMSprop])
def test_an_optimiser_that_cannot_be_recorded(optimizer, recorder):
    """One reads from the device; the other cannot keep its count of steps there (on the CPU)."""
    with pytest.warns(UserWarning, match="not recorded as CUDA graphs: (Runtime|Assertion)Error"):
        ours = end(vae(), optimizer=optimizer)
    same(ours, end(vae(), optimizer=optimizer, recorded=False))
    assert recorder.launches["replay"] == 0


class Averaging(torch.optim.Optimizer):
    """Momentum as many write it: a new tensor at each step."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p].get("mean", torch.zeros_like(p))
                self.state[p]["mean"] = 0.9 * kept + 0.1 * p.grad
                p.sub_(group["lr"] * self.state[p]["mean"])


class Slowing(torch.optim.SGD):
    """Counts its steps by itself."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.div_(self.count)
        super().step(closure)


@pytest.mark.parametrize("optimizer", [ClippedAdam, DCTAdam, Averaging, Slowing])
def test_an_optimiser_whose_steps_are_more_than_kernels(optimizer, recorder):
    """Replayed, it would count no further, and begin with the same mean each time."""
    with pytest.warns(UserWarning, match="not recorded as CUDA graphs: the optimiser counts"):
        ours = end(vae(), optimizer=optimizer)
    same(ours, end(vae(), optimizer=optimizer, recorded=False))
    assert recorder.launches == {"run": 3, "record": 0, "replay": 0}


def test_what_varies_on_the_host_is_not_recorded(recorder, monkeypatch):
    monkeypatch.setattr(compiling, "varies_on_host", lambda *_: True)
    with pytest.warns(UserWarning, match="not recorded as CUDA graphs: the program draws on the C"):
        ours = end(vae())
    same(ours, end(vae(), recorded=False))
    assert recorder.launches["replay"] == 0


def test_a_rate_that_was_a_tensor_in_between():
    rate = replaying.Rate(torch.device("cpu"))
    for value in (0.5, torch.tensor(0.25), 0.5):
        rate.take(value)
        assert rate.tensor == value


def test_settings_that_are_tensors_and_change_in_place():
    """Schedulers fill a learning rate that is a tensor; on the host it is a constant to a graph."""
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([torch.zeros(2)], lr=rate)
    replay = replaying.Replay(SimulatedRecorder(), [], [optimizer], [])
    before = replay._settings()
    assert replaying._all_same(replay._settings(), before)
    rate.fill_(0.2)
    assert not replaying._all_same(replay._settings(), before)
    before = replay._settings()
    optimizer.param_groups[0]["lr"] = rate.clone()  # at another address
    assert not replaying._all_same(replay._settings(), before)


def test_what_cannot_be_compiled_is_not_recorded(recorder):
    class Counting(Weighted):
        def forward(self, x=None, size=None):
            self.weight = self.weight + 0.01
            return super().forward(x, size)

    with pytest.warns(UserWarning, match="runs eagerly, not compiled"):
        changing(elbo(Counting()), lambda *_: None, lr=0.1)
    assert recorder.launches["record"] == 0


def test_players_of_a_game_are_recorded_with_what_they_report(recorder):
    def game():
        torch.manual_seed(0)
        return adversarial(GAN(6, 2), critic_steps=2, instance_noise=(0.3, 0.1, 10))

    options = {"epochs": 4, "batch_size": 16, "seed": 0}
    ours = fit(game(), X, compile=True, **options).history
    others = fit(game(), X, **options).history
    assert recorder.launches["record"]
    assert ours.keys() == others.keys() == {"discriminator", "generator", "value"}
    for name, values in ours.items():
        assert values == pytest.approx(others[name], rel=1e-5)


def test_recorded_steps_are_compared_with_the_program_now_and_then(recorder, monkeypatch):
    monkeypatch.setattr(compiling, "CHECK_EVERY", 5)
    objective = elbo(Weighted())
    wrong = False

    def spoil(graph, **_):
        return lambda *values: (1.5 if wrong else 1.0) * graph(*values)

    def change(step, descent):
        nonlocal wrong
        wrong = step == 4

    monkeypatch.setattr(torch, "compile", spoil)
    with pytest.warns(UserWarning, match="after 5 steps its graph has another loss"):
        found, _ = changing(objective, change, lr=0.1)
    others, _ = changing(elbo(Weighted()), change, compile=False, lr=0.1)
    assert found == pytest.approx(others, rel=1e-5)
    assert recorder.launches == {"run": 4, "record": 1, "replay": 1}


def test_dropout_and_batch_normalisation(recorder):
    def noisy():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8))
        encoder.append(nn.Dropout(0.3))
        encoder.append(nn.Linear(8, 4))
        decoder = MLP(2, 6, (8,), dropout=0.2)
        return elbo(VAE(6, 2, decoder=decoder), AmortizedNormal(6, 2, encoder))

    ours, others = (end(noisy(), recorded=on) for on in (True, False))
    same(ours, others)
    (count,) = (v for k, v in ours[1].items() if k.endswith("num_batches_tracked"))
    assert count == 32


def test_a_loss_that_is_not_finite_is_noticed(recorder):
    def model(x=None, size=None):
        scale = pyro.param("falling", torch.tensor(1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(0.0, scale.sqrt()).expand([6]).to_event(1), obs=x)

    pyro.clear_param_store()
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+"):
        fit(elbo(model), 0 * X, steps=50, lr=0.1, seed=0, compile=True, batch_size=16)
    assert recorder.launches["replay"] > 0


# --- the drop-in SVI ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_slopes_of_the_drop_in(name, recorder, monkeypatch):
    expected, others, *_ = run(pyro.infer.SVI, *PROGRAMS[name])
    monkeypatch.setattr(dropping, "recorder_for", lambda device: recorder)
    losses, values, svi, _ = run(CompiledSVI, *PROGRAMS[name])
    launches = recorder.launches  # those that are compared with the program run by themselves
    assert launches["run"] + launches["replay"] == 10  # the first two are Pyro's
    assert launches["record"] == 1
    assert launches["replay"] >= 3
    assert svi._loss.replay.reason is None
    assert losses == pytest.approx(expected, rel=1e-5)
    for key, value in values.items():
        torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)


def test_a_slope_that_was_there_is_kept(recorder, monkeypatch):
    """As with Pyro, whose backward adds to what `.grad` holds."""
    monkeypatch.setattr(dropping, "recorder_for", lambda device: recorder)
    ends = []
    for kind in (pyro.infer.SVI, CompiledSVI):
        make, _, data = PROGRAMS["eight schools"]
        *_, svi, _ = run(kind, make, 0, data)
        loc = next(iter(pyro.get_param_store()._params.values()))
        loc.grad = torch.full_like(loc, 1e3)
        torch.manual_seed(5)
        svi.step(*data)
        ends.append(loc.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])


# --- CUDA -----------------------------------------------------------------------------------------


def test_generators_of_the_device_are_kept_where_no_argument_is_on_it(monkeypatch):
    """Such as a step of the drop-in without arguments."""
    held = SimpleNamespace(
        named_parameters=lambda: [("p", torch.zeros(2, device="meta"))],
        modules=dict,
        eager_because=None,
    )
    places = []
    monkeypatch.setattr(evaluations, "get_rng_state", places.append)
    monkeypatch.setattr(evaluations, "set_rng_state", lambda state, device: places.append(device))
    for inputs in ((), (torch.zeros(2),)):
        with compiling.Compiled(held).untouched(inputs):
            pass
    assert places == [torch.device("meta")] * 4


def test_how_cuda_is_asked(monkeypatch):
    """Without a GPU: the calls of torch, in order. `test_cuda.py` makes them on one."""
    calls = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def using(what):
        calls.append(f"begin {what}")
        try:
            yield
        finally:
            calls.append(f"end {what}")

    def interrupted():
        raise KeyboardInterrupt

    graph = SimpleNamespace(replay=lambda: calls.append("replay"))
    own, main, device = Stream("own"), Stream("main"), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "Stream", lambda place: own if place == device else None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda place: main)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: using(stream.name))
    monkeypatch.setattr(
        torch.cuda,
        "graph",
        lambda graph, pool, stream, capture_error_mode: using(f"{pool} on {stream.name}"),
    )
    recorder = replaying.recorder_for(device)
    assert recorder.run(lambda: calls.append("step") or {}) == {}
    assert calls == ["own waits for main", "begin own", "step", "end own", "main waits for own"]
    calls.clear()
    replay, _ = recorder.record(lambda: calls.append("step") or {})
    replay()
    expected = ["begin pool on own", "step", "end pool on own"]
    assert calls == ["begin main", *expected, "end main", "replay"]
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        recorder.run(interrupted)
    assert calls[-1] == "main waits for own"

    class Generator:
        def clone_state(self):
            return "the same, not recording"

        def graphsafe_set_state(self, state):
            calls.append(f"generator is {state}")

    def stuck(*size, device):
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    monkeypatch.setattr(torch.cuda, "default_generators", (None, Generator()))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda place: "seed")
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, place: calls.append(f"{state} on {place}")
    )
    for rand, expected in ((torch.rand, []), (stuck, ["generator is the same, not recording"])):
        monkeypatch.setattr(
            torch, "rand", lambda *size, device, rand=rand: rand(*size, device="cpu")
        )
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            recorder.record(interrupted)
        assert calls[-1] == "seed on cuda:1"
        assert calls[calls.index("end main") + 1 : -1] == expected
    assert replaying.recorder_for(torch.device("cpu")) is None
