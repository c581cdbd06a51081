r"""Cholesky factors of positive definite matrices, :math:`A = L L^\top`, without a wait for a GPU.

`torch.linalg.cholesky` reads from the device whether there was such a factor, which makes the host
wait for all the work before it, at each step of a fit, and which no CUDA graph can hold.
"""

import torch
from torch import Tensor


def cholesky(matrix: Tensor) -> Tensor:
    """Returns the factor, lower triangular, `(*, D, D)`.

    Where there is none it is NaN, which shows in the loss; on the CPU that is an error at once.

    Raises:
        torch.linalg.LinAlgError: On the CPU, if a matrix is not positive definite.

    Example:
        >>> cholesky(torch.tensor([[4.0, 2.0], [2.0, 2.0]])).round(decimals=3)
        tensor([[2., 0.],
                [1., 1.]])
    """
    if matrix.device.type == "cpu":
        return torch.linalg.cholesky(matrix)
    return cholesky_or_nan(matrix)


def cholesky_or_nan(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """`torch.linalg.cholesky` on any device, NaN where there is no factor.

    Example:
        >>> cholesky_or_nan(torch.tensor([[-1.0]]))
        tensor([[nan]])
    """
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return factor.where((info == 0)[..., None, None], torch.nan)


def inverse_root(matrix: Tensor) -> Tensor:
    r"""Returns :math:`L`, lower triangular, with :math:`L L^\top = A^{-1}`, `(*, D, D)`.

    Example:
        >>> inverse_root(torch.tensor([[4.0, 0.0], [0.0, 16.0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])
    """
    upper = cholesky(matrix.flip(-2, -1)).flip(-2, -1)  # A = U U^T
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(upper.mT, identity, upper=False)
