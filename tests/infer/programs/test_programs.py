r"""Programs of every Pyro style: do they fit, do they share, is the loss the right number?

Shapes: `N` rows in all, `B` of a batch, `D` features, `K` latents.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_median
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit
from ppl_models.infer.objectives.estimators import DirectELBO
from ppl_models.infer.programs.program import own_parameters
from tests.support.oracles import same

quiet = functools.partial(fit, progress=False)


# --- the styles -----------------------------------------------------------------------------


class Case(NamedTuple):
    """A model, its guide, and data for both."""

    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    data: Tensor | tuple[Tensor, ...]


def binary(rows: int = 11, features: int = 4) -> Tensor:
    return torch.bernoulli(torch.full((rows, features), 0.3))


def modules() -> Case:
    return Case(VAE(4, 2), AmortizedNormal(4, 2), binary())


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
    return Case(ParamsInForward(), GuideParamsInForward(), binary())


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
    return Case(vae.model, vae.guide, binary())


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
    return Case(both.model, both.guide, binary())


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
    return Case(function_model, function_guide, binary())


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

    return Case(model, guide, binary())


def handled_functions() -> Case:
    model = poutine.scale(config_enumerate(function_model), scale=0.5)
    return Case(model, poutine.scale(function_guide, scale=0.5), binary())


def partial_functions() -> Case:
    def model(
        width: int, x: Tensor | None = None, size: int | None = None, *, noise: float
    ) -> None:
        loc = pyro.param("model_loc", torch.zeros(width))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    return Case(functools.partial(model, 4, noise=1.0), function_guide, binary())


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


def snapshot(objective: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in objective.named_parameters()}


def prepared(case: Case) -> Any:
    objective = elbo(case.model, case.guide)
    batch = case.data if isinstance(case.data, tuple) else (case.data,)
    objective.prepare(*batch, size=len(batch[0]))
    return objective


# --- parameters -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OWNED, *FUNCTIONS])
def test_every_parameter_is_trained(name):
    case = (OWNED | FUNCTIONS)[name]()
    objective = prepared(case)
    before = snapshot(objective)
    batch_size = None if name == "no_size" else 4  # 4 + 4 + 3 rows
    run = quiet(objective, case.data, epochs=2, batch_size=batch_size, lr=0.1, seed=0)
    after = snapshot(objective)
    assert list(after) == list(before)
    assert before
    assert [n for n in before if torch.equal(before[n], after[n])] == []
    assert all(torch.isfinite(torch.tensor(run.history["loss"])))


@pytest.mark.parametrize("name", OWNED)
def test_two_of_everything_never_share(name):
    pyro.set_rng_seed(1)
    a = OWNED[name]()
    pyro.set_rng_seed(1)
    b = OWNED[name]()
    one = prepared(a)
    pyro.set_rng_seed(1)
    two = prepared(b)
    untouched = snapshot(two)
    quiet(one, a.data, steps=3, batch_size=4, lr=0.1, seed=0)
    assert same(snapshot(two), untouched)
    assert not list(pyro.get_param_store().keys())  # nothing of a module leaks out
    fitted = snapshot(one)
    for _, parameter in two.named_parameters():
        parameter.data.copy_(parameter.data * 0 + 0.1)
    assert same(snapshot(one), fitted)
    assert not same(snapshot(two), fitted)


@pytest.mark.parametrize("name", ["modules", "params_in_methods", "AutoNormal"])
def test_two_in_one_process_train_alike(name):
    """What was fitted before must not show in what is fitted now."""
    results = []
    for _ in range(2):
        pyro.set_rng_seed(1)
        case = OWNED[name]()
        objective = elbo(case.model, case.guide)
        quiet(objective, case.data, steps=5, batch_size=4, lr=0.1, seed=0)
        results.append(snapshot(objective))
    assert same(*results)


def test_the_global_store_of_others_is_left_alone():
    mine = pyro.param("loc", torch.tensor(3.0))
    case = params_in_forward()  # has a parameter of that name
    quiet(elbo(case.model, case.guide), case.data, steps=3, lr=0.1, seed=0)
    assert list(pyro.get_param_store().keys()) == ["loc"]
    assert pyro.param("loc") is mine
    assert mine.item() == 3.0


def test_the_store_is_restored_after_an_error():
    pyro.param("loc", torch.tensor(3.0))

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> None:
            pyro.param("inner", torch.zeros(()))
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        quiet(elbo(Broken()), torch.zeros(3), steps=1)
    assert list(pyro.get_param_store().keys()) == ["loc"]


def test_params_of_functions_stay_readable():
    case = functions()
    quiet(elbo(case.model, case.guide), case.data, epochs=5, lr=0.1, seed=0)
    store = pyro.get_param_store()
    assert set(store.keys()) == {"model_loc", "model_scale", "guide_slope", "guide_scale"}
    assert (pyro.param("guide_scale") > 0).all()
    assert pyro.param("guide_scale") != 1
    trained = dict(elbo_parameters(case))
    assert torch.equal(trained["guide.guide_slope"], pyro.param("guide_slope"))


def elbo_parameters(case: Case) -> list[tuple[str, Tensor]]:
    return list(prepared(case).named_parameters())


def test_params_of_functions_survive_a_fit_of_modules():
    case, other = functions(), modules()
    quiet(elbo(case.model, case.guide), case.data, steps=3, lr=0.1, seed=0)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    quiet(elbo(other.model, other.guide), other.data, steps=3, lr=0.1, seed=0)
    assert same(dict(pyro.get_param_store().items()), before)


def test_a_function_model_with_an_autoguide():
    def model(x: Tensor, size: int | None = None) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    guide = AutoNormal(model)
    quiet(elbo(model, guide), torch.randn(11) * 3, steps=30, batch_size=4, lr=0.1, seed=0)
    assert list(pyro.get_param_store().keys()) == ["scale"]
    assert pyro.param("scale") > 1.2


def test_shared_parameters_are_trained_once():
    shared = nn.Parameter(torch.zeros(4))

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = shared

    class Model(Half):
        def forward(self, x: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                z = pyro.sample("z", dist.Normal(self.shared, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    class Guide(Half):
        def forward(self, x: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                pyro.sample("z", dist.Normal(self.shared + x, 1.0).to_event(1))

    objective = elbo(Model(), Guide())
    sgd = functools.partial(torch.optim.SGD, momentum=0.0)
    x = binary()
    pyro.set_rng_seed(7)
    loss = objective.loss(x, size=len(x))
    (gradient,) = torch.autograd.grad(loss, shared)
    pyro.set_rng_seed(7)
    assert [id(p) for _, p in objective.named_parameters()] == [id(shared)]
    quiet(objective, x, steps=1, lr=1.0, optimizer=sgd, seed=7)
    assert shared.detach().norm() > 0
    assert gradient.norm() > 0


# --- the loss is the right number -----------------------------------------------------------


def analysis(rows: int = 7) -> tuple[FactorAnalysis, Tensor]:
    model = FactorAnalysis(5, 2).double()
    return model, model(size=rows).detach()


ESTIMATORS = {
    "default": lambda: None,
    "particles": lambda: Trace_ELBO(num_particles=5),
    "vectorised": lambda: Trace_ELBO(
        num_particles=5, vectorize_particles=True, max_plate_nesting=1
    ),
    "guessed": lambda: Trace_ELBO(num_particles=5, vectorize_particles=True),
    "mean field": lambda: TraceMeanField_ELBO(),
    "mean field, particles": lambda: TraceMeanField_ELBO(num_particles=3),
    "enumerating": lambda: TraceEnum_ELBO(),
}


# Pyro's remark on an estimator that enumerates nothing: here on purpose
unused = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")


@unused
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("gradient", [True, False])
def test_exact_posterior_closes_the_gap(estimator, gradient):
    model, x = analysis()
    objective = elbo(model, ExactPosterior(model), ESTIMATORS[estimator]())
    with torch.set_grad_enabled(gradient):
        loss = objective.loss(x, size=70)  # a minibatch of 7 rows out of 70
    expected = -model.evidence().log_prob(x).mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-10, rtol=0)


@unused
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_trains(estimator):
    case = modules()
    objective = elbo(case.model, case.guide, ESTIMATORS[estimator]())
    run = quiet(objective, case.data, epochs=15, batch_size=4, lr=2e-2, seed=0)
    assert run.history["loss"][-1] < run.history["loss"][0] - 0.2


class Mixture(nn.Module):
    """Three Gaussians, and which of them is enumerated."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.locs = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))

    def forward(self, x: Tensor | None = None, size: int | None = None) -> None:
        with data_plate(x, size):
            infer = {"enumerate": "parallel"}
            k = pyro.sample("k", dist.Categorical(logits=self.logits), infer=infer)
            locs = self.locs[k]  # (3, 1, 2) enumerated, (B, 2) sampled
            pyro.sample("x", dist.Normal(locs, 0.7).to_event(1), obs=x)

    def evidence(self, x: Tensor) -> Tensor:
        components = dist.Normal(self.locs, 0.7).to_event(1).log_prob(x[:, None])  # (B, 3)
        return (self.logits.log_softmax(0) + components).logsumexp(-1)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("wrap", [lambda model: model, config_enumerate])
