"""From digits with labels to those of other hands, which have none: MNIST, Semeion, and back.

python -m benchmarks.quality.adaptation --data-root DATA

Protocol: binary images of 16 x 16 pixels. `boxed`: 10,000 rows of MNIST's training part, drawn by
the seed, to all 1593 of Semeion, each cut out tightly and stretched; `back`: Semeion to 5000 rows
of MNIST; `cropped`, the hard task: MNIST from the middle 20 x 20 pixels, Semeion as it is. Labels
of the target are used once, to count what is right. Rows of the target are those that are adapted
to. A tenth of the source is held out, for label shift.

Each method is compared with the same classifier of the source alone. The evidence is that of
`compare_labels`, which sees no label of the target: nats per row, a lower bound, the higher the
better. Beside it: how much better the labels tell those of the source back, and how much further
their shares of classes are from those of the source, both in nats per label. It warns where the
evidence is not higher than before by three standard errors, or labels are told back worse by three,
or the shares are further, and says worse where the evidence is lower by three. This was settled
with what is lost and gained in seeds 0 and 1 in view; the others are the check.

Settings were chosen on `tuning`, MNIST to scikit-learn's digits, boxed alike, with 2000 rows, and
on no other task: the best of a ridge of .01, .1, 1 and 3, a reversed gradient of .03, .1, .3 and 1
times its size, and known labels that weigh 3 or 10 (with 10,000 rows 10 or 100: 86.4 and 85.4 %,
source only 83.4 %). Peers run with their defaults.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import ot
import torch
from skada import CORAL as SkadaCORAL
from skada import OTMapping
from sklearn.linear_model import LogisticRegression
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
    domain_adversarial,
    elbo,
    fit,
    fit_em,
    log_evidence,
    weighted,
)
from ppl_models.datasets import boxed, cropped, digits, mnist, semeion

RIDGE = 3.0
REVERSED = 0.3
LATENTS, LABEL_WEIGHT = 4, 10.0
COUNTS = ("lost", "gained", "warned", "worse")
NUMBERS = ("right", "evidence", "difference", "error", "back", "back_error", "departed")
FIELDS = (*NUMBERS, *COUNTS, "seconds")


class Task(NamedTuple):
    """Rows and labels of a source, held-out rows of it, and a target with labels to judge by."""

    x: Tensor
    y: Tensor
    held: Tensor
    target: Tensor
    truth: Tensor


class Labels(NamedTuple):
    """What a method makes of the target: its name, that of its classifier, and the labels."""

    classifier: str
    method: str
    labels: Tensor
    seconds: float
    evidence: str = "none"  # its own, of the rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--tasks", nargs="+", default=["boxed", "back", "cropped"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", type=int, default=10_000, help="of MNIST as a source")
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn|skada|ot")
    everything = []
    for name in args.tasks:
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for seed in args.seeds:
            for key, scores in run(task(name, args.data_root, args.rows, seed), args.epochs, seed):
                found.setdefault(key, []).append(scores)
        show(name, found, len(args.seeds))
        everything += [row for rows in found.values() for row in rows]
    conclude(everything)


def task(name: str, root: str, rows: int, seed: int) -> Task:
    generator = torch.Generator().manual_seed(seed)
    (x, y), (x_test, y_test) = mnist(root, labels=True, download=False)
    chosen = torch.randperm(len(x), generator=generator)[:rows]
    x, y = x[chosen], y[chosen]
    if name == "tuning":
        (first, labels), (second, more) = digits(labels=True)
        other = boxed(enlarged(torch.cat([first, second]))), torch.cat([labels, more])
    else:
        other = semeion(root)
    if name == "back":
        some = torch.randperm(len(x_test), generator=generator)[: min(5000, rows)]
        mixed = torch.randperm(len(other[0]), generator=generator)  # they are sorted by digit
        source = boxed(other[0])[mixed], other[1][mixed]
        return split(*source, boxed(x_test[some]), y_test[some])
    if name == "cropped":
        return split(cropped(x), y, *other)
    if name in ("boxed", "tuning"):
        return split(boxed(x), y, boxed(other[0]), other[1])
    raise SystemExit(f"--tasks: expected boxed, back, cropped or tuning, got {name}.")


def enlarged(x: Tensor) -> Tensor:
    """Images of 8 x 8 pixels as 32 x 32, and the darkest pixel of each as 1."""
    images = nn.functional.interpolate(x.view(-1, 1, 8, 8), scale_factor=4, mode="bilinear")
    return (images / images.amax((2, 3), keepdim=True)).flatten(1)


def split(x: Tensor, y: Tensor, target: Tensor, truth: Tensor) -> Task:
    held = len(x) // 10
    return Task(x[held:], y[held:], x[:held], target, truth)


def run(task: Task, epochs: int, seed: int) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
    """Scores of each method, the source alone before its adaptations."""
    before: dict[str, Labels] = {}
    for found in [*simple(task), *networks(task, epochs, seed)]:
        alone = before.setdefault(found.classifier, found)
        scores = score(task, alone, found)
        print(f"# seed {seed}: {found.classifier}, {found.method}: {scores['right']:.1%}, own "
              f"evidence {found.evidence}", flush=True)  # fmt: skip
        yield (found.classifier, found.method), scores


def score(task: Task, alone: Labels, found: Labels) -> dict[str, float]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told = compare_labels(
            task.target, before=alone.labels, after=found.labels, source=(task.x, task.y)
        )
    right, was = ((labels == task.truth).sum().item() for labels in (found.labels, alone.labels))
    values = (
        *(right / len(task.truth), told.after, told.difference, told.standard_error),
        *(told.told_back, told.told_back_error, told.departed),
        *(right < was, right > was, bool(caught), told.verdict == "worse", found.seconds),
    )
    return dict(zip(FIELDS, map(float, values), strict=True))


def simple(task: Task) -> Iterator[Labels]:
    """Logistic regression and the nearest neighbour: alone, on mapped rows, and the peers'."""
    makers: dict[str, Callable[[], Any]] = {
        "logistic": lambda: LogisticRegression(max_iter=200, C=0.1),
        "nearest neighbour": lambda: KNeighborsClassifier(1),
    }
    for name, make in makers.items():
        for method, rows in mappings(task):
            began = time.perf_counter()
            mapped, evidence = rows()
            model = make().fit(mapped, task.y)
            yield Labels(name, method, predicted(model, task), since(began), evidence)
            if (name, method) == ("logistic", "source only"):
                yield shifted(name, *(model.predict_proba(x) for x in (task.held, task.target)))
        for method, peer in (("CORAL (skada)", SkadaCORAL), ("transport (skada)", OTMapping)):
            began = time.perf_counter()
            yield Labels(name, method, theirs(peer(make()), task), since(began))


def mappings(task: Task) -> list[tuple[str, Callable[[], tuple[Any, str]]]]:
    """The ways to make rows of the source alike to those of the target, and their own evidence."""
    return [
        ("source only", lambda: (task.x, "none")),
        ("CORAL", lambda: by_coral(task)),
        ("transport (POT)", lambda: (by_transport(task), "none")),
    ]


def by_coral(task: Task) -> tuple[Tensor, str]:
    coral = Coral(256, RIDGE).double().maximum_likelihood(task.x, task.target)
    target = task.target.double()
    found, alone = log_evidence(coral, None, target), coral.source().log_prob(target).mean()
    text = f"{found.mean:.2f} nats per row (without it {alone:.2f}), {found.kind}, a density"
    return coral.map(task.x.double()).float().detach(), text


def by_transport(task: Task) -> Tensor:
    """The barycentric map of the exact plan."""
    transport = ot.da.EMDTransport(max_iter=1_000_000)
    transport.fit(Xs=task.x.double().numpy(), Xt=task.target.double().numpy())
    return torch.from_numpy(transport.transform(Xs=task.x.double().numpy())).float()


def predicted(model: Any, task: Task) -> Tensor:
    return torch.as_tensor(model.predict(task.target)).long()


def theirs(model: Any, task: Task) -> Tensor:
    """Labels of a peer, which takes both domains at once: 1 is the source, -1 the target."""
    x = torch.cat([task.x, task.target]).double().numpy()
    y = np.concatenate([task.y.numpy(), np.full(len(task.target), -1)])
    domain = np.where(np.arange(len(x)) < len(task.x), 1, -1)
    model.fit(x, y, sample_domain=domain)
    found = model.predict(x[len(task.x) :], sample_domain=domain[len(task.x) :])
    return torch.as_tensor(found).long()


def shifted(name: str, held: Any, target: Any) -> Labels:
    """Label shift, from what a classifier says of held-out rows of the source and of the target."""
    began = time.perf_counter()
    held, target = (
        torch.as_tensor(p, dtype=torch.float64).clamp(min=1e-12) for p in (held, target)
    )
    held, target = (p / p.sum(1, keepdim=True) for p in (held, target))
    shift = LabelShift(held)
    fit_em(shift, target, progress=False)
    found = log_evidence(shift, None, target)
    text = f"{found.mean:.3f} nats per row above that of no shift, {found.kind}"
    labels = shift.posterior(target).probs.argmax(1)
    return Labels(name, "label shift", labels, since(began), text)


