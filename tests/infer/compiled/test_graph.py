"""Compiled objectives: the same loss and gradient as the program, or the program itself."""

import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

from guides import AmortizedNormal, ExactPosterior
from ppl_models import MADE, VAE, FactorAnalysis, data_plate, elbo, fit, iwae
from ppl_models.infer.compiled import graph as compiling
from ppl_models.infer.compiled.graph import Compiled
from ppl_models.infer.compiled.traced import tracing
from ppl_models.infer.training.batches import Batch
from ppl_models.infer.training.descent import Descent
from ppl_models.nn import MLP
from tests.support.oracles import state

pytestmark = pytest.mark.usefixtures("graphs_as_traced")
X = torch.randn(40, 3)


@pytest.fixture(autouse=True)
def step_by_step(monkeypatch):
    """Losses are the subject here; blocks of steps are that of `training/test_blocks.py`."""
    monkeypatch.setattr("ppl_models.infer.training.choice.blocks_of", lambda *_, **__: None)


def regression(x, y=None, size=None):
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights, scale), obs=y)


def mixture(x=None, size=None):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        return pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)


def noisy():
    encoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4))
    return elbo(VAE(3, 2, decoder=MLP(2, 3, (8,), dropout=0.2)), AmortizedNormal(3, 2, encoder))


def with_parameters(x=None, size=None):
    loc = pyro.param("loc", torch.zeros(3))
    scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


BINARY = (X > 0).float()
OBJECTIVES = {
    "regression, AutoNormal": (lambda: elbo(regression, AutoNormal(regression)), (X, X.sum(1))),
    "regression, AutoMultivariateNormal": (
        lambda: elbo(regression, AutoMultivariateNormal(regression)),
        (X, X.sum(1)),
    ),
    "mixture, enumerated": (
        lambda: elbo(mixture, AutoNormal(poutine.block(mixture, hide=["z"]))),
        (X,),
    ),
    "VAE": (lambda: elbo(VAE(3, 2), AmortizedNormal(3, 2)), (BINARY,)),
    "VAE, batch normalisation and dropout": (noisy, (BINARY,)),
    "iwae": (lambda: iwae(VAE(3, 2), AmortizedNormal(3, 2), 5), (BINARY,)),
    "factor analysis": (lambda: exact(FactorAnalysis(3, 2)), (X,)),
    "MADE": (lambda: elbo(MADE(3)), (BINARY,)),
    "pyro.param": (lambda: elbo(with_parameters), (X,)),
}


def exact(model):
    return elbo(model, ExactPosterior(model))


def descents(make, data, size=None):
    """The same objective eager and compiled, after a start."""
    both = []
    batch = Batch(data, torch.arange(len(data[0])), size or len(data[0]))
    for compiled in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        descent = Descent(make(), batch, lr=1e-2, compile=compiled)
        both.append(descent)
    return both, batch


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_and_the_gradient_are_those_of_the_program(name):
    make, data = OBJECTIVES[name]
    pyro.clear_param_store()
    torch.manual_seed(0)
    objective = make()
    batch = Batch(data, torch.arange(40), 400)
    descent = Descent(objective, batch, compile=True)
    for module in descent.modules():
        module.train()
    results = []
    parameters = [p for _, p in objective.named_parameters()]
    compiled = descent._loss(0, batch)
    assert descent.compiled[0].reason is None
    for loss in (lambda: descent.evaluate(objective, batch), lambda: descent._loss(0, batch)):
        torch.manual_seed(1)
        value = loss()
        results.append((value, *torch.autograd.grad(value, parameters, allow_unused=True)))
    for eager, other in zip(*results, strict=True):
        assert (eager is None and other is None) or torch.equal(eager, other)
    torch.manual_seed(2)
    assert not torch.equal(compiled, descent._loss(0, batch)) or name in (
        "factor analysis",
        "MADE",
        "pyro.param",
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_fit_is_the_same_bit_for_bit(name):
    make, data = OBJECTIVES[name]
    ends = []
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        objective = make()
        run = fit(objective, data, epochs=3, batch_size=16, lr=1e-2, seed=0, compile=compile)
        values = [p.detach().clone() for _, p in objective.named_parameters()]
        ends.append((run.history["loss"], values, state(*objective.modules().values())))
    assert ends[0][0] == ends[1][0]
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(v, ends[1][2][k]) for k, v in ends[0][2].items())


