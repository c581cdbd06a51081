"""Rows as square images, side by side."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.pictures.drawing import drawing, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def images(
    rows: Tensor, axes: "Axes | None" = None, *, columns: int = 10, title: str = ""
) -> "Figure":
    """Draws rows as square grey images, side by side, from white (0) to black (1).

    Arguments:
        rows: Shape `(N, D)`, with `D` a square number, or `(N, H, W)`. What is below 0 is white,
            above 1 black.
        axes: Where to draw. By default in a figure of its own, which pyplot does not hold.
        columns: How many images a line has.
        title: What to write above.

    Returns:
        The figure.

    Raises:
        ValueError: If rows are not square images.

    Example:
        >>> from ppl_models.datasets import digits
        >>> train, _ = digits()
        >>> figure = images(train[:20], title="The first digits")
        >>> figure.axes[0].images[0].get_array().shape  # two lines of ten, with a gap between
        (17, 89)
    """
    check_count(columns=columns)
    tiled = _tiled(_as_images(rows), columns)
    width = 0.6 * max(min(columns, len(rows)), 4)
    with drawing(axes, width, width * tiled.shape[0] / tiled.shape[1] + 0.4) as axes:
        axes.imshow(tiled, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title)
    axes.axis("off")
    return figure_of(axes)


def _as_images(rows: Tensor) -> Tensor:
    """Returns `(N, H, W)`."""
    rows = torch.as_tensor(rows).detach().cpu().float()
    side = math.isqrt(rows.shape[-1])
    if len(rows) and rows.ndim == 2 and side**2 == rows.shape[1]:
        return rows.reshape(len(rows), side, side)
    if len(rows) and rows.ndim == 3:
        return rows
    raise ValueError(
        f"rows: expected images, with shape (N, D) where D is a square number, or (N, H, W), got "
        f"{tuple(rows.shape)}. Try rows.reshape(len(rows), height, width)."
    )


def _tiled(images: Tensor, columns: int) -> Tensor:
    """One image of all, in lines of `columns`, a pixel of white between them."""
    number, height, width = images.shape
    columns = min(columns, number)
    lines = -(-number // columns)
    tiled = images.new_zeros(lines * (height + 1), columns * (width + 1))
    for n, image in enumerate(images):
        top, left = n // columns * (height + 1), n % columns * (width + 1)
        tiled[top : top + height, left : left + width] = image
    return tiled[:-1, :-1]
