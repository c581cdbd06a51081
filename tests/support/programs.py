"""Programs of every Pyro style, each with its guide and data."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from guides import AmortizedNormal
from ppl_models import VAE, data_plate
from tests.support.oracles import binary


class Case(NamedTuple):
    """A model, its guide, and data for both."""

    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    data: Tensor | tuple[Tensor, ...]


def modules() -> Case:
    return Case(VAE(4, 2), AmortizedNormal(4, 2), binary(11))


class ParamsInForward(nn.Module):
    """Keeps nothing itself: Pyro does."""

    def forward(self, x: Tensor | None = None, size: int | None = None) -> None:
        loc = pyro.param("loc", torch.zeros(4))
        scale = pyro.param("scale", torch.ones(4), constraint=constraints.positive)
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class GuideParamsInForward(nn.Module):
    def forward(self, x: Tensor, size: int | None = None) -> None:
        slope = pyro.param("loc", torch.zeros(4))  # a name that the model has too
        scale = pyro.param("guide_scale", torch.ones(()), constraint=constraints.positive)
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(slope * x, scale).to_event(1))


def params_in_forward() -> Case:
    return Case(ParamsInForward(), GuideParamsInForward(), binary(11))


class TutorialVAE(nn.Module):
    """One module, two programs: as in the VAE tutorial of Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def model(self, x: Tensor) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1))
            logits = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)
            return logits

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, scale.exp()).to_event(1))


def tutorial() -> Case:
    vae = TutorialVAE()
    return Case(vae.model, vae.guide, binary(11))


class ParamsInMethods(nn.Module):
    """Both of its programs have parameters of Pyro beside its own."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(4))

    def model(self, x: Tensor | None = None, size: int | None = None) -> None:
        loc = pyro.param("model_loc", torch.zeros(4))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        loc = pyro.param("guide_loc", torch.zeros(4))
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(loc + self.slope * x, 0.7).to_event(1))


def params_in_methods() -> Case:
    both = ParamsInMethods()
    return Case(both.model, both.guide, binary(11))


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.locs = nn.Parameter(torch.randn(3))

    @config_enumerate
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=x.new_zeros(3)))
            pyro.sample("x", dist.Normal(self.locs[k], 1.0), obs=x)


def decorated_method() -> Case:
    return Case(Decorated().model, None, torch.randn(11))


class DecoratedForward(Decorated):
    forward = Decorated.model


def decorated_forward() -> Case:
    return Case(DecoratedForward(), None, torch.randn(11))


class Linear(PyroModule):
    """Bayesian regression: parameters and priors declared as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        mean = x @ self.weight
        with data_plate(x, size):
            return pyro.sample("y", dist.Normal(mean, self.scale), obs=y)


def regression(guide: Callable[[Any], Any]) -> Callable[[], Case]:
    def make() -> Case:
        model, x = Linear(), torch.randn(11, 3)
        return Case(model, guide(model), (x, x @ torch.tensor([1.0, -2.0, 0.5])))

    return make


def autoguide_list(model: Callable[..., Any]) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["weight"])))
    return guide


class BayesianNet(PyroModule):
    """A network lifted to random weights, inside of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PyroModule[nn.Linear](4, 1)
        self.net.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 4]).to_event(2))

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> None:
        mean = self.net(x).squeeze(-1)
        with data_plate(x, size):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def bayesian_net() -> Case:
    model = BayesianNet()
    return Case(model, AutoNormal(model), (torch.randn(11, 4), torch.randn(11)))


def two_levels() -> Case:
    """A latent shared by all rows and one of each row, each with a guide of its own kind."""

    def model(x: Tensor | None = None, size: int | None = None) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["loc"])))
    guide.append(AutoNormal(poutine.block(model, expose=["z"])))
    return Case(model, guide, torch.randn(11) + 2)


OWNED = {
    case.__name__: case
    for case in (
        modules,
        params_in_forward,
        tutorial,
        params_in_methods,
        decorated_method,
        decorated_forward,
        bayesian_net,
        two_levels,
    )
} | {
    "AutoNormal": regression(AutoNormal),
    "AutoDelta": regression(AutoDelta),
    "AutoMultivariateNormal": regression(AutoMultivariateNormal),
    "AutoGuideList": regression(autoguide_list),
}


def function_model(x: Tensor | None = None, size: int | None = None) -> None:
    loc = pyro.param("model_loc", torch.zeros(4))
    scale = pyro.param("model_scale", torch.ones(4), constraint=constraints.positive)
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def function_guide(x: Tensor, size: int | None = None) -> None:
    slope = pyro.param("guide_slope", lambda: torch.zeros(4))
    scale = pyro.param("guide_scale", torch.tensor(1.0), constraint=constraints.positive)
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(slope * x, scale).to_event(1))


def functions() -> Case:
    return Case(function_model, function_guide, binary(11))


def functions_with_modules() -> Case:
    encoder, decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def model(x: Tensor | None = None, size: int | None = None) -> None:
        pyro.module("decoder", decoder)
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor, size: int | None = None) -> None:
        pyro.module("encoder", encoder)
        with data_plate(x, size):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, binary(11))


def handled_functions() -> Case:
    model = poutine.scale(config_enumerate(function_model), scale=0.5)
    return Case(model, poutine.scale(function_guide, scale=0.5), binary(11))


def partial_functions() -> Case:
    def model(
        width: int, x: Tensor | None = None, size: int | None = None, *, noise: float
    ) -> None:
        loc = pyro.param("model_loc", torch.zeros(width))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    return Case(functools.partial(model, 4, noise=1.0), function_guide, binary(11))


def no_size() -> Case:
    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        rate = pyro.param("rate_loc", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("rate", dist.Delta(rate))

    return Case(model, guide, torch.poisson(torch.full((11,), 3.0)))


FUNCTIONS = {
    case.__name__: case
    for case in (
        functions,
        functions_with_modules,
        handled_functions,
        partial_functions,
        no_size,
    )
}
