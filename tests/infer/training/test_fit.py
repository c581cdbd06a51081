"""The training loop: what it takes, what it keeps, and what must not change the training."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, FactorAnalysis, Run, data_plate, descend, elbo, fit
from ppl_models.infer.training import progress as progress_module
from ppl_models.infer.training.batches import Batch
from ppl_models.infer.training.progress import Progress
from ppl_models.transformed import Transformed
from tests.support.oracles import Pull, binary, same, state

quiet = functools.partial(fit, progress=False)


def dropout_vae() -> tuple[VAE, AmortizedNormal]:
    """The same parameters at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4))
        decoder = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4)
        )
        return VAE(4, 2, decoder=decoder), AmortizedNormal(4, 2, encoder=encoder)


def trained(data: Any, **options: Any) -> tuple[dict[str, Tensor], Any]:
    pair = dropout_vae()
    options = {"epochs": 2, "batch_size": 5, "lr": 1e-2, "seed": 0} | options
    run = quiet(elbo(*pair), data, **options)
    return state(*pair), run


class Seen(nn.Module):
    """A model that notes the batches of its training."""

    def __init__(self, labels: bool = False) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.batches: list[list[float]] = []
        self.sizes: list[int | None] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> None:
        if torch.is_grad_enabled():
            self.batches.append(x.tolist())
            self.sizes.append(size)
            self.modes.append(self.training)
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(self.loc + x, 1.0), obs=y)


# --- lengths and batches --------------------------------------------------------------------


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


def as_tensor(x: Tensor) -> Any:
    return x


def as_tuple(x: Tensor) -> Any:
    return (x,)


class Rows(Dataset):
    def __init__(self, *tensors: Tensor) -> None:
        self.tensors_ = tensors

    def __len__(self) -> int:
        return len(self.tensors_[0])

    def __getitem__(self, i: int) -> Any:
        values = tuple(x[i] for x in self.tensors_)
        return values if len(values) > 1 else values[0]


@pytest.mark.parametrize("kind", [as_tensor, as_tuple, TensorDataset, Rows])
def test_every_row_once_an_epoch_in_another_order(kind):
    model, x = Seen(), torch.arange(11.0)
    quiet(elbo(model), kind(x), epochs=3, batch_size=4, seed=0)
    assert [len(batch) for batch in model.batches] == [4, 4, 3] * 3
    assert set(model.sizes) == {11}
    orders = [functools.reduce(operator.iadd, model.batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(order) == x.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("own_generator", [True, False])
def test_a_loader_keeps_its_own_way(shuffle, own_generator):
    model, x = Seen(), torch.arange(11.0)
    generator = torch.Generator() if own_generator else None
    loader = DataLoader(TensorDataset(x), batch_size=4, shuffle=shuffle, generator=generator)
    quiet(elbo(model), loader, epochs=3, seed=0)
    assert [len(batch) for batch in model.batches] == [4, 4, 3] * 3
    orders = [functools.reduce(operator.iadd, model.batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(order) == x.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == (3 if shuffle else 1)


def test_a_loader_that_drops_the_last_batch():
    model, x = Seen(), torch.arange(11.0)
    loader = DataLoader(TensorDataset(x), batch_size=4, drop_last=True)
    run = quiet(elbo(model), loader, epochs=3)
    assert run.steps == 6
    assert [len(batch) for batch in model.batches] == [4, 4] * 3


def test_the_default_is_the_whole_data_in_order():
    model, x = Seen(), torch.arange(11.0)
    quiet(elbo(model), x, epochs=2, seed=0)
    assert model.batches == [x.tolist()] * 2


def test_a_batch_size_above_the_data_is_one_batch():
    model, x = Seen(), torch.arange(11.0)
    assert quiet(elbo(model), x, epochs=2, batch_size=1000).steps == 2
    assert model.batches == [x.tolist()] * 2


@pytest.mark.parametrize("kind", [lambda *xy: xy, TensorDataset, Rows])
def test_pairs_stay_together(kind):
    class Together(Seen):
        def forward(self, x: Tensor, y: Tensor, size: int | None = None) -> None:
            assert torch.equal(y, 2 * x)
            super().forward(x, y, size)

    x = torch.arange(11.0)
    model = Together()
    quiet(elbo(model), kind(x, 2 * x), epochs=2, batch_size=4, seed=0)
    assert len(model.batches) == 6


def test_a_transform_draws_anew_at_every_step():
    model, x = Seen(), torch.full((11,), 0.5)
    quiet(elbo(model), Transformed(x, transform=torch.bernoulli), epochs=3, seed=0)
    assert len({tuple(batch) for batch in model.batches}) == 3
    assert {value for batch in model.batches for value in batch} == {0.0, 1.0}


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


# --- early stopping, clipping, schedules ----------------------------------------------------


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


# --- several objectives, and steps driven by hand -------------------------------------------


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


def test_the_progress_bar_is_off_without_a_terminal_and_on_request(capsys):
    quiet(elbo(Seen()), torch.zeros(4), steps=2)
    fit(elbo(Seen()), torch.zeros(4), steps=2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("options", [{}, {"steps": 41, "epochs": None}, {"validation": True}])
def test_losses_of_an_accelerator_are_read_now_and_then(options, monkeypatch, tmp_path):
    """Several epochs at a time where they are short, with the same history."""
    data = binary(20, 4)
    if "validation" in options:
        options = {"validation": data[:5]}
    settings = {"epochs": 10, "checkpoint": tmp_path / "run"} | options
    _, expected = trained(data, **settings)
    reads = []
    table = progress_module._table
    monkeypatch.setattr(Progress, "_costs_nothing", False)
    monkeypatch.setattr(progress_module, "READ_EVERY", 17)
    monkeypatch.setattr(progress_module, "_table", lambda s: reads.append(len(s)) or table(s))
    _, run = trained(data, **settings)
    assert run.history == expected.history
    assert max(reads) == (4 if "validation" in options else 14)
    assert sum(reads) == run.steps


def test_the_step_of_a_loss_read_late_is_named(monkeypatch):
    monkeypatch.setattr(Progress, "_costs_nothing", False)
    objective = elbo(*dropout_vae())
    loss = objective.loss
    calls = []

    def third(*batch, size=None):
        calls.append(1)
        return loss(*batch, size=size) * (math.nan if len(calls) == 8 else 1.0)

    monkeypatch.setattr(objective, "loss", third)
    monkeypatch.setattr(torch, "isfinite", lambda x: torch.ones_like(x, dtype=torch.bool))
    with pytest.raises(FloatingPointError, match="elbo: the loss is nan at step 7"):
        quiet(objective, binary(20, 4), epochs=10, batch_size=5)


def test_a_run_at_a_prompt_is_one_line():
    """Its history may have thousands of numbers."""
    run = Run({"loss": [3.0] * 2000 + [1.23456789], "validation": [2.5]}, 2001, 4.56)
    assert repr(run) == "Run(2001 steps in 4.6 s, loss 1.2346, validation 2.5)"
    assert repr(Run()) == "Run(0 steps in 0.0 s)"