def test_a_module_that_the_program_moves_is_one_graph(monkeypatch):
    """`Module.to` asks questions whose answers are no tensors; the compiler would stop at each."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: given.append(graph) or graph)
    decoder = nn.Linear(2, 3)

    def model(x=None, size=None):
        pyro.module("decoder", decoder.to(x.device))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            torch.rand(2)  # no use, but what is drawn later depends on it
            return pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    guide = AmortizedNormal(3, 2)
    found, compiled = losses(elbo(model, guide), (BINARY,))
    assert compiled.reason is None
    assert "shallow" not in given[0].code
    assert "rand." in given[0].code
    assert found == losses(elbo(model, guide), (BINARY,), compiled=False)[0]


# --- what a trace would hold fast, or cannot hold ---------------------------------------------


def losses(objective, data, steps=4, changes=None, compiled=True):
    """The losses of some steps, without a step of the optimiser, each from the same draws."""
    batch = Batch(data, torch.arange(len(data[0])), len(data[0]))
    descent = Descent(objective, batch, compile=compiled)
    found = []
    for step in range(steps):
        if changes is not None:
            changes(step)
        torch.manual_seed(step)
        found.append(descent._loss(0, batch).item())
    return found, descent.compiled[0]


class Weighted(nn.Module):
    """A program whose density counts for as much as a plain number says."""

    def __init__(self):
        super().__init__()
        self.weight = 1.0
        self.loc = nn.Parameter(torch.zeros(3))

    def forward(self, x=None, size=None):
        with data_plate(x, size), poutine.scale(scale=self.weight):
            return pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)


def test_a_number_that_changes_is_traced_anew():
    results = []
    for compiled in (False, True):
        model = Weighted()

        def change(step, model=model):
            model.weight = 1.0 + step // 2

        found, trace = losses(elbo(model), (X,), changes=change, compiled=compiled)
        results.append(found)
    assert results[0] == results[1]
    assert results[0][2] == pytest.approx(2 * results[0][0])
    assert trace.traced == 2
    assert trace.reason is None


def test_a_number_in_a_closure_that_changes_is_traced_anew():
    scale = 1.0

    def model(x=None, size=None):
        loc = pyro.param("closure_loc", torch.zeros(3))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def change(step):
        nonlocal scale
        scale = 1.0 + step

    found, trace = losses(elbo(model), (X,), steps=3, changes=change)
    expected = [-dist.Normal(0.0, 1.0 + step).log_prob(X).sum(1).mean().item() for step in range(3)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert trace.reason is None


def test_a_parameter_that_is_replaced_is_read_anew():
    def model(x=None, size=None):
        loc = pyro.param("replaced", torch.zeros(3))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    pyro.clear_param_store()

    def change(step):
        if step == 2:
            pyro.get_param_store()["replaced"] = torch.ones(3)

    found, _ = losses(elbo(model), (X,), changes=change)
    expected = [-dist.Normal(float(n), 1.0).log_prob(X).sum(1).mean().item() for n in (0, 1)]
    assert found == pytest.approx([expected[0]] * 2 + [expected[1]] * 2, rel=1e-5)


def test_a_number_of_the_objective_is_watched():
    objective = iwae(VAE(3, 2), AmortizedNormal(3, 2), 3)

    def change(step):
        objective.num_particles = 3 if step < 2 else 30

    found, trace = losses(objective, (BINARY,), changes=change)
    expected, _ = losses(objective, (BINARY,), changes=change, compiled=False)
    assert found == expected
    assert trace.traced == 2


def test_a_parameter_of_a_module_that_is_replaced_is_read_anew():
    model = Weighted()

    def change(step):
        model.loc = nn.Parameter(torch.full((3,), float(step // 2)))

    found, _ = losses(elbo(model), (X,), changes=change)
    expected = [-dist.Normal(float(n), 1.0).log_prob(X).sum(1).mean().item() for n in (0, 1)]
    assert found == pytest.approx([expected[0]] * 2 + [expected[1]] * 2, rel=1e-5)


def test_the_mode_of_a_module_is_watched():
    model = VAE(3, 2, decoder=MLP(2, 3, (8,), dropout=0.5))
    objective = elbo(model, AmortizedNormal(3, 2))

    def change(step):
        model.train(step < 2)

    torch.manual_seed(0)
    found, trace = losses(objective, (BINARY,), changes=change)
    again, _ = losses(objective, (BINARY,), changes=change, compiled=False)
    assert found == again
    assert trace.traced == 2


def branches(x=None, size=None):
    z = pyro.sample("z", dist.Normal(pyro.param("where", torch.zeros(())), 1.0))
    loc = z if z > 0 else -2 * z
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 1.0).expand([3]).to_event(1), obs=x)


def sites(x=None, size=None):
    loc = pyro.param("start", torch.zeros(()))
    for n in range(int(torch.randint(1, 5, ()))):
        loc = loc + pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 1.0).expand([3]).to_event(1), obs=x)


class Counting(nn.Module):
    """A program that weighs its loss by how often it ran."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.loc = nn.Parameter(torch.zeros(3))

    def forward(self, x=None, size=None):
        self.calls += 1
        with data_plate(x, size), poutine.scale(scale=1.0 + self.calls):
            return pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)