def test_enumerated_sites_are_summed_over(wrap, gradient):
    model, x = Mixture(), torch.randn(7, 2, dtype=torch.float64)
    with torch.set_grad_enabled(gradient):
        loss = elbo(wrap(model)).loss(x, size=70)
    expected = -model.evidence(x).mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-12, rtol=0)
    if gradient:
        for parameter in (model.logits, model.locs):
            (got,) = torch.autograd.grad(loss, parameter, retain_graph=True)
            (wanted,) = torch.autograd.grad(expected, parameter, retain_graph=True)
            torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_enumerated_sites_under_shuffled_minibatches():
    model, x = Mixture(), torch.randn(11, 2, dtype=torch.float64) + 2
    run = quiet(elbo(model), x, epochs=30, batch_size=4, lr=0.05, seed=0)
    assert run.history["loss"][-1] < run.history["loss"][0] - 0.5


def test_enumeration_beside_a_sampled_latent():
    """The default takes the same estimator as a reader of Pyro's manual would."""

    @config_enumerate
    def model(x: Tensor, size: int | None = None) -> None:
        locs = pyro.sample("locs", dist.Normal(torch.zeros(3), 5.0).to_event(1))
        with data_plate(x, size):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(locs[..., k], 1.0), obs=x)

    x = torch.randn(12)
    guide = AutoDelta(poutine.block(model, expose=["locs"]), init_loc_fn=init_to_median)
    loss = elbo(model, guide).loss(x)
    pyro.clear_param_store()
    expected = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, x) / 12
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO, DirectELBO])
def test_an_estimator_that_would_sample_enumerated_sites_is_refused(estimator):
    with pytest.raises(ValueError, match=r"samples the site.* 'k'.*TraceEnum_ELBO"):
        quiet(elbo(Mixture(), None, estimator()), torch.randn(5, 2).double(), steps=1)


