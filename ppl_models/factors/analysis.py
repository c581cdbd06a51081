r"""Factor analysis: a linear Gaussian model with its own noise for each feature.

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_n \mid z_n &\sim \mathcal{N}(\mu + W z_n, \Psi), \qquad \Psi = \mathrm{diag}(\sigma^2)

Entries of a row that are missing (NaN, with `missing="marginalise"`) are integrated out, exactly.
Where one number is the noise of all features, :math:`\Psi = \sigma^2 I`, it is probabilistic PCA
(`ppl_models.factors.probabilistic_pca`).

Shapes: `B` rows, `D` features, `K` factors, `S` draws.

References:
    | EM Algorithms for ML Factor Analysis (Rubin & Thayer, 1982)
    | https://doi.org/10.1007/BF02293851
    | The ECME Algorithm: A Simple Extension of EM and ECM (Liu & Rubin, 1994)
    | https://doi.org/10.1093/biomet/81.4.633
"""

from collections.abc import Iterable
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from ppl_models.checks import (
    check_count,
    check_finite,
    check_float64,
    check_resolution,
    check_rows,
    listed,
)
from ppl_models.criteria import InformationCriteria
from ppl_models.factors.checks import (
    check_batches,
    check_columns,
    check_num_factors,
    check_rank,
)
from ppl_models.factors.em import Sums, expectation, maximisation
from ppl_models.factors.likelihood import (
    best_loadings,
    best_noise,
    mean_log_evidence,
    start_noise,
    with_signs,
)
from ppl_models.factors.moments import Moments, moments, one_thread
from ppl_models.linalg import cholesky, inverse_root
from ppl_models.missing import (
    MarginalLowRankMultivariateNormal,
    MarginalNormal,
    check_missing,
    condition,
)
from ppl_models.plates import data_plate
from ppl_models.processes import by_parts, processes_of
from ppl_models.prompt.lines import in_a_line
from ppl_models.row_weights import weighted_batches
from ppl_models.user_line import warn