class Noting(Weighted):
    """A program that keeps a count which changes nothing."""

    def forward(self, x=None, size=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x, size)


REFUSED = {
    "a count that changes nothing": (
        lambda: elbo(Noting()),
        "numbers or tensors of its own",
    ),
    "an if on a value": (
        lambda: elbo(branches, AutoNormal(branches)),
        r"cannot be traced at .*test_graph.py:\d+, 'loc = z if z > 0 else -2 \* z'",
    ),
    "a random number of sites": (lambda: elbo(sites), "the graph is another with other draws|int"),
    "a count of calls": (lambda: elbo(Counting()), "other draws|numbers of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_stands_for_runs_eagerly_and_says_so(name):
    make, message = REFUSED[name]
    results = []
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        if compile:
            with pytest.warns(UserWarning, match="runs eagerly, not compiled: ") as said:
                run = fit(make(), X, epochs=3, lr=1e-2, seed=0, compile=True)
            assert len(said) == 1
            assert re.search(message, str(said[0].message)), said[0].message
        else:
            run = fit(make(), X, epochs=3, lr=1e-2, seed=0, compile=False)
        results.append(run.history["loss"])
    if name != "a count of calls":  # looking at it counts, too
        assert results[0] == results[1]


def test_code_of_torch_script():
    """Which cannot be looked into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = torch.jit.script(nn.Linear(2, 3))

    with pytest.warns(UserWarning, match="runs eagerly, not compiled: it cannot be traced"):
        fit(elbo(VAE(3, 2, decoder=decoder), AmortizedNormal(3, 2)), BINARY, epochs=2, compile=True)


HELD = torch.ones(4, dtype=torch.float64)


def holding(x=None, size=None):
    """Writes into a part of a tensor that it holds, which torch's compiler gets wrong."""
    HELD[1:].mul_(0.99)
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc.expand(4), HELD + 0).to_event(1), obs=x)


