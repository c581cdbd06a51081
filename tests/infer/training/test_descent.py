"""Steps of descent: what they take, what moves, and numbers that turn bad meanwhile."""

import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, FactorAnalysis, check, data_plate, descend, elbo, fit
from ppl_models.infer.training.batches import Batch
from ppl_models.infer.training.ends.slopes import are_finite
from ppl_models.likelihoods import Normal
from tests.support.oracles import Pull, binary, same, state
from tests.support.refusals import Refused, spoiled, vae
from tests.support.runs import Seen, dropout_vae, quiet


def toy_pair() -> tuple[list[Pull], nn.Parameter, nn.Parameter]:
    a, b = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(8.0))
    return [Pull("first", a, lambda: b), Pull("second", b, lambda: a)], a, b


def test_objectives_take_turns():
    """a moves half way to b, then b half way to where a is now."""
    pair, a, b = toy_pair()
    half = functools.partial(torch.optim.SGD)
    run = quiet(pair, torch.zeros(4), steps=2, lr=0.5, optimizer=half)
    assert run.history == {"first": [32.0, 2.0], "second": [8.0, 0.5]}
    assert (a.item(), b.item()) == (5.0, 5.5)


def test_two_objectives_of_one_name_are_refused():
    """Their losses could not be told apart."""
    pair, *_ = toy_pair()
    pair[1].name = "first"
    with pytest.raises(ValueError, match=r"objectives: .*names.*first"):
        quiet(pair, torch.zeros(4), steps=2)


def test_descend_by_hand_is_what_fit_does():
    x = binary()
    pair, fitted = dropout_vae(), dropout_vae()
    for module in (*pair, *fitted):
        module.train()
    torch.manual_seed(0)
    batches = [x] * 4
    losses = [step["elbo"].item() for step in descend(elbo(*pair), batches, lr=1e-2)]
    run = quiet(elbo(*fitted), x, steps=4, lr=1e-2, seed=0)
    assert losses == run.history["loss"]
    assert same(state(*pair), state(*fitted))


def test_descend_is_lazy_and_takes_batches_of_a_larger_whole():
    model = Seen()
    x = torch.arange(6.0)
    rows = [torch.tensor([4, 1]), torch.tensor([0, 5])]
    stream = descend(elbo(model), (Batch((x[r],), r, 6) for r in rows), lr=0.1)
    before = model.loc.item()
    assert model.loc.item() == before
    assert model.batches == []
    first = next(stream)
    assert list(first) == ["elbo"]
    assert first["elbo"].shape == ()
    assert model.loc.item() != before
    assert not first["elbo"].requires_grad
    assert len(list(stream)) == 1
    assert model.sizes == [6, 6]


def test_descend_takes_pairs_and_games():
    model = Seen()
    x = torch.arange(6.0)
    assert len(list(descend(elbo(model), [(x, 2 * x)] * 2))) == 2
    pair, *_ = toy_pair()
    (losses,) = list(descend(pair, [x], lr=0.5, optimizer=torch.optim.SGD))
    assert {name: loss.item() for name, loss in losses.items()} == {"first": 32.0, "second": 8.0}


def test_frozen_parameters_stay():
    pair = dropout_vae()
    pair[0].requires_grad_(False)
    before = state(pair[0])
    before.pop("0.decoder.1.running_mean"), before.pop("0.decoder.1.running_var")
    before.pop("0.decoder.1.num_batches_tracked")
    quiet(elbo(*pair), binary(), steps=3, seed=0)
    after = state(pair[0])
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not same(state(pair[1]), state(dropout_vae()[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": lambda p, lr: p}, r"optimizer: expected a callable that returns an optim"),
        (
            {"optimizer": lambda p, lr: pyro.optim.Adam({"lr": lr})},
            r"optimizer: expected .* optimiser of torch, got PyroOptim.*Try torch.optim.Adam",
        ),
        (
            {"schedule": torch.optim.lr_scheduler.ReduceLROnPlateau},
            r"schedule: expected .* got ReduceLROnPlateau.*CosineAnnealingLR",
        ),
        ({"schedule": lambda optimizer: None}, r"schedule: expected .* got NoneType"),
    ],
)
def test_optimisers_and_schedules(options, message):
    pair = vae()
    with Refused(TypeError, message, *pair):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2, **options)


