"""How many modes a GAN reaches: ring of 8, grid of 25, and stacked MNIST.

python -m benchmarks.quality.gan_modes --seeds 10                # both toys, about 15 minutes
python -m benchmarks.quality.gan_modes --only ring --seeds 2
python -m benchmarks.quality.gan_modes --stacked-mnist --data-root DIR --device cuda --json gan.json

The protocol of VEEGAN and PacGAN: 2,500 samples (26,000 of stacked MNIST), of high quality within
three standard deviations of the nearest mode; a mode counts that is the nearest to one of them. The
training rows are 100,000 draws, and each seed is another net and another order, not other rows.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks import measure
from ppl_models import Transformed, datasets, elbo, fit
from ppl_models.datasets.toys import Toy, grid, ring
from ppl_models.gan.game import adversarial
from ppl_models.gan.latents import NormalOneHotLatents
from ppl_models.gan.model import GAN
from ppl_models.metrics import ModeCoverage, label_coverage, mode_coverage
from ppl_models.nn import MLP, ConvDiscriminator, ConvGenerator
from ppl_models.supervised.classifier import Classifier

LEAKY = partial(nn.LeakyReLU, 0.2)
ADAM = partial(torch.optim.Adam, betas=(0.5, 0.9), fused=True)
PUBLISHED = {  # by PacGAN: modes and high quality
    "ring": {"GAN": (6.3, 0.982), "PacGAN2": (7.9, 0.956)},
    "grid": {"GAN": (17.3, 0.948), "PacGAN4": (24.8, 0.936)},
    "stacked": {"DCGAN": (78.9, 4.50), "PacDCGAN2": (1000.0, 0.06)},  # modes, KL
}


class Settings(NamedTuple):
    """What the two toys do not have in common."""

    toy: Callable[..., Toy]
    unit: float  # the nets see rows divided by it
    scale: float  # the standard deviation of the normal latents
    categories: int
    packing: int
    octaves: int
    steps: int


SETTINGS = {
    "ring": Settings(ring, 1.0, 0.3, categories=64, packing=1, octaves=0, steps=2000),
    "grid": Settings(grid, 4.0, 0.2, categories=256, packing=2, octaves=2, steps=3000),
}
BATCH = 256


class Waves(nn.Module):
    """Beside each feature, sines and cosines of it, an octave apart."""

    def __init__(self, octaves: int) -> None:
        super().__init__()
        self.frequencies = [math.pi * 2**i for i in range(octaves)]

    def forward(self, x: Tensor) -> Tensor:
        waves = [f(w * x) for w in self.frequencies for f in (torch.sin, torch.cos)]
        return torch.cat([x, *waves], dim=-1)


def play(toy: Toy, how: Settings, seed: int, device: str) -> tuple[ModeCoverage, float, float]:
    """Trains a GAN; returns the modes, the value of the game at the end, and the seconds."""
    torch.manual_seed(seed)
    num_latents, inputs = 2 + how.categories, 2 * how.packing * (1 + 2 * how.octaves)
    gan = GAN(
        2,
        num_latents,
        generator=MLP(num_latents, 2, activation=LEAKY),
        discriminator=nn.Sequential(Waves(how.octaves), MLP(inputs, 1, activation=LEAKY)),
        latents=NormalOneHotLatents(2, (how.categories,), how.scale),
        packing=how.packing,
    )

    def late(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        """The learning rate falls geometrically from 40 % of the steps on, less for the judge."""
        first = optimizer.param_groups[0]["params"][0]
        last = 0.2 if any(first is p for p in gan.discriminator.parameters()) else 0.03
        return LambdaLR(optimizer, lambda step: last ** max(0.0, (step / steps - 0.4) / 0.6))

    run = fit(
        adversarial(gan, instance_noise=(0.3, 0.01, how.steps // 2)),
        toy.x / how.unit,
        steps=how.steps,
        batch_size=BATCH,
        lr=2e-3,
        optimizer=ADAM,
        schedule=late,
        ema=0.995,
        seed=seed,
        device=device,
        progress=False,
    )
    with torch.no_grad():
        samples = how.unit * gan(size=2500).cpu()
    return mode_coverage(samples, toy.modes, toy.scale), run.history["value"][-1], run.seconds


def toys(name: str, seeds: range, device: str) -> dict[str, Any]:
    how = SETTINGS[name]
    toy = how.toy(100_000)
    print(
        f"\n{name}: latents are 2 normals of scale {how.scale} and a one-hot vector of "
        f"{how.categories};\nboth nets 2 x 128, leaky; the discriminator sees {how.packing} row(s) "
        f"at once, with {how.octaves} octaves of\nsines beside them; instance noise in the first "
        f"half; {how.steps} steps of {BATCH} rows"
    )
    results, times = [], []
    for seed in seeds:
        found, value, seconds = play(toy, how, seed, device)
        results.append(found)
        times.append(seconds)
        print(f"  seed {seed}: {found}; value {value:.3f} nats; {seconds:.0f} s", flush=True)
    quality = torch.tensor([r.high_quality for r in results])
    bound = 0.9 if name == "ring" else 0.85
    whole = sum(r.captured == r.num_modes for r in results)
    good = sum(r.captured == r.num_modes and r.high_quality >= bound for r in results)
    modes, spread = (
        sum(values) / len(results)
        for values in ([r.captured for r in results], [r.spread for r in results])
    )
    print(
        f"  here       modes {modes:5.1f}, high quality {quality.mean():.1%}, spread {spread:.2f}"
    )
    for method, (count, share) in PUBLISHED[name].items():
        print(f"  {method:10} modes {count:5.1f}, high quality {share:.1%} (published)")
    true = mode_coverage(how.toy(2500, seed=1).x, toy.modes, toy.scale)
    print(f"  2,500 true draws: {true}")
    print(
        f"  all modes: {whole} of {len(results)} seeds; and high quality >= {bound:.0%}: {good}; "
        f"least {quality.min():.1%}"
    )
    return {"modes": modes, "high quality": quality.tolist(), "spread": spread, "seconds": times}


def stack(x: Tensor, y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three digits at random as the colours of an image, and the number that they form."""
    chosen = torch.randint(len(x), (count, 3), generator=torch.Generator().manual_seed(seed))
    return x[chosen].flatten(1), y[chosen] @ torch.tensor([100, 10, 1])


