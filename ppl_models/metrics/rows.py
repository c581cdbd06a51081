"""What the metrics ask of the rows that they compare."""

import torch
from torch import Tensor


def check_pair(where: str, minimum: int, **sets: Tensor) -> tuple[Tensor, ...]:
    """Returns two sets of rows in float64, flat and on one device.

    Raises:
        TypeError: If a set is no tensor of floating-point numbers.
        ValueError: If a set has fewer than `minimum` rows, rows of another length than the other
            set, or numbers that are not finite.
    """
    for name, x in sets.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"{where}: expected {name} to be a tensor of floating-point numbers, got {got}. "
                f"Try torch.as_tensor({name}).float()."
            )
        if x.ndim < 2 or len(x) < minimum:
            raise ValueError(
                f"{where}: expected {name} to have {minimum} rows or more, with shape (N, D), got "
                f"{tuple(x.shape)}. Try more rows."
            )
        if not (finite := x.isfinite().flatten(1).all(1)).all():
            raise ValueError(
                f"{where}: {int((~finite).sum())} of {len(x)} rows of {name} hold NaN or infinity. "
                f"Try leaving them out, and saying how many they were."
            )
    (first, a), (second, b) = sets.items()
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"{where}: expected rows alike, got {first} with shape {tuple(a.shape)} and {second} "
            f"with {tuple(b.shape)}."
        )
    device = a.device
    return tuple(x.detach().to(device, torch.float64).flatten(1) for x in sets.values())
