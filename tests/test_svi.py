"""The drop-in `SVI`: Pyro's losses and parameters, for programs as its tutorials write them."""

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import constraints

from ppl_models.engine.svi import SVI


@pytest.fixture(autouse=True)
def _small_compiler(monkeypatch):
    """Graphs run as they are: a compiler takes seconds for each."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)


X = torch.randn(30, 3)
Y = X.sum(1) + 0.3 * torch.randn(30)
EFFECTS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
COUNTS = torch.poisson(torch.full((20, 6), 3.0))
SEQUENCES = (torch.rand(6, 5) < 0.5).float()
WORDS = torch.randint(8, (12, 4))


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[z], scale), obs=x)


def eight_schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(mu + tau * theta, sigma), obs=y)


def hidden_markov(sequences):
    with poutine.mask(mask=torch.tensor(True)):
        moves = pyro.sample("moves", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
        shows = pyro.sample("shows", dist.Beta(torch.tensor([2.0, 5.0]), 3.0).to_event(1))
    with pyro.plate("sequences", len(sequences), dim=-1):
        state = 0
        for t in pyro.markov(range(sequences.shape[1])):
            state = pyro.sample(
                f"state_{t}", dist.Categorical(moves[state]), infer={"enumerate": "parallel"}
            )
            pyro.sample(f"x_{t}", dist.Bernoulli(shows[state]), obs=sequences[:, t])


def allocation(words):
    """Latent Dirichlet allocation of words given in rows, `(words, documents)`."""
    with pyro.plate("topics", 3):
        topics = pyro.sample("topic_words", dist.Dirichlet(torch.ones(8) / 8))
    with pyro.plate("documents", words.shape[1]):
        shares = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(3) / 3))
        with pyro.plate("words", words.shape[0]):
            topic = pyro.sample(
                "word_topics", dist.Categorical(shares), infer={"enumerate": "parallel"}
            )
            pyro.sample("doc_words", dist.Categorical(topics[topic]), obs=words)


def allocation_guide(words):
    topics = pyro.param("topics_q", torch.ones(3, 8) / 8, constraint=constraints.simplex)
    shares = pyro.param("shares_q", torch.ones(4, 3) / 3, constraint=constraints.simplex)
    with pyro.plate("topics", 3):
        pyro.sample("topic_words", dist.Delta(topics, event_dim=1))
    with pyro.plate("documents", words.shape[1]):
        pyro.sample("doc_topics", dist.Delta(shares, event_dim=1))


def sparse_gamma(counts):
    with pyro.plate("weights", 12):
        weights = pyro.sample("w", dist.Gamma(0.3, 0.1))
    with pyro.plate("rows", len(counts)):
        latents = pyro.sample("z", dist.Gamma(0.3, 0.3).expand([2]).to_event(1))
        means = latents @ weights.reshape(2, 6)
        pyro.sample("x", dist.Poisson(means + 1e-3).to_event(1), obs=counts)


def encoder_and_decoder():
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def with_guide(model, guide):
    return model, guide(model)


def summed_out(model, *names):
    enumerated = pyro.infer.config_enumerate(model)
    return enumerated, AutoNormal(poutine.block(enumerated, hide=list(names)))


PROGRAMS = {
    "Bayesian regression": (lambda: with_guide(Regression(), AutoDiagonalNormal), 0, (X, Y)),
    "Gaussian mixture": (lambda: summed_out(mixture, "assignment"), 1, (Y,)),
    "variational autoencoder": (encoder_and_decoder, 0, ((X > 0).float(),)),
    "eight schools": (lambda: with_guide(eight_schools, AutoNormal), 0, (ERRORS, EFFECTS)),
    "hidden Markov model": (
        lambda: summed_out(hidden_markov, *(f"state_{t}" for t in range(5))),
        1,
        (SEQUENCES,),
    ),
    "latent Dirichlet allocation": (lambda: (allocation, allocation_guide), 2, (WORDS,)),
    "sparse gamma": (lambda: with_guide(sparse_gamma, AutoNormal), 0, (COUNTS,)),
}


def run(kind, make, enumerated, data, optim=None, steps=12, loss=None):
    """The losses, the parameters and the optimiser's state after some steps."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide = make()
    loss = loss or (TraceEnum_ELBO(max_plate_nesting=enumerated) if enumerated else Trace_ELBO())
    svi = kind(model, guide, optim or pyro.optim.Adam({"lr": 0.01}), loss)
    losses = [svi.step(*data) for _ in range(steps)]
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return losses, values, svi, svi.optim.get_state()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_the_tutorials_go_as_with_pyro(name):
    losses, values, svi, _ = run(SVI, *PROGRAMS[name])
    expected, others, *_ = run(pyro.infer.SVI, *PROGRAMS[name])
    assert svi._loss.compiled.reason is None
    assert len(svi._loss.compiled.graphs) == 1
    assert losses == pytest.approx(expected, rel=1e-5)
    for key, value in values.items():
        torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)


OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.01, "betas": (0.95, 0.999)}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.01}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-4, "momentum": 0.9}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99}),
    "clipped": lambda: pyro.optim.Adam({"lr": 0.01}, {"clip_norm": 1.0}),
    "by name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "loc" in name else 0.01}),
    "scheduled": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.9}
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_move_as_with_pyro(name):
    program = PROGRAMS["eight schools"]
    losses, values, svi, state = run(SVI, *program, optim=OPTIMIZERS[name]())
    expected, others, _, others_state = run(pyro.infer.SVI, *program, optim=OPTIMIZERS[name]())
    assert losses == pytest.approx(expected, rel=1e-5)
    for key, value in values.items():
        torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)
    assert (svi._merged.optimizer is not None) == (name in ("Adam", "AdamW", "SGD"))
    for key in values if name != "scheduled" else ():
        ours, theirs = (s[key]["state"][0] for s in (state, others_state))
        for a, b in zip(ours.values(), theirs.values(), strict=True):
            torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5)


def test_an_optimiser_of_torch():
    expected = run(pyro.infer.SVI, *PROGRAMS["variational autoencoder"])[0]
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide = encoder_and_decoder()
    modules = [c.cell_contents for f in (model, guide) for c in f.__closure__]
    parameters = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    losses = [svi.step((X > 0).float()) for _ in range(12)]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_an_elbo_that_it_does_not_trace_is_pyros():
    results = [
        run(kind, *PROGRAMS["eight schools"], loss=TraceMeanField_ELBO())[0]
        for kind in (SVI, pyro.infer.SVI)
    ]
    assert results[0] == results[1]


def test_particles_and_arguments_by_name():
    def program(kind):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = AutoNormal(eight_schools)
        loss = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
        svi = kind(eight_schools, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        return [svi.step(ERRORS, y=EFFECTS) for _ in range(5)], svi

    losses, svi = program(SVI)
    assert losses == pytest.approx(program(pyro.infer.SVI)[0], rel=1e-5)
    assert svi._loss.compiled.reason is None
    assert svi.evaluate_loss(ERRORS, y=EFFECTS) > 0


def test_a_program_that_cannot_be_traced_is_pyros():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = z if z > 0 else -2 * z
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))

    make = lambda: with_guide(model, AutoNormal)  # noqa: E731
    with pytest.warns(UserWarning, match="SVI: it runs eagerly, not compiled: it cannot be traced"):
        losses = run(SVI, make, 0, ())[0]
    assert losses == pytest.approx(run(pyro.infer.SVI, make, 0, ())[0], rel=1e-6)
