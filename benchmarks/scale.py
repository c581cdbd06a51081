"""Rows that do not fit in memory: what a fit, EM and evidences take, beside rows in memory.

python -m benchmarks.scale                                 # 20 GB in the folder for temporary files
python -m benchmarks.scale --gigabytes 1 --part 0.5 --folder /data

A file of rows from a mixture of Gaussians (whose noise comes from a pool of 65,536 rows) is written
from a seed, and deleted afterwards. Once through all of it: a small VAE, EM of a mixture, the exact
evidence of each row under a factor analysis, and the checks of all rows. Then a part of it, which
fits in memory, is read from where it is and from memory, in turns in this process; speeds are by
CPU time, that of the system included, medians over the rounds, with the page cache warm. A fit is
timed by what a long one takes beyond a short one, so that its start is left out.

The memory of the process is what it has by itself, `RssAnon` of /proc/self/status; its peak is
looked at every 20 ms. Pages of a mapped file, `RssFile`, are those of the page cache, which every
process that reads the file shares, and which the system drops without writing when it needs room.
"""

import argparse
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks import measure
from guides import AmortizedNormal
from ppl_models import (
    VAE,
    FactorAnalysis,
    GaussianMixture,
    check_data,
    elbo,
    fit,
    fit_em,
    log_evidence,
)
from ppl_models.likelihoods import Normal

FEATURES, COMPONENTS, LATENTS, HIDDEN = 256, 8, 8, 32
BATCH, SMALL = 4096, 1024  # of the whole file, and of the part beside memory
GB = 10**9
Work = Callable[[Any], None]  # what is done with rows, wherever they are


def write_rows(path: Path, gigabytes: float, seed: int) -> None:
    """Writes rows of a mixture, a chunk after the other, so that none is in memory."""
    rows = int(gigabytes * GB / 4 / FEATURES)
    draw = np.random.default_rng(seed)
    locs = 2 * draw.standard_normal((COMPONENTS, FEATURES), dtype=np.float32)
    noise = draw.standard_normal((2**16, FEATURES), dtype=np.float32)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, FEATURES)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, 2**14):
            count = min(2**14, rows - start)
            chunk = noise[draw.integers(len(noise), size=count)]
            chunk += locs[draw.integers(COMPONENTS, size=count)]
            file.write(memoryview(chunk).cast("B"))


class Memory:
    """The memory of this process, in MB, and the most of it while something is done."""

    def __init__(self) -> None:
        self.most = self.now()

    @staticmethod
    def now() -> dict[str, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
        return {name: int(found[name]) * 1024 / 1e6 for name in ("RssAnon", "RssFile")}

    @contextmanager
    def watched(self) -> Iterator[None]:
        done = threading.Event()

        def look() -> None:
            ended = False
            while not ended:
                ended = done.wait(0.02)
                self.most = {name: max(self.most[name], mb) for name, mb in self.now().items()}

        self.most, watcher = self.now(), threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def bound() -> Any:
    """A small VAE, and its guide."""
    torch.manual_seed(0)
    encoder = mlp(FEATURES, 2 * LATENTS)
    vae = VAE(FEATURES, LATENTS, likelihood=Normal(), decoder=mlp(LATENTS, FEATURES))
    return elbo(vae, AmortizedNormal(FEATURES, LATENTS, encoder=encoder))


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))


def vae(rows: Any, steps: int, batch: int = BATCH, compile: bool = True) -> None:
    size = None if isinstance(rows, DataLoader) else batch
    options = {"batch_size": size, "seed": 0, "compile": compile, "progress": False}
    fit(bound(), rows, steps=steps, lr=1e-3, **options)


def mixture(rows: Any, steps: int, start: Tensor) -> None:
    torch.manual_seed(0)
    model = GaussianMixture(FEATURES, COMPONENTS, covariance="diag")
    model.initialise(start)
    options = {"initialise": False, "tolerance": 0.0, "progress": False}
    fit_em(model, rows, max_steps=steps, **options)


def evidence(rows: Any) -> None:
    torch.manual_seed(0)
    log_evidence(FactorAnalysis(FEATURES, LATENTS), None, rows)


def lower_bound(rows: Any) -> None:
    objective = bound()
    log_evidence(objective.model, objective.guide, rows, num_samples=10, seed=0)


def checks(rows: Any) -> None:
    check_data(bound(), rows, progress=False)


def cpu_seconds(work: Work, rows: Any) -> float:
    """The CPU time of this process, that of the system included."""
    began = time.process_time()
    work(rows)
    return time.process_time() - began


