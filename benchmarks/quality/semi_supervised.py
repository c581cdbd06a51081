"""Digits of which 10 of each class have a label: a semi-supervised VAE beside a classifier.

python -m benchmarks.quality.semi_supervised

Protocol: scikit-learn's digits, 8 x 8 pixels, binary (levels >= 8 of 16). Of the first 1500 rows 10
of each class keep their label, chosen at random by the seed; the last 297 rows are the test. The
classifiers see the 100 rows with labels; the VAE sees the other 1400 too, without theirs. Its
classifier is a network of the same shape. The labels weigh as much as all rows do: with a tenth
of that, the weight of Kingma et al. (2014), it was no better than the classifiers.
"""

import argparse

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides.conditional import LabelNormal
from ppl_models import elbo, fit, log_evidence
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from ppl_models.datasets import digits
from ppl_models.infer.objectives.weighted import weighted
from ppl_models.nn import MLP

LATENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=10, help="of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    (x, y), test = digits(binary=True, labels=True)
    print(f"digits, {args.labels} labels of each class: test rows in the right class, of 297")
    print(f"{'seed':6}{'logistic':>10}{'network':>9}{'VAE':>7}   log evidence of the VAE")
    scores = []
    for seed in range(args.seeds):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        some = torch.cat([order[y[order] == digit][: args.labels] for digit in range(10)])
        scores.append(run(x, y, some, test, args.epochs, seed))
    means = torch.tensor(scores).mean(0).tolist()
    print(f"{'mean':6}{means[0]:10.1%}{means[1]:9.1%}{means[2]:7.1%}")


def run(
    x: Tensor, y: Tensor, some: Tensor, test: tuple[Tensor, Tensor], epochs: int, seed: int
) -> list[float]:
    rows, labels = test
    peer = LogisticRegression(max_iter=1000).fit(x[some].numpy(), y[some].numpy())
    scores = [float(peer.score(rows.numpy(), labels.numpy()))]

    # The classifier of the guide, alone, on the rows that have labels.
    torch.manual_seed(seed)
    alone = LabelNormal(64, 10, LATENTS, classifier=classifier())
    fit(elbo(alone.classify), (x[some], y[some]), epochs=300, lr=2e-3, seed=seed, progress=False)
    scores.append(accuracy(alone, rows, labels))

    torch.manual_seed(seed)
    known = torch.full_like(y, -1)
    known[some] = y[some]
    model = SemiSupervisedVAE(64, 10, LATENTS)
    guide = LabelNormal(64, 10, LATENTS, classifier=classifier())
    alpha = len(x) / len(some)  # log q(y | x) counts as much as the bounds of all rows
    fit(
        weighted({elbo(model, guide): 1.0, elbo(guide.classify): alpha}),
        (x, known),
        epochs=epochs,
        batch_size=100,
        lr=3e-3,
        schedule=CosineAnnealingLR,
        seed=seed,
        progress=False,
    )
    scores.append(accuracy(guide, rows, labels))
    evidence = log_evidence(model, guide, rows, num_samples=500, seed=seed)
    shown = "".join(f"{s:{w}.1%}" for s, w in zip(scores, (10, 9, 7), strict=True))
    print(f"{seed:<6}{shown}   {evidence}", flush=True)
    return scores


def classifier() -> MLP:
    return MLP(64, 10, (128, 128), nn.ELU, dropout=0.3)


@torch.no_grad()
def accuracy(guide: LabelNormal, rows: Tensor, labels: Tensor) -> float:
    return (guide.label(rows).probs.argmax(1) == labels).double().mean().item()


if __name__ == "__main__":
    main()
