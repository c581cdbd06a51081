"""A figure that notebooks show. Its import is matplotlib's: `drawing` imports it when it draws."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that a notebook shows where it is the last value of a cell.

    Of one that pyplot does not hold it would else show the size alone, until pyplot has made one.
    """

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
