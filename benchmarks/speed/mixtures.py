"""Mixtures of Gaussians beside scikit-learn's, in one process, in float64, from the same starts.

python -m benchmarks.speed.mixtures                # all but --streaming: a few minutes
python -m benchmarks.speed.mixtures --streaming    # 2,000,000 rows of 16 features in batches, too
python -m benchmarks.speed.mixtures --device cuda --parts same speed memory --json mixtures.json

Times are medians after a warm-up, of the same iterations with the same number of threads. With
`--device` ours runs there, in float64 as well, and scikit-learn where it can: on the processor.
"""

import argparse
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Peer
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import measure
from ppl_models import GaussianMixture, elbo, fit, fit_em, log_evidence
from ppl_models.mixtures.em.expectation import from_labels
from ppl_models.mixtures.kmeans import kmeans

KINDS = ("full", "tied", "diag", "spherical")
PAUSE = 0.2  # seconds, after which the idle threads of the other library no longer spin


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0)


def real_data() -> dict[str, tuple[Tensor, int]]:
    """Rows and a number of components. Digits without their constant pixels, / 16."""
    iris, wine, cancer, digits = (
        torch.from_numpy(getattr(datasets, f"load_{name}")().data).double()
        for name in ("iris", "wine", "breast_cancer", "digits")
    )
    digits = digits[:, digits.amax(0) > digits.amin(0)] / 16
    return {
        "iris": (standardised(iris), 3),
        "wine": (standardised(wine), 3),
        "breast cancer": (standardised(cancer), 3),
        "digits": (digits, 10),
    }


def simulated(rows: int, features: int, components: int) -> Tensor:
    torch.manual_seed(0)
    locs = 2 * torch.randn(components, features, dtype=torch.float64)
    x = torch.randn(rows, features, dtype=torch.float64)
    return x.add_(locs[torch.randint(components, (rows,))])


def rough(x: Tensor, components: int, kind: str) -> GaussianMixture:
    """A start far from an optimum: each row belongs to the nearest of some rows."""
    model = GaussianMixture(x.shape[1], components, kind, min_scale=1e-6).double().to(x.device)
    labels = kmeans(x[:20_000], components, max_steps=0)
    with torch.no_grad():
        model._maximise(from_labels(x[:20_000], labels, components, kind))
    return model


def peer_of(model: GaussianMixture, steps: int) -> Peer:
    """scikit-learn's mixture with the parameters of ours, and no floor."""
    precisions = model.covariances.detach().cpu().inverse()
    diagonal = precisions.diagonal(dim1=1, dim2=2)
    shapes = {
        "full": precisions,
        "tied": precisions[0],
        "diag": diagonal,
        "spherical": diagonal[:, 0],
    }
    weights = model.weights.detach().cpu().numpy()
    return Peer(
        len(weights),
        covariance_type=model.covariance,
        weights_init=weights / weights.sum(),
        means_init=model.locs.detach().cpu().numpy().copy(),
        precisions_init=shapes[model.covariance].numpy(),
        reg_covar=0,
        max_iter=steps,
        tol=0,
        init_params="random_from_data",
    )


def same_steps(device: str) -> list[dict[str, Any]]:
    found = []
    print(
        "largest difference of the log-likelihood to scikit-learn's, over 20 steps of EM from one"
    )
    print("start (nats per row); what the steps gained")
    for name, (x, components) in real_data().items():
        cells = []
        for kind in KINDS:
            torch.manual_seed(2)
            rows = x.to(device)
            model = rough(rows, components, kind)
            if (model.log_scale.exp() < 1e-5).any():
                cells.append(f"{kind} singular without a floor")
                continue
            theirs = peer_of(model, 20).fit(x.numpy()).lower_bounds_
            ours = [model.em_step(rows).item() for _ in range(20)]
            worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
            cells.append(f"{kind} {worst:.0e} (gain {ours[-1] - ours[0]:.2f})")
            found.append({"data": name, "covariance": kind, "difference": worst})
        print(f"  {name:14}{', '.join(cells)}")
    return found


