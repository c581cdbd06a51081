"""The training loop: what it takes, what it keeps, and what must not change the training."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from guides import ExactPosterior
from ppl_models import FactorAnalysis, Run, data_plate, elbo, fit
from ppl_models.transformed import Transformed
from tests.support.oracles import binary, same, state
from tests.support.refusals import Refused, vae
from tests.support.runs import Rows, Seen, dropout_vae, quiet, trained

# --- lengths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "steps", "entries"),
    [({"epochs": 3}, 9, 3), ({"steps": 9}, 9, 3), ({"steps": 7}, 7, 3), ({"steps": 1}, 1, 1)],
)
def test_epochs_and_steps(length, steps, entries):
    run = quiet(elbo(Seen()), torch.randn(11), batch_size=4, **length)
    assert run.steps == steps
    assert list(run.history) == ["loss"]
    assert len(run.history["loss"]) == entries
    assert run.seconds > 0


def test_steps_are_epochs_cut_off():
    by_epochs, _ = trained(binary(), epochs=2)
    by_steps, _ = trained(binary(), epochs=None, steps=10)
    assert same(by_epochs, by_steps)


def test_the_history_is_the_mean_over_steps_in_nats_per_row():
    """With the exact posterior and no movement the losses are known."""
    model = FactorAnalysis(3, 2).double()
    x = model(size=11).detach()
    sgd = functools.partial(torch.optim.SGD, lr=0.0)

    def hold(parameters, lr):
        return sgd(parameters)

    guide = ExactPosterior(model)
    run = quiet(elbo(model, guide), x, epochs=3, batch_size=11, optimizer=hold, validation=x[:7])
    evidence = model.evidence().log_prob(x).detach()
    for loss in run.history["loss"]:
        assert loss == pytest.approx(-evidence.mean().item(), abs=1e-10)
    for loss in run.history["validation"]:
        assert loss == pytest.approx(-evidence[:7].mean().item(), abs=1e-10)


def test_uneven_validation_batches_are_weighed_by_their_rows():
    model = FactorAnalysis(3, 2).double()
    x = model(size=11).detach()

    def hold(parameters, lr):
        return torch.optim.SGD(parameters, lr=0.0)

    objective = elbo(model, ExactPosterior(model))
    run = quiet(objective, x, epochs=1, batch_size=4, optimizer=hold, validation=x)
    expected = -model.evidence().log_prob(x).mean().item()
    assert run.history["validation"] == [pytest.approx(expected, abs=1e-10)]


# --- repeatable -----------------------------------------------------------------------------


SOURCES: dict[str, Callable[[], Any]] = {
    "tensor": binary,
    "dataset": lambda: Rows(binary()),
    "loader": lambda: DataLoader(Rows(binary()), batch_size=5, shuffle=True),
    "transformed": lambda: Transformed(binary(), transform=lambda x: torch.bernoulli(x * 0.9)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_seed_repeats_a_run_bit_for_bit(source):
    options = {"batch_size": None if source == "loader" else 5}
    first, run = trained(SOURCES[source](), **options)
    torch.randn(13)  # whatever was drawn in between
    second, again = trained(SOURCES[source](), **options)
    other, _ = trained(SOURCES[source](), **options, seed=1)
    assert same(first, second)
    assert run.history == again.history
    assert not same(first, other)


def test_a_tensor_and_a_dataset_of_it_train_alike():
    assert same(trained(binary())[0], trained(Rows(binary()))[0])


def test_a_seed_repeats_with_an_objective_that_has_run_before():
    """What the first checks draw must not count."""
    pair = dropout_vae()
    objective = elbo(*pair)
    quiet(objective, binary(), epochs=1, batch_size=5, seed=3)
    for module, fresh in zip(pair, dropout_vae(), strict=True):
        module.load_state_dict(fresh.state_dict())
    quiet(objective, binary(), epochs=2, batch_size=5, lr=1e-2, seed=0)
    assert same(state(*pair), trained(binary())[0])


def test_a_seed_repeats_with_an_autoguide_that_was_called_before():
    def fitted(warm: bool) -> dict[str, Tensor]:
        model = FactorAnalysis(4, 2)
        nn.init.ones_(model.loadings)
        guide = pyro.infer.autoguide.AutoNormal(model)  # begins at the same numbers always
        if warm:
            guide(binary())
        quiet(elbo(model, guide), binary(), epochs=2, seed=0)
        return state(model, guide)

    assert same(fitted(warm=True), fitted(warm=False))


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(8)
    first, _ = trained(binary(), seed=None)
    torch.manual_seed(8)
    second, _ = trained(binary(), seed=None)
    third, _ = trained(binary(), seed=None)
    assert same(first, second)
    assert not same(first, third)


@pytest.mark.parametrize("source", SOURCES)
def test_validation_does_not_change_the_training(source):
    options = {"batch_size": None if source == "loader" else 5}
    without, run = trained(SOURCES[source](), **options)
    validation = SOURCES[source]()
    with_, watched = trained(SOURCES[source](), **options, validation=validation)
    assert same(without, with_)
    assert run.history["loss"] == watched.history["loss"]
    assert len(watched.history["validation"]) == 2


def test_a_checkpoint_does_not_change_the_training(tmp_path):
    without, run = trained(binary())
    path = tmp_path / "run.safetensors"
    with_, other = trained(binary(), checkpoint=path, checkpoint_every=0)
    assert same(without, with_)
    assert run.history == other.history
    assert path.exists()


def test_validation_may_be_a_loader_of_its_own():
    loader = DataLoader(TensorDataset(binary(9)), batch_size=4)
    _, run = trained(binary(), validation=loader)
    _, expected = trained(binary(), validation=binary(9), batch_size=5)
    assert len(run.history["validation"]) == 2
    assert run.history["validation"] == pytest.approx(expected.history["validation"], rel=0.2)


def test_validation_draws_the_same_each_time():
    """Without movement it is one number, whatever dropout and guides would draw."""

    def hold(parameters, lr):
        return torch.optim.SGD(parameters, lr=0.0)

    pair = dropout_vae()
    pair[0].decoder[1].momentum = 0.0
    run = quiet(elbo(*pair), binary(), epochs=3, seed=0, optimizer=hold, validation=binary(7))
    assert len(set(run.history["validation"])) == 1
    assert len(set(run.history["loss"])) == 3


# --- early stopping ---------------------------------------------------------------------------


def test_early_stopping_returns_the_best_parameters():
    """The training rows pull the mean past the validation rows, which lie on the way."""
    model = Seen()
    x, validation = torch.full((8,), 4.0), torch.full((4,), 1.0)
    locations = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            locations.append(model.loc.item())

    run = quiet(
        elbo(model), x, epochs=100, lr=0.05, optimizer=Watched, validation=validation, patience=3
    )
    losses = run.history["validation"]
    best = losses.index(min(losses))
    assert run.steps == len(losses) == best + 1 + 3 < 100
    assert model.loc.item() == locations[best] != locations[-1]
    assert abs(model.loc.item() - 1) < 0.1


def test_without_patience_the_last_parameters_stay():
    model = Seen()
    x, validation = torch.full((8,), 4.0), torch.full((4,), 1.0)
    quiet(elbo(model), x, epochs=300, lr=0.05, optimizer=torch.optim.SGD, validation=validation)
    assert abs(model.loc.item() - 4) < 0.1


def test_an_improvement_resets_the_patience():
    model = Seen()
    rates = iter([0.1, -0.01, -0.01, 0.1, -0.01, -0.01, 0.1] + [-0.01] * 9)

    class Wobbling(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.param_groups[0]["lr"] = next(rates)
            return super().step(closure)

    x = torch.full((8,), 4.0)
    run = quiet(elbo(model), x, epochs=16, optimizer=Wobbling, validation=x, patience=3)
    assert run.steps == 10


# --- devices, precision, modes --------------------------------------------------------------


def test_autocast_runs_and_stays_close():
    exact, run = trained(binary(), epochs=10)
    rough, other = trained(binary(), epochs=10, amp=True)
    assert not same(exact, rough)
    assert all(value.dtype == exact[name].dtype for name, value in rough.items())
    assert other.history["loss"] == pytest.approx(run.history["loss"], abs=0.05)


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu")])
def test_devices(device):
    pair = dropout_vae()
    run = quiet(elbo(*pair), binary(), epochs=1, device=device, seed=0)
    assert run.steps == 1
    place = {p.device.type for module in pair for p in module.parameters()}
    assert len(place) == 1
    assert device == "auto" or place == {"cpu"}


def test_training_mode_within_evaluation_mode_afterwards():
    model = Seen().eval()
    quiet(elbo(model), torch.zeros(8), epochs=3, batch_size=4, validation=torch.zeros(3))
    assert model.modes == [True] * 6
    assert not model.training


def test_modules_of_functions_change_their_mode_too():
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
    modes = []

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        if torch.is_grad_enabled():
            modes.append(net[1].training)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None]).squeeze(-1), 1.0), obs=x)

    quiet(elbo(model), torch.ones(5), steps=2, validation=torch.ones(5))
    assert modes == [True] * 2
    assert not net.training
    assert not net[1].training


def test_modules_of_an_object_with_methods_change_their_mode_too():
    class Plain:
        def __init__(self) -> None:
            self.net = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))

        def model(self, x: Tensor) -> None:
            pyro.module("net", self.net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.net(x[:, None]).squeeze(-1), 1.0), obs=x)

    plain = Plain()
    quiet(elbo(plain.model), torch.ones(5), steps=1)
    assert not plain.net.training


def test_a_failed_fit_leaves_the_modes_as_they_were():
    class Failing(Seen):
        def forward(self, x: Tensor, size: int | None = None) -> None:
            super().forward(x, size=size)
            if len(self.batches) > 1:
                raise KeyError("on purpose")

    model = Failing()
    model.eval()
    with pytest.raises(KeyError, match="on purpose"):
        quiet(elbo(model), torch.zeros(4), steps=5)
    assert not model.training


def test_batch_normalisation_sees_the_training_rows_only():
    pair = dropout_vae()
    quiet(elbo(*pair), binary(), epochs=2, batch_size=5, validation=binary(7), seed=0)
    assert pair[0].decoder[1].num_batches_tracked == 10


def test_the_progress_bar_is_off_without_a_terminal_and_on_request(capsys):
    quiet(elbo(Seen()), torch.zeros(4), steps=2)
    fit(elbo(Seen()), torch.zeros(4), steps=2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_run_at_a_prompt_is_one_line():
    """Its history may have thousands of numbers."""
    run = Run({"loss": [3.0] * 2000 + [1.23456789], "validation": [2.5]}, 2001, 4.56)
    assert repr(run) == "Run(2001 steps in 4.6 s, loss 1.2346, validation 2.5)"
    assert repr(Run()) == "Run(0 steps in 0.0 s)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"fit: expected either epochs or steps, got epochs=None, steps=None"),
        ({"epochs": 1, "steps": 1}, r"fit: expected either epochs or steps"),
        ({"epochs": 0}, r"epochs: expected a positive whole number, got 0"),
        ({"steps": 2.5}, r"steps: expected a positive whole number, got 2.5"),
        ({"steps": 2, "lr": 0.0}, r"lr: expected a positive number, got 0.0. Try 1e-3"),
        ({"steps": 2, "lr": math.nan}, r"lr: expected a positive number, got nan"),
        ({"steps": 2, "clip": 0.0}, r"clip: expected a positive norm, got 0.0"),
        ({"steps": 2, "patience": 3}, r"patience: expected validation data"),
        ({"steps": 2, "resume": True}, r"resume: expected checkpoint="),
        ({"steps": 2, "device": "gpu"}, r"device: expected 'auto', 'cpu', .* got 'gpu'"),
    ],
)
def test_arguments_of_fit(options, message):
    pair = vae()
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), torch.ones(9, 4), **options)


def test_validation_of_a_game():
    pair = elbo(*vae()), elbo(*vae())
    pair[1].name = "other"
    with pytest.raises(ValueError, match=r"validation: expected one objective, got 2"):
        quiet(pair, torch.ones(9, 4), steps=1, validation=torch.ones(9, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_loss_that_turns_bad(value):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, size: int | None = None) -> None:
            bad = not torch.is_grad_enabled() and self.loc > 0.25
            with data_plate(x, size):
                loc = pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x).mean()
                pyro.sample("y", dist.Normal(loc * (value if bad else 1.0), 1.0), obs=x)

    message = r"elbo: the loss is \S+ on the validation data after step 3; .* is 'y' of the model"
    with pytest.raises(FloatingPointError, match=message):
        quiet(elbo(Model()), torch.ones(9), epochs=6, lr=0.1, validation=torch.ones(9))


def test_a_program_and_its_guide_without_an_objective():
    model, guide = vae()
    with pytest.raises(
        TypeError, match=r"got 3 arguments. Try fit\(elbo\(model, guide\), x, epochs"
    ):
        fit(model, guide, torch.ones(9, 4), epochs=1)
    with pytest.raises(TypeError, match=r"an objective, got VAE. Try elbo\(model, guide\)"):
        fit(model, torch.ones(9, 4), epochs=1)
    with pytest.raises(TypeError, match=r"got 3 arguments.*data=\(x, y\) for rows with labels"):
        fit(elbo(model, guide), torch.ones(9, 4), torch.ones(9), epochs=1)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (pyro.optim.Adam({"lr": 0.02}), r"got Pyro's Adam.*optimizer=torch.optim.Adam, lr=0.02"),
        (pyro.optim.Adam, r"got Pyro's Adam, which is for SVI. Try optimizer=torch.optim.Adam"),
        (pyro.optim.ClippedAdam({"lr": 0.01}), r"got Pyro's ClippedAdam.*lr=0.01.*clip="),
        (pyro.optim.Adam(lambda name: {"lr": 0.1}), r"got Pyro's Adam.*lr=0.001"),
        (
            pyro.optim.ExponentialLR(
                {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.9}
            ),
            r"got Pyro's ExponentialLR.*rates that fall by schedule=",
        ),
        (functools.partial(pyro.optim.SGD, {"lr": 0.1}), r"got Pyro's SGD"),
        (
            torch.optim.Adam([torch.zeros(1)]),
            r"got Adam\(\.\.\.\), which has its parameters already",
        ),
        ("adam", r"got 'adam'. Try torch.optim.Adam"),
    ],
)
def test_optimisers_that_are_none_of_torchs(optimizer, message):
    objective = elbo(*vae())
    with pytest.raises(TypeError, match=message):
        fit(objective, torch.ones(9, 4), epochs=1, optimizer=optimizer)


def test_an_optimiser_of_torchs_kind_that_pyro_has():
    kind = pyro.optim.clipped_adam.ClippedAdam
    objective = elbo(*vae())
    assert fit(objective, torch.ones(9, 4), epochs=2, optimizer=kind, progress=False).steps == 2
