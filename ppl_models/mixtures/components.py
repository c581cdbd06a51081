r"""Which components of a mixture the rows use, by draws of the component of each row.

A component is active in a draw if it has rows. The number of active components is what the data
say of the number of clusters; the number of components is only the most there can be.

References:
    | Model-Based Clustering Based on Sparse Finite Gaussian Mixtures (Malsiner-Walli et al., 2016)
    | https://doi.org/10.1007/s11222-014-9500-2
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray


def num_active(data: Any, assignments: str = "z") -> "xarray.DataArray":
    """Returns the number of components that have rows, for each chain and draw.

    Arguments:
        data: What `from_pyro_svi` or `from_pyro_mcmc` gave.
        assignments: The variable with the component of each row.

    Raises:
        ValueError: If the posterior lacks it.

    Example:
        >>> import xarray
        >>> z = xarray.DataArray([[[0, 0, 2], [1, 1, 1]]], dims=["chain", "draw", "data"])
        >>> num_active({"posterior": {"z": z}}).values
        array([[2, 1]])
    """
    import xarray  # slow to import, and brings pandas

    labels = np.sort(_assignments(data, assignments).values, axis=2)
    distinct = 1 + (np.diff(labels, axis=2) > 0).sum(2)
    return xarray.DataArray(distinct, dims=["chain", "draw"], name="num_active")


def component_summary(
    data: Any,
    dim: str = "component",
    assignments: str = "z",
    weights: str = "weights",
    prob: float = 0.9,
) -> Any:
    """Returns a table with a row for each component: how much it is used.

    Columns: the mean `weight` and its equal-tailed interval, the expected number of `rows`, and
    `active`, the probability that it has any. Means over draws of a label: `relabel` comes first.

    Arguments:
        data: What `relabel` gave.
        dim: The dimension of the components.
        assignments: The variable with the component of each row.
        weights: The variable with the weights.
        prob: The probability that the interval holds.

    Returns:
        A `pandas.DataFrame`.

    Example:
        >>> import xarray
        >>> z = xarray.DataArray([[[0, 0, 2], [1, 1, 1]]], dims=["chain", "draw", "data"])
        >>> dims = ["chain", "draw", "component"]
        >>> weights = xarray.DataArray([[[0.6, 0.1, 0.3], [0.2, 0.7, 0.1]]], dims=dims)
        >>> table = component_summary({"posterior": {"z": z, "weights": weights}})
        >>> table["rows"].tolist(), table["active"].tolist()
        ([1.0, 1.5, 0.5], [0.5, 0.5, 0.5])
    """
    import pandas  # slow to import

    labels = _assignments(data, assignments).values  # (C, S, N)
    weight = data["posterior"][weights].transpose("chain", "draw", dim).values
    count = np.stack([(labels == k).sum(2) for k in range(weight.shape[2])], 2)  # (C, S, K)
    low, high = np.quantile(weight, [(1 - prob) / 2, (1 + prob) / 2], axis=(0, 1))
    columns = {
        "weight": weight.mean((0, 1)),
        f"{50 * (1 - prob):g}%": low,
        f"{50 * (1 + prob):g}%": high,
        "rows": count.mean((0, 1)),
        "active": (count > 0).mean((0, 1)),
    }
    return pandas.DataFrame(columns).rename_axis(dim)


def _assignments(data: Any, name: str) -> "xarray.DataArray":
    posterior = data["posterior"]
    if name not in posterior:
        raise ValueError(
            f"posterior: expected the component of each row as {name!r}, got "
            f"{sorted(map(str, posterior))}. Try a model whose component is a site in "
            f"`data_plate`, marked infer={{'enumerate': 'parallel'}}, or assignments=..."
        )
    return posterior[name].transpose("chain", "draw", ...)
