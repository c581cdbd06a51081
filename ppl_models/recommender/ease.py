r"""EASE: each item as a linear combination of the others, in closed form; no density.

.. math::
    \min_B \; \lVert X - X B \rVert^2 + \lambda \lVert B \rVert^2, \quad \mathrm{diag}(B) = 0,
    \qquad B = I - P \, \mathrm{diag}(P)^{-1}, \quad P = (X^\top X + \lambda I)^{-1}

With fewer users than items nothing of size `(I, I)` is needed:
:math:`P = (I - X^\top (X X^\top + \lambda I)^{-1} X) / \lambda`.

Shapes: `U` users, `I` items.

References:
    | Embarrassingly Shallow Autoencoders for Sparse Data (Steck, 2019)
    | https://arxiv.org/abs/1905.03375
"""

from typing import NoReturn

import torch
from torch import Tensor

from ppl_models.checks import check_finite, check_positive, check_rows
from ppl_models.prompt.lines import in_a_line


class EASE:
    r"""Scores of items for users, by what others picked together: a floor for other models.

    Arguments:
        x: What users picked, ones and zeros, `(U, I)`.
        strength: :math:`\lambda`.

    Raises:
        ValueError: If `strength` is not positive, or the rows are not finite.

    Example:
        >>> ease = EASE(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), 1.0)
        >>> ease.scores(torch.tensor([[1.0, 0.0, 0.0]])).argmax().item()  # its companion
        1
    """

    __repr__ = in_a_line

    def __init__(self, x: Tensor, strength: float = 100.0) -> None:
        check_positive(strength=strength)
        check_rows(x, x.shape[-1], "EASE")
        check_finite(x, "EASE")
        self.x, self.strength = x.double(), strength
        inner = self.x @ self.x.T
        inner.diagonal().add_(strength)  # X X' + lambda I, (U, U)
        self.root = torch.linalg.cholesky(inner)
        half = torch.linalg.solve_triangular(self.root, self.x, upper=False)
        self.diagonal = 1 - half.square().sum(0)  # of lambda P, (I,)

    def __call__(self, x: Tensor | None = None, size: int | None = None) -> NoReturn:
        """Raises: rows `x` have no density, and there is no program that draws them."""
        self.evidence()

    def scores(self, x: Tensor) -> Tensor:
        """Returns x B, `(*, I)`, for the picks `(*, I)` of any users."""
        check_rows(x, self.x.shape[1], "EASE")
        rows = x.double()
        projected = rows - torch.cholesky_solve(self.x @ rows.T, self.root).T @ self.x
        return (rows - projected / self.diagonal).to(x)

    def evidence(self) -> NoReturn:
        """Raises: there is none, and this says why.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "EASE: it has no density of rows, and so no evidence: its scores order items, and are "
            "no probabilities. Try ppl_models.metrics to judge its rankings, such as "
            "recall_at(20, ease.scores(x), held_out) and ndcg_at, or a VAE with the likelihood "
            "Multinomial(), which has a lower bound."
        )
