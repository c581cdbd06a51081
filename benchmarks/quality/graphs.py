"""Graphs: blocks of the karate club and of football, links and labels of Cora.

python -m benchmarks.quality.graphs --data-root ../shared/data [--part blocks|links|labels]

Blocks: the collapsed joint of Zachary's numbers, the best of 20 starts, half of them spectral.
Links: 5 % of the edges to choose settings by, 10 % to be predicted, and as many pairs without an
edge; all of them are missing from what is fitted. At first the divergence of the latents counts a
fraction (--divergence), so that their means rank links well. Then the means stay, and the bound
itself is descended by their scales, the prior and the decoder. The number printed is that bound: of
the log evidence of all other pairs given the words, each scored once. The prior is fitted to the
same pairs, and has many weights; how much of it holds for others is the loss of the test pairs. The
VGAE of torch_geometric, with the loss of its example, is fitted to the same edges in the same run,
and sees the same words. Settings were chosen by the validation pairs.
Labels: the Planetoid split, 20 labels of each field; its 500 validation papers say when to stop.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from sklearn.metrics import adjusted_rand_score, average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import GraphNormal
from ppl_models import (
    VGAE,
    FeaturePrior,
    Graph,
    InnerProduct,
    NodeClassifier,
    Objective,
    StochasticBlockModel,
    balanced,
    elbo,
    fit,
    hold_out,
    log_evidence,
    read_graph,
)
from ppl_models.datasets import Citations, football, karate, planetoid
from ppl_models.graphs.links import Links
from ppl_models.nn import MLP, GraphNetwork

LATENTS = 16
HUBS = [0, 1, 2, 32, 33]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--part", choices=["blocks", "links", "labels", "all"], default="all")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800, help="of the links")
    parser.add_argument("--more-steps", type=int, default=200, help="of their bound")
    parser.add_argument("--others", type=int, default=10_000, help="pairs without edge, a step")
    parser.add_argument("--divergence", type=float, default=0.05, help="its weight in training")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if args.part in ("blocks", "all"):
        blocks(args.data_root)
    if args.part in ("links", "all"):
        links(planetoid(args.data_root), seeds, args)
    if args.part in ("labels", "all"):
        labels(planetoid(args.data_root), seeds)


def blocks(root: Path) -> None:
    source, club = karate()
    pairs, edges = read_graph(source).pairs()
    hubs = torch.zeros(34, dtype=torch.int64)
    hubs[HUBS] = 1
    one = StochasticBlockModel(34, 1).double().log_joint(pairs, edges.double(), 0 * hubs)
    two = StochasticBlockModel(34, 2).double()
    factions, core = two.log_joint(pairs, edges.double(), torch.stack([club, hubs])).tolist()
    print("karate club: log p(A, b) in nats of 561 pairs, densities and sizes integrated out")
    print(
        f"{'one block':20}{one:12.4f}\n{'factions':20}{factions:12.4f}\n{'hubs':20}{core:12.4f}\n"
    )
    print("best of 20 starts: bound in nats of all pairs, nodes apart from the truth, Rand index")
    cases = [("karate", karate(), 2), ("football", football(root), 12)]
    for name, (graph, y), count in cases:
        for degree_corrected in (False, True):
            for learned in (False, True):
                fit_blocks(name, read_graph(graph), y, count, degree_corrected, learned)


def fit_blocks(
    name: str, graph: Graph, y: Tensor, count: int, degree_corrected: bool, learned: bool
) -> None:
    began = time.perf_counter()
    model = StochasticBlockModel(graph.num_nodes, count, degree_corrected, learned).double()
    found = model.mean_field(*graph.pairs(), restarts=20)
    label = found.labels.argmax(1)
    kind = ("degrees" if degree_corrected else "plain") + (", learned prior" if learned else "")
    agree = max(int((label == y).sum()), int((label == 1 - y).sum())) if count == 2 else None
    apart = "" if agree is None else f"{len(y) - agree} of {len(y)}"
    index = adjusted_rand_score(y, label)
    seconds = time.perf_counter() - began
    print(
        f"{name:10}{kind:24}{found.bound:12.2f}{apart:>10}{index:8.3f}"
        f"{len(label.unique()):4} blocks{seconds:7.1f} s",
        flush=True,
    )


def links(papers: Citations, seeds: range, args: argparse.Namespace) -> None:
    whole = read_graph(papers.edges, len(papers.y))
    x = papers.x.to_sparse().coalesce()
    print(
        "\nlinks of Cora: area under the curve and average precision in %; seconds; bound in nats; "
        "loss of the test pairs in nats for each edge"
    )
    print(
        f"{'':7}{'VGAE of torch_geometric':^30}{'VGAE here, its bound and loss':^50}"
        f"{'validation':>14}"
    )
    rows = []
    for seed in seeds:
        parts = hold_out(whole, 0.05, 0.1, seed)
        peer = fit_peer(parts, x, seed)
        ours = fit_links(parts, x, seed, args)
        rows.append([*peer, *ours])
        print(f"{seed:<6}" + "".join(f"{v:10.2f}" for v in rows[-1]), flush=True)
    table = torch.tensor(rows)
    error = table.std(0) / len(rows) ** 0.5
    print("mean  " + "".join(f"{v:10.2f}" for v in table.mean(0).tolist()))
    print("error " + "".join(f"{v:10.2f}" for v in error.tolist()))
    edges = parts.train[1].double()
    alike = torch.distributions.Bernoulli(edges.mean()).log_prob(edges).sum()
    each = -alike / edges.sum()
    print(f"one chance for all {len(edges)} pairs: {alike:.0f}, {each:.2f} an edge", flush=True)


def fit_links(parts: Links, x: Tensor, seed: int, args: argparse.Namespace) -> list[float]:
    began = time.perf_counter()
    torch.manual_seed(seed)
    encoder = GraphNetwork(x.shape[1], 2 * LATENTS, dropout=0.5)
    prior = FeaturePrior(x, LATENTS, MLP(x.shape[1], 2 * LATENTS, (128,), nn.ReLU))
    model = VGAE(len(x), LATENTS, InnerProduct(intercept=-6.5, scale=0.4), prior)
    guide = GraphNormal(x, parts.graph.edge_index, LATENTS, encoder)
    with torch.no_grad():
        encoder.second.bias[LATENTS:] = -1.5  # narrow at first, so that encoder and decoder meet
    descend(elbo(model, guide, beta=args.divergence), parts, args, args.steps, seed)
    guide.encoder = Scales(guide.posterior())
    descend(elbo(model, guide), parts, args, args.more_steps, seed)
    with warnings.catch_warnings():  # three draws of so many latents: the bound is what it is
        warnings.simplefilter("ignore", UserWarning)
        evidence = log_evidence(model, guide, *parts.train, num_samples=3, seed=seed)
    assert evidence.kind == "lower bound"
    seconds = time.perf_counter() - began
    test, valid = (chances(model, guide, part[0]) for part in (parts.test, parts.valid))
    shown = [*scores(test, parts.test[1]), seconds, evidence.value.item()]
    return [*shown, nats(test, parts), *scores(valid, parts.valid[1])]


def descend(
    objective: Objective, parts: Links, args: argparse.Namespace, steps: int, seed: int
) -> None:
    fit(
        objective,
        balanced(*parts.train, args.others),
        steps=steps,
        lr=0.01,
        schedule=partial(CosineAnnealingLR, eta_min=1e-3),
        seed=seed,
        progress=False,
    )


class Scales(nn.Module):
    """Means of latents that stay as they were found, and scales that are still to be fitted."""

    def __init__(self, found: torch.distributions.Independent) -> None:
        super().__init__()
        self.register_buffer("loc", found.mean.detach())
        self.log_scale = nn.Parameter(found.stddev.detach().log())

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.cat([self.loc, self.log_scale], 1)


def nats(chance: Tensor, parts: Links) -> float:
    """The loss of the test pairs for each edge; those without one stand for all that there are."""
    edges, (pairs, fitted) = parts.test[1] == 1, parts.train
    others = (len(pairs) - fitted.sum()) / fitted.sum()  # for each edge
    loss = -(chance[edges].log().mean() + others * (-chance[~edges]).log1p().mean())
    return loss.item()


@torch.no_grad()
def chances(model: VGAE, guide: GraphNormal, pairs: Tensor, num_draws: int = 1000) -> Tensor:
    """The posterior probability of an edge between nodes of each pair."""
    i, j = pairs.unbind(1)
    draws = guide.posterior().sample((num_draws,))
    return torch.stack([model.decoder(z[i], z[j]).sigmoid() for z in draws]).mean(0)


def fit_peer(parts: Links, x: Tensor, seed: int, epochs: int = 300) -> list[float]:
    """The VGAE of torch_geometric, fitted as in its example."""
    from torch_geometric.nn import VGAE as Peer
    from torch_geometric.nn import GCNConv

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = GCNConv(x.shape[1], 32)
            self.loc, self.log_scale = GCNConv(32, LATENTS), GCNConv(32, LATENTS)

        def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.first(x, index).relu()
            return self.loc(hidden, index), self.log_scale(hidden, index)

    began = time.perf_counter()
    torch.manual_seed(seed)
    peer, index = Peer(Encoder()), parts.graph.edge_index
    optimizer = torch.optim.Adam(peer.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        z = peer.encode(x, index)
        loss = peer.recon_loss(z, index) + peer.kl_loss() / len(x)
        loss.backward()
        optimizer.step()
    peer.eval()
    with torch.no_grad():
        z = peer.encode(x, index)
        found = scores(peer.decoder(z, parts.test[0].T), parts.test[1])
    return [*found, time.perf_counter() - began]


def scores(chance: Tensor, edges: Tensor) -> list[float]:
    """Area under the curve and average precision, in percent."""
    pair = edges.numpy(), chance.numpy()
    return [100 * float(score(*pair)) for score in (roc_auc_score, average_precision_score)]


def labels(papers: Citations, seeds: range) -> None:
    graph = read_graph(papers.edges, len(papers.y))
    x = (papers.x / papers.x.sum(1, keepdim=True).clamp(min=1)).to_sparse().coalesce()
    print("\nfields of 1000 papers of Cora: accuracy, nats per label (exact); seconds")
    kinds = {"two convolutions": (16, None), "passed on ten times": (64, 10)}
    print("seed  " + "".join(f"{kind:>28}" for kind in kinds))
    rows = []
    for seed in seeds:
        found = [fit_labels(papers, graph, x, *kind, seed) for kind in kinds.values()]
        rows.append([v for three in found for v in three])
        text = "".join(f"{a:14.1%}{n:7.3f}{s:7.1f}" for a, n, s in found)
        print(f"{seed:<6}{text}", flush=True)
    means = torch.tensor(rows).mean(0).tolist()
    errors = (torch.tensor(rows).std(0) / len(rows) ** 0.5).tolist()
    for name, values in (("mean", means), ("error", errors)):
        text = "".join(f"{a:14.1%}{n:7.3f}{s:7.1f}" for a, n, s in (values[:3], values[3:]))
        print(f"{name:6}{text}")


def fit_labels(
    papers: Citations, graph: Graph, x: Tensor, hidden: int, hops: int | None, seed: int
) -> tuple[float, float, float]:
    began = time.perf_counter()
    torch.manual_seed(seed)
    network = GraphNetwork(x.shape[1], 7, hidden, dropout=0.5, hops=hops)
    model = NodeClassifier(x, graph.edge_index, 7, network)
    known = papers.train
    decay = partial(torch.optim.Adam, weight_decay=5e-4)
    options = {"epochs": 300, "lr": 0.01, "optimizer": decay, "seed": seed, "progress": False}
    valid = papers.valid, papers.y[papers.valid]
    fit(elbo(model), (known, papers.y[known]), validation=valid, patience=100, **options)
    truth = papers.y[papers.test]
    right = (model.predict(papers.test) == truth).double().mean().item()
    evidence = log_evidence(model, None, papers.test, truth)
    assert evidence.kind == "exact"
    return right, -evidence.mean, time.perf_counter() - began


if __name__ == "__main__":
    main()
