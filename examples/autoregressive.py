r"""Images pixel by pixel: MADE, PixelCNN or PixelRNN, with an exact log-likelihood.

.. math:: p(x) = \prod_{d=1}^{D} p(x_d \mid x_1, \dots, x_{d-1})

    python examples/autoregressive.py                            # PixelCNN, 8x8 digits, minutes
    python examples/autoregressive.py --model made               # seconds
    python examples/autoregressive.py --data binary-mnist --data-root data --device cuda --amp
    python examples/autoregressive.py --data mnist --rows 2000 --epochs 5 --channels 16 --layers 3

Prints the exact evidence of the test rows, and writes into `--outdir` the training curve and draws
beside test rows. Grey digits keep their 17 levels, so that their bits/dim are of levels; MNIST is
binary, and the way it became so is stated, because it moves the number by about two nats.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import Transformed, datasets, elbo, fit, log_evidence
from ppl_models.autoregressive.made import MADE
from ppl_models.autoregressive.model import AutoregressiveModel
from ppl_models.autoregressive.pixelcnn import PixelCNN
from ppl_models.autoregressive.pixelrnn import PixelRNN
from ppl_models.likelihoods import Bernoulli, Categorical, Likelihood, LogisticMixture

SIZES = {  # channels (of MADE: units) and layers, for digits and for MNIST
    "made": ((256, 1), (1000, 2)),
    "pixelcnn": ((32, 4), (64, 8)),
    "pixelrnn": ((24, 2), (32, 7)),
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SIZES), default="pixelcnn")
    parser.add_argument("--data", choices=["digits", "mnist", "binary-mnist"], default="digits")
    parser.add_argument("--data-root", default="data", help="the folder of MNIST")
    parser.add_argument("--rows", type=int, help="only so many rows of each part, for a quick look")
    parser.add_argument("--epochs", type=int, help="default: 80 for digits, else 100")
    parser.add_argument("--channels", type=int, help="of a layer; of MADE, its units")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch-size", type=int, help="default: 32 for digits, else 64")
    parser.add_argument("--lr", type=float, help="default: 3e-3 for digits, else 1e-3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--amp", action="store_true", help="run the network in bfloat16")
    parser.add_argument("--checkpoint", type=Path, help="default: in --outdir")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    small = args.data == "digits"
    channels, layers = SIZES[args.model][0 if small else 1]
    args.channels, args.layers = args.channels or channels, args.layers or layers
    args.epochs = args.epochs or (80 if small else 100)
    args.batch_size = args.batch_size or (32 if small else 64)
    args.lr = args.lr or (3e-3 if small else 1e-3)
    name = f"{args.model}-{args.data}"
    args.checkpoint = args.checkpoint or args.outdir / f"{name}.safetensors"
    args.pictures = args.outdir / name
    return args


class Data(NamedTuple):
    """Rows to train on, to stop the training by, and to test."""

    train: Tensor | Transformed
    validation: Tensor
    test: Tensor
    levels: int
    how: str  # what the numbers in a row are

    def grey(self) -> Tensor:
        """The training rows as they were before any draw."""
        return self.train.tensors[0] if isinstance(self.train, Transformed) else self.train


def load(args: argparse.Namespace) -> Data:
    rows = slice(args.rows)
    if args.data == "digits":
        x, test = datasets.digits()
        test = spread(test, args.rows)
        return Data(x[:1350][rows], x[1350:][rows], test, 17, "17 grey levels")
    if args.data == "binary-mnist":
        train, validation, test = datasets.binary_mnist(args.data_root)
        how = "binary by the fixed file of Larochelle and Murray"
        return Data(train[rows], validation[rows], spread(test, args.rows), 2, how)
    fresh, test = datasets.mnist(args.data_root, binarize="fresh")
    grey = fresh.tensors[0]
    train = Transformed(grey[:50_000][rows], transform=torch.bernoulli)
    validation = datasets.binarize(grey[50_000:][rows], seed=0)
    how = "binary by a fresh draw each epoch, one draw of the validation and test rows"
    return Data(train, validation, spread(test, args.rows), 2, how)


def spread(x: Tensor, rows: int | None) -> Tensor:
    """So many rows from all of `x`: test rows may lie in the order of their digits."""
    count = len(x) if rows is None else min(rows, len(x))
    return x[torch.arange(count) * len(x) // count]


def build(args: argparse.Namespace) -> AutoregressiveModel:
    side, channels, layers = (8 if args.data == "digits" else 28), args.channels, args.layers
    likelihood: Likelihood = Categorical(17) if args.data == "digits" else Bernoulli()
    if args.model == "made":
        if args.data == "digits":
            likelihood = LogisticMixture(levels=17, num_components=5)
        return MADE(side * side, likelihood, hidden=[channels] * layers, dropout=0.3)
    if args.model == "pixelrnn":
        return PixelRNN(side, side, likelihood, "diagonal", channels, layers, dropout=0.2)
    reach = 1 if args.data == "digits" else 2  # so that nearly all rows above are seen
    return PixelCNN(side, side, likelihood, channels, layers, reach, dropout=0.2)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    data = load(args)
    num_features = data.test.shape[1]
    print(
        f"{args.data}: {len(data.train)} training rows, {len(data.validation)} validation rows, "
        f"{len(data.test)} test rows, {num_features} pixels"
    )
    print(data.how)
    floor = independent_pixels(data)
    bits = floor / (num_features * math.log(2))
    print(f"independent pixels give {floor:.3f} nats per test row, {bits:.4f} bits/dim")

    torch.manual_seed(args.seed)
    model = build(args)
    size = sum(p.numel() for p in model.parameters())
    print(f"{type(model).__name__}, {args.channels} x {args.layers}: {size:,} parameters")
    args.outdir.mkdir(parents=True, exist_ok=True)
    run = fit(
        elbo(model),
        data.train,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        clip=1.0,
        schedule=CosineAnnealingLR,
        ema=0.995 if args.data == "digits" else 0.999,
        validation=data.validation,
        patience=args.epochs,  # the best epoch is kept, the schedule is run to its end
        seed=args.seed,
        device=args.device,
        amp=args.amp,
        checkpoint=args.checkpoint,
        resume=args.resume,
    )
    losses = run.history["validation"]
    best = 1 + losses.index(min(losses))
    print(f"fitted in {run.seconds:.0f} s, {run.steps} steps; best epoch {best} of {len(losses)}")

    device = next(model.parameters()).device
    evidence = log_evidence(model, None, data.test.to(device), batch_size=256)
    print(f"test {evidence}")
    print(
        f"test NLL {-evidence.mean:.3f} nats per row, {evidence.bits_per_dim:.4f} bits/dim "
        f"({evidence.kind}; {data.how})"
    )
    torch.manual_seed(args.seed)
    began = time.perf_counter()
    draws = model(size=49).cpu()
    print(f"49 draws in {time.perf_counter() - began:.1f} s, each unit of the network once")

    pictures = {
        "curve": curve(run.history, num_features),
        "samples": beside(spread(data.test, 49), draws),
    }
    written = [args.checkpoint]
    for name, figure in pictures.items():
        written.append(Path(f"{args.pictures}-{name}.png"))
        figure.savefig(written[-1], dpi=120)
    print("\nwritten:", *written, sep="\n  ")


def independent_pixels(data: Data) -> float:
    """The test NLL of independent pixels, with a pseudo-count for each level, in nats per row."""
    grey = data.grey()
    if data.levels == 2:
        ink = grey.sum(0)
        counts = torch.stack([len(grey) - ink, ink], 1)  # (D, 2)
    else:
        levels = torch.arange(data.levels) / (data.levels - 1)
        counts = (grey.unsqueeze(-1) == levels).sum(0).float()  # (D, L)
    log_probs = ((counts + 1) / (counts + 1).sum(1, keepdim=True)).log()
    index = (data.test * (data.levels - 1)).round().long()  # (N, D)
    return -log_probs.gather(1, index.T).sum(0).mean().item()


def curve(history: dict[str, list[float]], num_features: int) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    labels = {
        "loss": "training rows (with dropout)",
        "validation": "validation rows (averaged parameters)",
    }
    for name, label in labels.items():
        bits = [loss / (num_features * math.log(2)) for loss in history[name]]
        axes.plot(range(1, len(bits) + 1), bits, marker="." * (len(bits) < 20), label=label)
    axes.set(
        xlabel="epoch", ylabel="negative log-likelihood (bits/dim)", title="Training", yscale="log"
    )
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.legend()
    return figure


def beside(rows: Tensor, draws: Tensor) -> Figure:
    """Draws test rows at the left and draws of the model at the right."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    tiles(left, rows, "Test rows")
    tiles(right, draws, "Drawn from the model")
    return figure


def tiles(axes: Axes, rows: Tensor, title: str, columns: int = 7) -> None:
    """Shows up to 49 rows as square images, with lines between them."""
    side = math.isqrt(rows.shape[1])
    images = rows.new_zeros(columns**2, side, side)
    images[: len(rows)] = rows.view(-1, side, side)
    framed = torch.nn.functional.pad(images, (0, 1, 0, 1), value=0.12)
    grid = framed.unflatten(0, (columns, columns)).transpose(1, 2)  # (7, side + 1, 7, side + 1)
    axes.imshow(grid.flatten(2).flatten(0, 1), cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(title)
    axes.axis("off")


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
