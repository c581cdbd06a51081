"""Generative models of every family on the same digits: evidence, samples and time in one table.

    python examples/compare.py                                    # 8x8 digits, some ten minutes
    python examples/compare.py --effort 0.1                       # a quick look, worse numbers
    python examples/compare.py --data mnist --data-root data --device cuda

All score the same pixels in the same grey levels, so that their evidences compare; each says its
kind. Samples are judged beside test rows by precision, recall, density and coverage, on features
of a classifier that is trained here. Writes one picture into `--outdir`: samples of all.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from guides import AmortizedNormal
from ppl_models import (
    GAN,
    MADE,
    VAE,
    Classifier,
    Diffusion,
    Evidence,
    Objective,
    PixelCNN,
    Transformed,
    adversarial,
    datasets,
    denoising,
    elbo,
    fit,
    log_evidence,
    variational_bound,
)
from ppl_models.diffusion.samplers import heun
from ppl_models.diffusion.schedules import LogLinear
from ppl_models.likelihoods import Categorical, LogisticMixture
from ppl_models.metrics import PRDC, prdc
from ppl_models.nn import MLP, ConvDiscriminator, ConvGenerator, ResNet, UNet
from ppl_models.priors import MixturePrior


class Data(NamedTuple):
    """Images in grey levels, between 0 and 1, with their labels."""

    train: Tensor
    held_out: Tensor  # chooses the epoch
    test: Tensor
    labels: Tensor  # of the training rows
    test_labels: Tensor
    levels: int

    @property
    def side(self) -> int:
        return math.isqrt(self.test.shape[1])

    @property
    def small(self) -> bool:
        return self.side == 8


class Family(NamedTuple):
    """A model, how it is trained, and what it can be asked."""

    name: str
    modules: list[nn.Module]
    objective: Objective | list[Objective]
    evidence: Callable[[Tensor], Evidence] | None
    sample: Callable[[int], Tensor]
    options: dict[str, Any]  # of `fit`


class Row(NamedTuple):
    """What is printed of one family."""

    name: str
    parameters: int
    seconds: float
    evidence: Evidence | str
    seconds_of_samples: float  # of 100
    likeness: PRDC


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--data-root", default="data", help="the folder of MNIST")
    parser.add_argument("--rows", type=int, help="only so many rows of each part")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names of families")
    parser.add_argument("--effort", type=float, default=1.0, help="fewer epochs, or more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> Data:
    if args.data == "digits":
        (x, y), (test, test_labels) = datasets.digits(labels=True)
        split, levels = 1350, 17
    else:
        (x, y), (test, test_labels) = datasets.mnist(args.data_root, labels=True)
        split, levels = 50_000, 256
    rows = slice(args.rows)
    return Data(
        x[:split][rows], x[split:][rows], test[rows], y[:split][rows], test_labels[rows], levels
    )


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> CosineAnnealingLR:
    return CosineAnnealingLR(optimizer, steps)


def warm_up_and_cool_down(optimizer: torch.optim.Optimizer, steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=optimizer.defaults["lr"], total_steps=steps, pct_start=0.1)


def vae(data: Data, name: str, prior: nn.Module | None, seed: int) -> Family:
    num_features, num_latents = data.test.shape[1], 16 if data.small else 32
    likelihood = LogisticMixture(levels=data.levels, num_components=3)
    width = (200, 200) if data.small else (500, 500)
    network = partial(MLP, hidden=width, activation=nn.ELU, dropout=0.1)
    guide = AmortizedNormal(num_features, num_latents, network(num_features, 2 * num_latents))
    decoder = network(num_latents, num_features * likelihood.num_outputs)
    model = VAE(num_features, num_latents, likelihood, decoder, prior=prior)
    return Family(
        name,
        [model, guide],
        elbo(model, guide),
        lambda x: log_evidence(model, guide, x, num_samples=500, seed=seed),
        lambda size: model(size=size),
        {"epochs": 200 if data.small else 100, "lr": 2e-3, "clip": 5.0, "schedule": cosine},
    )


def autoregressive(data: Data, kind: type) -> Family:
    num_features, side = data.test.shape[1], data.side
    if kind is MADE:
        mixture = LogisticMixture(levels=data.levels, num_components=5)
        hidden = [256] if data.small else [1000, 1000]
        model = MADE(num_features, mixture, hidden=hidden, dropout=0.3)
    elif data.small:
        model = PixelCNN(side, side, Categorical(data.levels), 32, 4, dropout=0.2)
    else:
        mixture = LogisticMixture(levels=data.levels, num_components=10)
        model = PixelCNN(side, side, mixture, 64, 8, 2, dropout=0.2)
    options = {"epochs": 80, "lr": 3e-3 if data.small else 1e-3, "ema": 0.995, "clip": 1.0}
    return Family(
        kind.__name__,
        [model],
        elbo(model),
        lambda x: log_evidence(model, None, x),
        lambda size: model(size=size),
        {**options, "schedule": cosine, "batch_size": 32 if data.small else 64},
    )


def diffusion(data: Data, seed: int) -> Family:
    shape = (data.side, data.side)
    if data.small:
        network, first = ResNet(shape, data.levels, 32, num_blocks=4, dropout=0.1), 8.5
    else:  # nearer levels take a higher log-SNR to tell apart
        network, first = UNet(shape, data.levels, (64, 128, 128), dropout=0.1), 13.0
    model = Diffusion(
        data.test.shape[1],
        network,
        LogLinear(first, -5.0),
        "levels",
        num_steps=1000,
        likelihood=Categorical(data.levels),
    )
    options = {"lr": 3e-3 if data.small else 1e-3, "clip": 1000.0, "ema": 0.995}
    return Family(
        "Diffusion",
        [model],
        denoising(model),
        lambda x: variational_bound(
            model, x, num_samples=100, batch_size=4096 if data.small else 128, seed=seed
        ),
        lambda size: model.sample(size, heun, 18),
        {**options, "epochs": 100, "schedule": warm_up_and_cool_down},
    )


def gan(data: Data) -> Family:
    num_latents, width = (16, 32) if data.small else (64, 64)
    generator = ConvGenerator(num_latents, data.side, width=width)
    discriminator = ConvDiscriminator(data.side, width=width)
    model = GAN(data.test.shape[1], num_latents, generator, discriminator)
    adam = partial(torch.optim.Adam, betas=(0.5, 0.9), fused=True)
    options = {"epochs": 180 if data.small else 40, "lr": 1e-3 if data.small else 4e-4}
    return Family(
        "GAN",
        [model],
        adversarial(model, "hinge"),
        None,
        lambda size: model(size=size),
        {**options, "optimizer": adam, "ema": 0.999, "schedule": cosine},
    )


def spread(x: Tensor, levels: int) -> Tensor:
    """Adds uniform noise within each grey level: steps between them would give data away."""
    return (x * (levels - 1) + torch.rand_like(x)) / levels


def train(family: Family, data: Data, args: argparse.Namespace) -> float:
    """Fits a family to the training rows, and returns the seconds that it took."""
    options = {"batch_size": 64, **family.options}
    options["epochs"] = max(1, round(args.effort * options["epochs"]))
    rows: Any = data.train
    if family.name == "GAN":
        rows = Transformed(rows, transform=partial(spread, levels=data.levels))
    else:  # the best epoch is kept, the schedule is run to its end
        options |= {"validation": data.held_out, "patience": options["epochs"]}
    run = fit(family.objective, rows, seed=args.seed, device=args.device, **options)
    return run.seconds


def classifier(data: Data, args: argparse.Namespace) -> Classifier:
    """A classifier whose features tell digits apart."""
    torch.manual_seed(args.seed)
    model = Classifier(data.test.shape[1], 10)
    rows = (data.train, data.labels)
    epochs = 30 if data.small else 5
    fit(elbo(model), rows, epochs=epochs, batch_size=100, lr=3e-3, seed=args.seed)
    return model


@torch.no_grad()
def look(
    family: Family, seconds: float, data: Data, features: Callable[[Tensor], Tensor], seed: int
) -> tuple[Row, Tensor]:
    """Returns what is printed of a family, and samples."""
    device = next(family.modules[0].parameters()).device
    torch.manual_seed(seed)
    family.sample(1)
    began = time.perf_counter()
    samples = torch.cat([family.sample(min(100, n)).cpu() for n in _parts(len(data.test))])
    per_100 = (time.perf_counter() - began) / len(data.test) * 100
    evidence: Evidence | str = "none: a GAN has no likelihood"
    if family.evidence is not None:
        evidence = family.evidence(data.test.to(device))
    count = sum(p.numel() for module in family.modules for p in module.parameters())
    likeness = prdc(features(data.test), features(samples))
    return Row(family.name, count, seconds, evidence, per_100, likeness), samples


def _parts(rows: int) -> list[int]:
    """Parts of at most 100 rows."""
    return [min(100, rows - start) for start in range(0, rows, 100)]


def line(row: Row) -> str:
    bits, kind, error = "", row.evidence, ""
    if isinstance(row.evidence, Evidence):
        bits, kind = f"{row.evidence.bits_per_dim:.4f}", row.evidence.kind
        features = row.evidence.num_features
        error = f"{row.evidence.standard_error / (features * math.log(2)):.3f}"
    return (
        f"{row.name:22}{bits:>9}{error:>7}  {kind:30}{_four(row.likeness)}"
        f"{row.seconds_of_samples:12.3f}{row.parameters:12,}{row.seconds:12.0f}"
    )


def _four(found: PRDC) -> str:
    numbers = (found.precision, found.recall, found.density, found.coverage)
    return "".join(f"{number:8.3f}" for number in numbers)


def side_by_side(samples: dict[str, Tensor], side: int, columns: int = 12) -> Figure:
    figure = Figure(figsize=(0.6 * columns + 1.6, 0.62 * len(samples) + 0.6), layout="constrained")
    figure.suptitle("Samples of each model, not chosen, and test rows")
    grid = figure.subplots(len(samples), columns, squeeze=False)
    for axes, (name, rows) in zip(grid, samples.items(), strict=True):
        for ax, row in zip(axes, rows[:columns], strict=False):
            ax.imshow(row.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    data = load(args)
    print(
        f"{args.data}: {len(data.train)} training rows, {len(data.held_out)} that choose the epoch,"
        f" {len(data.test)} test rows of {data.test.shape[1]} pixels in {data.levels} grey levels"
    )
    judge = classifier(data, args)
    accuracy = (judge.predict(data.test) == data.test_labels).double().mean().item()
    print(f"classifier whose features judge the samples: test accuracy {accuracy:.1%}")

    latents = 16 if data.small else 32
    makers: dict[str, Callable[[str], Family]] = {
        "VAE": lambda name: vae(data, name, None, args.seed),
        "VAE, mixture prior": lambda name: vae(data, name, MixturePrior(latents, 30), args.seed),
        "MADE": lambda name: autoregressive(data, MADE),
        "PixelCNN": lambda name: autoregressive(data, PixelCNN),
        "Diffusion": lambda name: diffusion(data, args.seed),
        "GAN": lambda name: gan(data),
    }
    rows, samples = [], {}
    for name, make in makers.items():
        if name.startswith(tuple(args.only)):
            torch.manual_seed(args.seed)
            family = make(name)
            seconds = train(family, data, args)
            row, samples[name] = look(family, seconds, data, judge.features, args.seed)
            rows.append(row)
            print(f"{name}: fitted in {seconds:.0f} s", flush=True)

    some = data.train[torch.randperm(len(data.train))[: len(data.test)]]
    floor = prdc(judge.features(data.test), judge.features(some))
    print(
        "\n"
        f"{'':22}{'bits/dim':>9}{'±':>7}  {'kind of evidence':30}{'precis.':>8}{'recall':>8}"
        f"{'density':>8}{'cover.':>8}{'100 draws s':>12}{'parameters':>12}{'training s':>12}"
    )
    print(*map(line, rows), sep="\n")
    print(f"{'training rows':68}{_four(floor)}")
    print(
        "bits/dim: minus the evidence of the test rows, less is better; ± its standard error over "
        "rows. A lower\nbound of the evidence is an upper bound here: the model is that good or "
        "better. Precision to coverage:\nmore is better, and training rows show what can be had."
    )

    samples["test rows"] = data.test
    args.outdir.mkdir(parents=True, exist_ok=True)
    path = args.outdir / f"compare-{args.data}.png"
    side_by_side(samples, data.side).savefig(path, dpi=120)
    print("\nwritten:", path, sep="\n  ")


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
