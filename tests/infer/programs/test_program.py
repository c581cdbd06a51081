"""Programs of every Pyro style: their parameters, their modules, and what they are called with."""

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, elbo, fit, log_evidence
from tests.support.oracles import binary, same
from tests.support.programs import (
    FUNCTIONS,
    OWNED,
    Case,
    functions,
    modules,
    params_in_forward,
)
from tests.support.refusals import Refused, vae
from tests.support.runs import quiet


def snapshot(objective: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in objective.named_parameters()}


def prepared(case: Case) -> Any:
    objective = elbo(case.model, case.guide)
    batch = case.data if isinstance(case.data, tuple) else (case.data,)
    objective.prepare(*batch, size=len(batch[0]))
    return objective


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
    x = binary(11)
    pyro.set_rng_seed(7)
    loss = objective.loss(x, size=len(x))
    (gradient,) = torch.autograd.grad(loss, shared)
    pyro.set_rng_seed(7)
    assert [id(p) for _, p in objective.named_parameters()] == [id(shared)]
    quiet(objective, x, steps=1, lr=1.0, optimizer=sgd, seed=7)
    assert shared.detach().norm() > 0
    assert gradient.norm() > 0


def test_labels_for_programs_that_take_none():
    pair = vae()
    message = r"model: each batch has 2 tensor\(s\), and model\(x: .*without labels"
    with Refused(TypeError, message, *pair):
        quiet(elbo(*pair), (torch.ones(9, 4), torch.ones(9)), steps=2)


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
    with pytest.raises(TypeError, match=r"guide: expected .* got the class AmortizedNormal"):
        elbo(vae()[0], AmortizedNormal)


def indirect():
    """A function that reaches its net through a list."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))]

    def model(x=None, size=None):
        pyro.module("net", nets[0])
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=nets[0](z)).to_event(1), obs=x)

    return model, nets[0]


def test_modules_that_a_function_reaches_indirectly_are_evaluated():
    model, net = indirect()
    guide, x = AmortizedNormal(4, 2), binary()
    before = net[1].running_mean.clone()
    a, b = (log_evidence(model, guide, x, num_samples=5, seed=1).mean for _ in range(2))
    assert a == b
    assert torch.equal(net[1].running_mean, before)
    assert net.training
    assert net[2].training


def test_buffers_of_such_modules_are_resumed(tmp_path):
    def run(steps, **options):
        pyro.clear_param_store()
        model, net = indirect()
        torch.manual_seed(1)
        guide = AmortizedNormal(4, 2)
        fit(elbo(model, guide), binary(), steps=steps, batch_size=5, seed=0, **options)
        return net

    whole = run(12)
    path = tmp_path / "run"
    run(6, checkpoint=path)
    resumed = run(12, checkpoint=path, resume=True)
    assert not whole.training
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
