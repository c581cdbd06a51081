"""Parts of torch that are replaced for a while: what no graph can hold, and what no draw needs.

All threads see it. What stands for the part must do for those, too, that know of no replacement.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which an attribute of a class or module has another value.

    Example:
        >>> import math
        >>> with replaced(math, "pi", 3):
        ...     print(math.pi)
        3
        >>> math.pi > 3
        True
    """
    before = vars(owner)[name]  # as it is kept: of a class method not what it is bound to
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
