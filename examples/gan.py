"""A generative adversarial network learns digits.

    python examples/gan.py                                 # 8x8 digits, about two minutes
    python examples/gan.py --data mnist --data-root data --device cuda

A GAN has no evidence, so its samples are judged beside training rows: precision, recall, density
and coverage, and the Fréchet distance, on the features of a classifier that is trained here. The
same numbers of test rows say what real ones get, which no net has seen. Writes into `--outdir`:
both players' losses with the value of the game, samples, and beside some of them the training rows
nearest to them.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ppl_models import datasets, elbo, fit, log_evidence
from ppl_models.gan.game import adversarial
from ppl_models.gan.model import GAN
from ppl_models.metrics import frechet, label_coverage, prdc
from ppl_models.nn import ConvDiscriminator, ConvGenerator
from ppl_models.supervised.classifier import Classifier

Labelled = tuple[Tensor, Tensor]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["digits", "mnist", "fashion-mnist"]
    parser.add_argument(
        "--data", choices=names, default="digits", type=lambda name: name.replace("_", "-")
    )
    parser.add_argument("--data-root", default="data", help="the folder of MNIST and the like")
    parser.add_argument("--steps", type=int, help="default: 4000 for digits, else 30000")
    parser.add_argument("--classifier-epochs", type=int, help="default: 30 for digits, else 5")
    parser.add_argument("--latents", type=int, help="default: 16 for digits, else 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--checkpoint", type=Path, help="default: in outdir")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> tuple[Labelled, Labelled]:
    """Returns training and test rows with labels."""
    if args.data == "digits":
        return datasets.digits(labels=True)
    images = datasets.mnist if args.data == "mnist" else datasets.fashion_mnist
    return images(args.data_root, labels=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    small = args.data == "digits"
    steps = args.steps or (4000 if small else 30_000)
    (x, y), (x_test, y_test) = load(args)
    side = math.isqrt(x.shape[1])
    print(f"{args.data}: {len(x)} training rows, {len(x_test)} test rows, {side} x {side} pixels")
    args.outdir.mkdir(parents=True, exist_ok=True)

    classifier = train_classifier(x, y, small, args)
    device = classifier.head.weight.device
    x, x_test = x.to(device), x_test.to(device)
    accuracy = (classifier.predict(x_test).cpu() == y_test).double().mean().item()
    print(f"classifier whose features are used below: test accuracy {accuracy:.1%}")

    torch.manual_seed(args.seed)
    num_latents, width = args.latents or (16 if small else 64), 32 if small else 64
    generator = ConvGenerator(num_latents, side, width=width)
    gan = GAN(x.shape[1], num_latents, generator, ConvDiscriminator(side, width=width))
    run = fit(
        adversarial(gan, "hinge"),
        x,
        steps=steps,
        batch_size=64,
        lr=1e-3 if small else 4e-4,
        optimizer=partial(torch.optim.Adam, betas=(0.5, 0.9), fused=True),
        schedule=fall,
        ema=0.999,
        seed=args.seed,
        device=args.device,
        checkpoint=args.checkpoint or args.outdir / f"gan-{args.data}.safetensors",
        resume=args.resume,
    )
    value = run.history["value"][-1]
    print(f"fitted in {run.seconds:.0f} s, {run.steps} steps of each player")
    print(
        f"value of the hinge game {value:.3f}: -2 where the discriminator cannot tell samples "
        f"from data, 0 where it tells all apart"
    )
    try:
        log_evidence(gan, None, x_test)
    except ValueError as error:
        print(f"evidence: none. {error}")

    torch.manual_seed(args.seed)
    with torch.no_grad():
        samples = draw(gan, len(x_test))
        judge(classifier, samples, x, x_test)
        pictures = {
            "curve": curve(run.history),
            "samples": images(samples[:100], "Samples of the generator"),
            "nearest": nearest(samples[:20], x),
        }
    written = []
    for name, figure in pictures.items():
        written.append(args.outdir / f"gan-{args.data}-{name}.png")
        figure.savefig(written[-1], dpi=120)
    print("\nwritten:", *written, sep="\n  ")


def train_classifier(x: Tensor, y: Tensor, small: bool, args: argparse.Namespace) -> Classifier:
    torch.manual_seed(args.seed)
    side = math.isqrt(x.shape[1])
    network = None
    if not small:
        network = nn.Sequential(
            nn.Unflatten(1, (1, side, side)),
            nn.Conv2d(1, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * (side // 4) ** 2, 64),
            nn.ReLU(),
        )
    classifier = Classifier(x.shape[1], 10, network=network)
    fit(
        elbo(classifier),
        (x, y),
        epochs=args.classifier_epochs or (30 if small else 5),
        batch_size=100,
        lr=3e-3 if small else 1e-3,
        seed=args.seed,
        device=args.device,
    )
    return classifier


def fall(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate falls to a hundredth over the second half."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 0.01 + 2 * max(0.0, 1 - step / steps))
    )


def draw(gan: GAN, count: int) -> Tensor:
    return torch.cat([gan(size=min(1000, count - i)) for i in range(0, count, 1000)])


def judge(classifier: Classifier, samples: Tensor, x: Tensor, x_test: Tensor) -> None:
    """Prints what the samples are like beside training rows, and what test rows are like."""
    some = x[torch.randperm(len(x))[: len(x_test)].to(x.device)]
    noise = torch.rand_like(some)
    kinds = {"samples": samples, "test rows": x_test, "uniform noise": noise}
    real = classifier.features(some)
    print(f"\n{len(x_test)} rows of each kind, beside as many training rows (k = 5 neighbours):")
    print("                precision   recall  density  coverage  Fréchet distance, squared")
    for name, rows in kinds.items():
        part = classifier.features(rows)
        found = prdc(real, part)
        print(
            f"{name:15}{found.precision:10.3f}{found.recall:9.3f}{found.density:9.3f}"
            f"{found.coverage:10.3f}{frechet(real, part):12.2f}"
            + ("  (real ones, which no net has seen)" if rows is x_test else "")
        )
    digits = label_coverage(classifier.predict(samples), 10)
    print(f"classes of the samples, as the classifier reads them: {digits}")


def curve(history: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in ("discriminator", "generator"):
        axes.plot(range(1, len(history[name]) + 1), history[name], label=f"loss of the {name}")
    axes.plot(range(1, len(history["value"]) + 1), history["value"], label="value V(G, D)")
    axes.axhline(-2, color="gray", linestyle=":", label="value where all rows are alike")
    axes.set(xlabel="epoch", ylabel="hinge loss", title="Two players")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def images(rows: Tensor, title: str, columns: int = 10) -> Figure:
    """Draws rows as a grid of square images."""
    side = math.isqrt(rows.shape[1])
    height = -(-len(rows) // columns)
    figure = Figure(figsize=(0.6 * columns, 0.6 * height + 0.5), layout="constrained")
    figure.suptitle(title)
    for axes, row in zip(figure.subplots(height, columns).flat, rows.cpu(), strict=True):
        axes.imshow(row.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
        axes.axis("off")
    return figure


def nearest(samples: Tensor, x: Tensor) -> Figure:
    closest = x[torch.cdist(samples, x).argmin(1)]
    pairs = [torch.cat(p) for p in zip(samples.split(10), closest.split(10), strict=True)]
    return images(torch.cat(pairs), "Samples, and below each the nearest training row")


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
