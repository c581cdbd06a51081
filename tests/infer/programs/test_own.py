"""A fitted module, called by anyone in any way, answers with what it learned."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import (
    data_plate,
    elbo,
    fit,
    from_pyro_mcmc,
    from_pyro_svi,
    load,
    log_evidence,
    predict,
    save,
)

MANY, FEW = torch.full((40,), 30.0), torch.tensor([3.0, 2.0, 4.0, 3.0])


def counts(x=None, size=None):
    """The posterior of the rate is Gamma(2 + sum x, 1 + n)."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


class Attributes(PyroModule):
    """A guide with its parameters as attributes."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.scale = PyroParam(torch.tensor(0.1), constraint=constraints.positive)

    def forward(self, x=None, size=None):
        return {"rate": pyro.sample("rate", dist.LogNormal(self.loc, self.scale))}


class Statements(nn.Module):
    """A guide that keeps nothing itself."""

    def forward(self, x=None, size=None):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
        return {"rate": pyro.sample("rate", dist.LogNormal(loc, scale))}


class Layer(PyroModule):
    """A guide with its parameters in a plain module within."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 2)

    def forward(self, x=None, size=None):
        loc, scale = self.net(torch.ones(1))
        return {"rate": pyro.sample("rate", dist.LogNormal(loc, (scale - 3).exp()))}


class Around(nn.Module):
    """A plain module around an autoguide."""

    def __init__(self):
        super().__init__()
        self.inner = AutoNormal(counts, init_scale=0.1)

    def forward(self, x=None, size=None):
        return self.inner(x, size=size)


def listed():
    guide = AutoGuideList(counts)
    guide.append(AutoNormal(counts, init_scale=0.1))
    return guide


GUIDES = {
    "AutoNormal": lambda: AutoNormal(counts, init_scale=0.1),
    "AutoDiagonalNormal": lambda: AutoDiagonalNormal(counts, init_scale=0.1),
    "AutoDelta": lambda: AutoDelta(counts),
    "AutoGuideList": listed,
    "attributes": Attributes,
    "statements": Statements,
    "a layer": Layer,
    "around": Around,
}


def fitted(make, x):
    guide = make()
    settings = {"lr": 0.05, "schedule": CosineAnnealingLR, "seed": 0, "progress": False}
    fit(elbo(counts, guide), x, steps=200, **settings)
    return guide


def posterior_mean(x):
    return (2 + x.sum().item()) / (1 + len(x))


def answers(guide, x):
    """The mean of the rate, asked for in several ways."""
    yield torch.stack([guide(x)["rate"] for _ in range(60)]).mean().item()
    trace = lambda: poutine.trace(guide).get_trace(x).nodes["rate"]["value"]  # noqa: E731
    yield torch.stack([trace() for _ in range(60)]).mean().item()
    drawn = Predictive(counts, guide=guide, num_samples=60)(x)["rate"]
    yield drawn.mean().item()
    if hasattr(guide, "median"):
        yield guide.median(x)["rate"].item()
    if hasattr(guide, "quantiles"):
        yield guide.quantiles([0.5], x)["rate"][0].item()


def check(guide, x):
    for answer in answers(guide, x):
        assert answer == pytest.approx(posterior_mean(x), rel=0.15)


@pytest.mark.parametrize("name", GUIDES)
def test_two_of_a_class_answer_each_with_its_own(name):
    many, few = fitted(GUIDES[name], MANY), fitted(GUIDES[name], FEW)
    for _ in range(2):
        check(many, MANY)
        check(few, FEW)
    assert not list(pyro.get_param_store().keys())
    fresh = GUIDES[name]()
    with torch.no_grad():
        fresh(MANY)  # in Pyro's store, by name
    check(many, MANY)
    check(few, FEW)


@pytest.mark.parametrize("name", GUIDES)
def test_copies_and_pickles(name):
    guide = fitted(GUIDES[name], MANY)
    check(copy.deepcopy(guide), MANY)
    again = pickle.loads(pickle.dumps(guide))
    check(again, MANY)
    check(guide, MANY)
    # Of its own: what the one learns from now on, the other does not.
    other = copy.deepcopy(guide) if name != "around" else fitted(GUIDES[name], MANY)
    for parameter in other.parameters():
        parameter.data.zero_()
    check(guide, MANY)


