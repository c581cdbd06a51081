"""Ratings of films: matrix factorisation beside the bias baseline, Surprise and myFM.

python -m benchmarks.quality.movielens --data-root ../shared/data [--folds 0 1 2 3 4]

Protocol: ml-latest-small, half stars; five random folds by numpy's `default_rng(0).permutation`,
each held out in turn. All models have 10 factors. RMSE is that of the predictive mean. Nats are
minus the log probability of the rating that was given, one of ten half stars: a normal density is
integrated from a quarter star below to a quarter above, the first and the last to infinity; so a
density and a probability compare. `density` is what the normal models score before.

Settings of the ordered models (guide, learning rate, epochs, batch) were chosen on a tenth of the
training rows of the first fold. myFM runs as in its documentation, 200 iterations, of which its
samplers keep the last 190.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal as NormalLaw
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import FactorisationNormal
from ppl_models import MatrixFactorization, elbo, fit, fit_em, log_evidence, log_predictive
from ppl_models.datasets import movielens
from ppl_models.likelihoods import Ordered

FACTORS, DRAWS = 10, 100
STARS = torch.arange(1, 11) / 2


class Split:
    """The rows of a fold, for learning and held out."""

    def __init__(self, pairs: Tensor, ratings: Tensor, fold: int) -> None:
        order = np.random.default_rng(0).permutation(len(ratings))
        parts = np.array_split(order, 5)
        test = torch.tensor(parts[fold])
        train = torch.tensor(np.concatenate([p for k, p in enumerate(parts) if k != fold]))
        self.counts = tuple((pairs.amax(0) + 1).tolist())  # of users, and of films
        self.x, self.y = pairs[train], ratings[train]
        self.new_x, self.new_y = pairs[test], ratings[test]


class Scores(dict):
    """What one model has on one fold: RMSE, nats of half stars, nats of a density, seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="../shared/data")
    parser.add_argument("--folds", type=int, nargs="*", default=range(5))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    data = movielens(args.data_root)
    found: dict[str, list[Scores]] = {name: [] for name in args.models}
    for fold in args.folds:
        split = Split(data.pairs, data.ratings.double(), fold)
        for name in args.models:
            began = time.perf_counter()
            scores = MODELS[name](split)
            scores.setdefault("seconds", time.perf_counter() - began)
            found[name].append(scores)
            print(f"fold {fold} {name:28}{line([scores])}", flush=True)
    print(f"\n{len(args.folds)} folds{'':22}{''.join(f'{k:>18}' for k in COLUMNS)}")
    for name, rows in found.items():
        print(f"{name:29}{line(rows)}")


COLUMNS = ("RMSE", "nats", "density", "bound", "seconds")


def line(rows: list[Scores]) -> str:
    """Means over folds, and their errors."""
    cells = []
    for column in COLUMNS:
        values = np.array([row.get(column, np.nan) for row in rows])
        error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
        cells.append("" if np.isnan(values).any() else f"{values.mean():.4f}{error}")
    return "".join(f"{cell:>18}" for cell in cells)


def half_stars(loc: Tensor, scale: Tensor | float, y: Tensor) -> Tensor:
    """Log-probabilities of half stars, of a normal distribution around `loc`."""
    law = NormalLaw(loc, torch.as_tensor(scale).to(loc))
    above = law.cdf(y + 0.25).masked_fill(y == 5.0, 1.0)
    below = law.cdf(y - 0.25).masked_fill(y == 0.5, 0.0)
    return (above - below).clamp(min=1e-12).log()


def normal_scores(split: Split, loc: Tensor, scale: Tensor | float) -> Scores:
    """Of a single normal distribution for each rating."""
    law = NormalLaw(loc, torch.as_tensor(scale).to(loc))
    return Scores(
        RMSE=rmse(loc, split.new_y),
        nats=-half_stars(loc, scale, split.new_y).mean().item(),
        density=-law.log_prob(split.new_y).mean().item(),
    )


def rmse(found: Tensor, y: Tensor) -> float:
    return (found.clamp(0.5, 5) - y).square().mean().sqrt().item()


def bias(split: Split) -> Scores:
    """Means of users and films, shrunk as by 5 ratings more, and the noise that they leave."""
    mean = split.y.mean()
    biases = [torch.zeros(count).double() for count in split.counts]
    for side in (1, 0) * 10:
        rest = split.y - mean - biases[1 - side][split.x[:, 1 - side]]
        total = torch.zeros_like(biases[side]).index_add(0, split.x[:, side], rest)
        biases[side] = total / (5 + torch.bincount(split.x[:, side], minlength=len(total)))
    fitted, found = (mean + biases[0][x[:, 0]] + biases[1][x[:, 1]] for x in (split.x, split.new_x))
    return normal_scores(split, found, (fitted - split.y).std())


def surprise(split: Split) -> Scores:
    """Surprise's SVD by its defaults, but for the rank; it has no noise, and so no nats."""
    import pandas as pd
    from surprise import SVD, Dataset, Reader

    table = pd.DataFrame(split.x.numpy(), columns=["user", "film"]).assign(y=split.y.numpy())
    train = Dataset.load_from_df(table, Reader(rating_scale=(0.5, 5))).build_full_trainset()
    model = SVD(n_factors=FACTORS, random_state=0).fit(train)
    found = [model.predict(user, film).est for user, film in split.new_x.tolist()]
    return Scores(RMSE=rmse(torch.tensor(found).double(), split.new_y))


