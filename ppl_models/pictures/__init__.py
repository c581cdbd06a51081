"""Pictures: rows as images, and the look that all pictures of the project share.

`plt.style.use("ppl_models.look")` takes that look (the file `look.mplstyle`): colours that
colour-blind readers can tell apart, and ink that is dark on light.

Files:
    images: rows as square images
    curves: losses against epochs
    rows: numbers of rows, sorted, the worst by their index
    drawing: into axes that are given, or a figure of its own
    shown: a figure that notebooks show
"""

from ppl_models.pictures.images import images

__all__ = ["images"]


def __dir__() -> list[str]:
    return __all__
