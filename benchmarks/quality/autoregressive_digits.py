"""Autoregressive models of grey digits: test bits/dim, all exact.

python -m benchmarks.quality.autoregressive_digits
python -m benchmarks.quality.autoregressive_digits --only MADE PixelCNN --epochs-scale 0.1  # quick
python -m benchmarks.quality.autoregressive_digits --device cuda --json autoregressive_digits.json

Protocol: scikit-learn's digits, 8 x 8 pixels of 17 levels; of the first 1500 rows the last 150 stop
the training early (the averaged parameters of the best epoch are kept), the last 297 rows are the
test. The density is that of the 17 levels, so that all likelihoods compare. Draws compute each unit
once; beside their time is that of draws by a pass for each pixel, and whether both are the same.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks import measure
from ppl_models import elbo, fit, log_evidence
from ppl_models.autoregressive.made import MADE
from ppl_models.autoregressive.model import Autoregressive, AutoregressiveModel
from ppl_models.autoregressive.pixelcnn import PixelCNN
from ppl_models.autoregressive.pixelrnn import PixelRNN
from ppl_models.datasets import digits
from ppl_models.likelihoods import Categorical, LogisticMixture


class ByPasses(nn.Module):
    """A network without its walk: its draws take a whole pass for each pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class Recipe(NamedTuple):
    """A model, and how it is trained; by Adam with a cosine schedule to zero."""

    make: Callable[[], AutoregressiveModel]
    epochs: int
    batch_size: int
    lr: float = 3e-3
    ema: float = 0.995


def mixture() -> LogisticMixture:
    return LogisticMixture(levels=17, num_components=5)


RECIPES = {
    "MADE, 256 units, logistic mixture": Recipe(lambda: MADE(64, mixture(), dropout=0.3), 80, 100),
    "PixelCNN, 32 channels, 4 layers, softmax": Recipe(
        lambda: PixelCNN(8, 8, Categorical(17), 32, 4, dropout=0.2), 80, 32
    ),
    "PixelRNN, row LSTM, 24 channels, 2 layers, softmax": Recipe(
        lambda: PixelRNN(8, 8, Categorical(17), "row", 24, 2, dropout=0.2), 40, 32
    ),
    "PixelRNN, diagonal BiLSTM, 24 channels, 2 layers, softmax": Recipe(
        lambda: PixelRNN(8, 8, Categorical(17), "diagonal", 24, 2, dropout=0.2), 40, 32
    ),
}


def independent(train: Tensor, test: Tensor) -> float:
    """Test bits/dim of independent pixels, with one pseudo-count for each level: the floor."""
    levels = torch.arange(17.0) / 16
    counts = (train.unsqueeze(-1) == levels).double().sum(0) + 1  # (D, L)
    log_probs = (counts / counts.sum(1, keepdim=True)).log()
    index = (test * 16).round().long()
    nats = -log_probs.gather(1, index.T).mean()
    return nats.item() / math.log(2)


def seconds_of_draws(
    model: AutoregressiveModel, seed: int, device: str
) -> tuple[float, float, bool]:
    """The times of 100 draws, by the walk and by passes, and whether these are the same draws."""
    drawn, seconds = [], []
    for network in (model.network, ByPasses(model.network)):
        rows = Autoregressive(network, model.likelihood, model.num_features)
        rows.sample((1,))
        torch.manual_seed(seed)
        draw = partial(lambda rows: drawn.append(rows.sample((100,))), rows)
        seconds.append(measure.seconds(draw, device))
    return *seconds, torch.equal(*drawn)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names of models")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="fewer epochs, or more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    arguments = parser.parse_args(argv)

    rows, test = digits()
    train, held_out = rows[:1350], rows[1350:]
    found: list[dict[str, Any]] = []
    print(measure.heading(arguments.device))
    print("digits, 8 x 8, 17 levels: test bits/dim (exact; 297 rows; less is better)")
    print(
        f"{'':60}bits/dim     ±  parameters  best epoch  training s  100 draws s  by passes s  same"
    )
    print(f"{'independent pixels':60}{independent(rows, test):8.4f}")
    for name, recipe in RECIPES.items():
        if not name.startswith(tuple(arguments.only)):
            continue
        torch.manual_seed(arguments.seed)
        model = recipe.make()
        epochs = max(1, round(recipe.epochs * arguments.epochs_scale))
        run = fit(
            elbo(model),
            train,
            epochs=epochs,
            batch_size=recipe.batch_size,
            lr=recipe.lr,
            clip=1.0,
            schedule=CosineAnnealingLR,
            ema=recipe.ema,
            validation=held_out,
            patience=epochs,  # the best epoch is kept, the schedule is run to its end
            seed=arguments.seed,
            device=arguments.device,
            progress=False,
        )
        evidence = log_evidence(model, None, test.to(arguments.device))
        error = evidence.standard_error / (64 * math.log(2))
        walk, passes, same = seconds_of_draws(model, arguments.seed, arguments.device)
        validation = run.history["validation"]
        best = 1 + min(range(len(validation)), key=validation.__getitem__)
        count = sum(p.numel() for p in model.parameters())
        print(
            f"{name:60}{evidence.bits_per_dim:8.4f}{error:6.3f}{count:12,}"
            f"{f'{best} of {epochs}':>12}{run.seconds:12.0f}{walk:13.3f}{passes:13.2f}"
            f"{'yes' if same else 'no':>6}",
            flush=True,
        )
        found.append(
            {
                "name": name,
                "bits/dim": evidence.bits_per_dim,
                "error": error,
                "parameters": count,
                "best epoch": best,
                "epochs": epochs,
                "training seconds": run.seconds,
                "100 draws, seconds": walk,
                "by passes, seconds": passes,
                "same draws": same,
            }
        )
        measure.write(arguments.json, arguments.device, rows=found)


if __name__ == "__main__":
    main()