def networks(task: Task, epochs: int, seed: int) -> Iterator[Labels]:
    """A convolutional network: alone, on mapped rows, against a critic, and in a VAE."""
    options: dict[str, Any] = {"epochs": epochs, "batch_size": 200, "lr": 2e-3, "seed": seed}
    options |= {"schedule": CosineAnnealingLR, "progress": False}
    for method, rows in mappings(task):
        began = time.perf_counter()
        mapped, evidence = rows()
        torch.manual_seed(seed)
        model = Classifier(256, 10, 64, features())
        fit(elbo(model), (mapped, task.y), **options)
        yield Labels("network", method, model.predict(task.target), since(began), evidence)
        if method == "source only":
            with torch.no_grad():
                says = [model.conditional(x).probs for x in (task.held, task.target)]
            yield shifted("network", *says)
    yield adversary(task, options)
    yield domain_vae(task, options)


def features() -> nn.Module:
    """From rows to 64 features, (B, 256) to (B, 64)."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 16, 16)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 64), nn.ReLU()),
    )


def both(task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of both domains, their labels, -1 of the target, and their domains."""
    unknown = torch.full((len(task.target),), -1)
    domain = (torch.arange(len(task.x) + len(unknown)) >= len(task.x)).long()
    return torch.cat([task.x, task.target]), torch.cat([task.y, unknown]), domain


def adversary(task: Task, options: dict[str, Any]) -> Labels:
    began = time.perf_counter()
    torch.manual_seed(options["seed"])
    model = DomainAdversarial(256, 10, network=features())
    fit(domain_adversarial(model, REVERSED), both(task), **options)
    return Labels("network", "adversarial", model.predict(task.target), since(began))


def domain_vae(task: Task, options: dict[str, Any]) -> Labels:
    began = time.perf_counter()
    torch.manual_seed(options["seed"])
    vae = DomainVAE(256, 10, LATENTS)
    classifier = nn.Sequential(features(), nn.Linear(64, 10))
    guide = DomainNormal(256, 10, LATENTS, classifier=classifier)
    objective = weighted({elbo(vae, guide): 1.0, elbo(guide.classify): LABEL_WEIGHT})
    fit(objective, both(task), **options)
    with torch.no_grad():
        labels = guide.label(task.target).probs.argmax(1)
    spent = since(began)
    some, unknown = task.target[::5], torch.full((len(task.target[::5]),), -1)
    values = []
    for domain in (1, 0):
        d = torch.full_like(unknown, domain)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few draws, below
            found = log_evidence(vae, guide, some, unknown, d, num_samples=50, seed=0)
        values.append(found.mean - vae.domain_logits.log_softmax(0)[domain].item())
    text = f"{values[0]:.2f} nats per row (as the source {values[1]:.2f}), {found.kind}"
    return Labels("network", "DomainVAE", labels, spent, text)


def since(began: float) -> float:
    return time.perf_counter() - began


def show(name: str, found: dict[tuple[str, str], list[dict[str, float]]], seeds: int) -> None:
    print(f"\n{name}, {seeds} seed(s): rows of the target with the right label (± over seeds), log")
    print("evidence of the target by the labels (nats per row, lower bound), how much better than")
    print("of the source only, how much better labels of the source are told back and how much")
    print("further shares of classes are from its own (nats per label, ± mean standard errors),")
    print("seeds that lost, gained, were warned of, and told worse\n")
    print(f"{'':38}{'right':>14}{'evidence':>10}{'better by':>15}{'told back':>14}{'shares':>9}"
          f"{'lost':>6}{'gained':>8}{'warned':>8}{'worse':>7}{'seconds':>9}")  # fmt: skip
    for (classifier, method), rows in found.items():
        mean = {key: float(np.mean([row[key] for row in rows])) for key in FIELDS}
        total = {key: int(sum(row[key] for row in rows)) for key in COUNTS}
        spread = float(np.std([row["right"] for row in rows]))
        print(f"{classifier + ', ' + method:38}{mean['right']:8.1%} ±{spread:5.1%}"
              f"{mean['evidence']:10.2f}{mean['difference']:9.2f} ±{mean['error']:4.2f}"
              f"{mean['back']:8.3f} ±{mean['back_error']:4.2f}{mean['departed']:9.3f}"
              f"{total['lost']:6}{total['gained']:8}{total['warned']:8}"
              f"{total['worse']:7}"
              f"{mean['seconds']:9.1f}")  # fmt: skip


def conclude(rows: list[dict[str, float]]) -> None:
    """How often the warning came where it should, and where it should not."""
    print()
    for key in ("lost", "gained"):
        chosen = [row for row in rows if row[key]]
        warned, worse = (int(sum(row[name] for row in chosen)) for name in ("warned", "worse"))
        print(f"Of {len(chosen)} cases that {key} against source only {warned} were warned of, of "
              f"which {worse} were told to be worse.")  # fmt: skip


if __name__ == "__main__":
    main()
