"""Factor analysis, probabilistic PCA and PCA beside scikit-learn's, in one process, in float64.

python -m benchmarks.factor_models                # all of it: some minutes
python -m benchmarks.factor_models --part likelihood --threads 1

Times are medians after a warm-up, ours and the peer's in turns, with the same number of threads,
five calls in a row after others that went on until the other library's threads no longer spin; a
peer that takes longer than two seconds runs once.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import sklearn.decomposition as peers
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.mixtures import PAUSE, real_data
from benchmarks.oracles import PPCA as TABLE
from ppl_models import PCA, FactorAnalysis, ProbabilisticPCA, fit_em
from ppl_models.datasets import digits

FACTORS = {"digits": (1, 2, 5, 10, 15), "breast cancer": (1, 2, 3, 5, 10)}
PEERS = {
    "as it comes": {},  # a randomised SVD, tol=1e-2 in nats of all rows
    "lapack": {"svd_method": "lapack"},
    "lapack, tol 1e-6": {"svd_method": "lapack", "tol": 1e-6, "max_iter": 100_000},
}


def in_turns(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """The median seconds of each call."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, times, strict=True):
            if seconds and max(seconds) > 2:
                continue
            warm = [_seconds(call)]
            while sum(warm) < PAUSE:
                warm.append(_seconds(call))
            seconds.extend(warm if warm[0] > 2 else [_seconds(call) for _ in range(5)])
    return [statistics.median(seconds) for seconds in times]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def likelihood(rounds: int, threads: int) -> None:
    print(f"\nfactor analysis by maximum likelihood, {threads} thread(s): exact mean log evidence")
    print("in nats per row, what it has more than a peer's, and how many times faster it is")
    print(f"{'':21}{'ours':>12} {'time':>9} {'at floor':>9}" + "".join(f"{p:>23}" for p in PEERS))
    for name, choices in FACTORS.items():
        x = real_data()[name][0]
        for num_factors in choices:
            model = FactorAnalysis(x.shape[1], num_factors).double()
            made = [peers.FactorAnalysis(num_factors, **options) for options in PEERS.values()]
            ours, *theirs = in_turns(
                rounds,
                lambda model=model, x=x: model.maximum_likelihood(x),
                *(lambda peer=peer, x=x: peer.fit(x.numpy()) for peer in made),
            )
            value = model.evidence().log_prob(x).mean().item()
            variance = x.var(0, correction=0)
            held = int((model._noise() / variance <= 1.01 * model.noise_floor).sum())
            cells = [
                f"{value - peer.score(x.numpy()):+13.1e} {seconds / ours:7.1f} x"
                for peer, seconds in zip(made, theirs, strict=True)
            ]
            head = f"{name:14}K={num_factors:<5}{value:12.6f} {1e3 * ours:6.1f} ms {held:9}"
            print(head + "".join(cells), flush=True)
    print(
        f"(at the floor: noise stops at {model.noise_floor:.0e} of the variance of a feature in a"
    )
    print("Heywood case, which the peer approaches more slowly with every step)")


def expectation_maximisation() -> None:
    print("\nEM: steps, and mean log evidence less that of maximum_likelihood, in nats per row")
    for name, kind, num_factors in (
        ("digits", FactorAnalysis, 5),
        ("digits", FactorAnalysis, 10),
        ("digits", ProbabilisticPCA, 10),
        ("breast cancer", FactorAnalysis, 2),
        ("breast cancer", ProbabilisticPCA, 5),
    ):
        x = real_data()[name][0]
        best = kind(x.shape[1], num_factors).double().maximum_likelihood(x)
        best = best.evidence().log_prob(x).mean().item()
        for missing in ("error", "marginalise"):
            model = kind(x.shape[1], num_factors, missing=missing).double()
            run = fit_em(model, x, tolerance=1e-9, max_steps=5000)
            gap = -run.history["loss"][-1] - best
            print(f"  {name:14}{kind.__name__:17}K={num_factors:<3} missing={missing!r:14}", end="")
            print(f"{run.steps:5} steps {gap:+.1e} in {run.seconds:.1f} s", flush=True)


def ppca() -> None:
    print("\nprobabilistic PCA on digits, mean log evidence in nats per row; the table's beside it")
    train, test = (x.double() for x in digits())
    for num_factors, reference in TABLE.items():
        model = ProbabilisticPCA(64, num_factors).double().maximum_likelihood(train)
        got = [model.evidence().log_prob(x).mean().item() for x in (train, test)]
        pairs = [f"{a:11.6f} {b:11.6f}" for a, b in zip(got, reference, strict=True)]
        worst = max(abs(a - b) for a, b in zip(got, reference, strict=True))
        print(f"  K={num_factors:<3} train{pairs[0]}   test{pairs[1]}   within {worst:.0e}")


def pca(rounds: int) -> None:
    print("\nPCA: largest difference from the peer's projector, and relative one of its variances")
    for name, num_factors in (("digits", 10), ("digits", 61), ("breast cancer", 10)):
        x = real_data()[name][0]
        ours = PCA(x.shape[1], num_factors).double()
        peer = peers.PCA(num_factors, svd_solver="full")
        seconds = in_turns(
            rounds,
            lambda ours=ours, x=x: ours.least_squares(x),
            lambda peer=peer, x=x: peer.fit(x.numpy()),
        )
        basis = torch.from_numpy(peer.components_)
        subspace = _largest(ours.components.T @ ours.components - basis.T @ basis)
        variances = torch.from_numpy(peer.explained_variance_)
        relative = _largest(ours.explained_variance / variances - 1)
        print(
            f"  {name:14}K={num_factors:<3} subspace {subspace:.0e}, variances {relative:.0e}, "
            f"{1e3 * seconds[0]:.1f} ms, {seconds[1] / seconds[0]:.1f} x as fast"
        )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("likelihood", "em", "ppca", "pca", "imputation")
    parser.add_argument("--part", choices=parts)
    parser.add_argument("--threads", type=int, nargs="*", default=[torch.get_num_threads(), 1])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    warnings.filterwarnings("ignore", message="FactorAnalysis: the noise")
    warnings.filterwarnings("ignore", message="fit_em: still rising")
    chosen = (args.part,) if args.part else parts
    if "ppca" in chosen:
        ppca()
    for threads in dict.fromkeys(args.threads):
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            if "likelihood" in chosen:
                likelihood(args.rounds, threads)
            if "pca" in chosen:
                pca(args.rounds)
    if "em" in chosen:
        expectation_maximisation()
    if "imputation" in chosen:
        imputation()


if __name__ == "__main__":
    main()