def myfm(kind: str) -> Callable[[Split], Scores]:
    """myFM's variational run, its sampler, or that with ordered levels."""

    def run(split: Split) -> Scores:
        import scipy.sparse as sparse

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import myfm as peer

        def design(x: Tensor) -> "sparse.csr_matrix":
            columns = np.stack([x[:, 0].numpy(), split.counts[0] + x[:, 1].numpy()], 1).ravel()
            rows = np.repeat(np.arange(len(x)), 2)
            shape = len(x), sum(split.counts)
            return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)

        options = {"rank": FACTORS, "random_seed": 42}
        training = {"n_iter": 200, "group_shapes": list(split.counts)}
        if kind == "variational":
            model = peer.VariationalFMRegressor(**options)
            model.fit(design(split.x), split.y.numpy(), **training)
            found = torch.tensor(model.predict(design(split.new_x)))
            return Scores(RMSE=rmse(found, split.new_y))
        training["n_kept_samples"] = 190
        if kind == "ordered":
            model = peer.MyFMOrderedProbit(**options)
            model.fit(design(split.x), (split.y * 2 - 1).long().numpy(), **training)
            chances = torch.tensor(model.predict_proba(design(split.new_x)))
            given = chances.gather(1, (split.new_y * 2 - 1).long()[:, None])
            return Scores(
                RMSE=rmse(chances @ STARS.double(), split.new_y), nats=-given.log().mean().item()
            )
        model = peer.MyFMRegressor(**options)
        model.fit(design(split.x), split.y.numpy(), **training)
        return sampled_scores(model, split)

    return run


def sampled_scores(model: object, split: Split) -> Scores:
    """Of the draws of myFM's sampler, each with its noise."""
    precisions = model.get_hyper_trace()["alpha"].to_numpy()[-len(model.w0_samples) :]
    user, film = split.new_x[:, 0].numpy(), split.counts[0] + split.new_x[:, 1].numpy()
    means, stars, density = [], [], []
    for n in range(len(model.w0_samples)):
        w, v = model.w_samples[n], model.V_samples[n]
        loc = torch.tensor(model.w0_samples[n] + w[user] + w[film] + (v[user] * v[film]).sum(1))
        scale = precisions[n] ** -0.5
        means.append(loc)
        stars.append(half_stars(loc, scale, split.new_y))
        density.append(NormalLaw(loc, torch.tensor(scale)).log_prob(split.new_y))
    nats, of_density = (
        -(torch.stack(logs).logsumexp(0) - np.log(len(logs))).mean().item()
        for logs in (stars, density)
    )
    mean = torch.stack(means).mean(0)
    return Scores(RMSE=rmse(mean, split.new_y), nats=nats, density=of_density)


def normal(covariance: str) -> Callable[[Split], Scores]:
    """Ours, with normal ratings, by coordinate ascent."""

    def run(split: Split) -> Scores:
        began = time.perf_counter()
        model = MatrixFactorization(*split.counts, FACTORS).double()
        guide = FactorisationNormal(model, covariance)
        data = split.x, split.y
        run = fit_em(guide, data, max_steps=100, tolerance=1e-4, seed=0, progress=False)
        seconds = time.perf_counter() - began
        scores = drawn_scores(model, guide, split, half_stars_of)
        held_out = log_predictive(model, guide, split.new_x, split.new_y, num_samples=DRAWS, seed=0)
        scores |= {"density": -held_out.mean, "bound": run.history["loss"][-1]}
        return Scores(scores, seconds=seconds)

    return run


def ordered(own_cutpoints: bool) -> Callable[[Split], Scores]:
    """Ours, with ordered levels, by gradients from where coordinate ascent ends."""

    def run(split: Split) -> Scores:
        began = time.perf_counter()
        likelihood = Ordered(STARS, own_cutpoints=own_cutpoints)
        model = MatrixFactorization(*split.counts, FACTORS, likelihood)
        guide = FactorisationNormal(model, "diag")
        data = split.x, split.y.float()
        torch.manual_seed(0)
        guide.initialise(*data)
        settings = {"epochs": 60, "batch_size": 4096, "lr": 0.02, "schedule": CosineAnnealingLR}
        fit(elbo(model, guide), data, **settings, seed=0, progress=False)
        seconds = time.perf_counter() - began
        scores = drawn_scores(model, guide, split, lambda law, y: law.log_prob(y.float()))
        bound = log_evidence(model, guide, *data, num_samples=1, seed=0)
        return Scores(scores, bound=-bound.mean, seconds=seconds)

    return run


def half_stars_of(law: NormalLaw, y: Tensor) -> Tensor:
    return half_stars(law.loc, law.scale, y)


@torch.no_grad()
def drawn_scores(
    model: MatrixFactorization,
    guide: FactorisationNormal,
    split: Split,
    log_prob: Callable[..., Tensor],
) -> Scores:
    """Of draws of the guide, each with a distribution of every rating held out."""
    torch.manual_seed(0)
    means, logs = [], []
    for _ in range(DRAWS):
        law = model.conditional(split.new_x, guide.users().sample(), guide.items().sample())
        means.append(law.mean)
        logs.append(log_prob(law, split.new_y))
    nats = -(torch.stack(logs).double().logsumexp(0) - np.log(DRAWS)).mean().item()
    return Scores(RMSE=rmse(torch.stack(means).mean(0), split.new_y), nats=nats)


MODELS = {
    "bias baseline": bias,
    "Surprise SVD": surprise,
    "myFM variational": myfm("variational"),
    "myFM Gibbs": myfm("gibbs"),
    "myFM Gibbs, ordered probit": myfm("ordered"),
    "Normal, full covariances": normal("full"),
    "Normal, mean-field": normal("diag"),
    "Ordered": ordered(False),
    "Ordered, own cutpoints": ordered(True),
}

if __name__ == "__main__":
    main()
