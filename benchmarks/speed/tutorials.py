"""Programs of the kind that Pyro's tutorials have, by `pyro.infer.SVI` and by the drop-in `SVI`.

python -m benchmarks.speed.tutorials                       # time of a step, and where each ends
python -m benchmarks.speed.tutorials --device cuda --json tutorials.json

Both take the same steps from the same seed; the losses of compiled code differ by rounding alone,
and so do the ends, which are means over the last tenth of the steps. Milliseconds of a step are
medians over rounds of many, the two ways in turns, after a warm-up.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from benchmarks import measure
from ppl_models import SVI
from ppl_models.scoped import get_rng_state, set_rng_state

Pair = tuple[Callable[..., Any], Callable[..., Any]]


class Program(NamedTuple):
    """A model with its guide, and data. `depth` is that of its plates, where it enumerates."""

    name: str
    make: Callable[[], Pair]
    data: tuple[Tensor, ...]
    depth: int = 0


class Regression(PyroModule):
    """Bayesian linear regression."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](num_features, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, num_features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


def regression(num_features: int) -> Pair:
    model = Regression(num_features)
    return model, AutoDiagonalNormal(model)


def mixture() -> Pair:
    """Two Gaussians; which of them a row came from is summed out."""

    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * x.new_ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(x.new_zeros(()), 10.0))
        scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[z], scale), obs=x)

    return model, AutoNormal(poutine.block(model, hide=["assignment"]))


def autoencoder(num_features: int, num_latents: int, hidden: int, device: str) -> Pair:
    """A VAE, its networks registered by name."""
    encoder = nn.Sequential(
        nn.Linear(num_features, hidden), nn.Softplus(), nn.Linear(hidden, 2 * num_latents)
    )
    decoder = nn.Sequential(
        nn.Linear(num_latents, hidden), nn.Softplus(), nn.Linear(hidden, num_features)
    )
    encoder, decoder = encoder.to(device), decoder.to(device)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(len(x), num_latents), 1.0)
            z = pyro.sample("latent", prior.to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def eight_schools() -> Pair:
    """Effects that are alike, with their own centre and spread."""

    def model(sigma: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0 * y.new_ones(())))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("obs", dist.Normal(mu + tau * theta, sigma), obs=y)

    return model, AutoNormal(model)


def hidden_markov(num_states: int, length: int) -> Pair:
    """Sequences of binary marks, each shown by a state that moves; the states are summed out."""

    @config_enumerate
    def model(sequences: Tensor) -> None:
        moves = 0.9 * torch.eye(num_states, device=sequences.device) + 0.1
        moves = pyro.sample("moves", dist.Dirichlet(moves).to_event(1))
        concentration = torch.linspace(2, 5, num_states, device=sequences.device)
        shows = pyro.sample("shows", dist.Beta(concentration, 3.0).to_event(1))
        with pyro.plate("sequences", len(sequences), dim=-1):
            state: Any = 0
            for t in pyro.markov(range(length)):
                state = pyro.sample(f"state_{t}", dist.Categorical(moves[state]))
                pyro.sample(f"x_{t}", dist.Bernoulli(shows[state]), obs=sequences[:, t])

    hidden = [f"state_{t}" for t in range(length)]
    return model, AutoNormal(poutine.block(model, hide=hidden))


def allocation(num_topics: int, vocabulary: int) -> Pair:
    """Latent Dirichlet allocation of words, `(words, documents)`; topics of words summed out."""

    @config_enumerate
    def model(words: Tensor) -> None:
        flat = torch.ones(vocabulary, device=words.device)
        few = torch.ones(num_topics, device=words.device)
        with pyro.plate("topics", num_topics):
            topics = pyro.sample("topic_words", dist.Dirichlet(flat / vocabulary))
        with pyro.plate("documents", words.shape[1]):
            shares = pyro.sample("doc_topics", dist.Dirichlet(few / num_topics))
            with pyro.plate("words", words.shape[0]):
                topic = pyro.sample("word_topics", dist.Categorical(shares))
                pyro.sample("doc_words", dist.Categorical(topics[topic]), obs=words)

    def guide(words: Tensor) -> None:
        def start(*shape: int) -> Tensor:
            generator = torch.Generator().manual_seed(0)  # equal topics would stay equal
            weights = torch.rand(*shape, generator=generator).to(words.device) + 0.5
            return weights / weights.sum(-1, keepdim=True)

        topics = pyro.param(
            "topics_q", lambda: start(num_topics, vocabulary), constraint=constraints.simplex
        )
        shares = pyro.param(
            "shares_q", lambda: start(words.shape[1], num_topics), constraint=constraints.simplex
        )
        with pyro.plate("topics", num_topics):
            pyro.sample("topic_words", dist.Delta(topics, event_dim=1))
        with pyro.plate("documents", words.shape[1]):
            pyro.sample("doc_topics", dist.Delta(shares, event_dim=1))

    return model, guide


