"""The time of a training step: loss, gradient and optimiser, several ways in one process.

python -m benchmarks.speed.steps                    # programs of Pyro's kind, some minutes
python -m benchmarks.speed.steps --models           # every kind of objective of the library
python -m benchmarks.speed.steps --streams          # rows from a DataLoader
python -m benchmarks.speed.steps --device cuda --json steps.json

Medians over rounds of many steps each, the ways in turns, after a warm-up in which all is compiled
and recorded; on a GPU each round is waited for. The loss and the gradient of compiled code are
compared with those of the program for the same random numbers. Hand-written PyTorch comes twice
on a GPU: as one writes it, and with the whole step in a CUDA graph, to which the rows are copied.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import JitTrace_ELBO, JitTraceEnum_ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoGuide, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import measure
from guides import AmortizedNormal, ExactPosterior
from ppl_models import (
    GAN,
    MADE,
    SVI,
    VAE,
    AutoEncoder,
    BayesianFactorAnalysis,
    BayesianGaussianMixture,
    Diffusion,
    DomainAdversarial,
    FactorAnalysis,
    GaussianMixture,
    LogisticRegression,
    PixelCNN,
    adversarial,
    data_plate,
    denoising,
    domain_adversarial,
    elbo,
    iwae,
    reconstruction,
)
from ppl_models.infer.training.batches import Batch, Source, source
from ppl_models.infer.training.blocks import blocks_of
from ppl_models.infer.training.descent import Descent
from ppl_models.infer.training.progress import Progress
from ppl_models.likelihoods import Bernoulli, Likelihood, Normal
from ppl_models.nn import MLP


class Case(NamedTuple):
    """A program, as both Pyro and this library take it."""

    name: str
    make: Callable[[], tuple[Any, Any]]  # model and guide
    data: tuple[Tensor, ...]
    enumerated: bool = False
    by_hand: Callable[..., Callable[[], Any]] | None = None


def regression(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
    zero = x.new_zeros(x.shape[1])
    weights = pyro.sample("weights", dist.Normal(zero, 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(zero[0], 1.0))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights, scale), obs=y)


def mixture(x: Tensor, size: int | None = None) -> Tensor:
    zero = x.new_zeros(5, x.shape[1])
    weights = pyro.sample("weights", dist.Dirichlet(zero[:, 0] + 1))
    with pyro.plate("components", 5):
        loc = pyro.sample("loc", dist.Normal(zero, 3.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(zero, 0.5).to_event(1))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        return pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def vae(latents: int, hidden: int) -> tuple[VAE, AmortizedNormal]:
    decoder = MLP(latents, 784, (hidden,))
    encoder = MLP(784, 2 * latents, (hidden,))
    return VAE(784, latents, Bernoulli(), decoder), AmortizedNormal(784, latents, encoder)


def vae_by_hand(rows: Tensor, latents: int, hidden: int, captured: bool = False) -> Callable:
    """A step without Pyro: the same networks and the same loss, one draw of the ELBO."""
    model, guide = (module.to(rows.device) for module in vae(latents, hidden))
    encoder, decoder = guide.encoder, model.decoder
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=captured)
    x = rows.clone() if captured else rows  # what the graph reads

    def step() -> Tensor:
        loc, log_scale = encoder(x).chunk(2, 1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        reconstruction = binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        log_ratio = (-0.5 * z**2 + 0.5 * noise**2 + log_scale).sum()
        loss = (reconstruction - log_ratio) / len(x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    if not captured:
        return step
    replay = measure.captured(step)

    def copied() -> None:
        x.copy_(rows)
        replay()

    return copied


def cases(device: str) -> Iterator[Case]:
    torch.manual_seed(0)
    x = torch.randn(256, 8).to(device)
    y = x.sum(1) + 0.1
    yield Case("regression, AutoNormal", lambda: (regression, AutoNormal(regression)), (x, y))
    joint = AutoMultivariateNormal
    yield Case(
        "regression, AutoMultivariateNormal", lambda: (regression, joint(regression)), (x, y)
    )
    rows = torch.randn(512, 4).to(device)
    guide = partial(lambda: AutoNormal(poutine.block(mixture, hide=["z"])))
    yield Case("mixture, K=5, D=4, 512 rows", lambda: (mixture, guide()), (rows,), True)
    for batch, latents, hidden in ((16, 10, 64), (128, 50, 400)):
        images = torch.bernoulli(torch.rand(batch, 784)).to(device)
        yield Case(
            f"VAE, B={batch}, z={latents}, h={hidden}",
            partial(vae, latents, hidden),
            (images,),
            by_hand=partial(vae_by_hand, images, latents, hidden),
        )


def registered(program: Any) -> Any:
    """A module as Pyro's own SVI takes it, with its parameters in the store."""
    if not isinstance(program, nn.Module) or isinstance(program, AutoGuide):
        return program

    def run(*batch: Tensor) -> Any:
        pyro.module(type(program).__name__, program)
        return program(*batch)

    return run


