"""Numbers of rows, sorted, the worst first, and which rows these are."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 8  # rows that are named
MANY = 5000  # rows, beyond which some are left out of the curve


def sorted_rows(
    axes: "Axes",
    value: Tensor,
    named: Callable[[int], str],
    *,
    rising: bool = True,
    marked: tuple[str, Tensor] | None = None,
) -> None:
    """Draws the numbers of rows in their order, and names the worst of them by their index.

    Arguments:
        axes: Where to draw. What is labelled there before has its line in the legend, too.
        value: A number for each row, `(N,)`. Those that are infinite are named, and not drawn.
        named: What to say of a row, by its index.
        rising: Whether the worst are the least, so that the curve rises.
        marked: A label, and the rows that have it, `(N,)` of truth values.
    """
    order = value.argsort(descending=not rising, stable=True)
    place, numbers = torch.arange(1, len(value) + 1), value[order]

    def draw(which: Tensor | slice, marker: str, **style: Any) -> None:
        axes.plot(place[which].numpy(), numbers[which].numpy(), marker, **style)

    draw(slice(None, None, max(1, len(value) // MANY)), ".", label="rows")
    if marked is not None and marked[1].any():
        draw(marked[1][order], "x", label=marked[0])
    worst = order[: min(NAMED, (len(order) + 1) // 2)].tolist()
    draw(
        slice(len(worst)),
        "o",
        fillstyle="none",
        color="k",
        markersize=7,
        label=f"the worst {len(worst)}",
    )
    axes.set_xlabel("rows, the worst first")
    axes.legend(
        title="\n".join(f"row {row}: {named(row)}" for row in worst),
        loc="lower right" if rising else "upper right",
        alignment="left",
        frameon=True,
        edgecolor="none",
        fontsize="small",
        title_fontsize="small",
    )


def one_number(axes: "Axes", value: float, error: float) -> None:
    """Draws one number with its error, where there is none of single rows."""
    axes.errorbar([value], [0.0], xerr=[error] if error else None, fmt="o", capsize=4)
    axes.set(yticks=[], ylim=(-1, 1))
    axes.spines["left"].set_visible(False)
