r"""Where labels start from: clusters of eigenvectors, or chance.

.. math:: D_\tau^{-1/2} A \, D_\tau^{-1/2}, \qquad D_\tau = D + \tau I

whose leading eigenvectors tell blocks apart; with :math:`\tau` the mean degree, so that nodes with
few edges do not have eigenvectors of their own.

Shapes: `N` nodes, `K` blocks, `R` restarts.

References:
    | Regularized Spectral Clustering under the Degree-Corrected Stochastic Blockmodel
    | (Qin & Rohe, 2013), https://arxiv.org/abs/1309.4111
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

SURE = 0.9  # how sure a start is of its labels: it is to move


def spectral_starts(joined: Tensor, num_blocks: int, restarts: int, seed: int) -> Tensor:
    """Returns labels by k-means of eigenvectors, `(R, N, K)`, from other centers each time.

    Arguments:
        joined: Edges, `(N, N)`.
        num_blocks: `K`.
        restarts: `R`.
        seed: Of the centers.
    """
    from sklearn.cluster import KMeans  # here, because it is slow to import

    degree = joined.sum(1)
    root = (degree + degree.mean()).clamp(min=1e-12).rsqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * joined * root)
    leading = vectors[:, values.abs().argsort(descending=True)[:num_blocks]]  # (N, K)
    kinds = normalize(leading, dim=1), leading  # by turns: both are in use
    labels = [
        KMeans(min(num_blocks, len(joined)), n_init=1, random_state=seed + r)
        .fit(kinds[r % 2].cpu().numpy())
        .labels_
        for r in range(restarts)
    ]
    return _soft(torch.stack([torch.from_numpy(found).long() for found in labels]), num_blocks)


def random_starts(joined: Tensor, num_blocks: int, restarts: int, seed: int) -> Tensor:
    """Returns labels by chance, `(R, N, K)`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_blocks, (restarts, len(joined)), generator=generator)
    return _soft(labels, num_blocks)


def _soft(labels: Tensor, num_blocks: int) -> Tensor:
    return SURE * one_hot(labels, num_blocks).double() + (1 - SURE) / num_blocks
