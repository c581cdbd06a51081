"""Labels of rows: whole numbers from 0 to the number of classes less one."""

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode


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
