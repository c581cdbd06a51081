"""What is private to Pyro and torch is still what is said of it."""

import ast
import tomllib
from importlib.metadata import version
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from packaging.requirements import Requirement
from pyro import poutine
from pyro.infer import MCMC, NUTS, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam
from pyro.ops import packed
from torch import Tensor
from torch.distributed._composable_state import _insert_module_state, _State
from torch.distributions import constraints

from ppl_models import data_plate
from ppl_models.infer.programs import pyro_internals as ours
from ppl_models.infer.programs import torch_internals

ROOT = Path(__file__).parents[3]
X = torch.tensor([0.5, -1.0, 2.0])


def coin(x):
    """A latent with no reparameterisation, and rows that depend on it."""
    side = pyro.sample("side", dist.Bernoulli(0.3))
    with pyro.plate("data", len(x)):
        return pyro.sample("x", dist.Normal(side, 1.0), obs=x)


def heads(x):
    pyro.sample("side", dist.Bernoulli(torch.tensor(0.6)))


def evidence():
    sides = torch.stack([dist.Normal(side, 1.0).log_prob(X).sum() for side in (0.0, 1.0)])
    return (torch.tensor([0.7, 0.3]).log() + sides).logsumexp(0)


def enumerated():
    """The traces of the coin with its sides summed out, packed."""
    estimator = TraceEnum_ELBO(max_plate_nesting=1)
    (pair,) = ours.traces(estimator, config_enumerate(coin), lambda x: None, (X,), {})
    return pair


# --- Pyro -----------------------------------------------------------------------------------------


def test_a_module_and_those_within_enter_one_context():
    class Root(PyroModule):
        def __init__(self):
            super().__init__("root")
            self.child = PyroModule[torch.nn.Linear](1, 1)
            self.net = torch.nn.Linear(1, 2)
            self.scale = PyroParam(torch.tensor(2.0), constraint=constraints.positive)

        def forward(self):
            return self.child(torch.ones(1)), self.net(torch.ones(1)), self.scale

    root = Root()
    assert type(ours.context_of(root)) is ours.Context
    assert ours.context_of(root.child) is ours.context_of(root)
    found = ours.registered_parameters(root)
    root()
    assert found.keys() == dict(pyro.get_param_store().named_parameters()).keys()
    for name, entry in found.items():
        assert ours.stored(name) is entry.tensor is entry.holder._parameters[entry.key]
        assert pyro.get_param_store()._constraints[name] is entry.constraint
    ours.forget_in_store("root.scale")
    assert "root.scale" not in pyro.get_param_store()


def test_parameters_stand_in_the_store_for_a_while():
    mine = pyro.param("a", torch.tensor(1.0))
    entries = {n: ours.Stored(torch.zeros(()), constraints.real, None, n) for n in "ab"}
    with ours.in_store(lambda: entries):
        assert (pyro.param("a"), pyro.param("b")) == (0.0, 0.0)
        other = pyro.param("c", torch.tensor(3.0))
    assert pyro.param("a") is mine
    assert pyro.get_param_store().param_name(mine) == "a"
    assert pyro.param("c") is other
    assert set(pyro.get_param_store().keys()) == {"a", "c"}


def test_what_is_reparameterised_looks_observed_until_it_is_marked():
    def model(x):
        pyro.sample("z", dist.Normal(1.0, 2.0))
        pyro.sample("x", dist.Delta(x), obs=x)

    class Mark(poutine.messenger.Messenger):
        def _pyro_sample(self, message):
            ours.mark_reparameterised(message)

    changed = poutine.reparam(model, {"z": LocScaleReparam(0.0)})
    for program, marked in ((model, False), (changed, True)):
        with poutine.trace() as trace, Mark():
            program(X)
        assert ours.is_reparameterised(trace.trace.nodes["x"]) is marked
    site = trace.trace.nodes["z"]
    assert site["is_observed"]
    assert not ours.is_deterministic(site)
    assert site["fn"]._mask is False
    assert site["fn"].base_dist.v is site["value"]


def test_active_handlers_are_those_around_a_program_from_outside_in():
    found = []
    with poutine.block() as outer, poutine.scale(scale=2.0) as inner:
        found += ours.active_handlers()
    assert found == [outer, inner]
    assert list(ours.active_handlers()) == []


def test_a_program_is_found_inside_of_handlers():
    def program(a, b=1):
        return a, b

    assert ours.unhandled(program) is program
    assert ours.unhandled(poutine.block(poutine.scale(program, scale=2.0))) is program
    holder = type("Holder", (), {"method": poutine.block(program)})()
    bound = ours.unhandled(holder.method)
    assert (bound.func, bound.args, bound.keywords) == (program, (holder,), {})
    assert bound(b=2) == (holder, 2)


