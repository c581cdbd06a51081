r"""Mean-field posteriors of Bayesian Gaussian mixtures, by coordinate ascent.

.. math::
    \log p(x) \ge \mathbb{E}_q \left[
    \log \frac{p(x, z, \pi, \mu, \Sigma)}{q(z) \, q(\pi, \mu, \Sigma)} \right]

Each factor in turn is set to its best beside the other, which is known in closed form. The bound
has many optima. A component that starts with rows of another's rarely gives them all back, while
an empty one stays empty: so each number of clusters is a start, and the best bound wins.

Shapes: `N` rows, `D` features, `K` components.

References:
    | Pattern Recognition and Machine Learning (Bishop, 2006), chapter 10.2
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/
    | Collapsed Variational Dirichlet Process Mixture Models (Kurihara et al., 2007), which orders
    | the components by size, https://www.ijcai.org/Proceedings/07/Papers/449.pdf
"""

import math

import torch
from torch import Tensor

from ppl_models.conjugate_mixture import ConjugateMixture
from ppl_models.kmeans import kmeans


@torch.no_grad()
def mean_field(
    prior: ConjugateMixture,
    x: Tensor,
    restarts: int = 1,
    max_steps: int = 1000,
    tolerance: float = 1e-6,
) -> ConjugateMixture:
    r"""Returns the best :math:`q(\pi, \mu, \Sigma)` of several starts, its components by size.

    Arguments:
        prior: The prior.
        x: Finite rows, `(N, D)`, at least as many as components.
        restarts: The number of runs of k-means for each number of clusters, 1 to `K`.
        max_steps: The most steps of each ascent.
        tolerance: An ascent ends where a step gains less, in nats per row.
    """
    components = len(prior.loc)
    most = min(components, len(x.unique(dim=0)))
    best, posterior = -math.inf, prior
    for clusters in range(1, most + 1):
        for labels in kmeans(x, clusters, restarts):
            start = torch.nn.functional.one_hot(labels, components).to(x.dtype)
            bound, found = ascend(prior, x, start, max_steps, tolerance)
            if bound > best:
                best, posterior = bound, found
    return posterior


@torch.no_grad()
def ascend(
    prior: ConjugateMixture,
    x: Tensor,
    responsibilities: Tensor,
    max_steps: int = 1000,
    tolerance: float = 1e-6,
) -> tuple[float, ConjugateMixture]:
    """Returns the bound in nats, of all rows, and the posterior at the end of an ascent.

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
    return bound, posterior
