"""Bad input: an error before the first step that says where, what came, and what to try."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, Diffusion, FactorAnalysis, data_plate, elbo, fit, log_evidence
from ppl_models.likelihoods import Bernoulli, Categorical, Normal
from ppl_models.nn import ResNet, UNet

quiet = functools.partial(fit, progress=False)


def parameters(*modules: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for m in modules for p in m.parameters()]


class Refused:
    """The block raises before the first step: the modules are untouched, in mode too."""

    def __init__(self, kind: type[Exception], message: str, *modules: nn.Module) -> None:
        self.raises = pytest.raises(kind, match=message)
        self.modules = modules

    def __enter__(self) -> None:
        self.before, self.modes = parameters(*self.modules), self._modes()
        self.raises.__enter__()

    def __exit__(self, *error: Any) -> bool:
        caught = self.raises.__exit__(*error)
        after = parameters(*self.modules)
        assert all(map(torch.equal, self.before, after))
        assert self.modes == self._modes()
        return caught

    def _modes(self) -> list[bool]:
        return [m.training for root in self.modules for m in root.modules()]


def vae(likelihood: Any = None) -> tuple[VAE, AmortizedNormal]:
    return VAE(4, 2, likelihood=likelihood or Bernoulli()), AmortizedNormal(4, 2)


def spoiled(*rows: int, value: float = math.nan, count: int = 9) -> Tensor:
    x = torch.ones(count, 4)
    for row in rows:
        x[row, 1] = value
    return x


# --- the numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite(value):
    pair = vae(Normal())
    with Refused(
        ValueError, r"data\[0\]: 2 of 9 rows hold NaN or infinity \(rows 3, 7\).*isfinite", *pair
    ):
        quiet(elbo(*pair), spoiled(3, 7, value=value), steps=2, batch_size=2)


def test_rows_that_are_not_finite_in_labels_in_validation_and_many():
    pair = vae(Normal())
    with Refused(ValueError, r"data\[1\]: 1 of 9 rows .*\(row 8\)", *pair):
        quiet(elbo(*pair), (torch.ones(9, 4), spoiled(8)[:, 1]), steps=2)
    with Refused(ValueError, r"6 of 9 rows .*\(rows 0, 1, 2, 3, 4, \.\.\.\)", *pair):
        quiet(elbo(*pair), spoiled(*range(6)), steps=2)
    with Refused(ValueError, r"2 of 9 rows hold NaN", *pair):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2, validation=spoiled(1, 2))


class Images(Dataset):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i]


@pytest.mark.parametrize("kind", [Images, lambda x: DataLoader(TensorDataset(x), batch_size=9)])
def test_a_dataset_whose_first_batch_is_not_finite(kind):
    pair = vae(Normal())
    with Refused(ValueError, r"site 'x': 1 of 9 rows lie outside.*such as nan", *pair):
        quiet(elbo(*pair), kind(spoiled(3)), steps=2)


def test_grey_levels_for_a_bernoulli_are_found_in_any_row():
    pair, x = vae(), torch.ones(9, 4)
    x[7] = 0.5  # not in the first batch
    with Refused(
        ValueError,
        r"site 'x': 1 of 9 rows lie outside the support of its Bernoulli \(Boolean\(\)\), such "
        r"as 0.5.*binarize\(x\).*Normal\(\) or Categorical\(levels\)",
        *pair,
    ):
        quiet(elbo(*pair), x, steps=2, batch_size=2, seed=1)
    with Refused(ValueError, "1 of 9 rows lie outside", *pair):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2, batch_size=2, validation=x)


def test_numbers_between_the_levels():
    pair = vae(Categorical(3))
    with Refused(ValueError, r"support of its Levels \(3 grey levels from 0 to 1\).* 0\.3", *pair):
        quiet(elbo(*pair), torch.full((9, 4), 0.3), steps=2)


@pytest.mark.parametrize("events", [0, 1])
@pytest.mark.parametrize(
    ("family", "value", "message"),
    [
        (lambda s: dist.LogNormal(0.0, s), -1.0, r"LogNormal \(GreaterThan.*\), such as -1"),
        (lambda s: dist.Gamma(2.0, s), -1.0, r"Gamma \(.*\), such as -1"),
        (lambda s: dist.Poisson(s), 0.5, r"Poisson \(.*\), such as 0.5"),
        (lambda s: dist.Beta(s, s), 2.0, r"Beta \(.*\), such as 2"),
    ],
)
def test_values_outside_the_support(family, value, message, events):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                fn = family(self.log_scale.exp())
                pyro.sample("x", fn.expand([3]).to_event(1) if events else fn, obs=x)

    x = torch.ones(9, 3) if events else torch.ones(9)
    x[4] = value
    model = Model()
    with Refused(ValueError, rf"site 'x': 1 of 9 rows lie outside .* its {message}", model):
        quiet(elbo(model), x, steps=2, batch_size=2)


def test_a_support_that_depends_on_the_row():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_width = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, low: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                pyro.sample("x", dist.Uniform(low, low + self.log_width.exp()), obs=x)

    model, low = Model(), torch.arange(9.0)
    quiet(elbo(model), (low + 1, low), steps=2, batch_size=4)
    with Refused(ValueError, r"site 'x': 4 of 4 rows lie outside .* Uniform", model):
        quiet(elbo(model), (low - 1, low), steps=2, batch_size=4)


def test_a_distribution_that_does_not_tell_its_support():
    class Own(dist.TorchDistribution):
        arg_constraints = {}

        def __init__(self, loc: Tensor) -> None:
            self.loc = loc
            super().__init__(loc.shape, validate_args=False)

        def log_prob(self, value: Tensor) -> Tensor:
            return -(value - self.loc).square()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                pyro.sample("x", Own(self.loc.expand(len(x))), obs=x)

    assert quiet(elbo(Model()), torch.ones(9), steps=2).steps == 2


# --- shapes, types, lengths -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 5), (9, 3), (9,), (9, 2, 2)])
def test_the_wrong_number_of_features(shape):
    model, pair = FactorAnalysis(4, 2), vae()
    message = rf"expected rows of 4 features.*got \({', '.join(map(str, shape))}"
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), torch.ones(shape), steps=2)
    with Refused(ValueError, message, model):
        quiet(elbo(model, ExactPosterior(model)), torch.ones(shape), steps=2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images(dtype):
    pair = vae()
    with Refused(
        TypeError, rf"expected rows of floating-point numbers, got {dtype}.*x.float\(\)", *pair
    ):
        quiet(elbo(*pair), torch.ones(9, 4).to(dtype), steps=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 4), r"data\[0\]: expected at least one row, got none.*\(0, 4\)"),
        (torch.tensor(1.0), r"data\[0\]: expected at least one row"),
        (Images(torch.zeros(0, 4)), r"data: expected at least one row, got an empty Dataset"),
        (
            DataLoader(TensorDataset(torch.ones(3, 4)), batch_size=4, drop_last=True),
            r"data: expected a batch or more, got none.*3 rows, batch_size=4.*drop_last=False",
        ),
    ],
)
def test_empty_data(data, message):
    pair = vae()
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), data, steps=2)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield torch.ones(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((9, 4)), r"data: expected a tensor.*got ndarray. Try torch.as_tensor"),
        ([[1.0] * 4] * 9, r"data: expected a tensor.*got list"),
        ({"x": torch.ones(9, 4)}, r"data: expected a tensor.*got dict"),
        ((), r"data: expected a tensor.*got tuple"),
        (None, r"data: expected a tensor.*got NoneType"),
        (Stream(), r"data: Stream has no length.*Dataset with __len__"),
        (DataLoader(Stream(), batch_size=2), r"data: Stream has no length"),
        (Images([{"a": 1.0}] * 9), r"data: expected batches of tensors"),
    ],
)
def test_data_that_are_none(data, message):
    pair = vae()
    with Refused(TypeError, message, *pair):
        quiet(elbo(*pair), data, steps=2)


def test_rows_of_different_lengths():
    pair = vae()
    message = r"data: expected tensors with the same number of rows, got \[9, 8\].*\(x, y\)"
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), (torch.ones(9, 4), torch.ones(8)), steps=2)


def test_labels_for_programs_that_take_none():
    pair = vae()
    message = r"model: each batch has 2 tensor\(s\), and model\(x: .*without labels"
    with Refused(TypeError, message, *pair):
        quiet(elbo(*pair), (torch.ones(9, 4), torch.ones(9)), steps=2)


@pytest.mark.parametrize("size", [0, -1, 2.5, "all"])
def test_batch_sizes(size):
    pair = vae()
    message = rf"batch_size: expected a positive number of rows, got {size!r}. Try 64, or None"
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2, batch_size=size)


def test_a_batch_size_beside_a_loader():
    pair, loader = vae(), DataLoader(TensorDataset(torch.ones(9, 4)), batch_size=3)
    with Refused(ValueError, r"batch_size: the DataLoader has one of its own \(3\); got 4", *pair):
        quiet(elbo(*pair), loader, steps=2, batch_size=4)


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


# --- programs -------------------------------------------------------------------------------


def with_sites(*names: str) -> Callable[..., None]:
    def guide(x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            for name in names:
                pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))

    return guide


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (
            with_sites(),
            r"guide: the model's latent site\(s\) 'z' .* has none.*sample\('z', \.\.\.\)",
        ),
        (None, r"guide: the model's latent site\(s\) 'z' are neither in the guide nor enumerated"),
        (with_sites("u"), r"'z' are neither in the guide nor enumerated; the guide has 'u'"),
        (with_sites("z", "u"), r"guide: its site\(s\) 'u' are not latent in the model, .* 'z'"),
        (with_sites("z", "x"), r"guide: its site\(s\) 'x' are not .*The model observes 'x'"),
    ],
)
def test_a_guide_with_other_sites(guide, message):
    model = FactorAnalysis(4, 2)
    with Refused(ValueError, message, model):
        quiet(elbo(model, guide), torch.ones(9, 4), steps=2)
    with Refused(ValueError, message, model):
        elbo(model, guide).loss(torch.ones(9, 4))


def test_a_minibatch_that_cannot_be_scaled():
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    guide = pyro.infer.autoguide.AutoNormal(model)
    with pytest.raises(ValueError, match=r"'loc' are shared by all rows.*data_plate\(x, size\)"):
        quiet(elbo(model, guide), torch.ones(9), steps=2, batch_size=4)
    assert quiet(elbo(model, guide), torch.ones(9), steps=2).steps == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (VAE, r"model: expected a Pyro program.*got the class VAE. Try an object"),
        ("vae", r"model: expected a Pyro program.*got 'vae'"),
        (None, r"model: expected a Pyro program.*got None"),
    ],
)
def test_programs_that_are_none(model, message):
    with pytest.raises(TypeError, match=message):
        elbo(model)


def test_a_guide_that_is_a_class():
    with pytest.raises(TypeError, match=r"guide: expected .* got the class AutoNormal"):
        elbo(vae()[0], pyro.infer.autoguide.AutoNormal)


@pytest.mark.parametrize("estimator", ["Trace_ELBO", pyro.infer.Trace_ELBO, 3])
def test_estimators_that_are_none(estimator):
    with pytest.raises(TypeError, match=r"estimator: expected an ELBO of Pyro.*Trace_ELBO\(num"):
        elbo(*vae(), estimator)


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


@pytest.mark.parametrize("likelihood", ["bernoulli", Bernoulli, Normal, 3, lambda outputs: None])
def test_a_likelihood_that_is_none(likelihood):
    message = r"likelihood: expected an object, one of Bernoulli\(\), Normal\(\).*Categorical"
    with pytest.raises(TypeError, match=message):
        VAE(4, 2, likelihood=likelihood)


@pytest.mark.parametrize("which", [0, 1])
def test_a_program_on_another_device(which):
    pair = vae()
    pair[which].to("meta")
    program = ("model", "guide")[which]
    with pytest.raises(
        ValueError,
        match=rf"device: the data are on cpu, but {program}\.\S+ is on meta. Try .*device='auto'",
    ):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2)


def test_a_module_of_a_function_on_another_device():
    net = nn.Linear(4, 4).to("meta")

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"data are on cpu, but model.net.weight is on meta"):
        quiet(elbo(model), torch.ones(9, 4), steps=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none():
    with pytest.raises(ValueError, match=r"device: got 'cuda', which is not available"):
        quiet(elbo(*vae()), torch.ones(9, 4), steps=1, device="cuda")


def test_validation_of_a_game():
    pair = elbo(*vae()), elbo(*vae())
    pair[1].name = "other"
    with pytest.raises(ValueError, match=r"validation: expected one objective, got 2"):
        quiet(pair, torch.ones(9, 4), steps=1, validation=torch.ones(9, 4))


def test_an_error_in_a_program_says_what_it_was_called_with():
    class Broken(nn.Module):
        def forward(self, x: Tensor, size: int | None = None) -> None:
            x @ torch.ones(7)

    with pytest.raises(RuntimeError) as caught:
        quiet(elbo(Broken()), torch.ones(9, 4), steps=1)
    assert "called with a batch of (9, 4) torch.float32 on cpu" in caught.value.__notes__[0]


# --- numbers that turn bad meanwhile --------------------------------------------------------


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
    with pytest.raises(FloatingPointError, match=r"parameter model.width is not finite"):
        quiet(elbo(model), torch.ones(9), steps=1, checkpoint=path)
    with pytest.raises(FloatingPointError, match=r"width is not finite after step 1\."):
        quiet(elbo(Rooted()), torch.ones(9), steps=5, checkpoint=path, checkpoint_every=0)
    assert not path.exists()
    with pytest.raises(FloatingPointError, match=r"at step 2; the parameter model.width is not"):
        quiet(elbo(Rooted()), torch.ones(9), steps=5)


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


def test_evidence_of_bad_rows():
    pair = vae(Normal())
    with pytest.raises(ValueError, match=r"1 of 9 rows hold NaN"):
        log_evidence(*pair, spoiled(3), num_samples=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: UNet(8),
            r"UNet: expected the height and the width.*shape=8. Try UNet\(\(8, 8\)\)",
        ),
        (lambda: UNet((8, 8, 1)), r"UNet: expected the height and the width"),
        (
            lambda: UNet((8, 8), channels=8),
            r"UNet: expected the channels of each level.*channels=8",
        ),
        (lambda: ResNet(64), r"ResNet: expected the height and the width.*shape=64"),
        (lambda: Diffusion(3).sample(5, None), r"sampler: expected a function.*got None. Try anc"),
    ],
)
def test_arguments_of_another_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()
