r"""Mixtures of Gaussians by maximum likelihood.

.. math::
    z_n &\sim \mathrm{Categorical}(\pi) \\
    x_n \mid z_n = k &\sim \mathcal{N}(\mu_k, \Sigma_k)

No direction of a component has a variance less than a floor: else a component that closes in on a
single row would have an evidence without bound. Under that constraint the maximisation step is
exact (the eigenvalues of a covariance that lie below the floor are raised to it), so that EM never
lowers the evidence. The floor is a part of the spread of each feature over the rows, so that their
units change nothing: rows :math:`c x + b` give the means :math:`c \mu + b`, the covariances
:math:`c^2 \Sigma`, and an evidence that is :math:`D \log c` less.

Shapes: `B` rows, `D` features, `K` components; `R` restarts, where they are stacked.

References:
    | Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster et al., 1977)
    | https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
    | A Constrained Formulation of Maximum-Likelihood Estimation for Normal Mixture Distributions
    | (Hathaway, 1985) https://doi.org/10.1214/aos/1176349557
"""

import copy
import math
from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import (
    check_choice,
    check_count,
    check_finite,
    check_float64,
    check_positive,
    check_resolution,
    check_rows,
    listed,
)
from ppl_models.criteria import InformationCriteria
from ppl_models.missing import (
    MarginalMultivariateNormal,
    MarginalNormal,
    check_missing,
    complete,
    observed_mean,
)
from ppl_models.mixtures.expectation import (
    Statistics,
    expectation,
    expectation_of_missing,
    from_labels,
)
from ppl_models.mixtures.kmeans import kmeans
from ppl_models.mixtures.maximisation import maximisation, moments
from ppl_models.plates import data_plate
from ppl_models.row_weights import weighted_batches

COVARIANCES = ("full", "tied", "diag", "spherical")
MANY = 20_000  # rows that are enough to choose a start
SMALL = 1e-3  # the floor, as a part of the spread of the rows
CANDIDATES, SHORT = 4, 10  # for each start, and the steps after which the best goes on


