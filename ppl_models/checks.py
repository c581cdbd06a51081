"""What arguments and rows must be: each check once, raised before any work is lost.

An error says where, what was expected, what came, and what to try.
"""

from numbers import Integral

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def check_count(**counts: int) -> None:
    """Raises a ValueError unless all are positive whole numbers.

    Example:
        >>> check_count(num_features=3, num_components=2)
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a positive whole number, got {value!r}.")


def check_rows(x: Tensor | None, num_features: int, where: str) -> None:
    """Raises an error unless `x` is None or holds rows of `num_features` floating-point numbers.

    Raises:
        TypeError: If the numbers are integers, as in raw images.
        ValueError: If the shape is not `(B, num_features)`.
    """
    if x is None:
        return
    if not x.is_floating_point():
        raise TypeError(
            f"{where}: expected rows of floating-point numbers, got {x.dtype}. "
            f"Try x.float() / 255 for images of bytes, x.float() for numbers."
        )
    if x.ndim != 2 or x.shape[1] != num_features:
        raise ValueError(
            f"{where}: expected rows of {num_features} features, with shape "
            f"(B, {num_features}), got {tuple(x.shape)}. Try x.flatten(1) for images, "
            f"or num_features={x[0].numel() if len(x) else 'D'}."
        )


def check_tensors(tensors: tuple[Tensor, ...], missing: bool = False) -> None:
    """Raises where tensors are empty, of different lengths, or not finite.

    With `missing`, NaN stands for what was not observed, and is let through.
    """
    for i, x in enumerate(tensors):
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(
                f"data[{i}]: expected at least one row, got none: its shape is {tuple(x.shape)}."
            )
    lengths = [len(x) for x in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"data: expected tensors with the same number of rows, got {lengths}. "
            f"Try data=(x, y) with one label for each row."
        )
    for i, x in enumerate(tensors):
        if not x.is_floating_point():
            continue
        finite = ~x.isinf() if missing else x.isfinite()
        if not finite.all():
            bad = (~finite).flatten(1).any(1) if x.ndim > 1 else ~finite
            rows = bad.nonzero().flatten().tolist()
            noun = "row" if len(rows) == 1 else "rows"
            listed = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            raise ValueError(
                f"data[{i}]: {len(rows)} of {len(x)} rows hold NaN or infinity ({noun} {listed}). "
                f"Try leaving them out, x[x.isfinite().all(1)], or a model with "
                f"missing='marginalise' where NaN stands for what was not observed."
            )


def check_float64(x: Tensor, where: str) -> None:
    """Raises a TypeError where rows are on a device without double precision: Apple's."""
    if x.device.type == "mps":
        raise TypeError(
            f"{where}: this is computed in double precision, which the device {x.device} has not. "
            f"Try .cpu() of the model and of the rows."
        )


def check_labels(y: Tensor | None, num_classes: int, num_rows: int | None, where: str) -> None:
    """Raises an error unless `y` is None or holds one label for each row.

    Arguments:
        y: Labels 0 to `num_classes - 1`, as integers or whole floating-point numbers, `(B,)`.
        num_classes: The number of classes.
        num_rows: The number of rows, `B`; None where there are no rows besides the labels.
        where: What to call the model in errors.

    Raises:
        TypeError: If the labels are no numbers.
        ValueError: If there is not one for each row, or one is not of a class.

    Example:
        >>> check_labels(torch.tensor([0, 2, 1]), num_classes=3, num_rows=3, where="model")
    """
    if y is None:
        return
    if not isinstance(y, Tensor) or y.dtype == torch.bool or y.is_complex():
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{where}: expected a tensor of labels, got {kind}. Try y.long().")
    if y.ndim != 1 or num_rows not in (None, len(y)):
        raise ValueError(
            f"{where}: expected one label for each row, with shape "
            f"({'B' if num_rows is None else num_rows},), got {tuple(y.shape)}. "
            f"Try y.flatten(), or y.argmax(1) for one-hot labels."
        )
    # Reading from another device would make it wait at every step, and no graph can hold a check;
    # there the engine's check of the support finds such labels, before the first step.
    if y.device.type == "cpu" and get_proxy_mode() is None:
        check_classes(y, num_classes, where)


def check_classes(y: Tensor, num_classes: int, where: str) -> None:
    """Raises a ValueError unless all labels are whole numbers from 0 to `num_classes - 1`."""
    inside = (y >= 0) & (y < num_classes) & (y == y.round() if y.is_floating_point() else True)
    if not inside.all():
        outside = y[~inside]
        raise ValueError(
            f"{where}: expected labels that are whole numbers from 0 to {num_classes - 1}, got "
            f"{len(outside)} of {len(y)} others, such as {outside[0].item():g}. "
            f"Try num_classes as the number of classes, or y.unique(return_inverse=True)[1], "
            f"which numbers the labels from 0 on."
        )