@pytest.mark.filterwarnings("ignore:guide. its site 'rate' is a point")
@pytest.mark.parametrize("name", GUIDES)
def test_pickling_takes_nothing_away(name):
    """Pyro's autoguides lose their model, those that were pickled, too."""
    guide = fitted(GUIDES[name], FEW)
    posteriors = [from_pyro_svi(counts, guide, FEW, num_samples=4, seed=0)]
    again = pickle.loads(pickle.dumps(guide))
    posteriors += [from_pyro_svi(counts, g, FEW, num_samples=4, seed=0) for g in (guide, again)]
    first, *others = [p["posterior"]["rate"].values for p in posteriors]
    assert all((other == first).all() for other in others)
    for g in (guide, again):
        assert predict(counts, g, size=3, num_samples=2)["predictions"]["x"].shape == (1, 2, 3)
        assert fit(elbo(counts, g), FEW, steps=2, progress=False).steps == 2


def test_a_pickle_with_parameters_of_rows():
    """Which rows a batch holds is told to it as before; too many are refused as before."""

    def rows(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, guide = torch.linspace(-3.0, 3.0, 12), AutoNormal(rows)
    fit(elbo(rows, guide), x, epochs=200, batch_size=5, lr=0.05, seed=0, progress=False)
    before = log_evidence(rows, guide, x, num_samples=10, seed=0).value
    again = pickle.loads(pickle.dumps(guide))
    assert torch.equal(log_evidence(rows, again, x, num_samples=10, seed=0).value, before)
    run = fit(elbo(rows, again), x, epochs=2, batch_size=5, lr=1e-4, seed=0, progress=False)
    assert run.steps == 6
    with pytest.raises(ValueError, match="parameters for each of 12 rows"):
        log_evidence(rows, again, x[:5], num_samples=10)


def test_a_pickle_of_what_was_never_called():
    again = pickle.loads(pickle.dumps(AutoNormal(counts)))
    for call in (log_evidence, from_pyro_svi, elbo):
        with pytest.raises(ValueError, match=r"lost its model.*Try AutoNormal\(model\)"):
            call(counts, again, *([] if call is elbo else [FEW]))


@pytest.mark.parametrize("name", GUIDES)
def test_two_that_are_loaded(name, tmp_path):
    """Their parameters are made by the call that the error text recommends."""
    for kind, x in (("many", MANY), ("few", FEW)):
        save(tmp_path / kind, guide=fitted(GUIDES[name], x))
    if name == "AutoNormal":
        with pytest.raises(ValueError, match=r"no parameters before its first call: try guide\("):
            load(tmp_path / "many", guide=GUIDES[name]())
    if name == "statements":
        guide = GUIDES[name]()
        with pytest.raises(ValueError, match=r"What pyro.param makes .* try elbo\(model, guide\)"):
            load(tmp_path / "many", guide=guide)
        elbo(counts, guide).loss(MANY)
        load(tmp_path / "many", guide=guide)
        return check(guide, MANY)
    many, few = GUIDES[name](), GUIDES[name]()
    many(MANY), few(FEW)
    load(tmp_path / "many", guide=many)
    load(tmp_path / "few", guide=few)
    check(many, MANY)
    check(few, FEW)


def test_two_that_were_called_before_they_are_fitted():
    """Pyro gives both the same parameters, by their names."""
    many, few = GUIDES["AutoNormal"](), GUIDES["AutoNormal"]()
    many(MANY), few(FEW)
    assert many.locs.rate_unconstrained is few.locs.rate_unconstrained
    for guide, x in ((many, MANY), (few, FEW)):
        fit(elbo(counts, guide), x, steps=200, lr=0.05, seed=0, progress=False)
    check(many, MANY)
    check(few, FEW)


def test_the_evidence_is_the_same_after_others_were_called():
    guide = fitted(GUIDES["AutoNormal"], MANY)
    before = log_evidence(counts, guide, MANY, num_samples=200, seed=0).mean
    check(fitted(GUIDES["AutoNormal"], FEW), FEW)
    GUIDES["AutoNormal"]()(FEW)
    guide(MANY)
    assert log_evidence(counts, guide, MANY, num_samples=200, seed=0).mean == before


def test_a_model_that_was_fitted():
    class Rate(PyroModule):
        def __init__(self):
            super().__init__()
            self.rate = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

        def forward(self, x=None, size=None):
            with data_plate(x, size):
                return pyro.sample("x", dist.Poisson(self.rate), obs=x)

    models = [Rate(), Rate()]
    for model, x in zip(models, (MANY, FEW), strict=True):
        fit(elbo(model), x, steps=150, lr=0.1, seed=0, progress=False)
    for model, x in zip(models, (MANY, FEW), strict=True):
        drawn = Predictive(model, num_samples=300)(size=len(x))["x"]
        assert drawn.mean().item() == pytest.approx(x.mean().item(), rel=0.1)


@pytest.mark.parametrize("name", ["attributes", "statements"])
def test_one_that_another_program_calls(name):
    inner, rates = fitted(GUIDES[name], MANY), []

    class Outer(nn.Module):
        def forward(self, x=None, size=None):
            with poutine.block():
                rates.append(inner(x)["rate"].item())
            pyro.sample("rate", dist.Gamma(2 + x.sum(), 1.0 + len(x)))

    log_evidence(counts, Outer(), FEW, num_samples=100, seed=0)
    assert torch.tensor(rates).mean().item() == pytest.approx(posterior_mean(MANY), rel=0.05)


def test_pyros_own_steps_go_on_with_a_fitted_guide():
    """Its parameters are then in no store, and yet move."""
    guide = fitted(GUIDES["AutoNormal"], FEW)
    svi = pyro.infer.SVI(counts, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step(MANY)
    check(guide, MANY)


def test_what_pyro_fitted_stays_in_its_store():
    guide = GUIDES["AutoNormal"]()
    svi = pyro.infer.SVI(counts, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    svi.step(MANY)
    names = list(pyro.get_param_store().keys())
    log_evidence(counts, guide, MANY, num_samples=5)
    svi.step(MANY)
    assert list(pyro.get_param_store().keys()) == names
    assert pyro.param("AutoNormal.locs.rate") is guide.locs.rate_unconstrained


def test_the_store_is_as_before_also_after_an_error():
    guide = fitted(GUIDES["AutoNormal"], MANY)
    theirs = pyro.param("AutoNormal.locs.rate", torch.tensor(5.0))

    class Stop(pyro.poutine.messenger.Messenger):
        def _pyro_sample(self, message):
            raise KeyError("on purpose")

    with pytest.raises(KeyError), Stop():
        guide(MANY)
    check(guide, MANY)
    assert pyro.param("AutoNormal.locs.rate") is theirs
    assert list(pyro.get_param_store().keys()) == ["AutoNormal.locs.rate"]
    assert theirs.item() == 5.0


class Methods:
    """A model and its guide of one object, with parameters by statements in both."""

    def model(self, x=None, size=None):
        spread = pyro.param("spread", torch.tensor(1.0), constraint=constraints.positive)
        m = pyro.sample("m", dist.Normal(0.0, 50.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(m, spread), obs=x)

    def guide(self, x=None, size=None):
        return pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))


class MethodsOfModule(Methods, nn.Module):
    pass


class MethodsOfPyroModule(Methods, PyroModule):
    pass


SPREAD = {4.0: torch.linspace(2.0, 6.0, 20), -3.0: torch.linspace(-3.5, -2.5, 20)}  # by their mean


def of_methods(kind, x):
    both = kind()
    fit(elbo(both.model, both.guide), x, steps=400, lr=0.05, seed=0, progress=False)
    return both


def check_methods(both, x):
    for m in (both.guide(x), poutine.trace(both.guide).get_trace(x).nodes["m"]["value"]):
        assert m.item() == pytest.approx(x.mean().item(), abs=0.8)
    drawn = Predictive(both.model, guide=both.guide, num_samples=50)(size=len(x))["x"]
    assert drawn.mean().item() == pytest.approx(x.mean().item(), abs=0.8)
    assert drawn.std().item() == pytest.approx(x.std().item(), rel=0.3)
    posterior = from_pyro_svi(both.model, both.guide, x, num_samples=20)
    assert posterior["posterior"]["m"].values.mean() == pytest.approx(x.mean().item(), abs=0.8)
    assert log_evidence(both.model, both.guide, x, num_samples=20).mean > -4


@pytest.mark.filterwarnings("ignore:log_evidence. 20 draws")  # of a guide with a scale of its own
@pytest.mark.parametrize("kind", [MethodsOfModule, MethodsOfPyroModule])
def test_methods_of_a_module_answer_with_what_they_learned(kind, tmp_path):
    fitted = {mean: of_methods(kind, x) for mean, x in SPREAD.items()}
    assert not list(pyro.get_param_store().keys())
    for mean, x in SPREAD.items():
        check_methods(fitted[mean], x)
        check_methods(copy.deepcopy(fitted[mean]), x)
        check_methods(pickle.loads(pickle.dumps(fitted[mean])), x)
    save(tmp_path / "both", both=fitted[4.0])
    load(tmp_path / "both", both=fitted[-3.0])
    check_methods(fitted[-3.0], SPREAD[4.0])
    again = elbo(fitted[-3.0].model, fitted[-3.0].guide)
    fit(again, SPREAD[4.0] - 1.0, steps=200, lr=0.02, seed=0, progress=False)
    check_methods(fitted[-3.0], SPREAD[4.0] - 1.0)
    check_methods(fitted[4.0], SPREAD[4.0])
    assert {n for n, _ in again.named_parameters()} == {"model.spread", "guide.loc"}


@pytest.mark.filterwarnings("ignore:log_evidence. 20 draws")  # of a guide with a scale of its own
def test_methods_of_a_plain_object_are_functions():
    """Their parameters are Pyro's, by name, as those of functions are."""
    both = of_methods(Methods, SPREAD[4.0])
    assert set(pyro.get_param_store().keys()) == {"spread", "loc"}
    check_methods(both, SPREAD[4.0])
    check_methods(Methods(), SPREAD[4.0])


class Spread(nn.Module):
    """A model with a parameter by a statement."""

    def forward(self, x=None, size=None):
        spread = pyro.param("spread", torch.tensor(10.0), constraint=constraints.positive)
        m = pyro.sample("m", dist.Normal(0.0, 50.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(m, spread), obs=x)


class Loc(nn.Module):
    def forward(self, x=None, size=None):
        return pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))


def by_pyro(model, guide, x):
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step(x)


def by_fit(model, guide, x):
    fit(elbo(model, guide), x, steps=200, lr=0.05, seed=0, progress=False)


@pytest.mark.parametrize("train", [by_pyro, by_fit])
def test_statements_of_a_module_whoever_trained_them(train):
    """What `log_evidence` and its kin run is what any other call would."""
    model, guide, x = Spread(), Loc(), SPREAD[4.0]
    train(model, guide, x)
    spread = poutine.trace(model).get_trace(x).nodes["x"]["fn"].scale.mean().item()
    assert spread == pytest.approx(x.std().item(), rel=0.2)
    store = list(pyro.get_param_store().keys())
    posterior = from_pyro_svi(model, guide, x, num_samples=200, seed=0)
    for values in (
        posterior["posterior_predictive"]["x"].values,
        predict(model, guide, size=50, num_samples=100, seed=0)["predictions"]["x"].values,
        predict(model, posterior, size=50, seed=0)["predictions"]["x"].values,
    ):
        assert values.mean() == pytest.approx(x.mean().item(), abs=0.3)
        assert values.std() == pytest.approx(spread, rel=0.1)
    m = torch.from_numpy(posterior["posterior"]["m"].values[0])
    log_p = dist.Normal(0.0, 50.0).log_prob(m) + dist.Normal(m[:, None], spread).log_prob(x).sum(1)
    got = torch.from_numpy(posterior["sample_stats"]["log_p"].values[0])
    torch.testing.assert_close(got.float(), log_p, atol=1e-3, rtol=0)
    assert list(pyro.get_param_store().keys()) == store
    assert ("spread" in store) is (train is by_pyro)


@pytest.mark.parametrize("train", [None, by_pyro, by_fit])
@pytest.mark.parametrize("kind", [Spread, Methods, MethodsOfModule])
def test_a_model_with_statements_under_mcmc(kind, train):
    """`log_p` is of the parameters that the sampler had, in whatever store they are."""
    x, both = SPREAD[4.0], kind()
    model, guide = (both, Loc()) if kind is Spread else (both.model, both.guide)
    if train:
        train(model, guide, x)
    model = both if kind is Spread else both.model
    mcmc = MCMC(NUTS(model), 5, 5, disable_progbar=True)
    mcmc.run(x)
    spread = poutine.trace(model).get_trace(x).nodes["x"]["fn"].scale.mean().item()
    data = from_pyro_mcmc(mcmc)
    m = torch.from_numpy(data["posterior"]["m"].values[0])
    log_p = dist.Normal(0.0, 50.0).log_prob(m) + dist.Normal(m[:, None], spread).log_prob(x).sum(1)
    got = torch.from_numpy(data["sample_stats"]["log_p"].values[0])
    torch.testing.assert_close(got.float(), log_p, atol=1e-3, rtol=0)
    new = predict(model, data, size=200, seed=0)["predictions"]["x"].values
    assert new.std() == pytest.approx((spread**2 + m.var().item()) ** 0.5, rel=0.1)


def test_parameters_of_mcmc_that_are_gone():
    mcmc = MCMC(NUTS(Spread()), 5, 5, disable_progbar=True)
    mcmc.run(FEW)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"parameter 'spread'.*would be made anew.*num_chains=1"):
        from_pyro_mcmc(mcmc)


def test_what_is_held_stays_held():
    """A parameter of a guide that Pyro had called, and that is not to be trained."""
    guide = AutoNormal(counts)
    guide(FEW)
    held = guide.scales.rate_unconstrained.requires_grad_(False).clone()
    fit(elbo(counts, guide), FEW, epochs=3, lr=0.1, progress=False)
    assert torch.equal(guide.scales.rate_unconstrained, held)
