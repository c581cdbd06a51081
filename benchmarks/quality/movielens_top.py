"""Films that held-out users will like: Mult-VAE and EASE beside popularity.

python -m benchmarks.quality.movielens_top --data-root ../shared/data

Protocol: ml-latest-small, ratings of 4 stars or more are picks; films and users of 5 picks or more.
Split by split (seeds 0, 1, ...) 100 users are held out at random; films are those that the others
picked. Four fifths of the picks of a held-out user are given, at random, the rest is to be found.
Recall and NDCG as in Liang et al. (2018), means over users, then over splits; the error is that of
the mean of splits, which share users.

Settings were chosen on splits of seeds 1000 to 1002: the strength of EASE among 30 to 1000; hidden
units (none did better than 256), learning rate and epochs of Mult-VAE. The weight of its divergence
is that of the paper; with it, what is descended is no bound, but the evidence that is printed is.
"""

import argparse
import time

import torch
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit, log_evidence
from ppl_models.datasets import movielens
from ppl_models.likelihoods import Multinomial
from ppl_models.metrics import ndcg_at, recall_at
from ppl_models.nn import MLP
from ppl_models.recommender.ease import EASE

HELD_OUT = 100  # users of a split
FEWEST = 5  # picks of a film, and of a user
LATENTS, HIDDEN, BETA, EPOCHS, LR, STRENGTH = 64, (), 0.2, 100, 0.005, 200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="../shared/data")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed of the first split")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--latents", type=int, default=LATENTS)
    parser.add_argument("--hidden", type=int, nargs="*", default=HIDDEN)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--batch-size", type=int, default=125, help="rows")
    parser.add_argument("--beta", type=float, default=BETA)
    parser.add_argument("--strength", type=float, default=STRENGTH)
    args = parser.parse_args()
    data = movielens(args.data_root)
    picked = torch.zeros(tuple((data.pairs.amax(0) + 1).tolist()))  # (U, I)
    liked = data.pairs[data.ratings >= 4]
    picked[liked[:, 0], liked[:, 1]] = 1
    picked = picked[:, picked.sum(0) >= FEWEST]
    found: dict[str, list[list[float]]] = {}
    began = time.perf_counter()
    for seed in range(args.first, args.first + args.splits):
        train, given, hidden = split(picked, seed)
        for name, scores in scored(train, given, args, seed).items():
            scores = scores.masked_fill(given > 0, -torch.inf)
            values = recall_at(20, scores, hidden), ndcg_at(100, scores, hidden)
            found.setdefault(name, []).append([value.mean().item() for value in values])
        cells = (f"{k} {v[-1][0]:.4f} {v[-1][1]:.4f}" for k, v in found.items())
        print(f"split {seed}: {', '.join(cells)}", flush=True)
    print(f"{args.splits} splits, {HELD_OUT} users each, {time.perf_counter() - began:.0f} s")
    print(f"{'':12}{'recall@20':>18}{'NDCG@100':>18}")
    for name, rows in found.items():
        values = torch.tensor(rows)
        error = values.std(0) / len(values) ** 0.5
        cells = "".join(f"{m:10.4f} ± {e:.4f}" for m, e in zip(values.mean(0), error, strict=True))
        print(f"{name:12}{cells}")


def split(picked: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What others picked, and what the users held out are given and hide, alike in films."""
    generator = torch.Generator().manual_seed(seed)
    users = (picked.sum(1) >= FEWEST).nonzero()[:, 0]
    order = users[torch.randperm(len(users), generator=generator)]
    train, rows = picked[order[HELD_OUT:]], picked[order[:HELD_OUT]]
    known = train.any(0)
    train, rows = train[:, known], rows[:, known]
    place = torch.rand(rows.shape, generator=generator).masked_fill(rows == 0, 2.0)
    rank = place.argsort(1).argsort(1)  # of each pick, in a random order
    count = (0.2 * rows.sum(1)).ceil()
    hidden = rows * (rank < count[:, None])
    some = hidden.any(1)  # a user may have picked nothing that others did
    return train, (rows - hidden)[some], hidden[some]


def scored(train: Tensor, given: Tensor, args: argparse.Namespace, seed: int) -> dict[str, Tensor]:
    """What each model thinks of all films for the users held out."""
    model, guide = mult_vae(train, args, seed)
    with torch.no_grad():
        likely = model.decoder(guide.posterior(given).mean)
    if seed == args.first:
        evidence = log_evidence(model, guide, given, num_samples=20, seed=0)
        print(f"first split, Mult-VAE: {evidence}", flush=True)
    return {
        "popularity": train.sum(0).expand_as(given).clone(),
        "EASE": EASE(train, args.strength).scores(given),
        "Mult-VAE": likely,
    }


class Normalised(nn.Module):
    """Rows of unit length, some of whose picks are left out while learning."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(nn.functional.normalize(x, dim=1))


def mult_vae(train: Tensor, args: argparse.Namespace, seed: int) -> tuple[VAE, AmortizedNormal]:
    torch.manual_seed(seed)
    films = train.shape[1]
    decoder = MLP(args.latents, films, args.hidden, nn.Tanh)
    network = MLP(films, 2 * args.latents, args.hidden, nn.Tanh)
    model = VAE(films, args.latents, Multinomial(), decoder)
    guide = AmortizedNormal(films, args.latents, nn.Sequential(Normalised(), network))
    objective = elbo(model, guide, beta=args.beta)
    fit(
        objective,
        train,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        seed=seed,
        progress=False,
    )
    return model.eval(), guide.eval()


if __name__ == "__main__":
    main()
