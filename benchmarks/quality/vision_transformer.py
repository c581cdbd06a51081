"""A vision transformer as a classifier, and what a pre-training by masked patches is worth.

python -m benchmarks.quality.vision_transformer --data-root DATA
python -m benchmarks.quality.vision_transformer --data-root DATA --data fashion-mnist --epochs 20
python -m benchmarks.quality.vision_transformer --data-root DATA --labels 10 --seeds 3
python -m benchmarks.quality.vision_transformer --data-root DATA --epochs 2 --held-out    # short

Protocol: 28 x 28 grey levels in [0, 1], patches of 7 x 7, width 64, 4 layers, 4 heads. Training
images are moved by up to two pixels, drawn anew for each batch (Fashion-MNIST: one, and half of
them flipped), Adam with a rate that rises for a fifth of the steps, and then falls as a cosine.
Accuracy and exact nats per label of the 10,000 test rows, the network of the last step. Settings
were chosen with --held-out: the last 5,000 training rows are then the test, and not trained on.

With --labels, so many rows of each class keep theirs, chosen by the seed: the network trained on
them alone, the same after a pre-training by masked patches on all training rows without labels, and
the same with only the head trained. All three see them equally often; the rate is twice as high in
the pre-training, and ten times for the head alone.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks import measure
from ppl_models import (
    Classifier,
    Evidence,
    Transformed,
    datasets,
    elbo,
    fit,
    freeze,
    log_evidence,
    reconstruction,
    warm_start,
)
from ppl_models.nn import MaskedPatches, VisionTransformer

HELD_OUT = 5000
KINDS = ("from scratch", "pre-trained", "pre-trained, only the head")
SOURCES = {"mnist": datasets.mnist, "fashion-mnist": datasets.fashion_mnist}


class Data(NamedTuple):
    """Images and their labels, those of the test, and how a batch is drawn from images."""

    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor]
    moved: Callable[[Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    data = load(args)
    print(measure.heading("cpu"))
    print(f"{args.data}: {len(data.x)} training rows, {len(data.test[0])} test rows", end="")
    print(" (held-out training rows)" if args.held_out else "")
    scores: dict[str, list[Tensor]] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name, model, seconds in (few if args.labels else whole)(data, args, seed):
            accuracy, evidence = judge(model, data)
            scores.setdefault(name, []).append(torch.tensor([accuracy, -evidence.mean]))
            print(
                f"seed {seed}  {name:34}{accuracy:7.2%}  {-evidence.mean:.4f} ± "
                f"{evidence.standard_error:.4f} nats per label ({evidence.kind}){seconds:7.0f} s",
                flush=True,
            )
    if args.seeds > 1:
        for name, values in scores.items():
            mean, spread = torch.stack(values).mean(0), torch.stack(values).std(0)
            print(f"mean    {name:34}{mean[0]:7.2%} ± {spread[0]:.2%}", end="")
            print(f"  {mean[1]:.4f} ± {spread[1]:.4f} over {args.seeds} seeds")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(SOURCES), default="mnist")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--epochs", type=int, default=10, help="of all rows, with labels or not")
    parser.add_argument("--rows", type=int, help="the first training rows only")
    parser.add_argument("--labels", type=int, help="of each class; default: all")
    parser.add_argument("--steps", type=int, default=600, help="on the rows with labels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true", help="test on training rows held out")
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> Data:
    (x, y), test = SOURCES[args.data](args.data_root, labels=True)
    if args.held_out:
        test = x[-HELD_OUT:], y[-HELD_OUT:]
        x, y = x[:-HELD_OUT], y[:-HELD_OUT]
    x, y = x[: args.rows], y[: args.rows]
    fashion = args.data == "fashion-mnist"
    return Data(x, y, test, partial(move, by=1, flips=True) if fashion else partial(move, by=2))


def move(x: Tensor, by: int, flips: bool = False) -> Tensor:
    """Images moved by up to so many pixels along each side, and half of them flipped."""
    rows, side = len(x), 28
    padded = nn.functional.pad(x.view(rows, side, side), (by, by, by, by))
    down, right = (torch.randint(2 * by + 1, (rows, 1)) + torch.arange(side) for _ in range(2))
    if flips:
        right = torch.where(torch.rand(rows, 1) < 0.5, right.flip(1), right)
    return padded[torch.arange(rows)[:, None, None], down[:, :, None], right[:, None]].flatten(1)


def warm_up_and_cool_down(optimizer: torch.optim.Optimizer, steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=optimizer.defaults["lr"], total_steps=steps, pct_start=0.2)


def network() -> VisionTransformer:
    return VisionTransformer(28, patch=7, width=64, num_layers=4, num_heads=4)


def whole(data: Data, args: argparse.Namespace, seed: int) -> list[tuple[str, Classifier, float]]:
    """The classifier of all labels."""
    torch.manual_seed(seed)
    model = Classifier(784, 10, 64, network())
    seconds = train(model, data, slice(None), args, seed, epochs=args.epochs)
    return [(f"{args.epochs} epochs, {len(data.x)} labels", model, seconds)]


def few(data: Data, args: argparse.Namespace, seed: int) -> list[tuple[str, Classifier, float]]:
    """Classifiers of few labels: from scratch, pre-trained, and with only the head trained."""
    order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(seed))
    some = torch.cat([order[data.y[order] == c][: args.labels] for c in range(10)])
    torch.manual_seed(seed)
    masked = MaskedPatches(network())
    began = time.perf_counter()
    images = Transformed(data.x, transform=data.moved)
    run = fit(
        reconstruction(masked),
        images,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=2 * args.lr,
        schedule=warm_up_and_cool_down,
        clip=1.0,
        seed=seed,
    )
    before = time.perf_counter() - began
    first, last = run.history["loss"][0], run.history["loss"][-1]
    print(f"seed {seed}  masked patches, squared error of a row: {first:.1f}, then {last:.1f}")
    found = []
    for name in KINDS:
        torch.manual_seed(seed)
        model = Classifier(784, 10, 64, network())
        if name != KINDS[0]:
            warm_start(model.network, from_=masked.transformer)
        if name == KINDS[2]:
            freeze(model, "network")
        rate = 10 if name == KINDS[2] else 1
        seconds = train(model, data, some, args, seed, rate, steps=args.steps)
        more = 0.0 if name == KINDS[0] else before
        found.append((f"{len(some)} labels, {name}", model, seconds + more))
    return found


def train(
    model: Classifier,
    data: Data,
    some: Tensor | slice,
    args: argparse.Namespace,
    seed: int,
    rate: float = 1.0,
    **length: int,
) -> float:
    """Fits a classifier to some of the images, moved, and returns the seconds that it took."""
    x, y = data.x[some], data.y[some]
    run = fit(
        elbo(model),
        Transformed(x, y, transform=lambda x, y: (data.moved(x), y)),
        batch_size=min(args.batch_size, len(x)),
        lr=rate * args.lr,
        schedule=warm_up_and_cool_down,
        clip=1.0,
        seed=seed,
        **length,
    )
    return run.seconds


def judge(model: Classifier, data: Data) -> tuple[float, Evidence]:
    x, y = data.test
    right = (model.predict(x, batch_size=1000) == y).double().mean().item()
    return right, log_evidence(model, None, x, y)


if __name__ == "__main__":
    main()
