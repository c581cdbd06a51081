"""Ctrl-C: a run ends between two steps, and Pyro is as it was before.

An interrupt that strikes at any line may do so inside of an `__exit__` of Pyro's, whose stacks are
then never emptied: each program after it would end in "duplicate plate 'data'".
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from torch import nn

from ppl_models.infer.programs.own import running
from ppl_models.infer.programs.pyro_internals import active_handlers, context_of, taken_dims


class Interrupt:
    """A context in which a first Ctrl-C is only noted, and a second one stops at once.

    Only in the main thread, and where Ctrl-C means what it does in Python: a handler of the user's
    own is left in place.

    Attributes:
        asked: Whether there was one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._taken = False

    def __enter__(self) -> "Interrupt":
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._ask)
            self._taken = True
        return self

    def __exit__(self, *_: Any) -> None:
        if self._taken:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)  # raises a KeyboardInterrupt
        self.asked = True


@contextmanager
def unwound(modules: list[nn.Module]) -> Iterator[None]:
    """A context after which, also where it was left at any line, Pyro is as it was before.

    Arguments:
        modules: Those of the programs that run.
    """
    handlers, dims, depth = list(active_handlers()), list(taken_dims()), len(running)
    parts = [part for module in modules for part in module.modules()]
    contexts = {id(c): (c, c.active) for c in map(context_of, _of_pyro(parts))}
    plates = [(part, part.create_plates) for part in parts if isinstance(part, AutoGuide)]
    try:
        yield
    except BaseException:
        active_handlers()[:], taken_dims()[:] = handlers, dims
        if len(running) > depth:
            store = pyro.get_param_store()
            store.clear()
            store.set_state(running[depth].suspended)
            del running[depth:]
        for context, active in contexts.values():
            if context.active != active:
                context.active = active
                context.cache.clear()
        for guide, own in plates:
            guide.create_plates = own
        raise


def _of_pyro(modules: list[nn.Module]) -> list[PyroModule]:
    return [module for module in modules if isinstance(module, PyroModule)]
