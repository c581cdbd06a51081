"""A diffusion model learns digits, and draws the ones that it is asked for.

    python examples/diffusion.py                             # 8x8 digits in 17 levels, minutes
    python examples/diffusion.py --data mnist --data-root data --device cuda

Prints the variational bound of the test rows, a lower bound on their evidence, and the estimate by
the probability flow. Writes into `--outdir`: the training curve, digits drawn by each sampler, and
digits drawn with guidance of several strengths.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from ppl_models import datasets, fit
from ppl_models.diffusion.bound import variational_bound
from ppl_models.diffusion.denoising import denoising
from ppl_models.diffusion.flow import probability_flow
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.samplers import ancestral, ddim, heun, langevin
from ppl_models.diffusion.schedules import LogLinear
from ppl_models.likelihoods import Categorical
from ppl_models.nn import ResNet, UNet

SAMPLERS = {ancestral: 200, ddim: 35, heun: 18, langevin: 18}  # and the steps of each
STRENGTHS = (0.0, 1.0, 2.0, 4.0)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--data-root", default="data", help="the folder of MNIST")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="default: 100 for digits, else 50")
    length.add_argument("--steps", type=int, help="training steps, instead of epochs")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, help="default: 3e-3 for digits, else 1e-3")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--num-steps", type=int, default=1000, help="T, of the model and its bound")
    parser.add_argument("--draws", type=int, default=100, help="noisy rows a row, for the bound")
    parser.add_argument("--flow-steps", type=int, default=80, help="of the probability flow")
    parser.add_argument("--train-rows", type=int, help="train on the first of them only")
    parser.add_argument("--test-rows", type=int, help="test on the first of them only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--amp", action="store_true", help="run the network in bfloat16")
    parser.add_argument("--checkpoint", type=Path, help="default: in --outdir")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    return parser.parse_args(argv)


def make(args: argparse.Namespace) -> Diffusion:
    """The model: of images in grey levels, and of their labels where they are known."""
    torch.manual_seed(args.seed)
    if args.data == "digits":
        network = ResNet((8, 8), 17, args.channels, num_blocks=4, dropout=0.1, num_classes=10)
        levels, first = 17, 8.5
    else:
        channels = (args.channels, 2 * args.channels, 2 * args.channels)
        network = UNet((28, 28), 256, channels, dropout=0.1, num_classes=10)
        levels, first = 256, 13.0  # nearer levels take a higher log-SNR to tell apart
    num_features = network.shape[0] * network.shape[1]
    return Diffusion(
        num_features,
        network,
        LogLinear(first, -5.0),
        target="levels",
        num_steps=args.num_steps,
        likelihood=Categorical(levels),
    )


def warm_up_and_cool_down(optimizer: torch.optim.Optimizer, steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=optimizer.defaults["lr"], total_steps=steps, pct_start=0.1)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    small = args.data == "digits"
    if small:
        (x, y), (test, labels) = datasets.digits(labels=True)
    else:
        (x, y), (test, labels) = datasets.mnist(args.data_root, labels=True)
    x, y = x[: args.train_rows], y[: args.train_rows]
    test, labels = test[: args.test_rows], labels[: args.test_rows]
    diffusion = make(args)
    levels = diffusion.likelihood.levels
    count = sum(p.numel() for p in diffusion.parameters())
    print(
        f"{args.data}: {len(x)} training rows, {len(test)} test rows, {test.shape[1]} pixels in "
        f"{levels} grey levels; {count:,} parameters"
    )
    print(f"independent pixels give {independent_pixels(x, test, levels):.4f} bits/dim")

    at_once = 4096 if small else 128  # 256 levels of 784 pixels are 0.8 MB a row
    options = {"num_samples": args.draws, "batch_size": at_once, "seed": args.seed + 1}
    bound = variational_bound(diffusion, test[:100], **options)
    print(f"untrained, T = {args.num_steps}, first {bound.num_rows} test rows: {bound}")

    args.outdir.mkdir(parents=True, exist_ok=True)
    run = fit(
        denoising(diffusion),
        (x, y),
        epochs=None if args.steps else args.epochs or (100 if small else 50),
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr or (3e-3 if small else 1e-3),
        schedule=warm_up_and_cool_down,
        clip=1000.0,
        ema=0.995 if small else 0.999,
        seed=args.seed,
        device=args.device,
        amp=args.amp,
        validation=(test, labels),
        checkpoint=args.checkpoint or args.outdir / f"diffusion-{args.data}.safetensors",
        resume=args.resume,
    )
    print(f"fitted in {run.seconds:.0f} s, {run.steps} steps\n")

    device = diffusion.zero.device
    test, labels = test.to(device), labels.to(device)
    unknown = variational_bound(diffusion, test, **options)
    given = variational_bound(diffusion, test, labels, **options)
    both = (math.log(10) - given.mean) / (test.shape[1] * math.log(2))
    print(f"test bound, T = {args.num_steps}, labels unknown, log p(x): {unknown}")
    print(f"test bound, T = {args.num_steps}, labels given, log p(x | y): {given}")
    print(f"  and so a lower bound of log p(x) >= log p(x | y) - log 10: {both:.4f} bits/dim")
    print("by the probability flow, dequantised, log p(x | y): what steps change is their error")
    for steps in (max(args.flow_steps // 2, 1), args.flow_steps):
        flow = probability_flow(
            diffusion,
            test,
            labels,
            num_steps=steps,
            batch_size=at_once,
            seed=args.seed + 1,
        )
        print(f"  {steps} steps: {flow}")

    written = []
    pictures = {
        "curve": curve(run.history),
        "samplers": samplers(diffusion, args.seed),
        "guided": guided_digits(diffusion, args.seed),
    }
    for name, figure in pictures.items():
        written.append(args.outdir / f"diffusion-{args.data}-{name}.png")
        figure.savefig(written[-1], dpi=120)
    print("\nwritten:", *written, sep="\n  ")


def independent_pixels(train: Tensor, test: Tensor, levels: int) -> float:
    """The test NLL of a categorical distribution for each pixel, in bits per dimension."""
    counts = torch.full((train.shape[1], levels), 1 / levels)  # with a pseudo-count
    index = ((levels - 1) * train).round().long()
    counts.scatter_add_(1, index.T, torch.ones_like(index.T, dtype=counts.dtype))
    logits = (counts / counts.sum(1, keepdim=True)).log()
    log_p = Categorical(levels)(logits.flatten()[None]).log_prob(test)  # (N,), in nats
    return -log_p.mean().item() / (test.shape[1] * math.log(2))


def curve(history: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training rows"), ("validation", "test rows, averaged weights")):
        axes.plot(range(1, len(history[name]) + 1), history[name], label=label)
    axes.set(xlabel="epoch", ylabel="minus the bound (nats per row)", title="Training")
    low = min(history["loss"] + history["validation"])
    early = history["loss"][len(history["loss"]) // 15]  # the first epochs would hide the rest
    if early > low:
        axes.set_ylim(low - 0.03 * (early - low), early)
    axes.legend()
    return figure


def samplers(diffusion: Diffusion, seed: int) -> Figure:
    """The digits 0 to 9 by each sampler, from the same noise."""
    y = torch.arange(10, device=diffusion.zero.device)
    rows = {}
    for sampler, steps in SAMPLERS.items():
        torch.manual_seed(seed)
        calls = 2 * steps - 1 if sampler in (heun, langevin) else steps
        rows[f"{sampler.__name__}\n{calls} calls"] = diffusion.sample(10, sampler, steps, y=y)
    return images(rows, "The digits 0 to 9 by each sampler, and its network calls")


def guided_digits(diffusion: Diffusion, seed: int) -> Figure:
    """The digits 0 to 9 with more and more guidance, from the same noise."""
    y = torch.arange(10, device=diffusion.zero.device)
    rows = {}
    for strength in STRENGTHS:
        torch.manual_seed(seed)
        drawn = diffusion.sample(10, heun, 36, y=y, guidance=strength)
        rows[f"w = {strength:g}"] = drawn
    return images(rows, "Asked for 0 to 9: ignored (w = 0), followed (1), exaggerated (2, 4)")


def images(rows: dict[str, Tensor], title: str) -> Figure:
    """Draws a row of square images for each name, the digits 0 to 9 that were asked for."""
    width = len(next(iter(rows.values())))
    side = int(next(iter(rows.values())).shape[1] ** 0.5)
    figure = Figure(figsize=(0.7 * width + 1, 0.75 * len(rows) + 0.8), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(rows), width)
    for digit, ax in enumerate(grid[0]):
        ax.set_title(str(digit), fontsize="medium")
    for axes, (name, drawn) in zip(grid, rows.items(), strict=True):
        for ax, row in zip(axes, drawn.cpu(), strict=True):
            ax.imshow(row.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
