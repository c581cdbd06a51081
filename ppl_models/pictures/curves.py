"""Curves of a training, whose first epochs must not hide the rest."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAR = 3.0  # times the range of all later epochs, by which the first ones may go beyond it
FEWEST = 10  # epochs, of which some are the first
DOTS = 20  # epochs, up to which each has a dot


def curves(axes: "Axes", histories: Mapping[str, Sequence[float]]) -> None:
    """Draws a curve for each history, against epochs, with its name as its label.

    Where the first tenth of the epochs would take most of the height, the scale is that of the
    others, and a line above says how far the first ones go.

    Arguments:
        axes: Where to draw.
        histories: One number for each epoch, by name.
    """
    from matplotlib.ticker import MaxNLocator

    found = {name: np.asarray(values, dtype=float) for name, values in histories.items()}
    number = max(map(len, found.values()), default=0)
    first = number // 10 if number >= FEWEST and _hide(found, number // 10) else 0
    for name, values in found.items():
        _draw(axes, name, values, first)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if first:
        axes.update_datalim([(1, axes.dataLim.y0)])
        axes.autoscale_view()  # which now begins with the first epoch
        axes.set_title(_beyond(found, first), loc="right", fontsize="small")


def _hide(found: Mapping[str, np.ndarray], first: int) -> bool:
    """Whether the first epochs go far beyond the range of the others."""
    late = _range([values[first:] for values in found.values()])
    early = _range([values[:first] for values in found.values()])
    if late is None or early is None:
        return False
    beyond = max(early[1] - late[1], late[0] - early[0])
    return beyond > FAR * (late[1] - late[0])


def _range(parts: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The least and the largest number, of those that are finite."""
    whole = np.concatenate(parts)
    whole = whole[np.isfinite(whole)]
    return (float(whole.min()), float(whole.max())) if len(whole) else None


def _draw(axes: "Axes", name: str, values: np.ndarray, first: int) -> None:
    """A curve, of which the first epochs do not count for the scale."""
    from matplotlib.lines import Line2D

    epochs = np.arange(1, len(values) + 1)
    dots = "." if len(values) < DOTS else ""
    style = "--" if name == "validation" else "-"
    (line,) = axes.plot(epochs[first:], values[first:], style, marker=dots, label=name)
    if first:
        before = Line2D(epochs[: first + 1], values[: first + 1])
        before.update_from(line)
        before.set_label("")
        axes.add_artist(before)


def _beyond(found: Mapping[str, np.ndarray], first: int) -> str:
    """How far the first epochs go beyond the others, and which they are."""
    late = _range([values[first:] for values in found.values()])
    early = _range([values[:first] for values in found.values()])
    assert late is not None
    assert early is not None
    outside = [
        np.flatnonzero((values[:first] > late[1]) | (values[:first] < late[0]))
        for values in found.values()
    ]
    last = 1 + max(int(places[-1]) for places in outside if len(places))
    epochs = "epoch 1 goes" if last == 1 else f"epochs 1 to {last} go"
    ends = [f"down to {early[0]:.4g}"] if early[0] < late[0] else []
    ends += [f"up to {early[1]:.4g}"] if early[1] > late[1] else []
    return f"{epochs} {' and '.join(ends)}, beyond the scale"
