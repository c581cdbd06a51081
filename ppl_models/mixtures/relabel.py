r"""Labels of mixture components that mean the same in every draw.

The posterior of a mixture stays as it is when components swap names, so that chains, and draws of
one chain, may name them differently, and the mean of "component 1" means nothing. Each draw gets
the permutation under which most rows are in the component where they are on average,

.. math::
    \tau_s = \operatorname*{argmax}_\tau \sum_n \bar p_{n \tau(z_{sn})}, \qquad
    \bar p_{nk} = \frac{1}{S} \sum_s 1[\tau_s(z_{sn}) = k]

in turns with these averages, from a reference draw on: an assignment problem for each draw. This is
Stephens' algorithm, with the sampled components in the place of their probabilities.

Shapes: `S` draws, `N` rows, `K` components.

References:
    | Dealing with Label Switching in Mixture Models (Stephens, 2000)
    | https://doi.org/10.1111/1467-9868.00265
    | An Artificial Allocations Based Solution to the Label Switching Problem in Bayesian Analysis
    | of Mixtures of Distributions (Papastamoulis & Iliopoulos, 2010)
    | https://doi.org/10.1198/jcgs.2010.09008
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_models.infer.evidence.groups import draws_of, groups_of, rebuilt

if TYPE_CHECKING:
    import xarray

MOST_ROUNDS = 50


def relabel(
    data: Any,
    dim: str = "component",
    assignments: str = "z",
    weights: str = "weights",
) -> Any:
    """Returns a posterior whose components have the same label in all chains and draws.

    Draws are matched by the components of the rows; components that these do not tell apart, such
    as empty ones, by their weights. The labels then come by mean weight, the largest first.
    All variables of the posterior with the dimension of the components are permuted. The sticks of
    a stick-breaking prior are left out: they are in the order in which they were broken.

    Arguments:
        data: What `from_pyro_svi` or `from_pyro_mcmc` gave, or several of them along `chain`.
        dim: The dimension of the components.
        assignments: The variable with the component of each row.
        weights: The variable with the weights.

    Returns:
        An object of the same kind; the other groups are as before.

    Raises:
        ValueError: If the posterior lacks one of these.

    Example:
        >>> import torch
        >>> from guides.mixture import MeanFieldMixture
        >>> from ppl_models import from_pyro_svi
        >>> from ppl_models.mixtures.bayesian import BayesianGaussianMixture
        >>> model = BayesianGaussianMixture(num_features=2, num_components=3).double()
        >>> x = torch.randn(20, 2).double()
        >>> posterior = from_pyro_svi(model, MeanFieldMixture(model, x), x, num_samples=5)
        >>> dict(relabel(posterior)["posterior"]["locs"].sizes)
        {'chain': 1, 'draw': 5, 'component': 3, 'feature': 2}
    """
    import xarray  # slow to import, and brings pandas

    groups = groups_of(data)
    posterior = groups.get("posterior", xarray.Dataset())
    for name, needed in {assignments: "chain", weights: dim}.items():
        if name not in posterior or needed not in posterior[name].dims:
            raise ValueError(
                f"relabel: expected a posterior with {name!r} along {needed!r}, got "
                f"{sorted(map(str, posterior))}. Try relabel(data, dim=..., assignments=..., "
                f"weights=...), and a model with an enumerated component for each row."
            )
    z = draws_of(posterior[assignments])  # (S, N)
    share = draws_of(posterior[weights], dim)  # (S, K)
    order = _permutations(z, share, _reference(groups))  # (S, K)
    size = np.take_along_axis(share, order, 1).mean(0)
    order = order[:, np.argsort(-size, kind="stable")]

    changed = {
        str(key): _permuted(variable, dim, order)
        for key, variable in posterior.data_vars.items()
        if dim in variable.dims
    }
    variable = posterior[assignments].transpose("chain", "draw", ...)
    labels = np.take_along_axis(order.argsort(1), z, 1)
    changed[assignments] = variable.copy(data=labels.reshape(variable.shape))
    broken = [name for name in posterior.data_vars if "stick" in posterior[name].dims]
    groups["posterior"] = posterior.drop_vars(broken).assign(changed)
    return rebuilt(data, groups)


def _permuted(variable: "xarray.DataArray", dim: str, order: np.ndarray) -> "xarray.DataArray":
    """A variable whose components are in another order in each draw, (S, K)."""
    values = draws_of(variable, dim)  # (S, K, *)
    index = order.reshape(*order.shape, *[1] * (values.ndim - 2))
    first = variable.transpose("chain", "draw", dim, ...)
    moved = first.copy(data=np.take_along_axis(values, index, 1).reshape(first.shape))
    return moved.transpose(*variable.dims)


def _permutations(z: np.ndarray, weights: np.ndarray, reference: int) -> np.ndarray:
    """Which component of a draw gets each label, (S, K)."""
    from scipy.optimize import linear_sum_assignment

    components = weights.shape[1]
    average, size = np.eye(components)[z[reference]], weights[reference]  # (N, K), (K,)
    order = np.full(weights.shape, -1)
    for _ in range(MOST_ROUNDS):
        before, order = order, np.empty_like(order)
        for s, labels in enumerate(z):
            # How many rows label j shares with component k, (K, K).
            shared = np.stack([np.bincount(labels, column, components) for column in average.T])
            # All of these together weigh less than a row: they decide only where rows do not.
            unlike = (size[:, None] - weights[s]) ** 2
            order[s] = linear_sum_assignment(unlike / (1 + unlike.sum()) - shared)[1]
        if (order == before).all():
            break
        named = np.take_along_axis(order.argsort(1), z, 1)
        average = np.stack([(named == k).mean(0) for k in range(components)], 1)
        size = np.take_along_axis(weights, order, 1).mean(0)
    return order


def _reference(groups: dict[str, "xarray.Dataset"]) -> int:
    """The draw of the highest joint log-density, where it is known, or the first."""
    stats = groups.get("sample_stats")
    return 0 if stats is None or "log_p" not in stats else int(stats["log_p"].values.argmax())