def test_code_that_writes_elsewhere_is_found():
    x, ends = torch.randn(20, 4, dtype=torch.float64), []
    for compile in (False, True):
        pyro.clear_param_store()
        HELD.fill_(1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it runs as traced
            run = fit(elbo(holding), x, steps=8, lr=0.01, seed=3, compile=compile)
        ends.append((run.history["loss"], HELD.tolist()))
    for a, b in zip(*ends, strict=True):
        assert a == pytest.approx(b, rel=1e-12)


def test_batches_of_ever_new_shapes_are_bounded():
    model = FactorAnalysis(3, 2)
    batches = [Batch((X[:n],), torch.arange(n), 40) for n in range(2, 30)]
    descent = Descent(exact(model), batches[0], compile=True)
    with pytest.warns(UserWarning, match="batches or constants of 8 kinds"):
        found = [descent._loss(0, batch).item() for batch in batches]
    expected = [descent.evaluate(descent.objectives[0], batch).item() for batch in batches]
    assert found == pytest.approx(expected, rel=1e-5)


def wrong_loss(graph):
    return lambda *x: graph(*x) * 1.01


def wrong_gradient(graph):
    return lambda *x: graph(*x).detach() + (loss := graph(*x)) * 0.9 - (loss * 0.9).detach()


def no_compiler(graph):
    def run(*inputs):
        raise RuntimeError("No working C++ compiler found")

    return run


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (no_compiler, r"not compiled: it cannot be compiled \(RuntimeError: No working C\+\+"),
        (wrong_loss, "the code of the compiler is wrong: its graph has another loss than the pro"),
        (wrong_gradient, "the code of the compiler is wrong: its graph has another gradient"),
    ],
)
def test_without_a_compiler_that_is_right_graphs_run_as_traced(compiler, message, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: calls.append(1) or compiler(graph))
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        model, settings = FactorAnalysis(3, 2), {"epochs": 3, "batch_size": 16, "seed": 0}
        if compile:
            with pytest.warns(UserWarning, match=message) as said:
                run = fit(exact(model), X, compile=True, **settings)
            assert len(said) == 1  # though the last batch, of another size, is a graph of its own
        else:
            run = fit(exact(model), X, **settings)
        results.append((run.history["loss"], [p.detach() for p in model.parameters()]))
    assert len(calls) == 1
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


@pytest.mark.parametrize("slope", [1e-6, 1e-3])
def test_at_an_optimum_the_gradient_is_rounding(slope, monkeypatch):
    """And may differ by as much; more is an error there, too."""
    loc = nn.Parameter(torch.tensor(100.0))

    def model(x=None, size=None):
        pyro.module("held", held)
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(held.loc, 1.0), obs=x)

    held = nn.Module()
    held.loc = loc
    x = 100 + torch.randn(1000)
    with torch.no_grad():
        loc.copy_(x.mean())

    def compiler(graph):
        return lambda *inputs: graph(*inputs) + slope * (loc - loc.detach())

    monkeypatch.setattr(torch, "compile", lambda graph, **_: compiler(graph))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        before = loc.item()
        _, compiled = losses(elbo(model), (x,), steps=2)
    assert loc.item() == before
    assert compiled.without_compiler == (slope > 1e-4)
    assert len(said) == (slope > 1e-4)


@pytest.mark.parametrize("amp", [False, True])
def test_half_precision_differs_by_its_own_rounding(amp, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: lambda *x: graph(*x) * 1.005)
    objective = elbo(VAE(3, 2), AmortizedNormal(3, 2))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(objective, BINARY, steps=2, seed=0, compile=True, amp=amp)
    assert len(said) == (not amp)
    assert all("the code of the compiler is wrong" in str(w.message) for w in said)


def test_wrong_traces_are_not_used(monkeypatch):
    tidy = tracing.tidy

    def spoilt(graph, *rest):
        tidy(graph, *rest)
        forward = graph.forward
        graph.forward = lambda *x: forward(*x) * 1.01

    monkeypatch.setattr(tracing, "tidy", spoilt)
    with pytest.warns(UserWarning, match="eagerly, not compiled: its graph has another loss"):
        fit(exact(FactorAnalysis(3, 2)), X, epochs=3, seed=0, compile=True)