def stacked_mnist(args: argparse.Namespace) -> dict[str, Any]:
    (x, y), (x_test, y_test) = datasets.mnist(args.data_root, labels=True, download=False)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 49, 64),
        nn.ReLU(),
    )
    classifier = Classifier(784, 10, network=network)
    options = {"device": args.device, "seed": 0}
    fit(elbo(classifier), (x, y), epochs=args.classifier_epochs, batch_size=100, **options)
    device = classifier.head.weight.device
    accuracy = (classifier.predict(x_test.to(device)).cpu() == y_test).double().mean()

    torch.manual_seed(0)
    width, packing = args.width, 2
    gan = GAN(
        3 * 784,
        100,
        ConvGenerator(100, 28, colours=3, width=width),
        ConvDiscriminator(28, colours=3, width=width, packing=packing),
        packing=packing,
    )
    rows, codes = stack(x, y, args.rows, seed=0)
    run = fit(
        adversarial(gan),
        Transformed(rows, transform=lambda v: (255 * v + torch.rand_like(v)) / 256),
        steps=args.steps,
        batch_size=128,
        lr=2e-4,
        optimizer=partial(torch.optim.Adam, betas=(0.5, 0.999), fused=True),
        ema=0.999,
        checkpoint=args.checkpoint,
        resume=args.resume,
        **options,
    )

    def read(images: Tensor) -> Tensor:
        digits = classifier.predict(images.reshape(-1, 784)).reshape(-1, 3).cpu()
        return digits @ torch.tensor([100, 10, 1])

    with torch.no_grad():
        labels = torch.cat([read(gan(size=1000)) for _ in range(26)])
    shares = torch.bincount(codes, minlength=1000) + 1.0
    true = read(stack(x_test, y_test, 26_000, seed=1)[0].to(device))
    print(
        f"stacked MNIST: classifier of test accuracy {accuracy:.2%}; {len(rows)} training rows, "
        f"{args.steps} steps of 128, width {width}, packing {packing}, spectral norm, "
        f"{run.seconds:.0f} s"
    )
    print("  value of the game", *(f"{v:.2f}" for v in run.history["value"][-5:]), "nats, at last")
    found = label_coverage(labels, 1000, shares)
    print(f"  here                  {found}, 26,000 samples")
    print(f"  26,000 stacked test digits: {label_coverage(true, 1000, shares)}")
    for method, (count, kl) in PUBLISHED["stacked"].items():
        print(f"  {method:10} {count:6.1f} modes, KL {kl:.2f} (published)")
    return {"found": str(found), "steps": args.steps, "rows": args.rows, "seconds": run.seconds}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--stacked-mnist", action="store_true")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=40_000, help="of stacked MNIST")
    parser.add_argument("--rows", type=int, default=128_000, help="of stacked MNIST")
    parser.add_argument("--width", type=int, default=64, help="channels for stacked MNIST")
    parser.add_argument("--classifier-epochs", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args(argv)
    print(measure.heading(args.device))
    report: dict[str, Any] = {}
    if args.stacked_mnist:
        began = time.perf_counter()
        report["stacked MNIST"] = stacked_mnist(args)
        print(f"  {time.perf_counter() - began:.0f} s in all")
    else:
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        for name in [args.only] if args.only else SETTINGS:
            report[name] = toys(name, seeds, args.device)
    measure.write(args.json, args.device, **report)


if __name__ == "__main__":
    main()
