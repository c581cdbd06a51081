r"""Digits of other hands: labels of MNIST, rows of Semeion, and what each method makes of them.

    python examples/adaptation.py --data-root data                   # two minutes
    python examples/adaptation.py --data-root data --crop            # the hard task

A classifier of the source, MNIST, is adapted to rows of a target, Semeion, none of which has a
label. Both are cut out tightly and stretched to 16 x 16 binary pixels; with `--crop` MNIST is taken
from the middle of its images instead.

    CORAL           maps rows of the source so that their moments are those of the target
    label shift     finds how many of each class there are, and corrects the probabilities
    adversarial     learns features from which the domain cannot be read
    DomainVAE       p(y) p(z) p(d) p(x | y, z, d): the rows themselves, with labels summed over

Adaptation may do harm. Without labels of the target a number tells: the evidence of its rows by the
labels that a method gives them, which `compare_labels` takes before and after, and warns. Beside it
stands how much better these labels tell those of the source back, which are known, and how much
further their shares of classes are from those of the source. Labels of the target are used only at
the end, to show whether that was right.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import DomainNormal
from ppl_models import (
    Classifier,
    Coral,
    DomainAdversarial,
    DomainVAE,
    LabelShift,
    compare_labels,
    datasets,
    domain_adversarial,
    elbo,
    fit,
    fit_em,
    log_evidence,
    weighted,
)

LATENTS = 4
LABEL_WEIGHT = 10.0  # of the known labels beside the bound of all rows
NAMES = ("MNIST", "Semeion")


class Data(NamedTuple):
    """Rows of both domains, their labels, -1 of the target, and their domains; and the truth."""

    x: Tensor
    y: Tensor
    d: Tensor
    truth: Tensor

    @property
    def source(self) -> tuple[Tensor, Tensor]:
        return self.x[self.d == 0], self.y[self.d == 0]

    @property
    def target(self) -> Tensor:
        return self.x[self.d == 1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data", help="the folder of MNIST and Semeion")
    parser.add_argument("--crop", action="store_true", help="the middle of MNIST's images")
    parser.add_argument("--rows", type=int, default=3000, help="of MNIST")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    data = load(args)
    print(f"source: {(data.d == 0).sum()} digits of MNIST with labels")
    print(f"target: {(data.d == 1).sum()} digits of Semeion, without; 16 x 16 binary pixels\n")

    options: dict[str, Any] = {"epochs": args.epochs, "batch_size": 100, "lr": 2e-3}
    options |= {"schedule": CosineAnnealingLR, "seed": args.seed}
    alone = classifier(data.source, args.seed, options)
    adversary = by_adversary(data, args.seed, options)
    labels = {
        "CORAL": by_coral(data, args.seed, options),
        "label shift": by_label_shift(data, alone),
        "adversarial": adversary.predict(data.target),
    }
    vae, guide = domain_vae(data, args.seed, options)
    with torch.no_grad():
        labels["DomainVAE"] = guide.label(data.target).probs.argmax(1)
    report(data, alone.predict(data.target), labels)
    report_evidence(data, vae, guide)

    networks = {"before: source only": alone.network, "after: adversarial": adversary.network}
    networks["after: DomainVAE"] = guide.classifier[0]
    figures = {
        "latents": draw_latents(data, networks),
        "digits": draw_digits(data, vae, guide),
    }
    print("\nwritten:")
    for name, figure in figures.items():
        file = args.outdir / f"adaptation-{name}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def load(args: argparse.Namespace) -> Data:
    (x, y), _ = datasets.mnist(args.data_root, labels=True)
    x, y = x[: args.rows], y[: args.rows]
    x = datasets.cropped(x) if args.crop else datasets.boxed(x)
    target, truth = datasets.semeion(args.data_root)
    target = target if args.crop else datasets.boxed(target)
    domain = (torch.arange(len(x) + len(target)) >= len(x)).long()
    unknown = torch.full_like(truth, -1)
    return Data(torch.cat([x, target]), torch.cat([y, unknown]), domain, truth)


def features() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 16, 16)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 64), nn.ReLU()),
    )


def classifier(source: tuple[Tensor, Tensor], seed: int, options: dict[str, Any]) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier(256, 10, 64, features())
    fit(elbo(model), source, **options)
    return model


def by_coral(data: Data, seed: int, options: dict[str, Any]) -> Tensor:
    """The labels of a classifier that has learned from mapped rows."""
    x, y = data.source
    coral = Coral(256, ridge=3.0).maximum_likelihood(x, data.target)
    return classifier((coral.map(x).detach(), y), seed, options).predict(data.target)


@torch.no_grad()
def by_label_shift(data: Data, alone: Classifier) -> Tensor:
    # Of rows that it has learned from a classifier is too sure: these should be others.
    says = [alone.conditional(x).probs.double() for x in (data.source[0], data.target)]
    source, target = (p / p.sum(1, keepdim=True) for p in says)
    shift = LabelShift(source)
    fit_em(shift, target)
    return shift.posterior(target).probs.argmax(1)


def by_adversary(data: Data, seed: int, options: dict[str, Any]) -> DomainAdversarial:
    torch.manual_seed(seed)
    model = DomainAdversarial(256, 10, network=features())
    fit(domain_adversarial(model, weight=0.3), (data.x, data.y, data.d), **options)
    return model


def domain_vae(data: Data, seed: int, options: dict[str, Any]) -> tuple[DomainVAE, DomainNormal]:
    torch.manual_seed(seed)
    vae = DomainVAE(256, 10, LATENTS)
    network = nn.Sequential(features(), nn.Linear(64, 10))
    guide = DomainNormal(256, 10, LATENTS, classifier=network)
    both = weighted({elbo(vae, guide): 1.0, elbo(guide.classify): LABEL_WEIGHT})
    fit(both, (data.x, data.y, data.d), **options)
    return vae, guide


def report(data: Data, before: Tensor, labels: dict[str, Tensor]) -> None:
    """Prints the number that needs no labels, and then, with them, what came of it."""
    print("evidence of the target by its labels, nats per row (lower bound), and how much better")
    print("they tell the labels of the source back and how much further shares of classes are from")
    print("its own, nats per label, all beside source only:")
    print(f"  {'':14}{'evidence':>9}{'better by':>17}{'told back':>17}{'shares':>9}"
          f"   {'verdict':10}{'right':>7}")  # fmt: skip
    for name, found in labels.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            told = compare_labels(data.target, before=before, after=found, source=data.source)
        if name == next(iter(labels)):
            print(f"  {'source only':14}{told.before:9.2f}{'':56}{share(data, before):>7}")
        better = f"{told.difference:+.2f} ± {told.standard_error:.2f}"
        warned = ", warned of" if caught else ""
        back = f"{told.told_back:+.3f} ± {told.told_back_error:.3f}"
        print(f"  {name:14}{told.after:9.2f}{better:>17}{back:>17}{told.departed:+9.3f}"
              f"   {told.verdict:10}{share(data, found):>7}{warned}")  # fmt: skip


def share(data: Data, labels: Tensor) -> str:
    return f"{(labels == data.truth).double().mean():.1%}"


def report_evidence(data: Data, vae: DomainVAE, guide: DomainNormal) -> None:
    """Prints the evidence of target rows under the model, as its own and as rows of the source."""
    some = data.target[::4]
    unknown = torch.full((len(some),), -1)
    print("\nDomainVAE, rows of the target given their domain, each with its log p(d) left out:")
    for d, name in enumerate(NAMES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few draws
            domain = torch.full_like(unknown, d)
            found = log_evidence(vae, guide, some, unknown, domain, num_samples=100, seed=0)
        value = found.mean - vae.domain_logits.log_softmax(0)[d].item()
        print(f"  as rows of {name:8} {value:9.2f} ± {found.standard_error:.2f} nats, {found.kind}")


@torch.no_grad()
def draw_latents(data: Data, networks: dict[str, nn.Module]) -> Figure:
    """What each classifier makes of rows of both domains, in a plane that keeps neighbours."""
    generator = torch.Generator().manual_seed(0)
    chosen = [
        (data.d == d).nonzero()[torch.randperm(count, generator=generator)[:600], 0]
        for d, count in enumerate(data.d.bincount().tolist())
    ]
    some, domain = torch.cat(chosen), data.d[torch.cat(chosen)]
    digit = torch.cat([data.y[data.d == 0], data.truth])[some]  # rows of the source come first
    figure = Figure(figsize=(15, 6.2), layout="constrained")
    figure.suptitle("Features of classifiers: dots are MNIST, rings Semeion, by the true digit")
    panels = figure.subplots(1, len(networks))
    for axes, (title, network) in zip(panels, networks.items(), strict=True):
        found = network(data.x[some])
        plane = torch.as_tensor(TSNE(random_state=0, max_iter=500).fit_transform(found.numpy()))
        draw_domains(axes, plane, digit, domain)
        axes.set(title=f"{title}\n{neighbours(found, digit, domain)}", xticks=[], yticks=[])
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), title="digit")
    return figure


def draw_domains(axes: Any, plane: Tensor, digit: Tensor, domain: Tensor) -> None:
    for k in range(10):
        colour = matplotlib.colormaps["tab10"](k)
        dots, rings = (plane[(digit == k) & (domain == d)] for d in (0, 1))
        axes.scatter(*dots.T, s=7, color=colour, alpha=0.6, label=str(k))
        axes.scatter(*rings.T, s=26, facecolors="none", edgecolors=colour, linewidths=1.1)


def neighbours(found: Tensor, digit: Tensor, domain: Tensor) -> str:
    """How often the nearest digit of MNIST has the label, and the nearest other row the domain."""
    source, target = domain == 0, domain == 1
    nearest = KNeighborsClassifier(1).fit(found[source], digit[source])
    right = nearest.score(found[target], digit[target])
    others = KNeighborsClassifier(2).fit(found, domain)
    other = others.kneighbors(found, return_distance=False)[:, 1]
    told = (domain[torch.as_tensor(other)] == domain).double().mean()
    return (
        f"nearest dot of a ring is the same digit: {right:.0%}\n"
        f"nearest other row is of the same domain: {told:.0%}"
    )


@torch.no_grad()
def draw_digits(data: Data, vae: DomainVAE, guide: DomainNormal, columns: int = 14) -> Figure:
    """Rows of the target, and each drawn again with its z and its label, in both domains."""
    order = torch.randperm(len(data.truth), generator=torch.Generator().manual_seed(1))[:columns]
    rows = data.target[order[data.truth[order].argsort()]]
    ones = torch.ones(columns, dtype=torch.int64)
    y = guide.label(rows).probs.argmax(1)
    z = guide.posterior(rows, y, ones).mean
    lines = {"Semeion": rows, "drawn as Semeion": vae.mean(z, y, ones)}
    lines |= {"drawn as MNIST": vae.mean(z, y, 0 * ones)}
    source = [data.source[0][data.source[1] == digit][:1] for digit in y.tolist()]
    lines |= {"a digit of MNIST": torch.cat(source)}
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    figure.suptitle("Rows of the target, and the same label (above) and latents in both domains")
    for panels, (name, images) in zip(figure.subplots(4, columns), lines.items(), strict=True):
        for n, (axes, image) in enumerate(zip(panels, images, strict=True)):
            axes.imshow(image.view(16, 16), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if name == "Semeion":
                axes.set_title(str(int(y[n])), fontsize=10)
        label = {"rotation": 0, "horizontalalignment": "right", "verticalalignment": "center"}
        panels[0].set_ylabel(name, **label)
    return figure


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
