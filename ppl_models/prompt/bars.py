"""Progress bars of what may take long: where somebody looks, and gone when it is done."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from ppl_models.processes.group import is_first

DELAY = 1.0  # seconds, in which most calls are done


@contextmanager
def progress_bar(
    what: str, total: int | None, shown: bool = True, unit: str = "draw"
) -> Iterator[Callable[[int], object]]:
    """Gives a function that is told how much more is done. The bar is seen after a second.

    Arguments:
        what: What is done.
        total: How much there is to do, as far as that is known.
        shown: Whether it is wanted.
        unit: What is counted.

    Example:
        >>> with progress_bar("squares", total=3) as advance:
        ...     for n in range(3):
        ...         done = advance(1)
    """
    if not is_watched(shown):
        yield _nothing
        return
    with tqdm(desc=what, total=total, unit=unit, leave=False, delay=DELAY) as bar:
        yield lambda done: bar.update(done if total is None else min(done, total - bar.n))


def is_watched(wanted: bool = True) -> bool:
    """Whether somebody sees a bar that is `wanted`: on a terminal, or in a notebook.

    Of several processes the first shows it.

    Example:
        >>> is_watched(False)
        False
    """
    return wanted and (_is_terminal() or _is_notebook()) and is_first()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _is_notebook() -> bool:
    """Whether the code runs in a kernel of Jupyter's, whose standard error is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _nothing(done: int) -> None:
    """What a bar is told that is not shown."""