def descent_of(objective: Any, data: tuple[Tensor, ...], compile: bool) -> Callable[[], Any]:
    batch = Batch(data, torch.arange(len(data[0]), device=data[0].device), len(data[0]))
    descent = Descent(objective, batch, compile=compile)
    for module in descent.modules():
        module.train()
    step = partial(descent.step, batch)
    step.descent, step.batch = descent, batch  # type: ignore[attr-defined]
    return step


class BySource:
    """Steps of a run as `fit` takes them, in blocks or one by one.

    Arguments:
        objective: What is descended.
        rows: Where batches come from.
        compile: Whether steps are compiled.
        in_blocks: Whether they come in blocks.
    """

    def __init__(self, objective: Any, rows: Source, compile: bool, in_blocks: bool) -> None:
        self.descent = Descent(objective, next(rows.epoch(0)), compile=compile)
        for module in self.descent.modules():
            module.train()
        self.progress, self.rows = Progress(self.descent, 0, {}), rows
        self.blocks = blocks_of(self.progress, rows, False) if in_blocks else None
        self.batches: Iterator[Batch] = iter(())

    def take(self, most: int) -> int:
        """Takes steps, many at once in blocks; returns how many."""
        before = self.descent.step_number
        if self.progress.batch >= self.rows.batches:
            self.progress.end_epoch(None, None)
        if self.blocks is None or not self.blocks.open or not self.blocks.take(before + most):
            self.progress.record(self.descent.step(self._next()))
        return self.descent.step_number - before

    def _next(self) -> Batch:
        if self.blocks is not None:
            return next(self.blocks.ahead.rest())
        batch = next(self.batches, None)
        if batch is None:
            self.batches = self.rows.epoch(self.progress.epoch)
            batch = next(self.batches)
        return batch

    def seconds(self, least: float) -> float:
        """The mean time of a step over so many seconds or more."""
        began, taken = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < least:
            taken += self.take(2**14)
        return spent / taken


def by_source(found: dict[str, BySource], rounds: int) -> dict[str, float]:
    """The median seconds of a step of each way, after all is compiled and settled."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for way in found.values():
        way.seconds(1.0)
    for _ in range(rounds):
        for name, way in found.items():
            times[name].append(way.seconds(0.2))
    return {name: statistics.median(values) for name, values in times.items()}


def ways(case: Case, device: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each way to take a step, by name."""

    def placed() -> tuple[Any, Any]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        made = case.make()
        return tuple(m.to(device) if isinstance(m, nn.Module) else m for m in made)  # type: ignore

    def svi(kind: Callable[..., Any], estimator: type) -> Callable[[], Any]:
        model, guide = (registered(program) for program in placed())
        loss = estimator(max_plate_nesting=1) if case.enumerated else estimator()
        return partial(kind(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss).step, *case.data)

    plain, jit = (
        (TraceEnum_ELBO, JitTraceEnum_ELBO) if case.enumerated else (Trace_ELBO, JitTrace_ELBO)
    )
    if case.by_hand is not None:
        yield "by hand", case.by_hand()
        if device == "cuda":
            yield "by hand, captured", case.by_hand(captured=True)
    yield "pyro.infer.SVI", svi(pyro.infer.SVI, plain)
    yield "Pyro's Jit ELBO", svi(pyro.infer.SVI, jit)
    yield "ppl_models.SVI", svi(partial(SVI, compile=True), plain)
    yield "fit, eager", descent_of(elbo(*placed()), case.data, False)
    yield "fit, compiled", descent_of(elbo(*placed()), case.data, True)


