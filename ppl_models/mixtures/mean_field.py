r"""Mean-field posteriors of Bayesian Gaussian mixtures, by coordinate ascent.

.. math::
    \log p(x) \ge \mathbb{E}_q \left[
    \log \frac{p(x, z, \pi, \mu, \Sigma)}{q(z) \, q(\pi, \mu, \Sigma)} \right]

Each factor in turn is set to its best beside the other, which is known in closed form. The bound
has many optima: a component that has rows of another's gives them back slowly, or never, while an
empty one stays empty. So each number of clusters is a start, the best of them goes on, and
components are then taken out one by one as long as the bound is the better for it.

Shapes: `N` rows, `D` features, `K` components.

References:
    | Pattern Recognition and Machine Learning (Bishop, 2006), chapter 10.2
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/
    | Collapsed Variational Dirichlet Process Mixture Models (Kurihara et al., 2007), which orders
    | the components by size, https://www.ijcai.org/Proceedings/07/Papers/449.pdf
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.mixtures.conjugate import ConjugateMixture
from ppl_models.mixtures.kmeans import kmeans

SHORT = 30  # steps that tell good starts from bad ones
ROUNDING = 1e-12  # of a bound, relative to its size


class Ascent(NamedTuple):
    """Where an ascent has arrived."""

    bounds: list[float]  # at its start, and after each step, in nats, of all rows
    posterior: ConjugateMixture
    responsibilities: Tensor  # (N, K)

    @property
    def bound(self) -> float:
        """The last bound."""
        return self.bounds[-1]


@torch.no_grad()
def mean_field(
    prior: ConjugateMixture, x: Tensor, restarts: int = 1, max_steps: int = 1000
) -> ConjugateMixture:
    r"""Returns the best :math:`q(\pi, \mu, \Sigma)` that is found, its components by size.

    It is found in float64, and given in the precision of the rows. The prior says in which units
    k-means compares the features.

    Arguments:
        prior: The prior.
        x: Finite rows, `(N, D)`, at least as many as components.
        restarts: The number of runs of k-means for each number of clusters, 1 to `K`.
        max_steps: The most steps of each ascent.
    """
    double = ConjugateMixture(*(parameter.double() for parameter in prior))
    found = best_ascent(double, x.double(), restarts, max_steps).posterior
    return ConjugateMixture(*(parameter.to(x.dtype) for parameter in found))


@torch.no_grad()
def best_ascent(
    prior: ConjugateMixture,
    x: Tensor,
    restarts: int = 1,
    max_steps: int = 1000,
    tolerance: float = 1e-7,
    weight: Tensor | None = None,
) -> Ascent:
    """Returns the best ascent that is found; takes what `mean_field` and `ascend` do, in float64.

    The steps of the ascents are counted from where a few of them have found the best start.
    """
    units = prior.scale[0].diagonal(dim1=-2, dim2=-1).flatten().sqrt()  # (D,) or (1,)
    components = len(prior.loc)
    most = min(components, len(x.unique(dim=0)))
    starts = [
        ascend(
            prior,
            x,
            torch.nn.functional.one_hot(labels, components).to(x.dtype),
            SHORT,
            weight=weight,
        )
        for clusters in range(1, most + 1)
        for labels in kmeans(x / units, clusters, restarts, 100, weight)
    ]
    best = max(starts, key=lambda ascent: ascent.bound)
    best = ascend(prior, x, best.responsibilities, max_steps, tolerance, weight)
    while True:
        shorter = [
            ascend(prior, x, start, SHORT, weight=weight)
            for start in _without_one(best.responsibilities)
        ]
        other = max(shorter, key=lambda ascent: ascent.bound, default=best)
        least = max(tolerance * len(x), ROUNDING * abs(best.bound))  # or it might never end
        if other.bound - best.bound <= least:
            return best
        best = ascend(prior, x, other.responsibilities, max_steps, tolerance, weight)


@torch.no_grad()
def ascend(
    prior: ConjugateMixture,
    x: Tensor,
    responsibilities: Tensor,
    max_steps: int = 1000,
    tolerance: float = 1e-7,
    weight: Tensor | None = None,
) -> Ascent:
    """Ascends from given responsibilities, components by size.

    Arguments:
        prior: The prior.
        x: The rows, `(N, D)`.
        responsibilities: Where to start, `(N, K)`.
        max_steps: The most steps.
        tolerance: It ends where a step gains less, in nats per row.
        weight: How many times each row counts, `(N,)`, more than 0. Default: all once.
    """
    bounds: list[float] = []
    for _ in range(max_steps):
        # A stick-breaking prior likes large components first, and order does not change the rest.
        counted = responsibilities if weight is None else weight[:, None] * responsibilities
        order = counted.sum(0).argsort(descending=True)
        responsibilities, counted = responsibilities[:, order], counted[:, order]
        posterior = prior.given(x, counted)
        bounds.append(posterior.log_ratio(prior, x, responsibilities, weight).item())
        if len(bounds) > 1 and bounds[-1] - bounds[-2] < tolerance * len(x):
            break
        responsibilities = posterior.expected_log_joint(x).softmax(1)
    return Ascent(bounds, posterior, responsibilities)


def _without_one(responsibilities: Tensor) -> list[Tensor]:
    """The responsibilities with each of the components that have rows taken out."""
    occupied = int((responsibilities.sum(0) > 1e-3).sum())
    starts = []
    for k in range(occupied if occupied > 1 else 0):
        rest = responsibilities.clone()
        rest[:, k] = 0
        # Rows that belonged to it alone are shared by all others that have rows.
        rest[:, :occupied] += 1e-6 * (torch.arange(occupied, device=rest.device) != k)
        starts.append(rest / rest.sum(1, keepdim=True))
    return starts
