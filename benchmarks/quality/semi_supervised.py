"""Digits of which 10 of each class have a label: semi-supervised VAEs beside classifiers.

python -m benchmarks.quality.semi_supervised
python -m benchmarks.quality.semi_supervised --data mnist --data-root DATA --seeds 1
python -m benchmarks.quality.semi_supervised --data mnist --data-root DATA --rows 5000 --epochs 5

Protocol: scikit-learn's digits, 8 x 8 pixels, binary (levels >= 8 of 16), of which the last 297
rows are the test; or MNIST, 28 x 28 pixels, binary at one half, 10,000 test rows. Of the training
rows 10 of each class keep their label, chosen at random by the seed. The classifiers see these 100
rows; a semi-supervised VAE (M2) sees the others too, without their labels, and its classifier is a
network of the same shape. In two stages (M1 + M2) a VAE (M1) is fitted to all rows without labels,
and M2 to draws of its latents, which are anew in each epoch. The labels weigh as much as all rows
do: with a tenth of that, the weight of Kingma et al. (2014), M2 was no better than the classifiers.
Of MNIST the rows with labels come as often as a tenth of the others, so that each batch has some.
Nats are of the test rows' labels, -log q(y | x), and exact; those of M1 + M2 are at the mean of
the latents.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import AmortizedNormal
from guides.conditional import LabelNormal
from ppl_models import VAE, Transformed, datasets, elbo, fit, log_evidence
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from ppl_models.infer.objectives.weighted import weighted
from ppl_models.likelihoods import Normal
from ppl_models.nn import MLP

quiet = partial(fit, schedule=CosineAnnealingLR, progress=False)


class Setting(NamedTuple):
    """What belongs to a data set: sizes, and how often rows with labels come."""

    latents: int
    hidden: tuple[int, ...]  # of the networks that see pixels
    epochs: int
    batch_size: int
    often: float  # of the rows in a batch, those with labels; 0 for as many as there are


class Score(NamedTuple):
    """The share of test rows in the right class, and the nats of their labels."""

    accuracy: float
    nats: float


SETTINGS = {
    "digits": Setting(8, (128, 128), 40, 100, 0.0),
    "mnist": Setting(32, (256,), 20, 200, 0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(SETTINGS), default="digits")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--rows", type=int, help="the first training rows only")
    parser.add_argument("--labels", type=int, default=10, help="of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: 40 for digits, 20 for MNIST")
    args = parser.parse_args()
    setting = SETTINGS[args.data]
    setting = setting._replace(epochs=args.epochs or setting.epochs)
    (x, y), test = load(args)
    print(f"{args.data}: {len(x)} rows, {args.labels} labels a class, {len(test[1])} test rows")
    names = ("logistic", "network", "M2", "M1 + M2")
    print(f"{'seed':6}{''.join(f'{name:>19}' for name in names)}   log evidence of M2")
    scores = []
    for seed in range(args.seeds):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        some = torch.cat([order[y[order] == digit][: args.labels] for digit in range(10)])
        found, evidence = run(x, y, some, test, setting, seed)
        print(f"{seed:<6}{shown(found)}   {evidence}", flush=True)
        scores.append(found)
    means = torch.tensor(scores).mean(0).tolist()  # (methods, 2)
    print(f"{'mean':6}{shown([Score(*mean) for mean in means])}")


def load(args: argparse.Namespace) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if args.data == "digits":
        (x, y), test = datasets.digits(binary=True, labels=True)
    else:
        (x, y), (rows, labels) = datasets.mnist(args.data_root, labels=True)
        x, test = (x >= 0.5).float(), ((rows >= 0.5).float(), labels)
    return (x[: args.rows], y[: args.rows]), test


def shown(scores: list[Score]) -> str:
    return "".join(f"{s.accuracy:8.1%} {s.nats:5.3f} nats" for s in scores)


def run(
    x: Tensor,
    y: Tensor,
    some: Tensor,
    test: tuple[Tensor, Tensor],
    setting: Setting,
    seed: int,
) -> tuple[list[Score], Any]:
    """The scores of each method, and the evidence of M2."""
    rows, labels = test
    peer = LogisticRegression(max_iter=1000).fit(x[some].numpy(), y[some].numpy())
    logits = torch.from_numpy(peer.predict_log_proba(rows.numpy()))
    scores = [score(logits, labels)]

    # The classifier of the guide, alone, on the rows that have labels.
    torch.manual_seed(seed)
    size, hidden, latents = x.shape[1], setting.hidden, setting.latents
    alone = label_guide(size, latents, hidden)
    fit(elbo(alone.classify), (x[some], y[some]), epochs=300, lr=2e-3, seed=seed, progress=False)
    scores.append(judge(alone, rows, labels))

    known = torch.full_like(y, -1)
    known[some] = y[some]
    again = repeated(some, len(x), setting.often)
    alpha = len(again) / (known[again] >= 0).sum().item()

    # M2: labels and pixels.
    torch.manual_seed(seed)
    model = SemiSupervisedVAE(size, 10, latents, decoder=MLP(latents + 10, size, hidden))
    guide = label_guide(size, latents, hidden)
    both = weighted({elbo(model, guide): 1.0, elbo(guide.classify): alpha})
    options = {"epochs": setting.epochs, "batch_size": setting.batch_size, "seed": seed}
    quiet(both, (x[again], known[again]), lr=3e-3, **options)
    scores.append(judge(guide, rows, labels))
    evidence = log_evidence(model, guide, rows[:1000], num_samples=500, seed=seed)

    # M1 + M2: labels and latents.
    torch.manual_seed(seed)
    encode = first_stage(x, setting, seed)
    second, upper = SemiSupervisedVAE(latents, 10, latents, Normal()), label_guide(latents, latents)
    both = weighted({elbo(second, upper): 1.0, elbo(upper.classify): alpha})
    loc, scale = encode(x[again])
    quiet(both, Transformed(loc, scale, known[again], transform=draw), lr=3e-3, **options)
    scores.append(judge(upper, encode(rows)[0], labels))
    return scores, evidence


def repeated(some: Tensor, number: int, often: float) -> Tensor:
    """The rows of an epoch: all, and those with labels so often that they are that share."""
    times = round(often * number / len(some))
    return torch.cat([torch.arange(number), *[some] * times])


def first_stage(
    x: Tensor, setting: Setting, seed: int
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Fits M1; returns the means and scales of latents, which in the mean over rows are N(0, 1)."""
    size, hidden, latents = x.shape[1], setting.hidden, setting.latents
    vae = VAE(size, latents, decoder=MLP(latents, size, hidden))
    guide = AmortizedNormal(size, latents, MLP(size, 2 * latents, hidden))
    epochs = 5 * setting.epochs  # without labels to be summed over, one takes a tenth of the time
    quiet(elbo(vae, guide), x, epochs=epochs, batch_size=setting.batch_size, lr=2e-3, seed=seed)

    @torch.no_grad()
    def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
        q = guide.posterior(rows)
        return q.mean, q.stddev

    return encode


def draw(loc: Tensor, scale: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return loc + scale * torch.randn_like(loc), y


def label_guide(size: int, latents: int, hidden: tuple[int, ...] = (128, 128)) -> LabelNormal:
    network = MLP(size, 10, (128, 128), nn.ELU, dropout=0.3)
    encoder = MLP(size + 10, 2 * latents, hidden)
    return LabelNormal(size, 10, latents, encoder=encoder, classifier=network)


@torch.no_grad()
def judge(guide: LabelNormal, rows: Tensor, labels: Tensor) -> Score:
    return score(guide.label(rows).logits, labels)


def score(log_probs: Tensor, labels: Tensor) -> Score:
    right = (log_probs.argmax(1) == labels).double().mean().item()
    return Score(right, -log_probs.gather(1, labels[:, None]).double().mean().item())


if __name__ == "__main__":
    main()
