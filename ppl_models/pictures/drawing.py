"""Where pictures are drawn: into axes that are given, or into a figure of their own.

Both in the look of the project, which is left as it was afterwards. A figure of its own is not held
by pyplot: it is shown where it is the last value of a cell of a notebook, and once; elsewhere
`figure.savefig("picture.png")` writes it, or `axes` of pyplot are given.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOK = "ppl_models.look"


@contextmanager
def drawing(axes: "Axes | None", width: float = 6.4, height: float = 4.0) -> Iterator["Axes"]:
    """A context of the look, with the axes to draw into.

    Arguments:
        axes: Those that are given, or None for those of a figure of its own.
        width: That of the figure, in inches.
        height: Likewise.

    Example:
        >>> with drawing(None) as axes:
        ...     lines = axes.plot([1.0, 2.0])
        >>> figure_of(axes)
        <Picture size 640x400 with 1 Axes>
    """
    with look():
        yield own_figure(width, height).subplots() if axes is None else axes


def look() -> AbstractContextManager[None]:
    """A context of the look, for pictures of several panels."""
    from matplotlib import style

    return style.context(LOOK)


def own_figure(width: float, height: float) -> "Figure":
    """A figure that pyplot does not hold, and a notebook shows."""
    from ppl_models.pictures.shown import Picture

    return Picture(figsize=(width, height), layout="constrained")


def figure_of(axes: "Axes") -> "Figure":
    """The figure that axes are in."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure
