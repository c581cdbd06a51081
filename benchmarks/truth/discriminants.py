"""Gaussian discriminant analysis beside scikit-learn's, in one process, in float64.

python -m benchmarks.truth.discriminants

What scikit-learn divides a scatter by is read off its own fit: it depends on the solver and the
version.
"""

from collections.abc import Iterator

import numpy as np
import sklearn
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)

from ppl_models.supervised.discriminant import GaussianDiscriminant

PEERS = {
    "QDA, svd": QuadraticDiscriminantAnalysis(tol=0.0),
    "LDA, svd": LinearDiscriminantAnalysis(solver="svd"),
    "LDA, eigen": LinearDiscriminantAnalysis(solver="eigen"),
}


def rows() -> Iterator[tuple[str, str, str, int, float]]:
    """Yields data, covariance, peer, correction, and the largest difference of p(y | x)."""
    for name, load in {"iris": load_iris, "wine": load_wine}.items():
        features, labels = load(return_X_y=True)
        x, y = torch.from_numpy(features), torch.from_numpy(labels)
        for kind, peer in PEERS.items():
            covariance = "own" if kind.startswith("QDA") else "shared"
            theirs = peer.fit(features, labels).predict_proba(features)  # (N, C)
            correction = divisor(peer, features, labels)
            model = GaussianDiscriminant(x.shape[1], theirs.shape[1], covariance).double()
            ours = model.maximum_likelihood(x, y, correction).posterior(x).probs
            difference = np.abs(ours.detach().numpy() - theirs).max()
            yield name, covariance, kind, correction, difference


def divisor(
    peer: QuadraticDiscriminantAnalysis | LinearDiscriminantAnalysis,
    x: np.ndarray,
    y: np.ndarray,
) -> int:
    """What a fitted peer lessens the number of rows by to divide a scatter: the correction."""
    centered = x - peer.means_[y]
    if isinstance(peer, QuadraticDiscriminantAnalysis):
        first = centered[y == 0]  # `scalings_` are the variances along the axes of each class
        return len(first) - round((first**2).sum() / peer.scalings_[0].sum())
    whitened = centered @ peer.scalings_[:, :1]  # of unit variance within the classes
    return len(x) - round((whitened**2).sum())


def main() -> None:
    print(f"Gaussian discriminant analysis and scikit-learn {sklearn.__version__}, on all rows:")
    print("largest absolute difference of the posterior probabilities of the classes")
    print(f"{'data':6}{'covariance':12}{'scikit-learn':14}{'scatter divided by':21}difference")
    for name, covariance, kind, correction, difference in rows():
        size = "rows of a class" if covariance == "own" else "rows"
        by = size if correction == 0 else f"{size} - {correction}"
        print(f"{name:6}{covariance:12}{kind:14}{by:21}{difference:.1e}")


if __name__ == "__main__":
    main()
