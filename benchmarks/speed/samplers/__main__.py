"""Effective draws a second of `nuts`, of Pyro's NUTS, and of NumPyro's, on one core.

make .venv-peers/.ready                            # the environment with NumPyro
.venv-peers/bin/python -m benchmarks.speed.samplers --only "eight schools"

The same posteriors in single precision for the peers; ours computes in double. Seconds are the
processor's, of all threads. Effective draws are ArviZ's (bulk), the least over quantities that
neither labels nor signs change. As many draws tune as are kept; Pyro's sampler, which takes far
longer, makes one shorter chain, whose effective draws a second are what is compared. `apart` is the
largest difference of two means, in its Monte Carlo standard errors.
"""

import argparse
import os
import tempfile
from importlib import import_module

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of problems' names")
    parser.add_argument("--ways", nargs="*", default=["ours", "NumPyro", "Pyro"])
    parser.add_argument("--draws", type=int, default=1000, help="of each chain, after as many")
    parser.add_argument("--chains", type=int, default=4)
    args = parser.parse_args()
    os.environ.update(ONE_THREAD)
    with tempfile.TemporaryDirectory() as empty:  # of compiled code: each start is a first one
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        import_module("benchmarks.speed.samplers.table").main(args)


if __name__ == "__main__":
    main()