def in_turns(steps: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """The median seconds of a step of each way."""
    for name, step in list(steps.items()):
        try:
            measure.seconds(step, args.device, times=20)
        except RuntimeError as error:
            print(f"  {name} fails: {str(error).splitlines()[0]}")
            del steps[name]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(measure.seconds(step, args.device, times=args.steps))
    return {name: statistics.median(values) for name, values in times.items()}


def difference(step: Any) -> tuple[float, float]:
    """How far loss and gradient of compiled code are from the program's, relatively."""
    descent, batch = step.descent, step.batch
    (objective,) = descent.objectives
    parameters = [p for _, p in objective.named_parameters()]
    results = []
    for loss in (lambda: descent.evaluate(objective, batch), lambda: descent._loss(0, batch)):
        torch.manual_seed(3)
        value = loss()
        slopes = torch.autograd.grad(value, parameters, allow_unused=True)
        flat = torch.cat([s.flatten().double() for s in slopes if s is not None])
        results.append((value.double(), flat))
    (value, slope), (other, other_slope) = results
    return ((value - other) / value).abs().item(), (
        (slope - other_slope).norm() / slope.norm()
    ).item()


def programs(args: argparse.Namespace) -> None:
    found: list[dict[str, Any]] = []
    for case in cases(args.device):
        if not case.name.startswith(tuple(args.only)):
            continue
        steps = dict(ways(case, args.device))
        print(f"\n{case.name}")
        times = in_turns(steps, args)
        base = times["pyro.infer.SVI"]
        for name, value in times.items():
            ratio = f"{base / value:6.2f} x as fast as pyro.infer.SVI"
            for peer in ("by hand", "by hand, captured"):
                if peer in times and name.startswith(("ppl", "fit")):
                    ratio += f", {value / times[peer]:.2f} x the time {peer}"
            print(f"  {name:18}{1e3 * value:8.3f} ms  {ratio}")
        found.append({"name": case.name, "seconds": times})
        if "fit, compiled" in steps:
            loss, gradient = difference(steps["fit, compiled"])
            print(f"  compiled against eager: loss within {loss:.0e}, gradient {gradient:.0e}")
            found[-1] |= {"loss": loss, "gradient": gradient}
        measure.write(args.json, args.device, rows=found)


def objectives(device: str) -> Iterator[tuple[str, Callable[[], Any], tuple[Tensor, ...]]]:
    """One of each kind in the library."""
    torch.manual_seed(0)
    x = torch.randn(128, 8).to(device)
    binary, labels = (x > 0).float(), (x[:, 0] > 0).long()
    images = torch.bernoulli(torch.rand(32, 64)).to(device)

    def on(*modules: nn.Module) -> tuple[nn.Module, ...]:
        return tuple(module.to(device) for module in modules)

    def exact(model: Any) -> Any:
        (model,) = on(model)
        return elbo(model, ExactPosterior(model))

    def own(model: nn.Module) -> Any:
        (model,) = on(model)
        return elbo(model, AutoNormal(poutine.block(model, hide=["z"])))

    def pair(likelihood: Likelihood) -> tuple[nn.Module, ...]:
        return on(VAE(8, 3, likelihood), AmortizedNormal(8, 3))

    yield "VAE, Bernoulli", lambda: elbo(*pair(Bernoulli())), (binary,)
    yield "VAE, Normal", lambda: elbo(*pair(Normal())), (x,)
    yield "VAE, iwae of 5", lambda: iwae(*pair(Bernoulli()), 5), (binary,)
    yield "factor analysis", lambda: exact(FactorAnalysis(8, 3)), (x,)
    yield "Gaussian mixture", lambda: elbo(*on(GaussianMixture(8, 4))), (x,)
    yield "Bayesian mixture", lambda: own(BayesianGaussianMixture(8, 3)), (x,)
    yield "Bayesian factor analysis", lambda: own(BayesianFactorAnalysis(8, 3)), (x,)
    yield "logistic regression", lambda: own(LogisticRegression(8)), (x, labels)
    yield "MADE", lambda: elbo(*on(MADE(64))), (images,)
    yield "PixelCNN", lambda: elbo(*on(PixelCNN(8, 8, Bernoulli(), 8, 2))), (images,)
    yield "autoencoder", lambda: reconstruction(*on(AutoEncoder(8, 3))), (x,)
    yield "diffusion", lambda: denoising(*on(Diffusion(8))), (x,)
    yield "VAE, warm-up", lambda: elbo(*pair(Bernoulli()), warm_up=1000), (binary,)
    yield "GAN", lambda: adversarial(*on(GAN(8, 3))), (x,)
    yield (
        "domain adversarial",
        lambda: domain_adversarial(*on(DomainAdversarial(8, 2))),
        (x, labels, (torch.arange(128) % 2).to(device)),
    )


def models(args: argparse.Namespace) -> None:
    found: list[dict[str, Any]] = []
    print(f"{'':26}{'eager':>10}{'compiled':>10}{'':>8}{'in blocks':>12}  loss, gradient within")
    for name, make, data in objectives(args.device):
        if not name.startswith(tuple(args.only)):
            continue
        steps = {}
        for compile in (False, True):
            pyro.clear_param_store()
            torch.manual_seed(0)
            steps["compiled" if compile else "eager"] = descent_of(make(), data, compile)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            times = in_turns(steps, args)
        if len(times) < 2:
            found.append({"name": name, "seconds": times, "eager because": "it fails"})
            continue
        descent = steps["compiled"].descent  # type: ignore[attr-defined]
        reason = descent.compiled[0].reason
        times["in blocks"], refused = in_blocks(make, data, args)
        line = f"{name:26}{1e3 * times['eager']:7.3f} ms{1e3 * times['compiled']:7.3f} ms"
        line += f"{times['eager'] / times['compiled']:6.2f} x{1e3 * times['in blocks']:9.4f} ms"
        line += f"{times['compiled'] / times['in blocks']:6.1f} x"
        line += f"  not in blocks: {refused}" if refused else ""
        if reason is None and len(descent.objectives) == 1:
            line += "  {:.0e}, {:.0e}".format(*difference(steps["compiled"]))
        print(line + (f"  eager: {reason}" if reason else ""), flush=True)
        found.append({"name": name, "seconds": times, "eager because": reason})
        measure.write(args.json, args.device, rows=found)


def in_blocks(
    make: Callable[[], Any], data: tuple[Tensor, ...], args: argparse.Namespace
) -> tuple[float, str | None]:
    """The median seconds of a step of `fit`, and why steps do not come in blocks, if so."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        way = BySource(make(), source(data, None, None), True, True)
        found = by_source({"in blocks": way}, args.rounds)["in blocks"]
    assert way.blocks is not None or args.device != "cpu"
    return found, way.blocks.loop.refused if way.blocks is not None else "on a GPU"


def streams(args: argparse.Namespace) -> None:
    """A small VAE on rows that a `DataLoader` gives, and on the same ones in memory."""
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(2000, 64))
    for name, width in (("even batches, 50 of 2000", 50), ("an uneven one, 64 of 2000", 64)):
        print(f"\n{name}")
        for kind in ("DataLoader", "in memory"):
            found = {}
            for way, compile, blocks in (
                ("eager", False, False),
                ("compiled", True, False),
                ("in blocks", True, True),
            ):
                pyro.clear_param_store()
                torch.manual_seed(0)
                loader = DataLoader(TensorDataset(x), batch_size=width, shuffle=True)
                rows = source(
                    loader if kind == "DataLoader" else x,
                    None if kind == "DataLoader" else width,
                    None,
                )
                objective = elbo(VAE(64, 4, Bernoulli()), AmortizedNormal(64, 4))
                found[way] = BySource(objective, rows, compile, blocks)
            times = by_source(found, args.rounds)
            line = "".join(f"{way}{1e6 * seconds:8.0f} us  " for way, seconds in times.items())
            print(f"  {kind:12}{line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", action="store_true", help="the library's objectives instead")
    parser.add_argument("--streams", action="store_true", help="rows from a DataLoader instead")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100, help="in each round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)

    print(measure.heading(args.device))
    if args.streams:
        streams(args)
    elif args.models:
        models(args)
    else:
        programs(args)


if __name__ == "__main__":
    main()
