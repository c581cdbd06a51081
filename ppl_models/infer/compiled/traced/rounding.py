"""What rounding makes of numbers: a program whose operations lose their last digit now and then.

Code and program round products and functions such as `tanh` another way. Mostly that shows in the
last digits alone; where a unit is saturated, what is left of :math:`1 - t^2` is rounding, however
little it moves with the parameters.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose last digit may be another one. What they give is made smaller, never larger, so
# that a probability stays one: by the least number that is to be seen below one.
INEXACT = {
    *(
        "tanh",
        "sigmoid",
        "exp",
        "expm1",
        "exp2",
        "log",
        "log1p",
        "log2",
        "softplus",
        "pow",
        "rsqrt",
    ),
    *("erf", "erfc", "erfinv", "lgamma", "digamma", "sin", "cos", "tan", "atan", "gelu", "silu"),
    *("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "convolution", "convolution_backward"),
    *("_softmax", "_log_softmax", "logsumexp", "log_sigmoid_forward", "native_layer_norm"),
    *("native_batch_norm", "sum", "mean", "linalg_cholesky_ex", "linalg_solve_triangular"),
}


class OtherwiseRounded(TorchDispatchMode):
    """A context in which some numbers have another last digit.

    Arguments:
        seed: Which.

    Example:
        >>> x = torch.linspace(1.0, 2.0, 100)
        >>> with OtherwiseRounded(0):
        ...     y = x.exp()
        >>> bool((y != x.exp()).any()), bool(torch.allclose(y, x.exp()))
        (True, True)
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)  # apart from the program's draws

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in INEXACT:
            return result
        if isinstance(result, (tuple, list)):
            return type(result)(map(self._rounded, result))
        return self._rounded(result)

    def _rounded(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        other = torch.rand(x.shape, generator=self.generator).to(x.device) < 0.5
        return torch.where(other, x * (1 - torch.finfo(x.dtype).eps / 2), x)