def test_an_estimator_without_a_differentiable_loss_is_refused():
    with pytest.raises(TypeError, match=r"estimator: expected .* TraceMeanField_ELBO"):
        elbo(Mixture(), None, TraceGraph_ELBO())


def discrete_guide(x: Tensor, size: int | None = None) -> None:
    logits = pyro.param("logits", torch.tensor([0.3, -0.2], dtype=torch.float64))
    with data_plate(x, size):
        pyro.sample("z", dist.Bernoulli(logits=logits * x.mean(1, keepdim=True)).to_event(1))


def discrete_model(x: Tensor, size: int | None = None) -> None:
    loc = pyro.param("loc", torch.tensor([1.0, -1.0], dtype=torch.float64))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones_like(loc)).to_event(1))
        pyro.sample("x", dist.Normal(z * loc, 1.0).to_event(1), obs=x)


def mixed_model(x: Tensor, size: int | None = None) -> None:
    """A shared latent with the score function, one of each row with the path derivative."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(z.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(z * w[..., None], 1.0).to_event(1), obs=x)


def mixed_guide(x: Tensor, size: int | None = None) -> None:
    q = pyro.param("q", torch.tensor([0.3, -0.2], dtype=torch.float64))
    pyro.sample("loc", NonreparameterizedNormal(q, 0.5 + 0 * q).to_event(1))
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(q * x, q.exp()).to_event(1))
        pyro.sample("w", NonreparameterizedNormal(x.sum(-1) * q[0], (q[1] + 1).exp()))


@pytest.mark.parametrize(
    ("model", "guide"),
    [(discrete_model, discrete_guide), (mixed_model, mixed_guide), (mixed_model, None)],
)
@pytest.mark.parametrize("particles", [1, 3])
def test_the_direct_estimator_equals_pyros(model, guide, particles):
    x = torch.randn(7, 2, dtype=torch.float64)
    guide = AutoNormal(model) if guide is None else guide
    results = []
    guide(x, size=21)  # lazy parameters
    for estimator in (DirectELBO, Trace_ELBO):
        pyro.set_rng_seed(3)
        total = estimator(num_particles=particles).differentiable_loss(model, guide, x, size=21)
        params = [p.unconstrained() for p in pyro.get_param_store().values()]
        results.append((total, torch.autograd.grad(total, params)))
    (loss, gradients), (expected, expected_gradients) = results
    assert len(gradients) > 0
    assert any(g.norm() > 0 for g in gradients)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-13)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-13)


def test_the_default_estimator_is_the_direct_one():
    x = torch.randn(7, 2, dtype=torch.float64)
    objective = elbo(discrete_model, discrete_guide)
    objective.prepare(x, size=7)
    pyro.set_rng_seed(3)
    loss = objective.loss(x, size=21)
    pyro.set_rng_seed(3)
    total = Trace_ELBO().differentiable_loss(discrete_model, discrete_guide, x, size=21)
    torch.testing.assert_close(loss, total / 21, atol=1e-12, rtol=0)


def test_subsampling_inside_the_program():
    """All rows are alike here, so that any three of them stand for all exactly."""
    x = torch.full((12,), 2.0, dtype=torch.float64)
    sizes = []

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.5, dtype=torch.float64))
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            sizes.append(len(rows))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    expected = -dist.Normal(0.5, 1.0).log_prob(x[0])
    torch.testing.assert_close(elbo(model).loss(x), expected, atol=1e-12, rtol=0)
    quiet(elbo(model), x, steps=60, lr=0.1, seed=0)
    assert set(sizes) == {3}
    assert abs(pyro.param("loc").item() - 2) < 0.1


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDelta])
def test_subsampling_inside_the_program_with_latents_of_a_row(autoguide):
    sizes = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            sizes.append(len(rows))
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows])

    x = torch.linspace(-3, 3, 12)
    guide = autoguide(model)
    quiet(elbo(model, guide), x, steps=400, lr=0.05, seed=0)
    assert set(sizes) == {3}
    location = guide.locs.z if autoguide is AutoNormal else guide.z
    assert correlation(location, x) > 0.95


# --- rows keep their identity ---------------------------------------------------------------


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).detach().double())[0, 1].item()


def frozen(rows: int = 22) -> tuple[FactorAnalysis, Tensor]:
    model = FactorAnalysis(5, 2).requires_grad_(False)
    return model, model(size=rows)


def autonormal(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    guide = AutoNormal(model, init_scale=0.3)
    return guide, lambda: guide.locs.z


def autonormal_in_list(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(model, init_scale=0.3))
    return guide, lambda: guide[0].locs.z


def autodelta(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    guide = AutoDelta(model)
    return guide, lambda: guide.z


def param_of_each_row(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    def guide(x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            loc = pyro.param("row_loc", lambda: torch.zeros(size, 2), event_dim=1)
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    return guide, lambda: pyro.param("row_loc")


class RowParams(nn.Module):
    """The same in a module, with one parameter of each row and feature, `event_dim=0`."""

    def forward(self, x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            locs = [pyro.param(f"loc_{k}", lambda: torch.zeros(size), event_dim=0) for k in "ab"]
            pyro.sample("z", dist.Normal(torch.stack(locs, -1), 0.3).to_event(1))


def param_in_forward(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    guide = RowParams()

    def locations() -> Tensor:
        found = own_parameters(guide)
        return torch.stack([found["loc_a"], found["loc_b"]], -1)

    return guide, locations


GUIDES = [autonormal, autonormal_in_list, autodelta, param_of_each_row, param_in_forward]


@pytest.mark.parametrize("guide", GUIDES)
def test_rows_keep_their_identity(guide):
    model, x = frozen()
    guide, locations = guide(model)
    # 22 rows in batches of 5: the last has 2
    quiet(elbo(model, guide), x, epochs=60, batch_size=5, lr=0.1, seed=0)
    assert locations().shape == (22, 2)
    assert correlation(locations(), model.posterior(x).mean) > 0.95


@pytest.mark.parametrize("batch_size", [None, 5, 22])
@pytest.mark.parametrize("guide", [autonormal, param_of_each_row])
def test_rows_of_a_dataset_keep_their_identity(guide, batch_size):
    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> Tensor:
            return x[i]

    model, x = frozen()
    guide, locations = guide(model)
    epochs = 60 if batch_size == 5 else 150
    quiet(elbo(model, guide), Rows(), epochs=epochs, batch_size=batch_size, lr=0.1, seed=0)
    assert correlation(locations(), model.posterior(x).mean) > 0.95


def test_a_guide_fitted_in_minibatches_takes_all_rows_at_once():
    model, x = frozen()
    guide = AutoNormal(model)
    objective = elbo(model, guide)
    quiet(objective, x, epochs=1, batch_size=5, seed=0)
    assert torch.isfinite(objective.loss(x))
    assert guide(x, size=22)["z"].shape == (22, 2)


def test_autonormal_refuses_rows_that_it_cannot_place():
    model, x = frozen()
    guide = AutoNormal(model)
    objective = elbo(model, guide)
    quiet(objective, x, epochs=1, batch_size=5, seed=0)
    with pytest.raises(ValueError, match=r"parameters for each of 22 rows.*called with 5 rows"):
        objective.loss(x[:5], size=22)
    with pytest.raises(ValueError, match=r"22 rows.*there are 30 in all.*amortised guide"):
        quiet(objective, torch.zeros(30, 5), epochs=1, batch_size=5)


@pytest.mark.parametrize("batch_size", [5, 22])
@pytest.mark.parametrize("guide", [autonormal, param_of_each_row, param_in_forward])
def test_a_loader_that_hides_its_rows_is_refused(guide, batch_size):
    model, x = frozen()
    guide, _ = guide(model)
    loader = DataLoader(TensorDataset(x), batch_size=batch_size, shuffle=True)
    with pytest.raises(ValueError, match=r"not known which rows.*instead of a DataLoader"):
        quiet(elbo(model, guide), loader, epochs=1)


@pytest.mark.parametrize("guide", [autonormal, param_of_each_row])
def test_validation_rows_are_other_rows(guide):
    """As many as were fitted, and yet not those that the guide has parameters for."""
    model, x = frozen()
    guide, _ = guide(model)
    with pytest.raises(ValueError, match=r"not known which rows.*instead of others"):
        quiet(elbo(model, guide), x, epochs=1, batch_size=5, validation=x.clone())


def test_all_latents_in_one_vector_need_the_whole_data():
    model, x = frozen(6)
    guide = AutoMultivariateNormal(model)
    quiet(elbo(model, guide), x, epochs=200, lr=0.05, seed=0)
    loc = guide.loc.reshape(6, 2)
    assert correlation(loc, model.posterior(x).mean) > 0.95
    with pytest.raises(ValueError, match=r"AutoMultivariateNormal: .* one vector.*batch_size=None"):
        quiet(elbo(model, AutoMultivariateNormal(model)), x, epochs=1, batch_size=4)


def test_all_latents_in_one_vector_inside_a_list_need_the_whole_data():
    model, x = frozen(6)
    guide = AutoGuideList(model)
    guide.append(AutoMultivariateNormal(model))
    with pytest.raises(ValueError, match="one vector"):
        quiet(elbo(model, guide), x, epochs=1, batch_size=4)


def test_shared_latents_take_minibatches_of_any_size():
    case = OWNED["AutoMultivariateNormal"]()
    run = quiet(elbo(case.model, case.guide), case.data, epochs=3, batch_size=4, seed=0)
    assert run.steps == 9