def own_starts(restarts: int, seeds: int, device: str) -> list[dict[str, Any]]:
    found = []
    print(
        f"\nlog-likelihood from own starts, {restarts} restarts each, nats per row: ours, and how"
    )
    print("much higher it is than scikit-learn's at its default tolerance (1e-3), and at 1e-6; the")
    print(f"least of {seeds} seeds")
    for name, (x, components) in real_data().items():
        for kind in KINDS:
            values, above, above_tight, seconds = [], [], [], []
            for seed in range(seeds):
                model = GaussianMixture(x.shape[1], components, kind).double().to(device)
                began = time.perf_counter()
                run = fit_em(model, x.to(device), restarts=restarts, seed=seed)
                middle = time.perf_counter()
                peers = [
                    Peer(components, covariance_type=kind, n_init=restarts, random_state=seed, **o)
                    for o in ({}, {"tol": 1e-6, "max_iter": 1000})
                ]
                scores = [peer.fit(x.numpy()).score(x.numpy()) for peer in peers]
                values.append(-run.history["loss"][-1])
                above.append(values[-1] - scores[0])
                above_tight.append(values[-1] - scores[1])
                seconds.append((middle - began) / (time.perf_counter() - middle))
            floor = "" if model.caveat() is None else "  (variances at the floor, in both)"
            print(
                f"  {name:14}{kind:10}{values[0]:12.6f}  above by {min(above):+.6f}, "
                f"{min(above_tight):+.6f}{floor}",
                flush=True,
            )
            found.append(
                {
                    "data": name,
                    "covariance": kind,
                    "nats per row": values,
                    "above": above,
                    "above, tolerance 1e-6": above_tight,
                    "times the seconds": seconds,
                }
            )
    return found


def speed(rows: int, rounds: int, device: str) -> list[dict[str, Any]]:
    found = []
    features, components = 32, 16
    at_hand = simulated(rows, features, components)
    x = at_hand.to(device)
    threads = torch.get_num_threads()
    print(
        f"\nseconds of a step, {rows:,} x {features}, {components} components, ours on {device}, "
        f"{threads} threads"
    )
    for kind in KINDS:
        steps = 3
        model = rough(x, components, kind)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        peer = peer_of(model, steps)
        ours, theirs, ratios = [], [], []
        for _ in range(rounds + 1):
            model.load_state_dict(state)
            time.sleep(PAUSE)
            values: list[Tensor] = []
            step = partial(lambda model, values: values.append(model.em_step(x)), model, values)
            ours.append(measure.seconds(step, device, times=steps))
            evidence = values[-1].item()
            with threadpool_limits(threads):
                peer._initialize_parameters(at_hand.numpy(), np.random.RandomState(0))
                time.sleep(PAUSE)
                began = time.perf_counter()
                for _ in range(steps):
                    bound, log_responsibilities = peer._e_step(at_hand.numpy())
                    peer._m_step(at_hand.numpy(), log_responsibilities)
                theirs.append((time.perf_counter() - began) / steps)
            ratios.append(ours[-1] / theirs[-1])
        print(
            f"  {kind:10} ours {statistics.median(ours[1:]):.4f}  scikit-learn "
            f"{statistics.median(theirs[1:]):.4f}  ratio {statistics.median(ratios[1:]):.2f} "
            f"({min(ratios[1:]):.2f} to {max(ratios[1:]):.2f}); difference of the "
            f"log-likelihood {abs(evidence - bound):.0e}",
            flush=True,
        )
        found.append(
            {
                "covariance": kind,
                "seconds": ours[1:],
                "scikit-learn": theirs[1:],
                "difference": abs(evidence - bound),
            }
        )
    return found