def test_an_autoguide_notes_the_plates_of_its_model():
    def model(x=None, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoNormal(model)
    assert ours.plate_frames(guide) == {}
    guide(X)
    (frame,) = ours.plate_frames(guide).values()
    assert (frame.name, frame.size, frame.dim, frame.full_size or 3) == ("data", 3, -1, 3)


def test_an_estimator_gives_a_pair_of_traces_for_each_particle():
    pairs = list(ours.traces(Trace_ELBO(num_particles=2), coin, heads, (X,), {}))
    assert len(pairs) == 2
    for model, guide in pairs:
        assert {"side", "x"} <= model.nodes.keys()
        assert model.nodes["side"]["value"] is guide.nodes["side"]["value"]
        assert "log_prob" in model.nodes["x"]


def test_the_ratios_at_a_site_are_those_that_depend_on_it():
    ((model, guide),) = ours.traces(Trace_ELBO(), coin, heads, (X,), {})
    found = ours.log_ratios(model, guide).sum_to(guide.nodes["side"]["cond_indep_stack"])
    torch.testing.assert_close(found, model.log_prob_sum() - guide.log_prob_sum())


def test_the_factors_of_an_enumerated_model_sum_to_its_evidence():
    model, guide = enumerated()
    _, factors, _, summed, scale = ours.model_factors(model, guide)
    assert len(summed) == 1
    assert scale == 1.0
    terms = [packed.unpack(f, model.symbol_to_dim) for fs in factors.values() for f in fs]
    total = sum(t.flatten(1).sum(1) if t.dim() > 1 else t for t in terms)
    torch.testing.assert_close(total.logsumexp(0), evidence())


def test_the_elbo_of_an_enumerated_model_is_its_evidence():
    torch.testing.assert_close(ours.dice_elbo(*enumerated()), evidence())


def test_a_site_says_whether_it_is_deterministic_or_was_enumerated():
    def model():
        pyro.deterministic("twice", torch.tensor(2.0))
        pyro.sample("side", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})

    trace = poutine.trace(model).get_trace()
    assert ours.is_deterministic(trace.nodes["twice"])
    assert not ours.is_deterministic(trace.nodes["side"])
    assert not ours.is_enumerated(trace.nodes["side"])
    trace = poutine.trace(poutine.enum(model, first_available_dim=-1)).get_trace()
    assert ours.is_enumerated(trace.nodes["side"])


def test_a_packed_tensor_has_a_letter_for_each_dimension():
    model, _ = enumerated()
    log_prob = model.nodes["x"]["packed"]["log_prob"]
    assert len(ours.packed_dims(log_prob)) == log_prob.dim() == 2
    assert set(ours.packed_dims(log_prob)) <= model.symbol_to_dim.keys()


def test_the_store_gives_the_unconstrained_parameter_itself():
    positive = torch.distributions.constraints.positive
    value = pyro.param("scale", torch.tensor(3.0), constraint=positive)
    assert ours.stored("scale") is value.unconstrained()
    assert ours.stored("another") is None


def test_a_sampler_keeps_its_draws_and_its_arguments():
    def model(x, scale=1.0):
        pyro.sample("x", dist.Normal(pyro.sample("loc", dist.Normal(0.0, 1.0)), scale), obs=x)

    mcmc = MCMC(NUTS(model), num_samples=4, warmup_steps=2, disable_progbar=True)
    assert ours.run_of(mcmc) == ({}, (), {})
    mcmc.run(X[0], scale=2.0)
    samples, args, kwargs = ours.run_of(mcmc)
    assert samples["loc"].shape == (1, 4)
    assert (args, kwargs) == ((X[0],), {"scale": 2.0})


# --- torch ----------------------------------------------------------------------------------------


asked = []


class Shape(Tensor):
    __torch_function__ = torch_internals.no_torch_function

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        asked.append(func)
        return torch.zeros(2, 3)


def test_a_tensor_of_no_values_says_its_shape_and_is_asked_for_every_operation():
    tensor = torch_internals.tensor_of_no_values(Shape, (2, 3), torch.int64, torch.device("meta"))
    assert (type(tensor), tensor.shape, tensor.dtype) == (Shape, (2, 3), torch.int64)
    assert tensor.device == torch.device("meta")
    torch.add(tensor, 1)
    assert asked == [torch.ops.aten.add.Tensor]


def test_many_tensors_move_at_once():
    tensors, ends = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.full((3,), 5.0)]
    torch_internals.lerp_each_(tensors, ends, 0.25)
    assert [x.tolist() for x in tensors] == [[0.25] * 2, [2.0] * 3]


def test_a_module_is_known_as_sharded_until_it_is_forgotten():
    module, state = torch.nn.Linear(1, 1), _State()
    _insert_module_state(module, state)
    with pytest.raises(AssertionError, match="more than once"):
        _insert_module_state(module, state)
    torch_internals.forget_shards(module)
    _insert_module_state(module, state)


# --- all of them ----------------------------------------------------------------------------------


def files():
    found = [p for f in ("ppl_models", "guides") for p in sorted((ROOT / f).rglob("*.py"))]
    return [p for p in found if p.name != "pyro_internals.py"]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_private_parts_of_pyro_are_used_nowhere_else(path):
    words = ("_PYRO_STACK", "_prototype_frames", "_get_trace", "_get_traces", "_pyro_dims")
    words += ("_deterministic", "_enumerate_dim", "_params", "_samples", "_args", "_kwargs")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pyro":
            assert not [a.name for a in node.names if a.name.startswith("_")]
        if isinstance(node, ast.Attribute):
            assert node.attr not in words
        if isinstance(node, ast.Constant):
            assert node.value not in words


@pytest.mark.parametrize("name", ["pyro-ppl", "torch"])
def test_versions_are_bounded_to_what_is_tested(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = [r for r in map(Requirement, project["dependencies"]) if r.name == name]
    assert {s.operator for s in bound.specifier} == {">=", "<"}
    assert bound.specifier.contains(version(name).split("+")[0])