class Together(Dataset):
    """Rows that are read together, as a data set of one's own may give them."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: list[int]) -> np.ndarray:
        return self.rows[rows]


def through_all(rows: np.memmap, steps: int | None) -> None:
    """Goes through all rows, by each of the ways, and prints what that takes."""
    start, number = torch.from_numpy(np.array(rows[:5000])), len(rows)
    steps = steps or -(-number // BATCH)
    works: dict[str, tuple[Work, int]] = {  # and the rows that it goes through
        f"VAE, {steps} shuffled batches of {BATCH}": (lambda x: vae(x, steps), steps * BATCH),
        "EM of the mixture, 2 steps": (lambda x: mixture(x, 2, start), 2 * number),
        "exact evidence of each row": (evidence, number),
        "checks of all rows": (checks, number),
    }
    vae(rows[: 2 * BATCH], 30)  # what code and libraries take
    mixture(rows[: 2 * BATCH], 2, start)
    memory = Memory()
    before = memory.now()["RssAnon"]
    print(f"before: RssAnon {before:.0f} MB\n")
    print(
        "| through the file | rows | seconds | of the CPU | rows / s of the CPU | "
        "RssAnon beyond, MB | RssFile, MB |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name, (work, count) in works.items():
        began = time.perf_counter()
        with memory.watched():
            seconds = cpu_seconds(work, rows)
        wall, anonymous = time.perf_counter() - began, memory.most["RssAnon"] - before
        print(
            f"| {name} | {count:,} | {wall:.0f} | {seconds:.0f} | {count / seconds:,.0f} | "
            f"{anonymous:.0f} | {memory.most['RssFile']:.0f} |",
            flush=True,
        )


def sources(rows: np.memmap, folder: Path) -> dict[str, Any]:
    """The same rows in memory and on disk, as users may have them."""
    tensor = torch.from_numpy(np.array(rows))
    found = {"in memory": tensor, "array on disk": rows, "Dataset, together": Together(rows)}
    if (table := as_table(rows, folder)) is not None:
        found["Arrow on disk"] = table
    found["Dataset, row by row"] = DataLoader(TensorDataset(tensor), SMALL, shuffle=True)
    return found


def as_table(rows: np.memmap, folder: Path) -> Any:
    """The rows as a table of Hugging Face, by way of Parquet; None without the package."""
    try:
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    datasets.disable_progress_bars()
    kind = pa.list_(pa.float32(), FEATURES)
    with pq.ParquetWriter(folder / "rows.parquet", pa.schema([("x", kind)])) as file:
        for start in range(0, len(rows), 2**15):
            numbers = pa.array(np.array(rows[start : start + 2**15]).ravel())
            column = pa.FixedSizeListArray.from_arrays(numbers, FEATURES)
            file.write_table(pa.table({"x": column}))
    return datasets.Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder))


def beside_memory(rows: np.memmap, folder: Path, rounds: int) -> None:
    """Prints how fast a part is from disk, beside the same rows in memory."""
    start, found = torch.from_numpy(np.array(rows[:5000])), sources(rows, folder)
    works: dict[str, tuple[Work, Work | None, int]] = {  # long, short, and rows in between
        "VAE": (lambda x: vae(x, 300, SMALL), lambda x: vae(x, 100, SMALL), 200 * SMALL),
        "VAE, not compiled": (
            lambda x: vae(x, 70, SMALL, compile=False),
            lambda x: vae(x, 20, SMALL, compile=False),
            50 * SMALL,
        ),
        "EM": (lambda x: mixture(x, 2, start), lambda x: mixture(x, 1, start), len(rows)),
        "exact evidence": (evidence, None, len(rows)),
        "bound, 10 draws": (lambda x: lower_bound(_first(x, len(rows) // 8)), None, len(rows) // 8),
        "checks of all rows": (checks, None, len(rows)),
    }
    print(f"\n| {len(rows):,} rows | {' | '.join(f'{n}, rows / s' for n in found)} |")
    print("|---" * (1 + len(found)) + "|", flush=True)
    for name, (work, less, count) in works.items():
        kinds = {k: x for k, x in found.items() if "VAE" in name or not isinstance(x, DataLoader)}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(rounds + 1):
            for kind, x in kinds.items():
                seconds = cpu_seconds(work, x) - (cpu_seconds(less, x) if less else 0.0)
                if turn:  # the first warms up
                    times[kind].append(seconds / count)
        base = median(times["in memory"])
        cells = [
            f"{1 / median(times[k]):,.0f} ({median(times[k]) / base:.2f} x)" if k in times else ""
            for k in found
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _first(rows: Any, count: int) -> Any:
    """The first rows, where they are."""
    if isinstance(rows, Together):
        return Together(rows.rows[:count])
    return rows.take(count) if hasattr(rows, "with_format") else rows[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=None, help="of the VAE; default: an epoch")
    parser.add_argument("--part", type=float, default=1.0, help="gigabytes beside memory; 0: none")
    parser.add_argument("--folder", type=Path, default=None, help="where the file is made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="fit_em: still rising")  # after so few steps
    print(measure.heading("cpu"))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, began = Path(folder) / "rows.npy", time.perf_counter()
        write_rows(path, args.gigabytes, args.seed)
        rows = np.load(path, mmap_mode="r")
        print(
            f"{len(rows):,} rows of {FEATURES} numbers, {path.stat().st_size / GB:.1f} GB, "
            f"written in {time.perf_counter() - began:.0f} s"
        )
        through_all(rows, args.steps)
        if args.part:
            part = rows[: int(args.part * GB / 4 / FEATURES)]
            beside_memory(part, Path(folder), args.rounds)


if __name__ == "__main__":
    main()
