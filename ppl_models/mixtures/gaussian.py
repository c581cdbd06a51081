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
    check_float64,
    check_positive,
    check_rows,
)
from ppl_models.criteria import InformationCriteria
from ppl_models.missing import (
    MarginalMultivariateNormal,
    MarginalNormal,
    check_missing,
    complete,
)
from ppl_models.mixtures.em.climb import LIVES, Climb
from ppl_models.mixtures.em.expectation import (
    Statistics,
    added,
    expectation,
    expectation_of_missing,
    log_joints,
)
from ppl_models.mixtures.em.floor import caveat
from ppl_models.mixtures.em.maximisation import maximisation, moments
from ppl_models.mixtures.em.start import begin
from ppl_models.mixtures.imputation import imputed
from ppl_models.plates import data_plate
from ppl_models.processes import Part, Processes, by_parts, processes_of
from ppl_models.prompt.lines import in_a_line
from ppl_models.row_weights import weighted_batches

COVARIANCES = ("full", "tied", "diag", "spherical")
LONG = 256  # rows from which products of their entries are worth the while
SMALL = 1e-3  # the floor, as a part of the spread of the rows


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

    __repr__ = in_a_line

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
        self.num_features, self.num_components = num_features, num_components
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

    def _measure(self, batches: Iterable[tuple[Tensor, Tensor | None]], here: Processes) -> None:
        """Learns from all rows what the floor is a part of, unless it is given or known."""
        if self.min_scale is None and not self.measured.all():
            self._set_floor(moments(batches, here)[1])

    def _set_floor(self, spread: Tensor) -> None:
        """Takes the floor from the spread of each feature, (D,), unless it is given."""
        if self.min_scale is None:
            if self.covariance == "spherical":
                spread = spread.square().mean(0, keepdim=True).sqrt()
            self.measured.copy_(spread > 0)
            self.log_floor.copy_(math.log(SMALL) + spread.where(spread > 0, 1.0).log())

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
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
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
        return dist.Categorical(logits=self.log_joint(x))

    def log_joint(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\log p(x, z = k)` for rows `(B, D)`, in nats, `(B, K)`."""
        check_rows(x, self.locs.shape[1], "GaussianMixture")
        log_weights, near = self.logits.log_softmax(0), x.to(self.locs.dtype)
        if self.missing == "marginalise" and x.isnan().any():  # at once for all components
            parts = [complete(p, self.locs, self._factors()).log_prob for p in near.split(256)]
            return log_weights + torch.cat(parts)
        if len(x) >= LONG and not torch.is_grad_enabled():
            found = log_joints(x, *self._in_float64(), self.covariance)
            if found is not None:
                return found.mT.to(x.dtype)
        scale, away = self.scale, near - self.locs[:, None]  # (K, B, D)
        if self.covariance in ("diag", "spherical"):
            log_scale = scale.log().expand_as(self.locs).sum(1)  # (K,)
            whitened = away / scale[:, None]
        else:
            log_scale = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            identity = torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device)
            whitened = away @ torch.linalg.solve_triangular(scale, identity, upper=False).mT
        constant = 0.5 * x.shape[1] * math.log(2 * math.pi)
        rest = log_weights - log_scale - constant
        return (rest[:, None] - 0.5 * whitened.square().sum(2)).mT

    @property
    def num_parameters(self) -> int:
        """The number of free parameters."""
        components, features = self.locs.shape[-2:]
        free = {
            "full": components * features * (features + 1) // 2,
            "tied": features * (features + 1) // 2,
            "diag": components * features,
            "spherical": components,
        }[self.covariance]
        return components - 1 + components * features + free

    @torch.no_grad()
    def impute(self, x: Tensor, num_samples: int | None = None) -> Tensor:
        r"""Returns rows whose missing entries are filled in; those observed stay as they are.

        Arguments:
            x: Rows with NaN where entries are missing, `(B, D)`.
            num_samples: None for the mean of :math:`p(x_m \mid x_o)`, with shape `(B, D)`; a
                number `S` for that many draws from it, with shape `(S, B, D)`.
        """
        return imputed(self, x, num_samples)

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

    def _alone(self) -> "GaussianMixture":
        """A mixture whose steps are those of one restart of complete rows, in float64."""
        components, features = self.locs.shape[-2:]
        kind = type(self), self.missing, self.logits.dtype, self.logits.ndim
        if kind == (GaussianMixture, "error", torch.float64, 1):
            return self
        with torch.random.fork_rng(devices=[]):
            return GaussianMixture(features, components, self.covariance, self.min_scale).double()

    def _keep(self, restarts: list[int]) -> None:
        """Goes on with some of the restarts that are stacked."""
        for held in (*self.parameters(), *self.buffers()):
            held.data = held.data[restarts]

    @torch.no_grad()
    def initialise(self, x: Tensor, sample_weight: Tensor | None = None) -> None:
        """Starts where a few steps of EM from clusters of k-means lead best.

        For each start that is wanted there are four candidates, two from k-means and two from
        its seeds alone, which differ more. Of many rows some are chosen from, in which far ones
        are frequent and count less. Missing entries count as their column's mean here.

        | Choosing starting values for the EM algorithm (Biernacki et al., 2003)
        | https://doi.org/10.1016/S0167-9473(02)00163-9

        Arguments:
            x: Rows, with shape `(N, D)`.
            sample_weight: How many times each row counts, `(N,)`. Default: once.

        Raises:
            ValueError: If `x` has fewer (distinct) rows than components, or nothing in it varies.
        """
        begin(self, x, sample_weight)

    @by_parts
    @torch.no_grad()
    def em_step(self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None = None) -> Tensor:
        """Takes one step of EM; returns the mean log evidence before it, in nats per row.

        Arguments:
            x: Rows, with shape `(N, D)`, or batches of them, or a `Part` that this process has.
            sample_weight: How many times each row counts, `(N,)`. Default: once.
        """
        check_float64(self.logits, "GaussianMixture")
        here = processes_of(x)
        if not isinstance(x, Tensor) and iter(x) is x:  # gone through once, it would be empty
            x = list(x)
        self._measure(weighted_batches(x, sample_weight, "GaussianMixture"), here)
        batches = weighted_batches(x, sample_weight, "GaussianMixture")
        step = expectation if self.missing == "error" else expectation_of_missing
        with here.all_or_none("GaussianMixture"):
            own = step(batches, *self._in_float64(), self.covariance)
        sums = added(own, here)
        self._maximise(sums)
        evidence = sums.evidence / sums.rows
        return evidence if self.logits.ndim == 2 else evidence[0]

    def climbs(self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None = None) -> bool:
        """Whether steps can follow each other without parameters in between."""
        in_memory = x.in_memory if isinstance(x, Part) else isinstance(x, Tensor)
        if not in_memory or type(self).em_step is not GaussianMixture.em_step:
            return False
        if self.logits.dtype != torch.float64:  # which is rounded at each step
            return False
        return self.missing == "error" or not self._lacks(x)

    def _lacks(self, x: Tensor | Iterable[Tensor]) -> bool:
        """Whether an entry is missing from any of the rows, on whichever process."""
        batches = [x] if isinstance(x, Tensor) else x
        found = any(bool(batch.isnan().any()) for batch in batches)
        return processes_of(x).totals(float(found))[0] > 0

    @torch.no_grad()
    def climb(self, x: Tensor | Part, sample_weight: Tensor | None = None) -> Climb:
        """Returns steps of EM that follow each other, where they can."""
        here = processes_of(x)
        self._measure(weighted_batches(x, sample_weight, "GaussianMixture"), here)
        ((rows, weight),) = weighted_batches(x, sample_weight, "GaussianMixture")
        return Climb(self, rows, weight, (x, sample_weight))

    def _in_float64(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and scales as steps take them, (R, K, *)."""
        logits, locs, scale = self.logits.double(), self.locs.double(), self.scale.double()
        if self.covariance == "tied":
            scale = scale.unsqueeze(-3)
        if logits.ndim == 1:
            logits, locs, scale = logits[None], locs[None], scale[None]
        return logits.log_softmax(1), locs, scale

    def _maximise(self, sums: Statistics) -> None:
        """Sets the parameters to the best for the expected sums over the rows."""
        lives = sums.counts > LIVES * sums.rows
        kept = None if lives.all() else lives  # a component without rows stays where it is
        for name, value in self._best(sums, self._floor()).items():
            of_all = name == "logits" or (self.covariance == "tied" and name != "locs")
            self._assign(getattr(self, name), value, None if of_all else kept)

    def _best(self, sums: Statistics, floor: Tensor) -> dict[str, Tensor]:
        """The best parameters for the expected sums over the rows, (R, *), by name."""
        best = maximisation(sums, self.covariance, floor)
        found = {"logits": best.log_weights, "locs": best.locs}
        if self.covariance in ("diag", "spherical"):
            return {**found, "log_scale": best.scale.log()}
        log_scale = best.scale.diagonal(dim1=-2, dim2=-1).log()
        return {**found, "log_scale": log_scale, "lower": best.scale.tril(-1)}

    def _assign(self, parameter: Tensor, value: Tensor, where: Tensor | None = None) -> None:
        value = value.view(parameter.shape)
        if where is not None:
            where = where.reshape(parameter.shape[: self.logits.ndim])
            where = where[(...,) + (None,) * (parameter.ndim - where.ndim)]
            value = torch.where(where, value, parameter)
        parameter.copy_(value)

    def caveat(self) -> str | None:
        """What must be said of a fit: which components the floor keeps from collapsing."""
        return caveat(self)
