"""Factor analysis, probabilistic PCA and PCA beside scikit-learn's, in one process, in float64.

python -m benchmarks.speed.factor_models                # all of it: some minutes
python -m benchmarks.speed.factor_models --part likelihood --threads 1
python -m benchmarks.speed.factor_models --part likelihood em ppca pca --device cuda --json fa.json

With `--device` ours runs there, in float64 as well, and the peers on the processor. Times are
medians after a warm-up, ours and the peer's in turns, with the same number of threads, five calls
in a row after others that went on until the other library's threads no longer spin; a peer that
takes longer than two seconds runs once.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sklearn.decomposition as peers
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks import measure
from benchmarks.speed.mixtures import PAUSE, real_data
from benchmarks.truth.oracles import PPCA as TABLE
from ppl_models import PCA, FactorAnalysis, ProbabilisticPCA, fit_em
from ppl_models.datasets import digits

FACTORS = {"digits": (1, 2, 5, 10, 15), "breast cancer": (1, 2, 3, 5, 10)}
PEERS = {
    "as it comes": {},  # a randomised SVD, tol=1e-2 in nats of all rows
    "lapack": {"svd_method": "lapack"},
    "lapack, tol 1e-6": {"svd_method": "lapack", "tol": 1e-6, "max_iter": 100_000},
}


def in_turns(rounds: int, device: str, *calls: Callable[[], object]) -> list[float]:
    """The median seconds of each call."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, times, strict=True):
            if seconds and max(seconds) > 2:
                continue
            warm = [measure.seconds(call, device)]
            while sum(warm) < PAUSE:
                warm.append(measure.seconds(call, device))
            again = warm if warm[0] > 2 else [measure.seconds(call, device) for _ in range(5)]
            seconds.extend(again)
    return [statistics.median(seconds) for seconds in times]


def likelihood(rounds: int, threads: int, device: str) -> list[dict[str, Any]]:
    found = []
    print(f"\nfactor analysis by maximum likelihood, {device}, {threads} thread(s): exact mean log")
    print("evidence, nats per row, what it has more than a peer's, and how many times faster it is")
    print(f"{'':21}{'ours':>12} {'time':>9} {'at floor':>9}" + "".join(f"{p:>23}" for p in PEERS))
    for name, choices in FACTORS.items():
        x = real_data()[name][0]
        rows = x.to(device)
        for num_factors in choices:
            model = FactorAnalysis(x.shape[1], num_factors).double().to(device)
            made = [peers.FactorAnalysis(num_factors, **options) for options in PEERS.values()]
            ours, *theirs = in_turns(
                rounds,
                device,
                lambda model=model, rows=rows: model.maximum_likelihood(rows),
                *(lambda peer=peer, x=x: peer.fit(x.numpy()) for peer in made),
            )
            value = model.evidence().log_prob(rows).mean().item()
            variance = rows.var(0, correction=0)
            held = int((model._noise() / variance <= 1.01 * model.noise_floor).sum())
            cells = [
                f"{value - peer.score(x.numpy()):+13.1e} {seconds / ours:7.1f} x"
                for peer, seconds in zip(made, theirs, strict=True)
            ]
            head = f"{name:14}K={num_factors:<5}{value:12.6f} {1e3 * ours:6.1f} ms {held:9}"
            print(head + "".join(cells), flush=True)
            found.append(
                {
                    "data": name,
                    "factors": num_factors,
                    "nats per row": value,
                    "seconds": ours,
                    "peers": {
                        how: {"more": value - peer.score(x.numpy()), "seconds": seconds}
                        for how, peer, seconds in zip(PEERS, made, theirs, strict=True)
                    },
                }
            )
    print(
        f"(at the floor: noise stops at {model.noise_floor:.0e} of the variance of a feature in a"
    )
    print("Heywood case, which the peer approaches more slowly with every step)")
    return found


def expectation_maximisation(device: str) -> list[dict[str, Any]]:
    found = []
    print("\nEM: steps, and mean log evidence less that of maximum_likelihood, in nats per row")
    for name, kind, num_factors in (
        ("digits", FactorAnalysis, 5),
        ("digits", FactorAnalysis, 10),
        ("digits", ProbabilisticPCA, 10),
        ("breast cancer", FactorAnalysis, 2),
        ("breast cancer", ProbabilisticPCA, 5),
    ):
        x = real_data()[name][0].to(device)
        best = kind(x.shape[1], num_factors).double().to(device).maximum_likelihood(x)
        best = best.evidence().log_prob(x).mean().item()
        for missing in ("error", "marginalise"):
            model = kind(x.shape[1], num_factors, missing=missing).double().to(device)
            run = fit_em(model, x, tolerance=1e-9, max_steps=5000)
            gap = -run.history["loss"][-1] - best
            found.append(
                {
                    "data": name,
                    "model": kind.__name__,
                    "factors": num_factors,
                    "missing": missing,
                    "steps": run.steps,
                    "seconds": run.seconds,
                    "gap": gap,
                }
            )
            print(f"  {name:14}{kind.__name__:17}K={num_factors:<3} missing={missing!r:14}", end="")
            print(f"{run.steps:5} steps {gap:+.1e} in {run.seconds:.1f} s", flush=True)
    return found


