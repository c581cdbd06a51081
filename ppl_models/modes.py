"""Training or evaluation: the mode of modules, for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    """A context in which modules train, or do not; afterwards each is as it was before."""
    roots = list(modules)
    before = [(module, module.training) for root in roots for module in root.modules()]
    for root in roots:
        root.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
