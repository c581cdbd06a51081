"""Metrics of samples where the answer is known: two sets of real rows.

python -m benchmarks.truth.metrics_check --data-root DATA    # about two minutes

Precision, recall, density and coverage of 10,000 against 10,000 draws of N(0, I_1000), beside the
numbers of the authors; and the Fréchet distance between real rows, the floor of every generator, on
features of a classifier trained here.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ppl_models import datasets, elbo, fit
from ppl_models.metrics import frechet, prdc
from ppl_models.supervised.classifier import Classifier

PUBLISHED = {"precision": 0.4772, "recall": 0.4705, "density": 1.0555, "coverage": 0.9735}


def self_test(rows: int, repeats: int) -> None:
    print(f"{rows} against {rows} draws of N(0, I_1000), k = 5, {repeats} repeat(s)")
    found = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        began = time.perf_counter()
        found.append(prdc(torch.randn(rows, 1000), torch.randn(rows, 1000)))
        print(f"  seed {seed}: {found[-1]}, {time.perf_counter() - began:.0f} s", flush=True)
    for name, published in PUBLISHED.items():
        values = torch.tensor([getattr(result, name) for result in found])
        error = f" ± {values.std():.4f} (sd of one run)" if repeats > 1 else ""
        print(f"  {name:10} {values.mean():.4f}{error}; published {published}")


def floor(name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    (x, y), (x_test, y_test) = train, test
    classifier = fitted_classifier(x, y, small=name == "digits")
    features, test_features = features_of(classifier, x), features_of(classifier, x_test)
    accuracy = (classifier.predict(x_test) == y_test).double().mean().item()
    count = len(x_test)
    print(f"{name}: {features.shape[1]} features of a classifier of test accuracy {accuracy:.2%}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = features[order[:count]], features[order[count : 2 * count]]
    noise = torch.rand(count, x.shape[1], generator=torch.Generator().manual_seed(0))
    pairs = {
        f"all {len(x)} training rows against {count} test rows": (features, test_features),
        f"{count} training rows against {count} test rows": (parts[0], test_features),
        f"{count} training rows against {count} other ones": parts,
        "uniform noise against test rows": (features_of(classifier, noise), test_features),
    }
    print("  squared Fréchet distance, in squared units of the features")
    for what, pair in pairs.items():
        print(f"    {what:52}{frechet(*pair):10.3f}")
    print(f"  {count} training rows beside test rows: {prdc(test_features, parts[0])}", flush=True)


def fitted_classifier(x: Tensor, y: Tensor, small: bool) -> Classifier:
    """That of `examples/gan.py`."""
    torch.manual_seed(0)
    network = None
    if not small:
        network = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7**2, 64),
            nn.ReLU(),
        )
    classifier = Classifier(x.shape[1], 10, network=network)
    epochs, lr = (30, 3e-3) if small else (5, 1e-3)
    fit(elbo(classifier), (x, y), epochs=epochs, batch_size=100, lr=lr, seed=0)
    return classifier


@torch.no_grad()
def features_of(classifier: Classifier, x: Tensor) -> Tensor:
    return torch.cat([classifier.features(part) for part in x.split(1000)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--data-root", type=Path, help="the folder of MNIST; without, digits alone")
    args = parser.parse_args()
    self_test(args.rows, args.repeats)
    floor("digits", *datasets.digits(labels=True))
    if args.data_root is not None:
        floor("MNIST", *datasets.mnist(args.data_root, labels=True, download=False))


if __name__ == "__main__":
    main()
