r"""What is known in closed form of the weights, means and covariances of a Gaussian mixture.

Their prior, their posterior given the components of the rows, and its mean-field approximation
are of one family,

.. math::
    \pi_k = \beta_k \prod_{j < k} (1 - \beta_j), \quad
    \beta_k \sim \mathrm{Beta}(a_k, b_k), \qquad
    \Sigma_k \sim \mathrm{InverseWishart}(\nu_k, \Psi_k), \quad
    \mu_k \mid \Sigma_k \sim \mathcal{N}(m_k, \Sigma_k / \kappa_k)

with :math:`\beta_K = 1`. Where :math:`b_k = \sum_{j > k} a_j` the weights are a Dirichlet.
A diagonal covariance is `D` inverse Wisharts of one feature each, a spherical one a single such.

Shapes: `N` rows, `D` features, `K` components. A covariance has `G` blocks of `F` features: 1 of
`D` if full, `D` of 1 if diagonal, and 1 of 1, used for all features, if spherical.

References:
    | Pattern Recognition and Machine Learning (Bishop, 2006), chapter 10.2
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/
    | Variational Inference for Dirichlet Process Mixtures (Blei & Jordan, 2006)
    | https://doi.org/10.1214/06-BA104
"""

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models.linalg import cholesky
from ppl_models.mixtures.inverse_wishart import log_diagonal, log_normaliser
from ppl_models.row_weights import weight_of


