"""Numbers that a program reads off its data while it is traced, which stay what they are.

A trace knows no values: `int(group.max()) + 1` would end it. Of a density the data are given, so
that what does not depend on the position is a number like any other.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

VALUES = {
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    Tensor.__index__,
}
PLACES = {Tensor.__getitem__, Tensor.__setitem__}
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


class Dependent(TorchDispatchMode):
    """Follows which memory holds what depends on a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.places: dict[int, Tensor] = {}  # which keep their memory as long as this is there
        self._add(tensor)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.places

    def _add(self, tensor: Tensor) -> None:
        self.places[tensor.untyped_storage().data_ptr()] = tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x in self for x in given):
            made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
            for x in made + (given if func._schema.is_mutable else []):
                self._add(x)
        return found


class Known(TorchFunctionMode):
    """Answers what a program asks of values that do not depend on a tensor."""

    def __init__(self, dependent: Dependent) -> None:
        super().__init__()
        self.dependent = dependent

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in VALUES and self._is_known(args[0]):
            return self._value(func, *args)
        if func in PLACES and args:
            args = args[0], self._place(args[1]), *args[2:]
        return func(*args, **(kwargs or {}))

    def _place(self, index: Any) -> Any:
        """An index with numbers for tensors of one, whose value torch would ask for."""
        if isinstance(index, tuple):
            return tuple(map(self._place, index))
        whole = isinstance(index, Tensor) and index.ndim == 0 and index.dtype in INTEGERS
        return self._value(Tensor.item, index) if whole and self._is_known(index) else index

    def _is_known(self, x: Any) -> bool:
        if type(x) not in (Tensor, Parameter) or x.requires_grad:
            return False
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return x not in self.dependent

    def _value(self, func: Callable[..., Any], *args: Any) -> Any:
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return func(*args)
