"""Steps and whole runs beside NumPyro's and hand-written PyTorch's, on one core.

make bench-peers                                  # makes an environment with NumPyro, and runs all
python -m benchmarks.speed.peers --part steps --only mixture
python -m benchmarks.speed.peers --part total --steps 1000 10000 --ways fit NumPyro

The programs are those of `benchmarks.speed.steps`: the same data, in single precision, and the same
Adam. `steps`: medians and first deciles over rounds, all ways in one process and in turns. `total`:
the wall-clock time of a process that imports, compiles and takes so many steps, from empty caches
of compiled code ("cold") and from those that the run before left ("warm").
"""

import argparse
import os
from importlib import import_module

# Before torch and JAX are imported, which read these once.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("steps", "total"), default="steps")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of programs' names")
    parser.add_argument("--ways", nargs="*", default=[""], help="beginnings of ways' names")
    parser.add_argument("--rounds", type=int, default=15, help="of steps")
    parser.add_argument("--seconds", type=float, default=0.2, help="of each way in each round")
    parser.add_argument("--warm", type=int, default=1000, help="steps before the first round")
    parser.add_argument("--steps", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--limit", type=float, default=100, help="longer runs are only forecast, s")
    args = parser.parse_args()
    os.environ.update(ONE_THREAD)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import_module(f"benchmarks.speed.peers.{args.part}").main(args)


if __name__ == "__main__":
    main()
