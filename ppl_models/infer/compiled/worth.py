r"""Whether compiled steps are worth their compilation, by counts alone.

An eager step of :math:`k` operations takes about :math:`a k` seconds in Python and in torch's
dispatch, beside its arithmetic; compiled, it takes the arithmetic alone. A compilation takes about
:math:`b + c k` seconds from a cold cache. With :math:`n` steps to come it pays from

.. math::
    n \, a \, k \geq b + c \, k

on, as long as arithmetic is not nearly all of a step, as in large networks: compiled code does that
no faster, and is compared with the program from time to time. Operations are counted in one step,
by their shapes, and no clock is asked: a run with a seed is the same each time. From a warm cache a
compilation would pay for fewer steps, but then the second run would not be the first one.
"""

import math
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Measured on one core, in seconds.
OPERATION = 5e-6  # a: of an operation, forwards or backwards, in an eager step
START, MORE = 6.0, 6e-3  # b and c: of a compilation from a cold cache
NUMBER, PRODUCT = 4e-10, 1.25e-11  # of a number that an operation gives, of a product in a matrix
MOST = 8  # times what an eager step adds, which its arithmetic may take at most
LEAST = math.ceil(MORE / OPERATION)  # steps below which no count can make it pay
MULTIPLY = ("mm", "mv", "linear", "matmul", "conv")


class Operations(TorchDispatchMode):
    """Counts the operations of torch in a context, and estimates the seconds of arithmetic.

    Example:
        >>> with Operations() as found:
        ...     _ = Tensor(3).fill_(1.0).exp().sum()
        >>> found.count
        4
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.arithmetic = 0, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = result if isinstance(result, (tuple, list)) else (result,)
        numbers = sum(x.numel() for x in given if isinstance(x, Tensor))
        self.count += 1
        self.arithmetic += NUMBER * numbers
        if any(name in str(func) for name in MULTIPLY):
            sizes = [x.numel() for x in args if isinstance(x, Tensor)][-2:]
            self.arithmetic += PRODUCT * math.sqrt(math.prod(sizes) * numbers)
        return result


def pays(steps: int, operations: int, arithmetic: float) -> bool:
    """Whether so many steps to come are worth a compilation.

    Arguments:
        steps: The steps to come.
        operations: Those of a step.
        arithmetic: The seconds that they take in any case.

    Example:
        >>> pays(1_000, operations=250, arithmetic=0.0), pays(10_000, 250, 0.0)
        (False, True)
    """
    saved = OPERATION * operations
    return steps * saved >= START + MORE * operations and MOST * saved >= arithmetic
