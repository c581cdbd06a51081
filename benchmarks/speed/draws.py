"""The time of draws: of latents of rows, by bounds and evidences, of images, and of diffusion.

python -m benchmarks.speed.draws                 # some minutes on one core
python -m benchmarks.speed.draws --only iwae

First deciles of CPU time over rounds, the ways in turns, after a warm-up; times of the first way.
"By hand" is PyTorch without Pyro, for the same numbers: it encodes each row once, too. "All rows"
has networks run on all tiled rows, "a pass" each pixel by a pass over the image, "compiled" the
steps as compiled code, after a first draw that makes it. Weights are not trained: draws take as
long from any.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import measure
from benchmarks.speed.steps import regression
from guides import AmortizedNormal
from ppl_models import (
    MADE,
    VAE,
    Diffusion,
    PixelCNN,
    PixelRNN,
    elbo,
    fit,
    from_pyro_svi,
    iwae,
    log_evidence,
)
from ppl_models.autoregressive.model import AutoregressiveModel
from ppl_models.diffusion.samplers import ancestral, heun
from ppl_models.infer.programs.once import Once
from ppl_models.nn import TimeMLP, UNet

Works = dict[str, Callable[[], Any]]


class Passes(nn.Module):
    """A causal network without a walk, so that each pixel of a draw costs a pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def all_rows(apart: bool) -> Any:
    return mock.patch.object(Once, "holds", return_value=False) if apart else nullcontext()


def log_weights(vae: VAE, guide: AmortizedNormal, x: Tensor, parameters: Any, draws: int) -> Tensor:
    """Those of a Bernoulli VAE, up to a constant, by hand, (S, B)."""
    loc, log_scale = parameters
    noise = torch.randn(draws, *loc.shape)
    z = loc + log_scale.exp() * noise
    logits = vae.decoder(z.flatten(0, 1)).unflatten(0, (draws, -1))
    log_p = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return log_p.sum(-1) - z.square().sum(-1) / 2 + (noise.square() / 2 + log_scale).sum(-1)


def iwae_steps(features: int, latents: int, rows: int, particles: int) -> Works:
    vae, guide = VAE(features, latents), AmortizedNormal(features, latents)
    x = torch.bernoulli(torch.full((rows, features), 0.5))
    parameters = [*vae.parameters(), *guide.parameters()]

    def objective(apart: bool) -> Callable[[], Any]:
        bound = iwae(vae, guide, particles)
        with all_rows(apart):
            bound.loss(x, size=rows)
        return lambda: torch.autograd.grad(bound.loss(x, size=rows), parameters)

    def by_hand() -> Any:
        weights = log_weights(vae, guide, x, guide.encoder(x).chunk(2, -1), particles)
        return torch.autograd.grad(-weights.logsumexp(0).mean(), parameters)

    return {"rows once": objective(False), "all rows": objective(True), "by hand": by_hand}


def evidences(draws: int) -> Works:
    vae, guide = VAE(64, 8), AmortizedNormal(64, 8)
    x = torch.bernoulli(torch.full((1000, 64), 0.5))

    def evidence(apart: bool) -> Any:
        with all_rows(apart):
            return log_evidence(vae, guide, x, num_samples=draws, seed=0)

    @torch.no_grad()
    def by_hand() -> Tensor:
        encoded = guide.encoder(x).chunk(2, -1)
        parts = [log_weights(vae, guide, x, encoded, 4) for _ in range(draws // 4)]
        return torch.cat(parts).logsumexp(0)

    return {
        "rows once": lambda: evidence(False),
        "all rows": lambda: evidence(True),
        "by hand": by_hand,
    }


def of_shared_latents(draws: int) -> Iterator[tuple[str, Works]]:
    x = torch.randn(256, 8)
    data, guide = (x, x.sum(1)), AutoNormal(regression)
    fit(elbo(regression, guide), data, steps=2, progress=False, seed=0)
    for function in (log_evidence, from_pyro_svi):

        def work(function: Callable[..., Any] = function) -> Any:
            return function(regression, guide, *data, num_samples=draws, seed=0)

        yield f"{function.__name__}, regression, {draws} draws", {"as it comes": work}


def images(model: AutoregressiveModel, passes: bool, rows: int) -> Works:
    works = {
        "as it comes": lambda: model.evidence().sample((rows,)),
        "compiled": lambda: model.evidence().sample((rows,), compile=True),
    }
    if passes:
        plain = AutoregressiveModel(Passes(model.network), model.likelihood, model.num_features)
        works["a pass"] = lambda: plain.evidence().sample((64,))
    return works


def diffusion(sampler: Any, network: nn.Module, features: int, rows: int) -> Works:
    model = Diffusion(features, network, num_steps=100)
    calls = 199 if sampler is heun else 100
    z, log_snr = torch.randn(rows, features), torch.zeros(rows)

    @torch.no_grad()
    def alone() -> None:
        for _ in range(calls):
            model.network(z, log_snr)

    return {
        "as it comes": lambda: model.sample(rows, sampler),
        "compiled": lambda: model.sample(rows, sampler, compile=True),
        "its network alone": alone,
    }


def samplers() -> Iterator[tuple[str, Works]]:
    for rows in (1, 64):
        for size, model in ((64, MADE(64)), (784, MADE(784))):
            yield f"MADE, {rows} x {size}", images(model, rows == 64, rows)
        for kind in (PixelCNN, PixelRNN):
            for side in (8, 28):
                model = kind(side, side)
                passes = rows == 64 and side == 8
                yield f"{kind.__name__}, {rows} of {side} x {side}", images(model, passes, rows)
        by_rows = PixelRNN(28, 28, order="row")
        yield f"PixelRNN by rows, {rows} of 28 x 28", images(by_rows, False, rows)
        for size in (64, 784):
            for sampler in (ancestral, heun):
                network = TimeMLP(size, size)
                name = f"diffusion, TimeMLP, {rows} x {size}, 100 steps, {sampler.__name__}"
                yield name, diffusion(sampler, network, size, rows)
        for side in (8, 28):
            network = UNet((side, side), channels=(16, 32))
            name = f"diffusion, UNet (16, 32), {rows} of {side} x {side}, 100 steps, ancestral"
            yield name, diffusion(ancestral, network, side**2, rows)


def cases() -> Iterator[tuple[str, Works]]:
    for size in ((64, 8, 64), (784, 50, 128)):
        for particles in (5, 50):
            name = f"iwae, VAE of {size[0]} features, B={size[2]}, K={particles}, a gradient"
            yield name, iwae_steps(*size, particles)
    for draws in (100, 1000):
        yield f"log_evidence, VAE, 1,000 x 64, {draws} draws", evidences(draws)
        yield from of_shared_latents(draws)
    yield from samplers()


def timed(works: Works, rounds: int) -> dict[str, float]:
    """The first decile of the CPU time of each way, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if turn:
                times[name].append(time.process_time() - began)
    return {name: float(np.quantile(values, 0.1)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # of draws that carry little weight: nothing is trained
    torch.manual_seed(0)
    print(measure.heading("cpu"))
    for name, works in cases():
        if not name.startswith(tuple(args.only)):
            continue
        found = timed(works, args.rounds)
        first = next(iter(found.values()))
        others = [f"{way} {value / first:.2f} x" for way, value in found.items()]
        print(f"| {name} | {1e3 * first:.1f} ms | {', '.join(others[1:])} |", flush=True)


if __name__ == "__main__":
    main()