class ConjugateMixture(NamedTuple):
    """The parameters of such a distribution.

    Example:
        >>> sticks, one, scale = torch.ones(0, 2), torch.ones(1), torch.eye(2)[None, None]
        >>> prior = ConjugateMixture(sticks, torch.zeros(1, 2), one, 4 * one, scale)
        >>> prior.given(torch.zeros(3, 2), torch.ones(3, 1)).strength  # a component with all 3 rows
        tensor([4.])
    """

    sticks: Tensor  # a and b, (K - 1, 2)
    loc: Tensor  # m, (K, D)
    strength: Tensor  # kappa, (K,)
    df: Tensor  # nu, (K,)
    scale: Tensor  # Psi, (K, G, F, F)

    def given(self, x: Tensor, components: Tensor) -> "ConjugateMixture":
        r"""Returns :math:`p(\pi, \mu, \Sigma \mid x, z)`, if this is the prior.

        Arguments:
            x: The rows, `(N, D)`.
            components: To which component they belong, one-hot, `(N, K)`. With responsibilities
                :math:`q(z)` the result is the best :math:`q(\pi, \mu, \Sigma)` beside them.
        """
        count = components.sum(0)  # (K,)
        mean = components.mT @ x / count.clamp(min=torch.finfo(x.dtype).tiny)[:, None]  # (K, D)
        strength = self.strength + count
        share = (count / strength)[:, None]
        inside = self._blocks(x - mean[:, None]).movedim(1, 2)  # (K, D / F, N, F)
        scatter = (components.mT[:, None, :, None] * inside).mT @ inside  # (K, D / F, F, F)
        between = self._blocks(mean - self.loc)[..., None]  # (K, D / F, F, 1)
        pull = (self.strength * share[:, 0])[:, None, None, None]
        scatter = scatter + pull * between @ between.mT
        if self._repeats > 1:
            scatter = scatter.sum(1, keepdim=True)
        later = count.sum() - count.cumsum(0)
        return ConjugateMixture(
            self.sticks + torch.stack([count, later], 1)[:-1],
            (1 - share) * self.loc + share * mean,
            strength,
            self.df + count * self._repeats,
            self.scale + scatter,
        )

    def log_joint(self, x: Tensor, components: Tensor) -> Tensor:
        r"""Returns :math:`\log p(x, z)` in nats, if this is the prior: a number.

        With responsibilities it is the mean-field bound on :math:`\log p(x)`, at the best
        :math:`q(\pi, \mu, \Sigma)` beside them.
        """
        return self.given(x, components).log_ratio(self, x, components)

    def log_ratio(
        self,
        prior: "ConjugateMixture",
        x: Tensor,
        components: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Returns `prior.log_joint(x, components)`, if this is `prior.given(x, components)`.

        Arguments:
            prior: The prior.
            x: The rows, `(N, D)`.
            components: Their components, `(N, K)`.
            weight: How many times each row counts, `(N,)`, so that this is
                `prior.given(x, weight[:, None] * components)`.
        """
        entropy = torch.special.entr(components)
        entropy = entropy if weight is None else entropy * weight[:, None]
        numbers = x.shape[1] * weight_of(x, weight)
        constant = 0.5 * numbers * math.log(2 * math.pi)
        return self.log_normaliser() - prior.log_normaliser() - constant + entropy.sum()

    def predictive(self) -> dist.MixtureSameFamily:
        r"""Returns :math:`\mathbb{E}[\sum_k \pi_k \mathcal{N}(x \mid \mu_k, \Sigma_k)]`, over rows.

        It is a mixture of Student's t: heavier tails than those of any component.
        """
        size, repeats = self.scale.shape[-1], self._repeats
        df = self.df - size + 1  # (K,)
        spread = ((1 + 1 / self.strength) / df).sqrt()  # (K,)
        root = cholesky(self.scale) * spread[:, None, None, None]  # (K, G, F, F)
        weights = dist.Categorical(self.expected_weights())
        if self.scale.shape[1] > 1:  # diagonal
            each = dist.StudentT(df[:, None], self.loc, root[:, :, 0, 0]).to_event(1)
            return dist.MixtureSameFamily(weights, each)
        if repeats > 1:
            root = root * torch.eye(repeats, dtype=root.dtype, device=root.device)
        return dist.MixtureSameFamily(weights, dist.MultivariateStudentT(df, self.loc, root[:, 0]))

    def expected_weights(self) -> Tensor:
        r"""Returns :math:`\mathbb{E}[\pi_k]`, `(K,)`."""
        return weights_of(self.sticks[:, 0] / self.sticks.sum(1))

    def expected_log_joint(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\mathbb{E}[\log \pi_k \, p(x_n \mid \mu_k, \Sigma_k)]`, `(N, K)`."""
        features, size = x.shape[1], self.scale.shape[-1]
        chol = cholesky(self.scale)  # (K, G, F, F)
        inside = self._blocks(x - self.loc[:, None]).movedim(1, 3)  # (K, D / F, F, N)
        distance = torch.linalg.solve_triangular(chol, inside, upper=False).square().sum((1, 2))
        steps = torch.arange(size, dtype=x.dtype, device=x.device)
        digammas = ((self.df[:, None] - steps) / 2).digamma().sum(1, keepdim=True)  # (K, 1)
        log_det = (2 * log_diagonal(chol) - size * math.log(2) - digammas).sum(1) * self._repeats
        constant = features * (math.log(2 * math.pi) + 1 / self.strength) + log_det  # (K,)
        log_weights = self.expected_log_weights()
        return log_weights - 0.5 * (constant + (self.df[:, None] * distance).mT)

    def expected_log_weights(self) -> Tensor:
        r"""Returns :math:`\mathbb{E}[\log \pi_k]`, `(K,)`."""
        logs = self.sticks.digamma() - self.sticks.sum(1, keepdim=True).digamma()
        zero = logs.new_zeros(1)
        return torch.cat([logs[:, 0], zero]) + torch.cat([zero, logs[:, 1].cumsum(0)])

    def log_normaliser(self) -> Tensor:
        """Returns the logarithm of what the density is divided by: a number."""
        sticks = self.sticks.lgamma().sum() - self.sticks.sum(1).lgamma().sum()
        chol = cholesky(self.scale)
        covariances = log_normaliser(self.df[:, None], chol).sum()
        locs = 0.5 * self.loc.shape[1] * (2 * math.pi / self.strength).log().sum()
        return sticks + covariances + locs

    def _blocks(self, rows: Tensor) -> Tensor:
        """Splits features `(*, D)` into blocks `(*, D / F, F)`."""
        return rows.unflatten(-1, (-1, self.scale.shape[-1]))

    @property
    def _repeats(self) -> int:
        """How many features share one block of one feature: all of them if spherical, else 1."""
        return self.loc.shape[1] // (self.scale.shape[1] * self.scale.shape[-1])


def weights_of(sticks: Tensor) -> Tensor:
    r"""Returns the weights :math:`\pi`, `(*, K)`, of sticks :math:`\beta`, `(*, K - 1)`.

    Example:
        >>> weights_of(torch.tensor([0.5, 0.5]))
        tensor([0.5000, 0.2500, 0.2500])
    """
    one = sticks.new_ones(*sticks.shape[:-1], 1)
    left = (1 - sticks).cumprod(-1)
    return torch.cat([sticks, one], -1) * torch.cat([one, left], -1)
