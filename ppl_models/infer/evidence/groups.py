"""The groups of what ArviZ reads, of either generation, taken apart and put together again."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray


def groups_of(data: Any) -> dict[str, "xarray.Dataset"]:
    """The groups of an `InferenceData` or a `DataTree`, by name."""
    import xarray  # slow to import, and brings pandas

    if isinstance(data, xarray.DataTree):
        return {name: node.to_dataset() for name, node in data.children.items()}
    return {name: data[name] for name in data.groups()}


def rebuilt(data: Any, groups: dict[str, "xarray.Dataset"]) -> Any:
    """An object of the kind of `data`, with other groups."""
    import xarray

    if isinstance(data, xarray.DataTree):
        result = xarray.DataTree.from_dict(groups)
    else:
        result = type(data)(**groups)
    result.attrs.update(data.attrs)
    return result


def draws_of(variable: "xarray.DataArray", *first: str) -> np.ndarray:
    """The values with all draws of all chains in front, (S, *)."""
    values = variable.transpose("chain", "draw", *first, ...).values
    return values.reshape(-1, *values.shape[2:])
