"""The exact models beside scikit-learn, in one process, in float64: all the tables.

python -m benchmarks.exact_vs_sklearn > table.txt    # about a quarter of an hour

Each part runs by itself, too: benchmarks.speed.mixtures, speed.factor_models, truth.discriminants,
quality.imputation and truth.bayesian_mixtures.
"""

import sys

from benchmarks.quality import imputation
from benchmarks.speed import factor_models, mixtures
from benchmarks.truth import bayesian_mixtures, discriminants


def main() -> None:
    sys.argv = [sys.argv[0], "--streaming"]
    mixtures.main()
    sys.argv = sys.argv[:1]
    for part in (factor_models, discriminants, imputation, bayesian_mixtures):
        print(f"\n== {part.__doc__.splitlines()[0]}\n", flush=True)
        part.main()


if __name__ == "__main__":
    main()