@pytest.mark.parametrize("objective", [[], ()])
def test_no_objective(objective):
    with pytest.raises(ValueError, match=r"objective: expected one or more, got none"):
        quiet(objective, torch.ones(9, 4), steps=1)


def test_a_model_where_an_objective_belongs():
    pair = vae()
    message = r"objective: expected an objective, got VAE. Try elbo\(model, guide\)"
    with Refused(TypeError, message, *pair):
        quiet(pair[0], torch.ones(9, 4), steps=1)


def test_nothing_to_train():
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"elbo: there is nothing to train.*pyro.param"):
        quiet(elbo(model), torch.ones(9), steps=1)
    pair = vae()
    for module in pair:
        module.requires_grad_(False)
    with pytest.raises(ValueError, match=r"elbo: there is nothing to train"):
        quiet(elbo(*pair), torch.ones(9, 4), steps=1)


class Turning(nn.Module):
    """Its second site is not finite from the forward pass number `at` on."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.at, self.value = at, value

    def forward(self, x: Tensor, size: int | None = None) -> None:
        self.calls += self.training
        factor = self.value if self.calls >= self.at else 1.0
        with data_plate(x, size):
            pyro.sample("fine", dist.Normal(self.loc, 1.0), obs=x)
            pyro.sample("broken", dist.Normal(self.loc * factor + factor, 1.0), obs=x)
            pyro.sample("after", dist.Normal(self.loc * factor, 1.0), obs=x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_turns_bad_names_the_step_and_the_first_site(tmp_path, value):
    model, path = Turning(6, value), tmp_path / "run"
    with pytest.raises(FloatingPointError) as caught:
        quiet(elbo(model), torch.ones(9), epochs=5, batch_size=4, checkpoint=path,
              checkpoint_every=0, seed=0)  # fmt: skip
    message = str(caught.value)
    assert "elbo: the loss is" in message
    assert "epoch 2, elbo" in message
    assert "at step 6" in message
    assert f"last good checkpoint is kept in {path}" in message
    assert "'broken' of the model: loc of its Normal has" in message
    assert "Try a smaller lr, clip=1.0" in message
    # What is kept is the state after the last good step, and it goes on.
    model = Turning(1000, value)
    run = quiet(elbo(model), torch.ones(9), epochs=5, batch_size=4, checkpoint=path, resume=True)
    assert run.steps == 15
    assert torch.isfinite(model.loc)
    assert model.calls == 15


def test_a_parameter_that_turns_bad_is_named_and_never_written(tmp_path):
    class Rooted(nn.Module):
        """Finite at zero, with an infinite slope."""

        def __init__(self) -> None:
            super().__init__()
            self.width = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                slope = (self.width - 1).abs().sqrt()
                pyro.sample("x", dist.Normal(slope, 1.0), obs=x)

    model, path = Rooted(), tmp_path / "run"
    gradient = r"the gradient of the parameter model.width is not finite at step 1"
    with pytest.raises(FloatingPointError, match=gradient):
        quiet(elbo(model), torch.ones(9), steps=1, checkpoint=path)
    with pytest.raises(FloatingPointError, match=gradient):
        quiet(elbo(Rooted()), torch.ones(9), steps=5, checkpoint=path, checkpoint_every=0)
    assert not path.exists()


def test_a_parameter_that_a_step_makes_infinite_is_named_and_never_written(tmp_path):
    model, path = Seen(), tmp_path / "run"
    options = {"optimizer": torch.optim.SGD, "lr": 1e38, "checkpoint": path}
    x = torch.full((9,), 1e3)
    with pytest.raises(FloatingPointError, match=r"parameter model.loc is not finite after step"):
        quiet(elbo(model), x, steps=1, **options)
    with pytest.raises(FloatingPointError, match=r"is not finite after step 1\."):
        quiet(elbo(Seen()), x, steps=5, checkpoint_every=0, **options)
    assert not path.exists()
    with pytest.raises(FloatingPointError, match=r"at step 2; the parameter model.loc is not"):
        quiet(elbo(Seen()), x, steps=5, **options)


def test_a_model_that_is_bad_from_the_first():
    model = FactorAnalysis(4, 2)
    with torch.no_grad():
        model.loc[1] = math.nan
    old = model.loadings.detach().clone()
    with pytest.raises((FloatingPointError, ValueError), match=r"loc"):
        quiet(elbo(model, AmortizedNormal(4, 2)), torch.ones(9, 4), steps=2)
    assert torch.equal(model.loadings, old)


def test_a_batch_of_a_dataset_that_is_bad_later():
    pair = vae(Normal())
    x = spoiled(8)
    loader = DataLoader(TensorDataset(x), batch_size=4)
    with pytest.raises(FloatingPointError, match=r"at step 3; .*is 'x' of the model|'z' of the gu"):
        quiet(elbo(*pair), loader, epochs=1)
    assert all(torch.isfinite(p).all() for module in pair for p in module.parameters())


def test_parameters_that_come_up_late():
    class Late(nn.Module):
        def forward(self, x: Tensor, size: int | None = None) -> None:
            loc = pyro.param("loc", torch.zeros(()))
            if torch.is_grad_enabled():
                loc = loc + pyro.param("late", torch.zeros(()))
            with data_plate(x, size):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(RuntimeError, match=r"model.late first came up after the start.*declares"):
        quiet(elbo(Late()), torch.ones(9), steps=3)


def test_nets_that_are_not_trained_are_named():
    net = nn.Linear(2, 4)

    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    with pytest.warns(UserWarning, match=r"runs model.net.*not trained.*pyro\.module\('net'"):
        fit(elbo(model, AmortizedNormal(4, 2)), binary(), epochs=1)
    net.requires_grad_(False)
    fit(elbo(model, AmortizedNormal(4, 2)), binary(), epochs=1)


def test_a_schedule_is_not_given_steps_for_something_else():
    schedulers = torch.optim.lr_scheduler
    pair = VAE(4, 2), AmortizedNormal(4, 2)
    with pytest.raises(TypeError, match=r"ExponentialLR needs gamma.*functools\.partial"):
        fit(elbo(*pair), binary(), epochs=3, schedule=schedulers.ExponentialLR)
    assert math.isfinite(
        fit(elbo(*pair), binary(), epochs=3, schedule=schedulers.CosineAnnealingLR).history["loss"][
            -1
        ]
    )


def test_the_gradient_is_clipped():
    x = torch.full((8,), 100.0)
    moves = {}
    for clip in (None, 0.5, 1e6):
        model = Seen()
        quiet(elbo(model), x, steps=1, lr=1.0, optimizer=torch.optim.SGD, clip=clip)
        moves[clip] = model.loc.item()
    assert moves[None] == moves[1e6] == pytest.approx(100.0)
    assert moves[0.5] == pytest.approx(0.5, rel=1e-4)


SCHEDULES: dict[str, tuple[Any, Callable[[int, int], float]]] = {
    "cosine": (
        lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
        lambda t, n: (1 + math.cos(math.pi * t / n)) / 2,
    ),
    "exponential": (
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5),
        lambda t, n: 0.5**t,
    ),
    "steps": (functools.partial(lr_scheduler.StepLR, step_size=2), lambda t, n: 0.1 ** (t // 2)),
    "lambda": (
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)),
        lambda t, n: 1 / (1 + t),
    ),
    "linear": (
        lambda optimizer, steps: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps),
        lambda t, n: 1 - t / n,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_move_at_every_step(name):
    schedule, expected = SCHEDULES[name]
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    quiet(elbo(Seen()), torch.zeros(8), epochs=3, batch_size=4, lr=0.1, optimizer=Watched,
          schedule=schedule)  # fmt: skip
    assert rates == pytest.approx([0.1 * expected(t, 6) for t in range(6)], abs=1e-9)


class Root(nn.Module):
    """Finite everywhere, with an infinite slope where a row is at its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            far = (x - self.loc).abs().sqrt()  # the root
            pyro.sample("x", dist.Normal(far, 1.0), obs=x)