def ppca(device: str) -> list[dict[str, Any]]:
    found = []
    print("\nprobabilistic PCA on digits, mean log evidence in nats per row; the table's beside it")
    train, test = (x.double().to(device) for x in digits())
    for num_factors, reference in TABLE.items():
        model = ProbabilisticPCA(64, num_factors).double().to(device).maximum_likelihood(train)
        got = [model.evidence().log_prob(x).mean().item() for x in (train, test)]
        pairs = [f"{a:11.6f} {b:11.6f}" for a, b in zip(got, reference, strict=True)]
        worst = max(abs(a - b) for a, b in zip(got, reference, strict=True))
        print(f"  K={num_factors:<3} train{pairs[0]}   test{pairs[1]}   within {worst:.0e}")
        found.append({"factors": num_factors, "nats per row": got, "within": worst})
    return found


def pca(rounds: int, device: str) -> list[dict[str, Any]]:
    found = []
    print("\nPCA: largest difference from the peer's projector, and relative one of its variances")
    for name, num_factors in (("digits", 10), ("digits", 61), ("breast cancer", 10)):
        x = real_data()[name][0]
        rows = x.to(device)
        ours = PCA(x.shape[1], num_factors).double().to(device)
        peer = peers.PCA(num_factors, svd_solver="full")
        seconds = in_turns(
            rounds,
            device,
            lambda ours=ours, rows=rows: ours.least_squares(rows),
            lambda peer=peer, x=x: peer.fit(x.numpy()),
        )
        basis, components = torch.from_numpy(peer.components_), ours.components.cpu()
        subspace = _largest(components.T @ components - basis.T @ basis)
        variances = torch.from_numpy(peer.explained_variance_)
        relative = _largest(ours.explained_variance.cpu() / variances - 1)
        print(
            f"  {name:14}K={num_factors:<3} subspace {subspace:.0e}, variances {relative:.0e}, "
            f"{1e3 * seconds[0]:.1f} ms, {seconds[1] / seconds[0]:.1f} x as fast"
        )
        found.append(
            {
                "data": name,
                "factors": num_factors,
                "subspace": subspace,
                "variances": relative,
                "seconds": seconds,
            }
        )
    return found


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def imputation() -> None:
    print("\nimputation: root mean square error over the 30 % of entries that were removed")
    for name, choices in {"breast cancer": (3, 5, 10, 15, 20), "digits": (10, 20, 30)}.items():
        x = real_data()[name][0]
        torch.manual_seed(0)
        removed = torch.rand(x.shape) < 0.3
        holes = x.where(~removed, torch.nan)

        def show(how: str, filled: Tensor, began: float, x: Tensor, removed: Tensor) -> None:
            error = (filled - x)[removed].square().mean().sqrt()
            print(f"    {how:46}{error:.4f} {time.perf_counter() - began:7.1f} s", flush=True)

        print(f"  {name}, {x.shape[0]} x {x.shape[1]}")
        for peer in (SimpleImputer(), IterativeImputer(random_state=0), KNNImputer()):
            began = time.perf_counter()
            filled = torch.from_numpy(peer.fit_transform(holes.numpy()))
            how = "column mean" if isinstance(peer, SimpleImputer) else type(peer).__name__
            show(f"scikit-learn, {how}", filled, began, x, removed)
        for kind in (FactorAnalysis, ProbabilisticPCA):
            for num_factors in choices:
                began = time.perf_counter()
                model = kind(x.shape[1], num_factors, missing="marginalise").double()
                run = fit_em(model, holes, tolerance=1e-4)
                how = f"{kind.__name__}, {num_factors} factors, {run.steps} steps"
                show(how, model.impute(holes), began, x, removed)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("likelihood", "em", "ppca", "pca", "imputation")
    parser.add_argument("--part", nargs="*", choices=parts)
    parser.add_argument("--threads", type=int, nargs="*", default=[torch.get_num_threads(), 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="of all parts but imputation")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    warnings.filterwarnings("ignore", message="FactorAnalysis: the noise")
    warnings.filterwarnings("ignore", message="fit_em: still rising")
    chosen = args.part or parts
    print(measure.heading(args.device))
    report: dict[str, Any] = {}
    if "ppca" in chosen:
        report["ppca"] = ppca(args.device)
    for threads in dict.fromkeys(args.threads):
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            if "likelihood" in chosen:
                found = likelihood(args.rounds, threads, args.device)
                report[f"likelihood, {threads} threads"] = found
            if "pca" in chosen:
                report[f"pca, {threads} threads"] = pca(args.rounds, args.device)
    if "em" in chosen:
        report["em"] = expectation_maximisation(args.device)
    if "imputation" in chosen:
        imputation()
    measure.write(args.json, args.device, **report)


if __name__ == "__main__":
    main()