def sparse_gamma(num_latents: int) -> Pair:
    """Counts whose means are products of gamma variables, most of them near zero."""

    def model(counts: Tensor) -> None:
        rate = counts.new_ones(())
        with pyro.plate("weights", num_latents * counts.shape[1]):
            weights = pyro.sample("w", dist.Gamma(0.3 * rate, 0.1))
        with pyro.plate("rows", len(counts)):
            latents = pyro.sample(
                "z", dist.Gamma(0.3 * rate, 0.3).expand([num_latents]).to_event(1)
            )
            means = latents @ weights.reshape(num_latents, -1)
            pyro.sample("x", dist.Poisson(means + 1e-3).to_event(1), obs=counts)

    return model, AutoNormal(model)


def programs(scale: int = 1, device: str = "cpu") -> Iterator[Program]:
    """All of them, on data drawn here; more with a larger `scale`."""
    torch.manual_seed(0)
    x = torch.randn(30 * scale, 3)
    y = x.sum(1) + 0.3 * torch.randn(len(x))
    clusters = torch.cat([torch.randn(15 * scale) - 4, 0.5 * torch.randn(15 * scale) + 3])
    effects = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    errors = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    sequences = (torch.rand(6 * scale, 5) < torch.linspace(0.2, 0.8, 5)).float()
    words = torch.randint(8, (12, 4 * scale))
    counts = torch.poisson(torch.full((20 * scale, 6), 3.0))
    found = (
        Program("Bayesian regression", lambda: regression(3), (x, y)),
        Program("Gaussian mixture", mixture, (clusters,), 1),
        Program(
            "variational autoencoder", lambda: autoencoder(3, 2, 8, device), ((x > 0).float(),)
        ),
        Program("eight schools", eight_schools, (errors, effects)),
        Program("hidden Markov model", lambda: hidden_markov(2, 5), (sequences,), 1),
        Program("latent Dirichlet allocation", lambda: allocation(3, 8), (words,), 2),
        Program("sparse gamma", lambda: sparse_gamma(2), (counts,)),
    )
    for program in found:
        yield program._replace(data=tuple(part.to(device) for part in program.data))


class Way:
    """Steps of one kind of inference, with a parameter store and random numbers of its own."""

    def __init__(self, kind: Callable[..., Any], program: Program) -> None:
        pyro.clear_param_store()
        torch.manual_seed(0)
        depth = program.depth
        loss = TraceEnum_ELBO(max_plate_nesting=depth) if depth else Trace_ELBO()
        self.svi = kind(*program.make(), pyro.optim.Adam({"lr": 0.01}), loss)
        self.data = program.data
        self.losses: list[float] = []
        self._keep()

    def _keep(self) -> None:
        # The tensors themselves: a copy would be other parameters to the optimisers.
        store = pyro.get_param_store()
        self.kept = dict(store._params), dict(store._param_to_name), dict(store._constraints)
        self.rng = get_rng_state(self.data[0].device)

    def run(self, steps: int) -> float:
        """Takes some steps, and returns the seconds of one."""
        store = pyro.get_param_store()
        store._params, store._param_to_name, store._constraints = self.kept
        set_rng_state(self.rng, self.data[0].device)
        took = measure.seconds(
            lambda: self.losses.append(self.svi.step(*self.data)), self.data[0].device, steps
        )
        self._keep()
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--scale", type=int, default=20, help="30 rows of data times this")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="in each round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)

    print(measure.heading(args.device))
    print(f"{'':28}{'pyro.infer.SVI':>16}{'SVI':>12}{'':9}  losses at the end")
    found = []
    for program in programs(args.scale, args.device):
        if not program.name.startswith(tuple(args.only)):
            continue
        ways = {
            "pyro": Way(pyro.infer.SVI, program),
            "ours": Way(partial(SVI, compile=True), program),
        }
        for way in ways.values():
            way.run(20)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                times[name].append(way.run(args.steps))
        medians = {name: statistics.median(values) for name, values in times.items()}
        last = args.rounds * args.steps // 10
        ends = {name: statistics.fmean(way.losses[-last:]) for name, way in ways.items()}
        reason = ways["ours"].svi._loss.compiled.reason
        print(
            f"{program.name:28}{1e3 * medians['pyro']:13.3f} ms{1e3 * medians['ours']:9.3f} ms"
            f"{medians['pyro'] / medians['ours']:7.2f} x  {ends['pyro']:.3f} and {ends['ours']:.3f}"
            + (f", eager: {reason}" if reason else ""),
            flush=True,
        )
        found.append({"name": program.name, "seconds": medians, "ends": ends, "eager": reason})
        measure.write(args.json, args.device, rows=found)


if __name__ == "__main__":
    main()