def test_a_graph_is_compared_again(monkeypatch):
    """What nothing watches, here an entry of a very long list, is found later."""
    monkeypatch.setattr(compiling, "CHECK_EVERY", 3)
    settings = [1.0] * 20_000

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))

        def forward(self, x=None, size=None):
            with data_plate(x, size):
                density = dist.Normal(self.loc, settings[7])
                return pyro.sample("x", density.to_event(1), obs=x)

    def change(step):
        settings[7] = 1.0 if step < 2 else 2.0

    with pytest.warns(UserWarning, match=r"after \d steps its graph has another loss") as said:
        found, _trace = losses(elbo(Hidden()), (X,), steps=8, changes=change)
    assert "those since then may have been wrong" in str(said[0].message)
    assert found[0] != found[6] == found[7]


def test_losses_are_compiled_where_that_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Compiled, "__call__", lambda self, f, x, *_: asked.append(1) or f(*x))
    path = tmp_path / "run.safetensors"

    def run(epochs, **options):
        asked.clear()
        torch.manual_seed(0)
        objective = exact(FactorAnalysis(3, 2))
        fit(objective, X, epochs=epochs, batch_size=20, seed=0, checkpoint=path, **options)
        return len(asked)

    assert run(2) == 0  # 4 steps
    assert run(4, resume=True) == 0  # 8
    path.unlink()
    assert run(3, compile=True) == 6
    assert run(4, resume=True, compile=True) == 2
    with pytest.raises(ValueError, match=r"compile=True, now False.*try the same settings"):
        run(5, resume=True, compile=False)
    for given in ("yes", None):
        with pytest.raises(ValueError, match="compile: expected"):
            run(5, compile=given)


def test_a_compiled_run_that_was_interrupted_goes_on_bit_for_bit(tmp_path):
    def run(epochs, **options):
        torch.manual_seed(0)
        objective = noisy()
        run = fit(objective, BINARY, epochs=epochs, batch_size=16, seed=0, compile=True, **options)
        return run.history["loss"], state(*objective.modules().values())

    whole = run(5)
    path = tmp_path / "run.safetensors"
    run(2, checkpoint=path)
    parts = run(5, checkpoint=path, resume=True)
    assert whole[0] == parts[0]
    assert all(torch.equal(v, parts[1][k]) for k, v in whole[1].items())


def test_bfloat16():
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        objective = elbo(VAE(3, 2), AmortizedNormal(3, 2))
        run = fit(objective, BINARY, epochs=3, batch_size=20, seed=0, amp=True, compile=compile)
        histories.append(run.history["loss"])
    assert histories[0] == pytest.approx(histories[1], rel=1e-2)


def fault_of_the_compiler():
    """Why it fails even at a sum of exponentials and its slope, which are not ours; or None."""
    x = torch.linspace(-1, 1, 40, requires_grad=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = torch.compile(lambda x: x.exp().sum(), dynamic=False)(x)
            (slope,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(slope, x.exp())
    except Exception as error:  # whatever hinders it: no C++, or wrong code for this processor
        lines = f"{type(error).__name__}: {error}".splitlines()
        return next((line for line in lines if "error:" in line), lines[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_real_compiler(monkeypatch):
    monkeypatch.undo()
    if fault := fault_of_the_compiler():
        pytest.skip(f"the compiler of torch fails here at a sum of exponentials: {fault}")
    torch.manual_seed(0)
    objective = elbo(regression, AutoNormal(regression))
    eager, trace = losses(objective, (X, X.sum(1)), compiled=False)
    found, trace = losses(objective, (X, X.sum(1)))
    assert trace.reason is None
    assert found == pytest.approx(eager, rel=1e-5)
    assert pyro.settings.get("validate_distributions_torch")