def _resident() -> float:
    """The largest resident memory since the mark was last reset, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _marked(device: str) -> float:
    """Resets the mark of the largest memory, and returns where it is, in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return measure.peak(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident()


def _most(device: str) -> float:
    return measure.peak(device) if device == "cuda" else _resident()


def _memory(rows: int, kind: str, ours: bool, device: str) -> float:
    x = simulated(rows, 32, 16).to(device if ours else "cpu")
    model = rough(x, 16, kind)
    peer = peer_of(model, 2)
    model.em_step(x[:5000])
    place = device if ours else "cpu"
    before = _marked(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if ours:
            for _ in range(2):
                model.em_step(x)
        else:
            peer.fit(x.numpy())
    return _most(place) - before


def memory(device: str) -> list[dict[str, Any]]:
    found = []
    print("\nmemory beyond the rows themselves, MiB, at 100,000 and 200,000 rows of 32 features")
    context = multiprocessing.get_context("spawn")
    for kind in ("full", "diag"):
        cells = []
        for ours in (True, False):
            peaks = []
            for rows in (100_000, 200_000):
                with ProcessPoolExecutor(1, mp_context=context) as alone:
                    peaks.append(alone.submit(_memory, rows, kind, ours, device).result())
            found.append({"covariance": kind, "ours": ours, "MiB": peaks})
            cells.append(f"{'ours' if ours else 'scikit-learn'} {peaks[0]:.0f}, {peaks[1]:.0f}")
        print(f"  {kind:10}{'; '.join(cells)}", flush=True)
    return found


def streaming(device: str) -> list[dict[str, Any]]:
    found = []
    x = simulated(2_000_000, 16, 8).float()
    print(
        f"\nstreamed: {len(x):,} x 16, float32, batches of 65,536 from a DataLoader, 8 components"
    )
    for kind in KINDS:
        model = GaussianMixture(16, 8, kind).to(device)
        loader = DataLoader(TensorDataset(x), sampler=_Slices(len(x), 65_536), batch_size=None)
        before = _marked(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stopped early
            run = fit_em(model, loader, seed=0, max_steps=5)
        print(
            f"  {kind:10}{run.seconds / run.steps:6.2f} s a step, starts included; "
            f"{-run.history['loss'][-1]:.4f} nats per row; memory grew by "
            f"{(grew := _most(device) - before):.0f} MiB",
            flush=True,
        )
        found.append({"covariance": kind, "seconds a step": run.seconds / run.steps, "MiB": grew})
    return found


class _Slices:
    """Batches of neighbouring rows, which a DataLoader gets by one slice."""

    def __init__(self, rows: int, batch: int) -> None:
        self.parts = torch.arange(rows).split(batch)

    def __iter__(self):
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def three_ways(device: str) -> list[dict[str, Any]]:
    found = []
    print(
        "\none optimum, three ways, iris standardised, 2 components: evidence in nats per row, and"
    )
    print("the ELBO with z enumerated less the evidence in closed form")
    x = real_data()["iris"][0].to(device)
    for kind in KINDS:
        reached = {}
        for how, options in {
            "EM": None,
            "gradient": {"steps": 500, "lr": 0.1},
            "minibatch SVI": {"epochs": 300, "batch_size": 50, "lr": 0.05},
        }.items():
            torch.manual_seed(0)
            model = rough(x, 2, kind)  # the same start for all
            if options is None:
                fit_em(model, x, initialise=False, tolerance=1e-10)
            else:
                fit(elbo(model), x, schedule=CosineAnnealingLR, seed=0, progress=False, **options)
            reached[how] = log_evidence(model, None, x).mean
        enumerated = elbo(model).loss(x).item() + reached["minibatch SVI"]
        cells = ", ".join(f"{how} {value:.6f}" for how, value in reached.items())
        print(f"  {kind:10}{cells}; {abs(enumerated):.0e}", flush=True)
        found.append({"covariance": kind, "reached": reached, "ELBO - evidence": enumerated})
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--streaming", action="store_true")
    parts = ("same", "speed", "memory", "ways", "streaming", "starts")
    parser.add_argument("--parts", nargs="*", choices=parts)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    warnings.filterwarnings("ignore", message="GaussianMixture: component")
    torch.set_num_threads(args.threads)
    chosen = args.parts or [name for name in parts if args.streaming or name != "streaming"]
    run = {
        "same": lambda: same_steps(args.device),
        "speed": lambda: speed(args.rows, args.rounds, args.device),
        "memory": lambda: memory(args.device),
        "ways": lambda: three_ways(args.device),
        "streaming": lambda: streaming(args.device),
        "starts": lambda: own_starts(args.restarts, args.seeds, args.device),
    }
    print(measure.heading(args.device))
    report: dict[str, Any] = {}
    for name in parts:
        if name in chosen:
            report[name] = run[name]()
            measure.write(args.json, args.device, **report)


if __name__ == "__main__":
    main()
