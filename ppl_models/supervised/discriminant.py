r"""Gaussian discriminant analysis: a Gaussian for the rows of each class.

.. math::
    y_n &\sim \mathrm{Categorical}(\pi) \\
    x_n \mid y_n = c &\sim \mathcal{N}(\mu_c, \Sigma_c)

With a covariance of its own for each class the boundaries between classes are quadrics; with one
:math:`\Sigma` shared by all they are planes. Covariances are given by their Cholesky factors,
:math:`\Sigma = L L^\top`, and these by the logarithm of their diagonal and what is below it.

Shapes: `B` rows, `D` features, `C` classes.

References:
    | The Use of Multiple Measurements in Taxonomic Problems (Fisher, 1936)
    | https://doi.org/10.1111/j.1469-1809.1936.tb02137.x
    | Unconstrained Parametrizations for Variance-Covariance Matrices (Pinheiro & Bates, 1996)
    | https://doi.org/10.1007/BF00140873
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppl_models.checks import (
    check_at_least,
    check_choice,
    check_classes,
    check_count,
    check_finite,
    check_float64,
    check_labels,
    check_resolution,
    check_rows,
)
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

WHERE = "GaussianDiscriminant"


class GaussianDiscriminant(nn.Module):
    r"""Gaussian discriminant analysis, with the label of a row at site `y`.

    As a program it takes rows and labels, `model(x, y)`, whose density is the joint
    :math:`p(x, y)`; rows alone, `model(x)`, whose labels are enumerated; labels alone,
    `model(y=y)`, to sample a row of each; or neither, `model(size=10)`. It returns the rows.

    Arguments:
        num_features: The length of a row, `D`.
        num_classes: The number of classes, `C`.
        covariance: `"own"`, one for each class (quadratic discriminant analysis), or `"shared"`
            (linear discriminant analysis).

    Raises:
        ValueError: If a size is not positive, or `covariance` is neither.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = (torch.tensor(a) for a in load_iris(return_X_y=True))
        >>> model = GaussianDiscriminant(num_features=4, num_classes=3).double()
        >>> posterior = model.maximum_likelihood(x, y).posterior(x)
        >>> int((posterior.probs.argmax(1) != y).sum())  # rows of 150 in the wrong class
        3
    """

    __repr__ = in_a_line

    def __init__(self, num_features: int, num_classes: int, covariance: str = "own") -> None:
        super().__init__()
        check_count(num_features=num_features, num_classes=num_classes)
        check_choice("covariance", covariance, ("own", "shared"))
        self.num_features, self.num_classes = num_features, num_classes
        self.covariance = covariance
        batch = (num_classes,) if covariance == "own" else ()
        self.logits = nn.Parameter(torch.zeros(num_classes))  # log pi, up to a constant, (C,)
        # Drawn, not zero: without labels, classes that are alike would stay alike.
        self.locs = nn.Parameter(torch.randn(num_classes, num_features))  # mu, (C, D)
        # log L_dd on the diagonal, L below it, nothing above; (C, D, D) or (D, D)
        self.log_cholesky = nn.Parameter(torch.zeros(*batch, num_features, num_features))

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factors of the covariances, L, `(C, D, D)`, or `(D, D)` if shared."""
        return transform_to(constraints.lower_cholesky)(self.log_cholesky)

    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Scores rows `x` with labels `y`, summed over if not given, or draws `size`."""
        num_classes, num_features = self.locs.shape
        check_rows(x, num_features, WHERE)
        check_labels(y, num_classes, None if x is None else len(x), WHERE)
        prior = dist.Categorical(logits=self.logits)

        with data_plate(y if x is None else x, size):
            label = pyro.sample("y", prior, obs=y, infer={"enumerate": "parallel"})  # (B,)
            # Clamped, so that a label of no class meets the check of its site, and does not fail
            # as an index, which ends the process on a GPU.
            index = label.long().clamp(0, num_classes - 1)
            factor = self.scale_tril if self.covariance == "shared" else self.scale_tril[index]
            density = dist.MultivariateNormal(self.locs[index], scale_tril=factor)
            return pyro.sample("x", density, obs=x)

    def evidence(self) -> dist.MixtureSameFamily:
        r"""Returns :math:`p(x) = \sum_c \pi_c \mathcal{N}(\mu_c, \Sigma_c)`, over rows `(D,)`."""
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), self._classes())

    def posterior(self, x: Tensor) -> dist.Categorical:
        r"""Returns :math:`p(y \mid x) \propto \pi_y \mathcal{N}(x \mid \mu_y, \Sigma_y)`.

        For `x` of shape `(B, D)` it has batch shape `(B,)`, and `probs` of shape `(B, C)`.
        """
        check_rows(x, self.locs.shape[1], WHERE)
        log_likelihood = self._classes().log_prob(x[:, None])  # (B, C)
        return dist.Categorical(logits=self.logits.log_softmax(0) + log_likelihood)

    def _classes(self) -> dist.MultivariateNormal:
        """The densities of rows of each class, with batch shape `(C,)`."""
        return dist.MultivariateNormal(self.locs, scale_tril=self.scale_tril)

    @torch.no_grad()
    def maximum_likelihood(
        self, x: Tensor, y: Tensor, correction: int = 0
    ) -> "GaussianDiscriminant":
        r"""Sets the parameters to the maximum of the likelihood, and returns the model.

        With the scatter :math:`S_c = \sum_{y_n = c} (x_n - \mu_c) (x_n - \mu_c)^\top` of a class
        of `N_c` rows out of `N`, and a correction `k`:

        .. math::
            \pi_c = \frac{N_c}{N}, \qquad \mu_c = \frac{1}{N_c} \sum_{y_n = c} x_n, \qquad
            \Sigma_c = \frac{S_c}{N_c - k} \quad \text{or} \quad
            \Sigma = \frac{1}{N - k} \sum_c S_c

        Arguments:
            x: The rows, with shape `(N, D)`.
            y: Their labels, with shape `(N,)`.
            correction: What the number of rows is lessened by to divide the scatter, as in
                `torch.cov`. 0 for maximum likelihood; for unbiased covariances 1 if each class has
                its own, the number of classes if they share one.

        Raises:
            TypeError: If `x` or `y` are not such numbers.
            ValueError: If `x` is not finite, a label is of no class, a class has no rows, or a
                covariance is singular: the likelihood then grows without bound.
        """
        num_classes = len(self.logits)
        self._check_fit(x, y)
        check_at_least(0, correction=correction)
        data, labels = x.double(), y.long()
        counts = labels.bincount(minlength=num_classes)  # N_c, (C,)
        _check_no_class_empty(counts)
        locs = torch.stack([data[labels == c].mean(0) for c in range(num_classes)])  # (C, D)
        centered = data - locs[labels]
        largest = data.abs().amax(0)
        if self.covariance == "shared":
            factor = _cholesky(centered, largest, correction, num_classes, "all classes together")
        else:
            factors = [
                _cholesky(centered[labels == c], largest, correction, 1, f"class {c}")
                for c in range(num_classes)
            ]
            factor = torch.stack(factors)  # (C, D, D)
        check_resolution(data.mean(0), centered.square().mean(0).sqrt(), self.locs.dtype, WHERE)
        self.logits.copy_((counts.double() / len(x)).log())
        self.locs.copy_(locs)
        self.log_cholesky.copy_(transform_to(constraints.lower_cholesky).inv(factor))
        return self

    def _check_fit(self, x: Tensor, y: Tensor) -> None:
        num_classes, num_features = self.locs.shape
        check_rows(x, num_features, WHERE)
        check_float64(x, WHERE)
        check_labels(y, num_classes, len(x), WHERE)
        check_classes(y, num_classes, WHERE)
        check_finite(x, WHERE, minimum=2)


def _check_no_class_empty(counts: Tensor) -> None:
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{WHERE}: expected rows of all {len(counts)} classes, got none of {empty}. "
            f"Try num_classes={len(counts) - len(empty)} with labels numbered from 0 on, "
            f"y.unique(return_inverse=True)[1], or a split that keeps some of each."
        )


def _cholesky(
    centered: Tensor, largest: Tensor, correction: int, num_means: int, whose: str
) -> Tensor:
    """The Cholesky factor of a covariance, (D, D), from rows less the means of their classes.

    Raises:
        ValueError: If it is singular, up to rounding.
    """
    rows, num_features = centered.shape
    free = rows - num_means  # degrees of freedom, the most that the rank can be
    shared = "" if num_means > 1 else "covariance='shared', "
    if free < num_features or rows <= correction:
        needed = max(num_features + num_means, correction + 1)
        raise ValueError(
            f"{WHERE}: the covariance of {whose} is singular with {rows} rows of {num_features} "
            f"features; expected at least {needed} rows. Try {shared}fewer features, or more rows."
        )
    scale = centered.square().mean(0).sqrt()  # (D,)
    constant = (scale <= 1e-12 * largest).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"{WHERE}: column(s) {constant} of x are constant in {whose}, where the covariance is "
            f"singular and the likelihood has no maximum. Try {shared}leaving them out, or more "
            f"rows."
        )
    # Correlations: the units of the features do not tell what is singular.
    whitened = centered / scale
    correlation = whitened.T @ whitened / rows
    if torch.linalg.eigvalsh(correlation)[0] <= 1e-12 * num_features:
        raise ValueError(
            f"{WHERE}: columns of x are linear functions of others in {whose}, where the "
            f"covariance is singular and the likelihood has no maximum. Try {shared}leaving such "
            f"columns out, or more rows."
        )
    factor = torch.linalg.cholesky(correlation) * scale[:, None]
    return factor * (rows / (rows - correction)) ** 0.5