class FactorAnalysis(nn.Module, InformationCriteria):
    r"""Factor analysis, with latent site `z`.

    Its evidence and its posterior are both Gaussian, which makes it the model to check a
    new guide against. Three ways lead to the same maximum of the likelihood:
    `maximum_likelihood(x)`, the fastest; `fit_em(model, x)`, also for streams and with missing
    entries; and `fit(elbo(model, ExactPosterior(model)), x)`.

    The data determine the loadings but for a rotation, `W R` with any orthogonal `R`; what they do
    determine is `W W^T`. Where the likelihood would take the noise of a feature to zero (a Heywood
    case), the first two stop at `noise_floor`, and `caveat()` says so.

    Arguments:
        num_features: The length of a row, `D`.
        num_factors: The length of its latent vector, `K`.
        missing: What NaN in a row means: `"error"`, or `"marginalise"` for an entry that was not
            observed, and counts nothing.

    Example:
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> x = model(size=7)
        >>> model.evidence().log_prob(x).shape, model.posterior(x).mean.shape
        (torch.Size([7]), torch.Size([7, 2]))
    """

    __repr__ = in_a_line

    def __init__(self, num_features: int, num_factors: int, missing: str = "error") -> None:
        super().__init__()
        check_num_factors(num_factors, num_features, type(self).__name__)
        check_missing(missing)
        self.num_features, self.num_factors, self.missing = num_features, num_factors, missing
        self.loc = nn.Parameter(torch.zeros(num_features))  # mu, (D,)
        self.loadings = nn.Parameter(torch.randn(num_features, num_factors))  # W, (D, K)
        self.log_scale = nn.Parameter(torch.zeros(num_features))  # log sigma, (D,)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, len(self.loc), type(self).__name__, self)
        zero = self.loadings.new_zeros(self.loadings.shape[1])  # (K,)
        prior = dist.Normal(zero, torch.ones_like(zero))
        noise = MarginalNormal if self.missing == "marginalise" else dist.Normal

        with data_plate(x, size):
            z = pyro.sample("z", prior.to_event(1))  # (B, K)
            mean = self.loc + z @ self.loadings.T  # (B, D)
            return pyro.sample("x", noise(mean, self.log_scale.exp()).to_event(1), obs=x)

    def evidence(self) -> dist.LowRankMultivariateNormal:
        r"""Returns :math:`p(x) = \mathcal{N}(\mu, W W^\top + \Psi)`, over rows of shape `(D,)`.

        With `missing="marginalise"` its density is that of the entries that are not NaN.
        """
        kind = dist.LowRankMultivariateNormal
        if self.missing == "marginalise":
            kind = MarginalLowRankMultivariateNormal
        return kind(self.loc, self.loadings, self._noise())

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        r"""Returns :math:`p(z \mid x) = \mathcal{N}(M^{-1} W^\top \Psi^{-1} (x - \mu), M^{-1})`.

        :math:`M = I + W^\top \Psi^{-1} W` is the precision, the same for every row, unless entries
        are missing: the sums go over those that are not. For `x` of shape `(B, D)` the
        distribution has batch shape `(B,)` and event shape `(K,)`.
        """
        check_rows(x, len(self.loc), type(self).__name__, self)
        if self.missing == "marginalise":
            given = condition(x, self.loc, self.loadings, self._noise())
            precision = given.factor @ given.factor.mT  # (B, K, K)
            return dist.MultivariateNormal(given.mean, scale_tril=inverse_root(precision))
        if is_validation_enabled():  # not in `fit`, which looks at the data once
            check_finite(x, type(self).__name__, minimum=0)
        scale = self.log_scale.exp().expand_as(self.loc)  # (D,)
        whitened = self.loadings / scale[:, None]  # Psi^(-1/2) W, (D, K)
        identity = torch.eye(whitened.shape[1], dtype=x.dtype, device=x.device)
        precision = identity + whitened.T @ whitened  # M, (K, K)
        moment = ((x - self.loc) / scale) @ whitened  # (B, K)
        mean = torch.cholesky_solve(moment.T, cholesky(precision)).T  # (B, K)
        return dist.MultivariateNormal(mean, scale_tril=inverse_root(precision))

    @torch.no_grad()
    def impute(self, x: Tensor, num_samples: int | None = None) -> Tensor:
        r"""Returns rows whose missing entries are filled in; those observed stay as they are.

        Arguments:
            x: Rows with NaN where entries are missing, `(B, D)`.
            num_samples: None for the mean of :math:`p(x_m \mid x_o)`, with shape `(B, D)`; a
                number `S` for that many draws from it, with shape `(S, B, D)`.

        Raises:
            ValueError: If entries are missing and the model was made with `missing="error"`.

        Example:
            >>> model = FactorAnalysis(num_features=3, num_factors=1, missing="marginalise")
            >>> x = torch.tensor([[1.0, float("nan"), 2.0]])
            >>> model.impute(x)[0, [0, 2]], model.impute(x, num_samples=10).shape
            (tensor([1., 2.]), torch.Size([10, 1, 3]))
        """
        check_rows(x, len(self.loc), type(self).__name__, self)
        lenient = self.missing == "marginalise"
        check_finite(x, type(self).__name__, minimum=0, missing=lenient)
        if num_samples is not None:
            check_count(num_samples=num_samples)
        posterior = self.posterior(x)
        if num_samples is None:
            return torch.where(x.isnan(), self.loc + posterior.mean @ self.loadings.T, x)
        mean = self.loc + posterior.sample((num_samples,)) @ self.loadings.T  # (S, B, D)
        draws = torch.normal(mean, self.log_scale.exp().expand_as(mean))
        return torch.where(x.isnan(), draws, x)

    @torch.no_grad()
    def maximum_likelihood(
        self,
        x: Tensor | Iterable[Tensor],
        restarts: int = 1,
        sample_weight: Tensor | None = None,
    ) -> Self:
        r"""Sets the parameters to a maximum of the likelihood of `x`, and returns the model.

        Given the noise, the mean and the loadings have a closed form, and the noise is found by
        Newton's method (`ppl_models.factors.likelihood`); in probabilistic PCA it has one too.
        Columns of the loadings come out orthogonal over the noise, strongest first, the largest
        entry of each positive. Warns with `caveat()`, where there is one.

        Arguments:
            x: All the rows, or batches of them.
            restarts: From how many starts to look for the noise. There may be several maxima in
                factor analysis; the highest that was found is kept. The first start is what no
                other feature explains, the second what principal components leave, the others
                are random.
            sample_weight: How many times each row counts, `(N,)`. Default: once.

        Raises:
            TypeError: If the rows are not floating-point numbers.
            ValueError: If `x` is not finite, has fewer than two rows, or lies in a subspace of
                `K` dimensions: the likelihood then grows without bound. In factor analysis also
                if a feature is constant.

        Example:
            >>> x = torch.randn(500, 1) @ torch.ones(1, 4) + torch.randn(500, 4)
            >>> model = FactorAnalysis(num_features=4, num_factors=1).maximum_likelihood(x)
            >>> (model.loadings @ model.loadings.T - 1).abs().max() < 0.4
            tensor(True)
        """
        check_count(restarts=restarts)
        found = self._moments(x, sample_weight)
        if found.missing:
            raise ValueError(
                f"{type(self).__name__}: maximum_likelihood takes complete rows, got "
                f"{found.missing} missing entries. Try fit_em(model, x)."
            )
        check_rank(found.values, found.rows, self.loadings.shape[1], type(self).__name__)
        with one_thread(len(self.loc) ** 3):
            self._set_best(found, self._best_noise(found, restarts))
        if caveat := self.caveat():
            warn(caveat)
        return self

    @torch.no_grad()
    def initialise(self, x: Tensor, sample_weight: Tensor | None = None) -> None:
        r"""Chooses where `em_step` begins: the same for the same rows, so that restarts end alike.

        The noise of a feature is what no other feature explains of it, and the loadings are the
        best ones given that.

        Arguments:
            x: All the rows.
            sample_weight: How many times each row counts, `(N,)`. Default: once.

        Raises:
            TypeError: If the rows are not floating-point numbers.
            ValueError: If `x` cannot be fitted; also if a feature was never observed.
        """
        found = self._moments(x, sample_weight)
        check_rank(found.values, found.rows, self.loadings.shape[1], type(self).__name__)
        with one_thread(len(self.loc) ** 3):
            (noise,) = start_noise(found.values, found.vectors, self.loadings.shape[1])
            self._set_best(found, self._pool(noise.clamp(self.noise_floor, 1.0), found.counts))

    @by_parts
    @torch.no_grad()
    def em_step(self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None = None) -> Tensor:
        r"""Moves the parameters, and returns the mean log evidence *before*, in nats per row.

        No step lowers the evidence. With complete rows it maximises the evidence over the mean
        and the loadings, then the expected joint density over the noise (ECME); where entries may
        be missing it is a step of EM (`ppl_models.factors.em`). Towards a Heywood case steps become
        ever shorter, and a fit may stop long before the floor.

        Arguments:
            x: All the rows, or batches of them that can be gone through more than once, or a `Part`
                that this process has.
            sample_weight: How many times each row counts, `(N,)`. Default: once.
        """
        if self.missing == "marginalise":
            return self._step_with_missing(x, sample_weight)
        found = self._moments(x, sample_weight)
        check_rank(found.values, found.rows, self.loadings.shape[1], type(self).__name__)
        with one_thread(len(self.loc) ** 3):
            return self._step_of_moments(found)

    def _step_of_moments(self, found: Moments) -> Tensor:
        units = found.units
        loc, loadings, noise = (value.cpu() for value in self._in_float64())
        noise = noise / units**2
        offset, scaled = (found.mean - loc) / units, loadings / units[:, None]
        value = mean_log_evidence(found.root, offset, scaled, noise) - units.log().sum()
        best = best_loadings(found.root, noise, loadings.shape[1])
        left = self._pool(found.root.square().sum(0) - best.square().sum(1), found.counts)
        self._set_best(found, self._floored(left, noise, torch.ones_like(noise)))
        return value.to(self.loc.device)

    def _step_with_missing(
        self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None
    ) -> Tensor:
        loc, loadings, noise = self._in_float64()
        where = type(self).__name__
        here = processes_of(x)
        with here.all_or_none(where):
            checked = check_batches(x, len(self.loc), True, where)
            batches = weighted_batches(checked, sample_weight, where)
            own = expectation(batches, loc, loadings, noise)
        sums = Sums(*here.totals(*own))
        variance = self._pool(sums.variance(), sums.counts)
        check_columns(sums.counts, variance <= 0, where)
        loc, loadings, left = maximisation(sums, loc)
        self._set(loc, loadings, self._floored(self._pool(left, sums.counts), noise, variance))
        return sums.log_prob / sums.rows

    @property
    def num_parameters(self) -> int:
        """The number of free parameters, in how many directions the evidence can move.

        Loadings that turn into one another count once, and a covariance has no more numbers than
        those of its triangle.
        """
        features, factors = self.loadings.shape
        turned = features * factors - factors * (factors - 1) // 2
        covariance = min(turned + self.log_scale.numel(), features * (features + 1) // 2)
        return features + covariance

    @property
    def noise_floor(self) -> float:
        """The least noise of a fit, as a part of the variance of a feature.

        With less, the rounding errors of the evidence would show.
        """
        return 1e-8 if self.loc.dtype == torch.float64 else 1e-5

    def caveat(self) -> str | None:
        """Returns a sentence on the features whose noise is at the floor, or None."""
        noise = self._noise().detach()
        total = noise + self.loadings.detach().square().sum(1)
        at = (noise <= 1.01 * self.noise_floor * total).nonzero()[:, 0].tolist()
        if not at:
            return None
        some = listed(at, most=10)
        return (
            f"{type(self).__name__}: the noise of {len(at)} of {len(noise)} features ({some}) is "
            f"at the floor of {self.noise_floor:.0e} of their variance (a Heywood case): the "
            f"likelihood would take it to zero. Try fewer factors than {self.loadings.shape[1]}, "
            f"or without features that others repeat."
        )

    def _noise(self) -> Tensor:
        """The variance of the noise, (D,)."""
        return (2 * self.log_scale).exp().expand_as(self.loc)

    def _in_float64(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean, the loadings and the variance of the noise, in float64."""
        check_float64(self.loc, type(self).__name__)
        return self.loc.double(), self.loadings.double(), self._noise().double()

    def _pool(self, values: Tensor, weights: Tensor) -> Tensor:
        """Values of features as they are, or the mean of all where the noise is shared."""
        if self.log_scale.ndim:
            return values
        return (values @ weights / weights.sum()).expand_as(values)

    def _floored(self, left: Tensor, noise: Tensor, variance: Tensor) -> Tensor:
        """The noise of the largest expected density that is not below the floor."""
        # Noise that is below it already may stay there: raising it would lower the evidence.
        return left.maximum(torch.minimum(self.noise_floor * variance, noise))

    def _moments(self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None) -> Moments:
        where = type(self).__name__
        found = moments(
            x,
            len(self.loc),
            missing=self.missing == "marginalise",
            shared=self.log_scale.ndim == 0,
            where=where,
            sample_weight=sample_weight,
        )
        check_resolution(found.mean, found.units, self.loc.dtype, where)
        return found

    def _best_noise(self, found: Moments, restarts: int) -> Tensor:
        """The noise of the largest likelihood, in units of the rows."""
        factors = self.loadings.shape[1]
        starts = start_noise(found.values, found.vectors, factors, restarts)
        return best_noise(found.root, factors, self.noise_floor, starts)

    def _set_best(self, found: Moments, noise: Tensor) -> None:
        """Sets the noise, given in units of the rows, and what is best with it."""
        loadings = best_loadings(found.root, noise, self.loadings.shape[1])
        loadings = with_signs(found.units[:, None] * loadings)
        self._set(found.mean, loadings, found.units**2 * noise)

    def _set(self, loc: Tensor, loadings: Tensor, noise: Tensor) -> None:
        self.loc.copy_(loc)
        self.loadings.copy_(loadings)
        self.log_scale.copy_(noise.log() / 2 if self.log_scale.ndim else noise[0].log() / 2)
