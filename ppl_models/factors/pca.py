r"""Principal component analysis: probabilistic PCA in the limit of no noise.

.. math::
    \min_{\mu, \, U} \sum_n \lVert x_n - \mu - U U^\top (x_n - \mu) \rVert^2,
    \qquad U^\top U = I

The columns of :math:`U` are the eigenvectors of the covariance of the rows with the largest
eigenvalues :math:`\lambda_k`. With loadings :math:`W = U \Lambda^{1/2}` and noise
:math:`\sigma^2 \to 0`, the posterior mean of probabilistic PCA goes to
:math:`\Lambda^{-1/2} U^\top (x - \mu)`: the principal components, in units of their standard
deviations. There is no evidence, as there is no density.

Shapes: `B` rows, `D` features, `K` components.

References:
    | On Lines and Planes of Closest Fit to Systems of Points in Space (Pearson, 1901)
    | https://doi.org/10.1080/14786440109462720
    | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
    | https://doi.org/10.1111/1467-9868.00196
"""

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor, nn

from ppl_models.checks import check_resolution, check_rows
from ppl_models.factors.checks import SINGULAR, check_num_factors
from ppl_models.factors.likelihood import with_signs
from ppl_models.factors.moments import moments
from ppl_models.prompt.lines import in_a_line


class PCA(nn.Module):
    r"""Principal component analysis, fitted by `least_squares(x)`.

    Attributes:
        loc: The mean of the rows, `(D,)`.
        components: Orthonormal rows, `(K, D)`, in order of their variance, largest first. The
            entry of each that is largest in absolute value is positive.
        explained_variance: The variance of the rows along each, over `N - 1` as in scikit-learn,
            `(K,)`. (Maximum likelihood, in `ProbabilisticPCA`, divides by `N`.)
        total_variance: The sum of the variances of all features, `()`.

    Arguments:
        num_features: The length of a row, `D`.
        num_factors: The number of components, `K`.

    Example:
        >>> x = torch.randn(100, 3) * torch.tensor([5.0, 1.0, 0.1])
        >>> pca = PCA(num_features=3, num_factors=2).least_squares(x)
        >>> z = pca.transform(x)
        >>> z.shape, (pca.inverse_transform(z) - x).abs().max() < 1
        (torch.Size([100, 2]), tensor(True))
    """

    loc: Tensor
    components: Tensor
    explained_variance: Tensor
    total_variance: Tensor

    __repr__ = in_a_line

    def __init__(self, num_features: int, num_factors: int) -> None:
        super().__init__()
        check_num_factors(num_factors, num_features, "PCA")
        self.num_features, self.num_factors = num_features, num_factors
        self.register_buffer("loc", torch.zeros(num_features))  # mu
        self.register_buffer("components", torch.eye(num_factors, num_features))  # U^T
        self.register_buffer("explained_variance", torch.zeros(num_factors))  # lambda
        self.register_buffer("total_variance", torch.zeros(()))

    def forward(self, x: Tensor | None = None, size: int | None = None) -> NoReturn:
        """Raises: rows `x` have no density, and there is no program that draws them."""
        self.evidence()

    @torch.no_grad()
    def least_squares(self, x: Tensor | Iterable[Tensor]) -> "PCA":
        """Sets the mean and the components to the best ones for the rows, and returns itself.

        Arguments:
            x: All rows, with shape `(N, D)`, or batches of them.

        Raises:
            TypeError: If the rows are not floating-point numbers.
            ValueError: If rows are not finite, are fewer than two, or vary in fewer than `K`
                directions.
        """
        found = moments(x, len(self.loc), missing=False, shared=True, where="PCA")
        check_resolution(found.mean, found.units, self.loc.dtype, "PCA")
        varying = int((found.values > SINGULAR * found.values[-1]).sum())
        if varying < len(self.components):
            raise ValueError(
                f"PCA: the {found.rows} rows vary in {varying} direction(s), and those beyond are "
                f"arbitrary; expected {len(self.components)} or more. "
                f"Try num_factors={max(varying, 1)}, or more rows."
            )
        values = found.values.flip(0) * found.units**2 * found.rows / (found.rows - 1)  # (D,)
        vectors = with_signs(found.vectors.flip(1))
        self.loc.copy_(found.mean)
        self.components.copy_(vectors.T[: len(self.components)])
        self.explained_variance.copy_(values[: len(self.components)])
        self.total_variance.copy_(values.sum())
        return self

    @property
    def explained_variance_ratio(self) -> Tensor:
        """The part of the total variance along each component, `(K,)`."""
        self._check_fitted()
        return self.explained_variance / self.total_variance

    def transform(self, x: Tensor) -> Tensor:
        r"""Returns :math:`U^\top (x - \mu)`, with shape `(B, K)`."""
        self._check_fitted()
        check_rows(x, len(self.loc), "PCA", self)
        return (x - self.loc) @ self.components.T

    def inverse_transform(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\mu + U z`, with shape `(B, D)`: the nearest rows for `z = transform(x)`.

        Arguments:
            z: With shape `(B, K)`.
        """
        self._check_fitted()
        check_rows(z, len(self.components), "PCA", self)
        return self.loc + z @ self.components

    def evidence(self) -> NoReturn:
        """Raises: there is none, and this says why.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "PCA: it has no density of rows, and so no evidence: without noise, rows lie in a "
            "plane and nowhere else. Try ProbabilisticPCA(num_features, num_factors), which is "
            "the same with noise, and has an exact one."
        )

    def _check_fitted(self) -> None:
        if self.total_variance == 0:
            raise RuntimeError("PCA: it has not been fitted. Try least_squares(x) first.")
