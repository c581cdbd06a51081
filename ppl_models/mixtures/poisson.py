r"""Mixtures of Poissons: clusters of counts.

.. math::
    z_n &\sim \mathrm{Categorical}(\pi) \\
    x_{nd} \mid z_n = k &\sim \mathrm{Poisson}(\lambda_{kd})

No rate is less than a small floor: a feature that a component has never counted would rule that
component out for good.

Shapes: `B` rows, `D` features, `K` components.

References:
    | Finite Mixture Models (McLachlan & Peel, 2000), section 1.4 on EM
    | https://doi.org/10.1002/0471721182
"""

import math
from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_count, check_float64, check_rows
from ppl_models.criteria import InformationCriteria
from ppl_models.mixtures.kmeans import kmeans
from ppl_models.plates import data_plate
from ppl_models.processes import by_parts, processes_of
from ppl_models.prompt.lines import in_a_line
from ppl_models.row_weights import weight_of, weighted_batches

MIN_RATE = 1e-6


class PoissonMixture(nn.Module, InformationCriteria):
    r"""A mixture of Poissons, its component the enumerated site `z`.

    Fitted by `fit_em(model, x)`, or by gradient, `fit(elbo(model), x)`, to the same optimum.

    Arguments:
        num_features: The length of a row, `D`.
        num_components: `K`.

    Example:
        >>> model = PoissonMixture(num_features=2, num_components=3)
        >>> x = model(size=7)
        >>> model.evidence().log_prob(x).shape, model.posterior(x).probs.shape
        (torch.Size([7]), torch.Size([7, 3]))
    """

    __repr__ = in_a_line

    def __init__(self, num_features: int, num_components: int) -> None:
        check_count(num_features=num_features, num_components=num_components)
        super().__init__()
        self.num_features, self.num_components = num_features, num_components
        self.logits = nn.Parameter(torch.zeros(num_components))  # log pi, but for a constant, (K,)
        self.log_rates = nn.Parameter(torch.randn(num_components, num_features))  # (K, D)

    @property
    def weights(self) -> Tensor:
        """The probabilities of the components, pi, (K,)."""
        return self.logits.softmax(0)

    @property
    def rates(self) -> Tensor:
        """The expected counts of the components, lambda, (K, D)."""
        return self.log_rates.clamp(min=math.log(MIN_RATE)).exp()

    @property
    def num_parameters(self) -> int:
        """The number of free parameters."""
        return len(self.logits) - 1 + self.log_rates.numel()

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, self.log_rates.shape[1], "PoissonMixture")
        weights = dist.Categorical(logits=self.logits)
        with data_plate(x, size):
            z = pyro.sample("z", weights, infer={"enumerate": "parallel"})  # (B,) or (K, 1)
            return pyro.sample("x", dist.Poisson(self.rates[z]).to_event(1), obs=x)

    def evidence(self) -> dist.MixtureSameFamily:
        r"""Returns :math:`p(x) = \sum_k \pi_k \prod_d \mathrm{Poisson}(\lambda_{kd})`."""
        parts = dist.Poisson(self.rates).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)

    def posterior(self, x: Tensor) -> dist.Categorical:
        r"""Returns the responsibilities :math:`p(z \mid x)`, with batch shape `(B,)`."""
        check_rows(x, self.log_rates.shape[1], "PoissonMixture")
        log_prob = dist.Poisson(self.rates).to_event(1).log_prob(x[:, None])  # (B, K)
        return dist.Categorical(logits=self.logits.log_softmax(0) + log_prob)

    @torch.no_grad()
    def initialise(self, x: Tensor, sample_weight: Tensor | None = None) -> None:
        """Starts from clusters of k-means on the roots of the counts, which vary alike.

        Raises:
            ValueError: If `x` are no counts, or have fewer distinct rows than components.
        """
        check_rows(x, self.log_rates.shape[1], "PoissonMixture")
        if not dist.Poisson.support.check(x).all():
            raise ValueError(
                "PoissonMixture: expected rows of counts, 0, 1, 2, ..., got other numbers. "
                "Try x.round(), or GaussianMixture."
            )
        ((rows, weight),) = weighted_batches(x.double(), sample_weight, "PoissonMixture")
        labels = kmeans(rows.sqrt(), len(self.logits), weight=weight)[0]  # (B,)
        shares = nn.functional.one_hot(labels, len(self.logits)).double()
        shares = shares if weight is None else shares * weight[:, None]
        self._maximise(shares.sum(0), shares.T @ rows)

    @by_parts
    @torch.no_grad()
    def em_step(self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None = None) -> Tensor:
        """Takes one step of EM; returns the mean log evidence before it, in nats per row.

        Arguments:
            x: Rows, with shape `(N, D)`, or batches of them, or a `Part` that this process has.
            sample_weight: How many times each row counts, `(N,)`. Default: once.
        """
        check_float64(self.logits, "PoissonMixture")
        here = processes_of(x)
        with here.all_or_none("PoissonMixture"):
            sums = self._expected(x, sample_weight)
        rows, total, members, counts = here.totals(*sums)
        self._maximise(members, counts)
        return total / rows

    def _expected(
        self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows by weight, their log evidence, and expected sums by component."""
        parts, log_weights = dist.Poisson(self.rates.double()).to_event(1), self.logits.double()
        log_weights = log_weights.log_softmax(0)
        rows, total = self.logits.new_zeros(2, dtype=torch.float64)
        members, counts = torch.zeros_like(log_weights), torch.zeros_like(self.rates).double()
        for batch, weight in weighted_batches(x, sample_weight, "PoissonMixture"):
            joint = log_weights + parts.log_prob(batch.double()[:, None])  # log p(x, z), (B, K)
            shares, evidence = joint.softmax(1), joint.logsumexp(1)  # r, the responsibilities
            if weight is not None:
                shares, evidence = shares * weight[:, None], evidence * weight
            rows, total = rows + weight_of(batch, weight), total + evidence.sum()
            members, counts = members + shares.sum(0), counts + shares.T @ batch.double()
        return rows, total, members, counts

    def _maximise(self, members: Tensor, counts: Tensor) -> None:
        """Sets the parameters to the best for expected numbers of rows, (K,), and sums, (K, D)."""
        self.logits.copy_((members / members.sum()).log().clamp(min=-100))
        lives = members > 1e-10 * members.sum()  # a component without rows stays where it is
        rates = (counts / members[:, None]).clamp(min=MIN_RATE)
        self.log_rates.copy_(torch.where(lives[:, None], rates.log(), self.log_rates))
