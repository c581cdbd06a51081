"""Whether a run of programs changes what they hold, so that the next one depends on it."""

from collections.abc import Callable
from typing import Any

from ppl_models.infer.compiled.watch import Finder, holds


def changes(holder: Any, run: Callable[[], Any]) -> bool:
    """Whether a run changes what programs hold, or nobody can tell.

    Arguments:
        holder: Has the programs among its attributes.
        run: Runs them.
    """
    try:
        found = Finder(holder)
        tensors = [*found.tensors, *found.buffers()]
    except Exception:  # what it holds cannot be told, as of a scripted module
        run()
        return True
    before = [x._version for x in tensors]
    run()
    return not holds(found.watch) or [x._version for x in tensors] != before
