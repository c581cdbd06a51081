"""The exponential moving average of the parameters, `fit(..., ema=)`."""

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, descend, elbo
from tests.support.oracles import Pull, binary, same, state
from tests.support.runs import quiet


def pull(start: float = 0.0, to: float = 8.0, dtype: torch.dtype = torch.float64) -> Pull:
    """Moves a fraction `lr` of the way with every step of plain gradient descent."""
    own = nn.Parameter(torch.tensor(start, dtype=dtype))
    return Pull("pull", own, lambda: torch.tensor(to, dtype=dtype))


sgd = functools.partial(quiet, data=torch.zeros(4), optimizer=torch.optim.SGD)


def averages(values: list[float], decay: float) -> list[float]:
    """The recursion, by hand, from the parameter at the start and after each step."""
    out = values[:1]
    for t, value in enumerate(values[1:], 1):
        d = min(decay, (1 + t) / (10 + t))
        out.append(d * out[-1] + (1 - d) * value)
    return out


def path(steps: int, lr: float = 0.1, start: float = 0.0, to: float = 8.0) -> list[float]:
    return [to + (start - to) * (1 - lr) ** t for t in range(steps + 1)]


def vae() -> tuple[VAE, AmortizedNormal]:
    """The same parameters at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        decoder = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4)
        )
        return VAE(4, 2, decoder=decoder), AmortizedNormal(4, 2)


options: dict[str, Any] = {"batch_size": 5, "lr": 1e-2, "seed": 0}


# --- the recursion --------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_recursion_by_hand(decay, steps):
    """With 0.5 the warm-up ends at the eighth step, with 0.05 it never was."""
    objective = pull()
    sgd(objective, steps=steps, lr=0.1, ema=decay)
    assert objective.own.item() == pytest.approx(averages(path(steps), decay)[-1], rel=1e-13)


def test_all_objectives_after_the_turn_of_the_last():
    """a moves half way to b, then b half way to where a is now."""
    a, b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.0, 8.0))
    pair = [Pull("first", a, lambda: b), Pull("second", b, lambda: a)]
    sgd(pair, steps=2, lr=0.5, ema=0.9)
    assert a.item() == pytest.approx(averages([0.0, 4.0, 5.0], 0.9)[-1], rel=1e-13)
    assert b.item() == pytest.approx(averages([8.0, 6.0, 5.5], 0.9)[-1], rel=1e-13)


def test_what_objectives_share_is_averaged_once():
    own = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    pair = [Pull(name, own, lambda: torch.tensor(8.0)) for name in ("first", "second")]
    sgd(pair, steps=3, lr=0.1, ema=0.9)
    expected = averages([path(6)[t] for t in (0, 2, 4, 6)], 0.9)[-1]
    assert own.item() == pytest.approx(expected, rel=1e-6)


def test_half_precision_is_averaged_in_single():
    """In bfloat16 a move of a thousandth of the way would be lost to rounding."""
    values = [0.0] * 200 + [256.0] * 2000
    targets = iter([0.0, *values[1:]])  # the first is for the check before the first step
    own = nn.Parameter(torch.tensor(0.0, dtype=torch.bfloat16))
    objective = Pull("pull", own, lambda: torch.tensor(next(targets)))
    sgd(objective, steps=len(values) - 1, lr=1.0, ema=0.999)
    assert own.item() == pytest.approx(averages(values, 0.999)[-1], rel=0.01)
    assert own.dtype == torch.bfloat16


# --- beside the training --------------------------------------------------------------------


def test_the_training_is_the_same_with_it_and_without():
    plain, averaged = vae(), vae()
    run = quiet(elbo(*plain), binary(), epochs=3, **options)
    other = quiet(elbo(*averaged), binary(), epochs=3, ema=0.9, **options)
    assert run.history == other.history
    assert not same(state(*plain), state(*averaged))


def test_every_parameter_and_no_buffer():
    """Beside a descent by hand, whose parameters are noted after each step."""
    by_hand, fitted = vae(), vae()
    for module in (*by_hand, *fitted):
        module.train()
    torch.manual_seed(0)
    names = {f"{i}.{n}" for i, m in enumerate(by_hand) for n, _ in m.named_parameters()}
    expected = state(*by_hand)
    for t, _ in enumerate(descend(elbo(*by_hand), [binary()] * 12, lr=1e-2), 1):
        d = min(0.5, (1 + t) / (10 + t))
        for name, value in state(*by_hand).items():
            expected[name] = expected[name].lerp(value, 1 - d) if name in names else value
    quiet(elbo(*fitted), binary(), steps=12, lr=1e-2, seed=0, ema=0.5)
    got = state(*fitted)
    assert got["0.decoder.1.num_batches_tracked"] == 12
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_frozen_parameters_stay():
    model, guide = vae()
    model.requires_grad_(False)
    model.decoder[1].momentum = 0.0
    before = state(model)
    quiet(elbo(model, guide), binary(), steps=3, seed=0, ema=0.9)
    for name, value in before.items():
        assert torch.equal(state(model)[name], value) or "tracked" in name


def function_model(x: Tensor, size: int | None = None) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with data_plate(x, size):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


class Wrapped(nn.Module):
    """A function as the `forward` of a module: its parameters belong to that."""

    def forward(self, x: Tensor, size: int | None = None) -> None:
        function_model(x, size)


@pytest.mark.parametrize("module", [False, True])
def test_parameters_of_the_store_are_averaged_unconstrained(module):
    x, values = torch.full((4,), 3.0), [0.0]
    program = Wrapped() if module else function_model
    objective = elbo(program)
    for _ in descend(objective, [x] * 12, lr=0.1):
        ((_, log_scale),) = objective.named_parameters()
        values.append(log_scale.item())
    pyro.clear_param_store()
    objective = elbo(Wrapped() if module else function_model)
    quiet(objective, x, steps=12, lr=0.1, ema=0.5)
    ((_, log_scale),) = objective.named_parameters()
    assert log_scale.item() == pytest.approx(averages(values, 0.5)[-1], rel=1e-5)
    if not module:
        assert pyro.param("scale").item() == pytest.approx(log_scale.exp().item())


def test_autoguides():
    def fitted(ema: float | None) -> list[Tensor]:
        model, _ = vae()
        guide = pyro.infer.autoguide.AutoNormal(model)
        quiet(elbo(model, guide), binary(), steps=4, lr=0.1, seed=0, ema=ema)
        return [p.detach() for p in guide.parameters()]

    last, averaged = fitted(None), fitted(0.999)
    assert len(last) == len(averaged) > 0
    assert not any(map(torch.equal, last, averaged))


# --- validation -----------------------------------------------------------------------------


def losses(values: list[float], to: float) -> list[float]:
    return [(value - to) ** 2 / 2 for value in values[1:]]


def test_the_validation_loss_is_that_of_the_averages():
    objective = pull()
    run = sgd(objective, steps=20, lr=0.1, ema=0.5, validation=torch.zeros(3))
    expected = averages(path(20), 0.5)
    assert run.history["validation"] == pytest.approx(losses(expected, 8.0), rel=1e-12)
    assert run.history["loss"] == pytest.approx(losses([0.0, *path(19)], 8.0), rel=1e-12)


class Valley(Pull):
    """Training pulls past 3, where the validation loss (without a gradient) is least."""

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        held_out = not torch.is_grad_enabled()
        return (self.own - (3.0 if held_out else 8.0)).square() / 2


def test_patience_waits_for_the_averages_and_returns_to_the_best_of_them():
    own = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    valley = Valley("valley", own, lambda: own)
    run = sgd(valley, epochs=99, lr=0.1, ema=0.9, validation=torch.zeros(3), patience=3)
    expected = averages(path(99), 0.9)
    held_out = losses(expected, 3.0)
    best = held_out.index(min(held_out)) + 1
    assert run.steps == best + 3
    assert own.item() == pytest.approx(expected[best], rel=1e-12)


def test_a_failure_in_the_validation_leaves_the_parameters_as_they_were_trained():
    class Failing(Pull):
        def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
            loss = super().loss(*batch, size=size)
            if not torch.is_grad_enabled() and self.own.item() > 0:
                raise KeyError("on purpose")
            return loss

    own = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    failing = Failing("failing", own, lambda: torch.tensor(8.0))
    with pytest.raises(KeyError, match="on purpose"):
        sgd(failing, epochs=3, lr=0.1, ema=0.9, validation=torch.zeros(3))
    assert own.item() == pytest.approx(0.8)


# --- by hand, and bad values ----------------------------------------------------------------


def test_descend_leaves_the_averages_at_its_end():
    objective = pull()
    seen = [0.0]
    for _ in descend(objective, [torch.zeros(4)] * 12, lr=0.1, optimizer=torch.optim.SGD, ema=0.5):
        seen.append(objective.own.item())
    assert seen == pytest.approx(path(12), rel=1e-13)
    assert objective.own.item() == pytest.approx(averages(seen, 0.5)[-1], rel=1e-13)
    assert list(descend(pull(), [], ema=0.5)) == []


@pytest.mark.parametrize("ema", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), True, "0.999"])
def test_what_is_no_decay_is_refused(ema):
    message = r"ema: expected a decay between 0 and 1, got .*Try 0\.999"
    with pytest.raises(ValueError, match=message):
        sgd(pull(), steps=2, ema=ema)
    with pytest.raises(ValueError, match=message):
        next(descend(pull(), [torch.zeros(4)], ema=ema))


# --- checkpoints ----------------------------------------------------------------------------


def everything(**more: Any) -> dict[str, Any]:
    return {"data": binary(), "validation": binary(7), "ema": 0.9, **options} | more


@pytest.mark.parametrize("at", [1, 5, 6, 7])  # five steps are an epoch
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, at):
    """The first part ends with the averages; the second goes on from what was trained."""
    whole, resumed, file = vae(), vae(), tmp_path / "run"
    run = quiet(elbo(*whole), steps=2 * at, **everything())
    quiet(elbo(*vae()), steps=at, checkpoint=file, **everything())
    torch.randn(17)  # another process would stand elsewhere
    again = quiet(elbo(*resumed), steps=2 * at, checkpoint=file, resume=True, **everything())
    assert same(state(*resumed), state(*whole))
    assert again.history == run.history


def test_killed_in_mid_epoch_goes_on_bit_for_bit(tmp_path):
    whole, resumed, file = vae(), vae(), tmp_path / "run"
    run = quiet(elbo(*whole), epochs=3, **everything())

    class Adam(torch.optim.Adam):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            Adam.steps += 1
            if Adam.steps == 8:
                raise KeyboardInterrupt
            return super().step(closure)

    killed = functools.partial(Adam, fused=True)
    part = everything(optimizer=killed, checkpoint=file, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        quiet(elbo(*vae()), epochs=3, **part)
    again = quiet(elbo(*resumed), epochs=3, checkpoint=file, resume=True, **everything())
    assert same(state(*resumed), state(*whole))
    assert again.history == run.history


def test_a_finished_run_resumed_is_left_alone(tmp_path):
    first, again, file = vae(), vae(), tmp_path / "run"
    for pair in (first, again):
        quiet(elbo(*pair), steps=7, checkpoint=file, resume=True, **everything())
    assert same(state(*first), state(*again))


def test_resumed_after_early_stopping_stays_stopped(tmp_path):
    stopping = everything(patience=2, lr=0.1)
    whole = vae()
    run = quiet(elbo(*whole), epochs=40, **stopping)
    assert run.steps < 200  # it stopped
    for at in (3, 11, run.steps):
        resumed, file = vae(), tmp_path / f"run-{at}"
        quiet(elbo(*vae()), steps=at, checkpoint=file, **stopping)
        again = quiet(elbo(*resumed), steps=200, checkpoint=file, resume=True, **stopping)
        assert same(state(*resumed), state(*whole))
        assert again.history == run.history


@pytest.mark.parametrize(("written", "now"), [(0.9, 0.99), (0.9, None), (None, 0.9)])
def test_another_decay_is_refused(tmp_path, written, now):
    file, pair = tmp_path / "run", vae()
    quiet(elbo(*vae()), steps=3, checkpoint=file, **everything(ema=written))
    before, old = file.read_bytes(), state(*pair)
    with pytest.raises(ValueError, match=rf"run with ema={written}, now {now}\. .*same settings"):
        quiet(elbo(*pair), steps=6, checkpoint=file, resume=True, **everything(ema=now))
    assert file.read_bytes() == before
    assert same(state(*pair), old)