class Falling(nn.Module):
    """Its parameter falls by the learning rate, to where its slope is undefined."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            none = 0.0 * (self.width - 1).abs().sqrt()  # the root
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.factor("fall", none - self.width.expand(len(x)))


def message_of(model: nn.Module, x: Tensor, **options: Any) -> str:
    """What is said of a gradient, with the line of the root left out once it is seen to be so."""
    with pytest.raises(FloatingPointError) as caught:
        quiet(elbo(model), x, optimizer=torch.optim.SGD, **options)
    lines, start = inspect.getsourcelines(type(model))
    (at,) = [n for n, line in enumerate(lines) if "# the root" in line]
    assert f"test_descent.py:{start + at}, in row" in str(caught.value)
    return str(caught.value)


def test_a_gradient_that_is_not_finite_names_its_line_and_rows():
    """Before the step, of a loss that is finite: here at two rows."""
    model, x = Root(), torch.arange(1.0, 9.0)
    x[[4, 6]] = 0.0
    message = message_of(model, x, steps=40)
    assert "elbo: the gradient of the parameter model.loc is not finite at step 1" in message
    assert "in rows 4, 6 of the data" in message
    assert model.loc.item() == 0.0


def test_rows_of_a_minibatch_are_those_of_the_data():
    x = torch.arange(1.0, 21.0)
    x[[3, 17]] = 0.0
    message = message_of(Root(), x, epochs=3, batch_size=20, lr=1e-50)
    assert "in rows 3, 17 of the data" in message
    message = message_of(Root(), x, epochs=3, batch_size=5, seed=1, lr=1e-50)
    assert re.search(r"in row(s 3, 17| 3| 17|s 17, 3) of the data", message)


@pytest.mark.parametrize("steps", [5, 40])
def test_a_gradient_that_turns_bad_in_a_block_is_found_at_its_step(steps, graphs_as_traced):
    found = []
    for compile in (False, True):
        model = Falling()
        found.append(message_of(model, torch.ones(9), steps=steps, lr=0.25, compile=compile))
        assert "the parameter model.width is not finite at step 5, where" in found[-1]
        assert "rows 0, 1, 2, 3, 4, ... of the data" in found[-1]
        assert model.width.item() == 1.0
    assert found[0] == found[1]


def test_a_large_gradient_is_no_infinite_one():
    """The squares of which overflow."""
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.full((3,), 1e30)
    assert are_finite([parameter])
    parameter.grad[1] = math.inf
    assert not are_finite([parameter])


class Undefined(Turning):
    """At rows that are zero, from a step on."""

    def forward(self, x: Tensor, size: int | None = None) -> None:
        self.calls += self.training
        ends = torch.where(x == 0, self.value, 0.0) if self.calls >= self.at else 0.0
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(self.loc + ends, 1.0), obs=x)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_loss_that_turns_bad_names_its_rows(batch_size):
    x = torch.ones(12)
    x[[2, 9]] = 0.0
    with pytest.raises(FloatingPointError, match=r"not finite, in row(s 2, 9| 2| 9) of the data"):
        quiet(elbo(Undefined(4, math.nan)), x, steps=9, batch_size=batch_size, seed=0)


def test_parameters_without_a_gradient_are_warned_of():
    def model(x: Tensor, size: int | None = None) -> None:
        loc, width = pyro.param("loc", torch.zeros(())), pyro.param("width", torch.ones(()))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(loc, width.detach()), obs=x)

    with pytest.warns(UserWarning, match=r"elbo: the loss does not depend on model.width, which"):
        quiet(elbo(model), torch.ones(3), steps=2)


def test_a_method_of_a_module_may_leave_others_to_other_methods():
    class Two(Root):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Parameter(torch.zeros(()))

        def part(self, x: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                pyro.sample("x", dist.Normal(self.other, 1.0), obs=x)

    x = torch.arange(1.0, 4.0)
    assert quiet(elbo(Two().part), x, steps=2).steps == 2
    with pytest.warns(UserWarning, match=r"does not depend on model.other, which"):
        quiet(elbo(Two()), x, steps=2)
    assert check(Two().part, None, x)
    assert "parameter model.other: the loss" in str(check(Two(), None, x))
