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

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.mixtures.conjugate import ConjugateMixture
from ppl_models.mixtures.kmeans import kmeans

SHORT = 30  # steps that tell good starts from bad ones


class Ascent(NamedTuple):
    """Where an ascent has arrived."""

    bound: float  # in nats, of all rows
    posterior: ConjugateMixture
    responsibilities: Tensor  # (N, K)


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
    precision, x = x.dtype, x.double()
    prior = ConjugateMixture(*(parameter.double() for parameter in prior))
    units = prior.scale[0].diagonal(dim1=-2, dim2=-1).flatten().sqrt()  # (D,) or (1,)
    components = len(prior.loc)
    most = min(components, len(x.unique(dim=0)))
    starts = [
        ascend(prior, x, torch.nn.functional.one_hot(labels, components).to(x.dtype), SHORT)
        for clusters in range(1, most + 1)
        for labels in kmeans(x / units, clusters, restarts)
    ]
    best = max(starts, key=lambda ascent: ascent.bound)
    best = ascend(prior, x, best.responsibilities, max_steps)
    while True:
        shorter = [ascend(prior, x, start, SHORT) for start in _without_one(best.responsibilities)]
        other = max(shorter, key=lambda ascent: ascent.bound, default=best)
        if other.bound <= best.bound:
            return ConjugateMixture(*(parameter.to(precision) for parameter in best.posterior))
        best = ascend(prior, x, other.responsibilities, max_steps)


@torch.no_grad()
def ascend(
    prior: ConjugateMixture,
    x: Tensor,
    responsibilities: Tensor,
    max_steps: int = 1000,
    tolerance: float = 1e-7,
) -> Ascent:
    """Ascends from given responsibilities, components by size.

    Arguments:
        prior: The prior.
        x: The rows, `(N, D)`.
        responsibilities: Where to start, `(N, K)`.
        max_steps: The most steps.
        tolerance: It ends where a step gains less, in nats per row.
    """
    last = -math.inf
    for _ in range(max_steps):
        # A stick-breaking prior likes large components first, and order does not change the rest.
        responsibilities = responsibilities[:, responsibilities.sum(0).argsort(descending=True)]
        posterior = prior.given(x, responsibilities)
        bound = posterior.log_ratio(prior, x, responsibilities).item()
        if bound - last < tolerance * len(x):
            break
        last = bound
        responsibilities = posterior.expected_log_joint(x).softmax(1)
    return Ascent(bound, posterior, responsibilities)


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
