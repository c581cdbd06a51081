"""What one process would train, several do, number by number."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import (
    GAN,
    VAE,
    Diffusion,
    GaussianMixture,
    adversarial,
    data_plate,
    denoising,
    elbo,
    fit,
    iwae,
)
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.training.together.as_one import as_one_process
from ppl_models.likelihoods import Bernoulli
from ppl_models.processes import places_of, together
from ppl_models.transformed import Transformed
from tests.support.together import all_returned, run_together


def rows(n: int, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def vae() -> tuple[Any, Any, dict]:
    model = VAE(5, 2, likelihood=Bernoulli()).double()
    guide = AmortizedNormal(5, 2).double()
    x = (rows(37) > 0).double()
    return elbo(model, guide), x, {"batch_size": 10, "validation": x[:11], "ema": 0.9}


def importance_weighted() -> tuple[Any, Any, dict]:
    model, guide = VAE(5, 2).double(), AmortizedNormal(5, 2).double()
    return iwae(model, guide, num_particles=3), (rows(24) > 0).double(), {"batch_size": 8}


def mixture() -> tuple[Any, Any, dict]:
    return elbo(GaussianMixture(5, 3).double()), rows(30), {"batch_size": 11, "clip": 0.5}


def regression() -> tuple[Any, Any, dict]:
    def model(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(5), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.Gamma(x.new_tensor(2.0), 2.0))
        with data_plate(x, size):
            return pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)

    x = rows(31)
    return elbo(model, AutoNormal), (x, x.sum(1)), {"batch_size": 12}


def per_row() -> tuple[Any, Any, dict]:
    def model(x: Tensor | None = None, size: int | None = None) -> Tensor:
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return elbo(model, AutoNormal), rows(23)[:, 0].contiguous(), {"batch_size": 9}


def game() -> tuple[Any, Any, dict]:
    gan = GAN(5, 2).double()
    objectives = adversarial(gan, loss="wasserstein", critic_steps=2, instance_noise=(0.3, 0.1, 9))
    return objectives, rows(48), {"batch_size": 24}


def diffusion() -> tuple[Any, Any, dict]:
    return denoising(Diffusion(num_features=5).double()), rows(26), {"batch_size": 9}


class Dropping(nn.Module):
    """A guide whose network drops units, with a score-function gradient for discrete latents."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3)).double()
        self.heads = nn.Linear(3, 5).double()

    def model(self, x: Tensor, size: int | None = None) -> Tensor:
        pyro.module("heads", self.heads)
        with data_plate(x, size):
            k = pyro.sample("k", dist.Categorical(x.new_ones(len(x), 3) / 3))
            rate = pyro.sample("rate", dist.Gamma(x.new_full((len(x),), 2.0), 1.0))
            loc = self.heads(nn.functional.one_hot(k, 3).double()) * rate[:, None]
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        pyro.module("net", self.net)
        logits = self.net(x)
        with data_plate(x, size):
            pyro.sample("k", dist.Categorical(logits=logits))
            pyro.sample("rate", dist.Gamma(logits[:, 0].exp() + 0.5, 1.0))


def dropping() -> tuple[Any, Any, dict]:
    both = Dropping()
    return elbo(both.model, both.guide), rows(21), {"batch_size": 8}


def _binarised(x: Tensor) -> Tensor:
    return torch.bernoulli(x.sigmoid())


def transformed() -> tuple[Any, Any, dict]:
    model, guide = VAE(5, 2).double(), AmortizedNormal(5, 2).double()
    return elbo(model, guide), Transformed(rows(24), transform=_binarised), {"batch_size": 8}


class Sometimes(Objective):
    """A quadratic, in whole batches with a second layer, which without a gradient stays still."""

    name = "sometimes"

    def __init__(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(5, 1) for _ in range(2)).double()

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        x, whole = batch[0], places_of(len(batch[0]), batch[0].device).total >= 8
        return sum(
            (layer(x).square().mean() for layer in self.layers[: 1 + whole]), x.new_zeros(())
        )

    def prepare(self, *batch: Tensor, size: int, data: Any = None) -> None:
        pass

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.layers.named_parameters()

    def modules(self) -> dict[str, nn.Module]:
        return {"layers": self.layers}


def sometimes() -> tuple[Any, Any, dict]:
    return Sometimes(), rows(28), {"batch_size": 8}


PROGRAMS = [
    *(vae, importance_weighted, mixture, regression, per_row, game, diffusion, dropping),
    *(transformed, sometimes),
]


def trained(made: Callable[[], tuple[Any, Any, dict]], **options: Any) -> dict[str, Any]:
    """The losses of each epoch, and the parameters, of a run by all processes there are."""
    torch.manual_seed(3)
    pyro.clear_param_store()
    objective, data, own = made()
    with as_one_process():
        run = fit(
            objective,
            data,
            epochs=4,
            lr=1e-2,
            seed=1,
            compile=False,
            progress=False,
            **own,
            **options,
        )
    objectives = objective if isinstance(objective, list) else [objective]
    named = [pair for one in objectives for pair in one.named_parameters()]
    parameters = {name: x.detach().numpy().copy() for name, x in named}
    after = torch.rand(3).tolist()  # what is drawn next
    return {"history": run.history, "steps": run.steps, "parameters": parameters, "next": after}


def _all_trained(names: list[str]) -> dict[str, Any]:
    return {made.__name__: trained(made) for made in PROGRAMS if made.__name__ in names}


@pytest.fixture(scope="module")
def found() -> dict[int, dict[str, Any]]:
    names = [made.__name__ for made in PROGRAMS]
    alone = {made.__name__: trained(made) for made in PROGRAMS}
    several = {n: all_returned(run_together(_all_trained, n, names)) for n in (2, 3)}
    return {1: [alone], **several}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", [made.__name__ for made in PROGRAMS])
def test_one_process_is_n_processes(found: Any, name: str, count: int) -> None:
    one = found[1][0][name]
    for each in found[count]:
        assert each[name]["steps"] == one["steps"]
        assert each[name]["history"].keys() == one["history"].keys()
        for key, values in one["history"].items():
            assert each[name]["history"][key] == pytest.approx(values, rel=1e-9, abs=1e-12), key
            assert all(map(math.isfinite, values))
        for key, x in one["parameters"].items():
            assert each[name]["parameters"][key] == pytest.approx(x, rel=1e-7, abs=1e-9), key
        assert each[name]["next"] == one["next"]


@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_end_with_the_same_bits(found: Any, count: int) -> None:
    first, *others = found[count]
    for other in others:
        for name, result in first.items():
            assert other[name]["history"] == result["history"]
            for key, x in result["parameters"].items():
                assert (other[name]["parameters"][key] == x).all()


def test_alone_nothing_changes() -> None:
    assert together().alone
