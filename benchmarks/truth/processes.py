"""Whether n processes are one: each loss and each parameter, in float64, beside a single process.

    python -m benchmarks.truth.processes                       # 1, 2 and 3 processes, 2 + 2 nodes
    python -m benchmarks.truth.processes --ordinary            # evidences of ordinary runs

The digits of scikit-learn, 8 x 8. In the context `as_one_process` all processes draw what one would
(`fit`); EM draws nothing but its start. Ordinary runs, where each draws its own numbers, agree in
distribution: their evidences of test rows after a fit, over forty seeds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from guides import AmortizedNormal
from ppl_models import (
    GAN,
    VAE,
    Diffusion,
    GaussianMixture,
    ProbabilisticPCA,
    adversarial,
    as_one_process,
    data_plate,
    denoising,
    elbo,
    fit,
    fit_em,
    log_evidence,
)
from ppl_models.datasets import digits
from ppl_models.infer.training.progress import Progress
from ppl_models.processes import together

BATCH, EPOCHS, SEEDS = 100, 4, 40


def grey() -> Tensor:
    return digits()[0].double()[:700]


def vae() -> Any:
    pair = VAE(64, 8).double(), AmortizedNormal(64, 8).double()
    return elbo(*pair), digits(binary=True)[0].double()[:700]


def mixture() -> Any:
    return elbo(GaussianMixture(64, 5, covariance="diag").double()), grey()


def regression() -> Any:
    def model(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(63), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.Gamma(x.new_tensor(2.0), 2.0))
        with data_plate(x, size):
            return pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)

    x = grey()
    return elbo(model, AutoNormal), (x[:, :-1], x[:, -1])


def each_row() -> Any:
    def model(x: Tensor | None = None, size: int | None = None) -> Tensor:
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return elbo(model, AutoNormal), grey().mean(1)


def game() -> Any:
    return adversarial(GAN(64, 8).double()), grey()


def diffusion() -> Any:
    return denoising(Diffusion(num_features=64).double()), grey()


def em_of(model: Any) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        torch.manual_seed(0)
        made = model().double()
        run = fit_em(made, grey(), max_steps=30, seed=1, progress=False)
        losses = [{"loss": loss} for loss in run.history["loss"]]
        return {"losses": losses, "parameters": [p.tolist() for p in made.parameters()]}

    return run


def descended(made: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        torch.manual_seed(0)
        pyro.clear_param_store()
        objective, data = made()
        losses: list[dict[str, float]] = []
        record = Progress.record

        def noting(self: Progress, found: dict[str, Tensor], *more: Any) -> None:
            losses.append({name: float(x) for name, x in found.items()})
            record(self, found, *more)

        Progress.record = noting  # type: ignore[method-assign]
        options = {"lr": 1e-2, "seed": 1, "compile": False, "progress": False}
        with as_one_process():
            fit(objective, data, epochs=EPOCHS, batch_size=BATCH, **options)
        Progress.record = record  # type: ignore[method-assign]
        objectives = objective if isinstance(objective, list) else [objective]
        named = [x for one in objectives for _, x in one.named_parameters()]
        return {"losses": losses, "parameters": [x.tolist() for x in named]}

    return run


PROGRAMS = {
    "VAE": descended(vae),
    "mixture, gradient": descended(mixture),
    "mixture, EM": em_of(lambda: GaussianMixture(64, 5, covariance="diag")),
    "probabilistic PCA, EM": em_of(lambda: ProbabilisticPCA(64, 5)),
    "regression, AutoNormal": descended(regression),
    "parameters of each row": descended(each_row),
    "GAN": descended(game),
    "diffusion": descended(diffusion),
}


def evidences() -> list[float]:
    """Those of test rows after ordinary runs, in nats per row."""
    train, test = digits(binary=True)
    found = []
    for compile in (False, True):
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            model, guide = VAE(64, 8), AmortizedNormal(64, 8)
            options = {"lr": 2e-3, "seed": seed, "compile": compile, "progress": False}
            fit(elbo(model, guide), train, epochs=30, batch_size=64, **options)
            found.append(log_evidence(model, guide, test, num_samples=200, seed=0).mean)
    return found


def launched(where: list[str], path: Path, ordinary: bool) -> Any:
    """What processes print into a file, started by some options of `torchrun`; without, alone."""
    if not where:
        command = [[sys.executable, "-m", "benchmarks.truth.processes", "--into", str(path)]]
    else:
        start = [sys.executable, "-m", "torch.distributed.run", *where]
        nodes = 2 if "--nnodes=2" in where else 1
        command = [[*start, "-m", "benchmarks.truth.processes", "--into", str(path)]] * nodes
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    extra = ["--ordinary"] if ordinary else []
    running = [
        subprocess.Popen(one + extra, env=environment, stderr=subprocess.PIPE, text=True)
        for one in command
    ]
    for one in running:
        _, error = one.communicate()
        if one.returncode:
            raise RuntimeError(error[-3000:])
    return json.loads(path.read_text())


def furthest(one: Any, other: Any) -> float:
    """The largest difference of two nested lists of numbers, relative to the largest number."""
    a, b = (torch.tensor(list(_flat(x)), dtype=torch.float64) for x in (one, other))
    assert a.shape == b.shape
    return float((a - b).abs().max() / a.abs().max())


def _flat(x: Any) -> Any:
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, list):
        for part in x:
            yield from _flat(part)
    else:
        yield x


WHERE = {
    "1": [],
    "2": ["--nproc-per-node=2", "--standalone"],
    "3": ["--nproc-per-node=3", "--standalone"],
    "2 + 2 nodes": [
        *("--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=127.0.0.1:29411", "--rdzv-id=truth", "--local-addr=127.0.0.1"),
    ],
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ordinary", action="store_true")
    parser.add_argument("--into", type=Path, help="for a process of its own: what it finds")
    args = parser.parse_args(argv)
    if args.into is not None:
        torch.set_num_threads(1)
        found: Any = evidences() if args.ordinary else {n: run() for n, run in PROGRAMS.items()}
        if together().is_first:
            args.into.write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.ordinary:
            _print_ordinary(Path(folder))
        else:
            _print_as_one(Path(folder))


def _print_as_one(folder: Path) -> None:
    found = {name: launched(where, folder / "found", False) for name, where in WHERE.items()}
    print("largest relative difference to one process: of a loss of a step, of a parameter")
    print(f"{'':24}{'steps':>6}", *(f"{name:>20}" for name in list(WHERE)[1:]))
    for program, one in found["1"].items():
        cells = [
            f"{furthest(one['losses'], found[n][program]['losses']):9.1e}, "
            f"{furthest(one['parameters'], found[n][program]['parameters']):7.1e}"
            for n in list(WHERE)[1:]
        ]
        print(f"{program:24}{len(one['losses']):6}", *(f"{cell:>20}" for cell in cells))


def _print_ordinary(folder: Path) -> None:
    print(f"evidence of test rows in nats per row, mean ± standard error over {SEEDS} seeds")
    for name in ("1", "2"):
        values = launched(WHERE[name], folder / "found", True)
        for how, some in (("eager", values[:SEEDS]), ("compiled", values[SEEDS:])):
            error = statistics.stdev(some) / SEEDS**0.5
            print(f"{name} process(es), {how:9} {statistics.mean(some):9.3f} ± {error:.3f}")


if __name__ == "__main__":
    main()
