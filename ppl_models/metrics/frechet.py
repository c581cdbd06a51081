r"""The Fréchet distance between two sets of rows, as between Gaussians with their moments.

.. math::
    d^2 = \lVert \mu_1 - \mu_2 \rVert^2
    + \mathrm{tr} \left( \Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2} \right)

Published FID is this :math:`d^2` on features of one Inception network; on other features it is
another number. State the features and the floor: the value between two sets of real rows.

Shapes: `N` and `M` rows, `D` features.

References:
    | The Fréchet distance between multivariate normal distributions (Dowson & Landau, 1982)
    | https://doi.org/10.1016/0047-259X(82)90077-X
    | GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017)
    | https://arxiv.org/abs/1706.08500
"""

import torch
from torch import Tensor

from ppl_models.metrics.rows import check_pair


@torch.no_grad()
def frechet(real: Tensor, generated: Tensor) -> float:
    r"""Returns the squared Fréchet distance :math:`d^2`, in squared units of the features.

    It is 0 for sets with the same mean and covariance. Between finite samples of one distribution
    it is positive, about in proportion to `1 / N`: compare only values with the same numbers of
    rows.

    Arguments:
        real: Features of real rows, `(N, D)`.
        generated: Features of generated rows, `(M, D)`.

    Raises:
        TypeError: If they are no tensors of floating-point numbers.
        ValueError: If there are fewer than two rows, or the rows differ in shape.

    Example:
        >>> x = torch.randn(100, 3)
        >>> round(frechet(x, x + torch.tensor([3.0, 0.0, 4.0])), 4)
        25.0
    """
    x, y = check_pair("frechet", 2, real=real, generated=generated)
    gap = (x.mean(0) - y.mean(0)).square().sum()
    first, second = torch.cov(x.T), torch.cov(y.T)  # (D, D)
    first, second = (c.reshape(x.shape[1], x.shape[1]) for c in (first, second))
    # tr (S T)^(1/2) is the sum of the singular values of S^(1/2) T^(1/2).
    cross = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    distance = gap + first.trace() + second.trace() - 2 * cross
    return distance.clamp(min=0).item()


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