class GaussianMixture(nn.Module, InformationCriteria):
    r"""A mixture of Gaussians, its component the enumerated site `z`.

    Fitted by `fit_em(model, x)`, or by gradient, `fit(elbo(model), x)`, to the same optimum. Steps
    of EM are the same in all units; those of a gradient are not, and begin best where
    `model.initialise(x)` leads, on standardised rows.

    Arguments:
        num_features: The length of a row, `D`.
        num_components: `K`.
        covariance: `"full"`, `"tied"` (one for all components), `"diag"` or `"spherical"`.
        min_scale: The smallest standard deviation of a component in any direction, in the units
            of the data. Default: a thousandth of each feature's over all rows, a direction being
            measured in these (if spherical, of their root mean square), once `initialise` or a
            step of EM has seen rows; until then 0.001. By gradient it bounds that of each feature,
            given those before it.
        missing: `"error"`, or `"marginalise"`: entries that are NaN are missing, and everything
            is exact for the entries that are not.

    Example:
        >>> model = GaussianMixture(num_features=2, num_components=3)
        >>> x = model(size=7)
        >>> model.evidence().log_prob(x).shape, model.posterior(x).probs.shape
        (torch.Size([7]), torch.Size([7, 3]))
    """

    # Unless min_scale is given: log of the least scale of each feature, (1, D), (1, 1) or, if tied,
    # (D,), to go with log_scale; and for which features rows have told it.
    log_floor: Tensor
    measured: Tensor

    def __init__(
        self,
        num_features: int,
        num_components: int,
        covariance: str = "full",
        min_scale: float | None = None,
        missing: str = "error",
    ) -> None:
        check_count(num_features=num_features, num_components=num_components)
        check_choice("covariance", covariance, COVARIANCES)
        if min_scale is not None:
            check_positive(min_scale=min_scale)
        check_missing(missing)
        super().__init__()
        self.covariance, self.min_scale, self.missing = covariance, min_scale, missing
        shape = {
            "full": (num_components, num_features),
            "tied": (num_features,),
            "diag": (num_components, num_features),
            "spherical": (num_components, 1),
        }[covariance]
        self.logits = nn.Parameter(torch.zeros(num_components))  # log pi, but for a constant, (K,)
        self.locs = nn.Parameter(torch.randn(num_components, num_features))  # mu, (K, D)
        self.log_scale = nn.Parameter(torch.zeros(shape))  # of the diagonal of L: Sigma = L L^T
        if covariance in ("full", "tied"):
            self.lower = nn.Parameter(torch.zeros(*shape, num_features))  # L below its diagonal
        if min_scale is None:
            own = self.log_scale if covariance == "tied" else self.log_scale[:1]
            unknown = torch.full_like(own, math.log(SMALL), requires_grad=False)
            self.register_buffer("log_floor", unknown)
            self.register_buffer("measured", torch.zeros_like(unknown, dtype=torch.bool))

    @property
    def scale(self) -> Tensor:
        """The Cholesky factors of the covariances, (K, D, D), or (D, D) if tied; if diagonal the
        standard deviations, (K, D), if spherical (K, 1)."""
        # In logarithms, so that the gradient of a tiny scale is not lost.
        least = self.log_floor if self.min_scale is None else math.log(self.min_scale)
        scale = self.log_scale.clamp(min=least).exp()
        if self.covariance in ("diag", "spherical"):
            return scale
        return self.lower.tril(-1) + torch.diag_embed(scale)

    def _floor(self) -> Tensor:
        """The least scale, in float64, (R or 1, 1, F)."""
        if self.min_scale is not None:
            return self.locs.new_full((1, 1, 1), self.min_scale, dtype=torch.float64)
        return self.log_floor.double().exp().view(-1, 1, self.log_floor.shape[-1])

    def _measure(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Learns from all rows what the floor is a part of, unless it is given or known."""
        if self.min_scale is None and not self.measured.all():
            _, found = moments(batches)  # (D,)
            if self.covariance == "spherical":
                found = found.square().mean(0, keepdim=True).sqrt()
            self.measured.copy_(found > 0)
            self.log_floor.copy_(math.log(SMALL) + found.where(found > 0, 1.0).log())

    @property
    def weights(self) -> Tensor:
        """The probabilities of the components, pi, (K,)."""
        return self.logits.softmax(-1)

    @property
    def covariances(self) -> Tensor:
        """The covariances of the components, Sigma, (K, D, D)."""
        scale = self.scale
        if self.covariance in ("diag", "spherical"):
            return torch.diag_embed(scale.expand_as(self.locs) ** 2)
        return (scale @ scale.mT).expand(*self.locs.shape, self.locs.shape[-1])

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        check_rows(x, self.locs.shape[1], "GaussianMixture")
        weights = dist.Categorical(logits=self.logits)
        with data_plate(x, size):
            z = pyro.sample("z", weights, infer={"enumerate": "parallel"})  # (B,) or (K, 1)
            return pyro.sample("x", self._component(z), obs=x)

    def _component(self, z: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z); of all components where `z` is None."""
        locs = self.locs if z is None else self.locs[z]
        scale = self.scale if z is None or self.covariance == "tied" else self.scale[z]
        skips = self.missing == "marginalise"
        if self.covariance in ("diag", "spherical"):
            kind = MarginalNormal if skips else dist.Normal
            return kind(locs, scale.expand_as(locs)).to_event(1)
        many = MarginalMultivariateNormal if skips else dist.MultivariateNormal
        return many(locs, scale_tril=scale)

    def evidence(self) -> dist.MixtureSameFamily:
        r"""Returns :math:`p(x) = \sum_k \pi_k \mathcal{N}(\mu_k, \Sigma_k)`, over rows `(D,)`."""
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), self._component())

    def posterior(self, x: Tensor) -> dist.Categorical:
        r"""Returns the responsibilities :math:`p(z \mid x)`, with batch shape `(B,)`."""
        check_rows(x, self.locs.shape[1], "GaussianMixture")
        if self.missing == "marginalise" and x.isnan().any():  # at once for all components
            parts = [complete(p, self.locs, self._factors()).log_prob for p in x.split(256)]
            log_prob = torch.cat(parts)
        else:
            log_prob = self._component().log_prob(x[:, None])  # (B, K)
        return dist.Categorical(logits=self.logits.log_softmax(0) + log_prob)

    @property
    def num_parameters(self) -> int:
        """The number of free parameters."""
        components, features = self.locs.shape
        free = {
            "full": components * features * (features + 1) // 2,
            "tied": features * (features + 1) // 2,
            "diag": components * features,
            "spherical": components,
        }[self.covariance]
        return components - 1 + components * features + free

    @torch.no_grad()
    def impute(self, x: Tensor, num_samples: int | None = None) -> Tensor:
        """Returns rows whose missing entries are drawn given the others, with shape `(S, B, D)`.

        Arguments:
            x: Rows with NaN where entries are missing, `(B, D)`.
            num_samples: The number of draws, `S`. Default: the posterior mean, `(B, D)`.
        """
        self._check_imputable(x, num_samples)
        filled = []
        for part in x.split(256):
            weights = self.posterior(part).probs  # (B, K)
            given = complete(part, self.locs, self._factors())
            mean = given.shift + self.locs[:, given.places].transpose(0, 1)  # (B, K, M)
            if num_samples is None:
                drawn = (weights[..., None] * mean).sum(1)[None]  # (1, B, M)
            else:
                z = dist.Categorical(weights).sample((num_samples,))  # (S, B)
                pick = torch.arange(len(part), device=x.device)
                noise = mean.new_empty(*z.shape, mean.shape[2], 1).normal_()
                upper = given.factor[pick, z].mT  # (S, B, M, M)
                spread = torch.linalg.solve_triangular(upper, noise, upper=True)[..., 0]
                drawn = mean[pick, z] + spread
            whole = part.expand(len(drawn), -1, -1).clone()
            places = given.places.expand(len(drawn), -1, -1)
            kept = whole.gather(2, places)
            filled.append(whole.scatter(2, places, torch.where(given.present, drawn, kept)))
        result = torch.cat(filled, 1)
        return result[0] if num_samples is None else result

    def _check_imputable(self, x: Tensor, num_samples: int | None) -> None:
        if self.missing != "marginalise":
            raise ValueError(
                f"GaussianMixture.impute: NaN means missing only with missing='marginalise'; "
                f"got missing={self.missing!r}."
            )
        if num_samples is not None:
            check_count(num_samples=num_samples)
        check_rows(x, self.locs.shape[1], "GaussianMixture.impute")
        check_finite(x, "GaussianMixture.impute", minimum=0, missing=True)

    def _factors(self) -> Tensor:
        """Cholesky factors for each component, (K, D, D)."""
        scale = self.scale
        if self.covariance in ("diag", "spherical"):
            return torch.diag_embed(scale.expand_as(self.locs))
        return scale.expand(*self.locs.shape, self.locs.shape[-1])

    def stack(self, restarts: int) -> "GaussianMixture":
        """Returns a copy that EM can take to several optima at once: parameters of `(R, *)`."""
        model = copy.deepcopy(self)
        for name, parameter in self.named_parameters():
            stacked = parameter.detach().expand(restarts, *parameter.shape).clone()
            setattr(model, name, nn.Parameter(stacked, parameter.requires_grad))
        for name, held in self.named_buffers():
            setattr(model, name, held.expand(restarts, *held.shape).clone())
        return model

    @torch.no_grad()
    def initialise(self, x: Tensor, sample_weight: Tensor | None = None) -> None:
        """Starts where a few steps of EM from clusters of k-means lead best.

        For each start that is wanted there are four candidates, two from k-means and two from
        its seeds alone, which differ more. Missing entries count as their column's mean here.

        | Choosing starting values for the EM algorithm (Biernacki et al., 2003)
        | https://doi.org/10.1016/S0167-9473(02)00163-9

        Arguments:
            x: Rows, with shape `(N, D)`.
            sample_weight: How many times each row counts, `(N,)`. Default: once.

        Raises:
            ValueError: If `x` has fewer (distinct) rows than components, or nothing in it varies.
        """
        ((x, weight),) = weighted_batches(x, sample_weight, "GaussianMixture")
        self._check_fit(x)
        of_all, rows = [(x, weight)], x
        if len(x) > MANY:
            some = torch.randperm(len(x), device=x.device)[:MANY]
            rows, weight = x[some], None if weight is None else weight[some]
        rows = rows.double()
        rows = rows.where(~rows.isnan(), observed_mean(rows, weight))
        components, starts = self.locs.shape[-2], self.logits.shape[:-1].numel()  # K, R
        candidates = GaussianMixture(
            self.locs.shape[-1], components, self.covariance, self.min_scale
        ).to(rows)
        candidates._measure(of_all)
        candidates = candidates.stack(CANDIDATES * starts)
        # A sphere is one in the units of the data; other covariances have any for each feature.
        spherical = self.covariance == "spherical"
        scaled = rows if spherical else rows / moments([(rows, weight)])[1]
        labels = [
            kmeans(scaled, components, CANDIDATES // 2, steps, weight)
            for _ in range(starts)  # in turn, so that more starts begin as fewer do
            for steps in (0, 100)
        ]
        sums = from_labels(rows, torch.cat(labels), components, self.covariance, weight)
        candidates._maximise(sums)
        for _ in range(SHORT):
            candidates.em_step(rows, weight)
        values = candidates.em_step(rows, weight).view(starts, CANDIDATES)
        best = values.argmax(1) + CANDIDATES * torch.arange(starts, device=values.device)
        for own, parameter in zip(self.parameters(), candidates.parameters(), strict=True):
            own.copy_(parameter[best].view_as(own))
        for held, of_candidates in zip(self.buffers(), candidates.buffers(), strict=True):
            held.copy_(of_candidates[best].view_as(held))

    def _check_fit(self, x: Tensor) -> None:
        components, features = self.locs.shape[-2:]
        check_rows(x, features, "GaussianMixture")
        check_float64(x, "GaussianMixture")
        lenient = self.missing == "marginalise"
        check_finite(x, "GaussianMixture", minimum=max(2, components), missing=lenient)
        empty = x.isnan().all(0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"GaussianMixture: nothing was observed of column(s) {empty}.")
        loc, scale = moments([(x, None)])
        self._check_spread(scale)
        check_resolution(loc, scale, self.locs.dtype, "GaussianMixture")

    def _check_spread(self, scale: Tensor) -> None:
        """Raises where rows spread no more than the floor allows."""
        mean = scale.square().mean().sqrt().item()
        if mean == 0:
            raise ValueError(
                "GaussianMixture: all columns are constant, and say nothing of the components. "
                "Try rows that differ."
            )
        if self.min_scale is not None and self.min_scale >= mean:
            raise ValueError(
                f"GaussianMixture: expected min_scale ** 2, the smallest variance of a component, "
                f"to be less than that of the rows, {mean**2:.3g} (the mean of the columns'), got "
                f"{self.min_scale**2:.3g}. Try min_scale=None, a part of each column's own."
            )

    @torch.no_grad()
    def em_step(self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None = None) -> Tensor:
        """Takes one step of EM; returns the mean log evidence before it, in nats per row.

        Arguments:
            x: Rows, with shape `(N, D)`, or batches of them.
            sample_weight: How many times each row counts, `(N,)`. Default: once.
        """
        check_float64(self.logits, "GaussianMixture")
        if not isinstance(x, Tensor) and iter(x) is x:  # gone through once, it would be empty
            x = list(x)
        self._measure(weighted_batches(x, sample_weight, "GaussianMixture"))
        stacked = self.logits.ndim == 2
        logits, locs, scale = self.logits.double(), self.locs.double(), self.scale.double()
        if self.covariance == "tied":
            scale = scale.unsqueeze(-3)
        if not stacked:
            logits, locs, scale = logits[None], locs[None], scale[None]
        log_weights = logits.log_softmax(1)
        batches = weighted_batches(x, sample_weight, "GaussianMixture")
        step = expectation if self.missing == "error" else expectation_of_missing
        sums = step(batches, log_weights, locs, scale, self.covariance)
        self._maximise(sums)
        evidence = sums.evidence / sums.rows
        return evidence if stacked else evidence[0]

    def _maximise(self, sums: Statistics) -> None:
        """Sets the parameters to the best for the expected sums over the rows."""
        best = maximisation(sums, self.covariance, self._floor())
        lives = sums.counts > 1e-10 * sums.rows  # a component without rows stays where it is
        own = None if self.covariance == "tied" else lives
        self._assign(self.logits, best.log_weights)
        self._assign(self.locs, best.locs, lives)
        if self.covariance in ("diag", "spherical"):
            self._assign(self.log_scale, best.scale.log(), own)
        else:
            self._assign(self.log_scale, best.scale.diagonal(dim1=-2, dim2=-1).log(), own)
            self._assign(self.lower, best.scale.tril(-1), own)

    def _assign(self, parameter: Tensor, value: Tensor, where: Tensor | None = None) -> None:
        value = value.reshape(parameter.shape)
        if where is not None:
            where = where.reshape(parameter.shape[: self.logits.ndim])
            where = where[(...,) + (None,) * (parameter.ndim - where.ndim)]
            value = torch.where(where, value, parameter)
        parameter.copy_(value)

    def caveat(self) -> str | None:
        """What must be said of a fit: which components the floor keeps from collapsing.

        A floor that is given, and not small beside the spread of the rows, is there on purpose.
        """
        floor = self._floor()[0]  # (1, F)
        units = floor[..., None] * floor[..., None, :]
        covariances, weights = self.covariances.double(), self.weights.double()
        variances = torch.linalg.eigvalsh(covariances / units)  # of floors, (K, D)
        center = weights @ self.locs.double()
        spread = covariances.diagonal(dim1=1, dim2=2) + (self.locs - center) ** 2
        share = 1 / (weights @ (spread / floor**2)).mean()
        at_floor = (variances[:, 0] <= 1 + 1e-3).nonzero().flatten().tolist()
        if not at_floor or 1e-4 < share < 0.25:
            return None
        what = "a thousandth of the standard deviation of each column"
        if self.min_scale is not None:
            what = f"min_scale ** 2 = {self.min_scale**2:.1e}"
        return (
            f"GaussianMixture: component(s) {listed(at_floor)} have no more variance in some "
            f"direction than the floor, {what}, on which the evidence depends. Try fewer "
            f"components, a covariance with fewer parameters (now {self.covariance!r}), or a "
            f"min_scale of your own."
        )
