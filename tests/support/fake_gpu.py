"""A GPU that computes on the CPU: numbers as on one, and a count of the waits for it.

Tensors of the class `OnGPU` hold theirs on the CPU, say that they are elsewhere, and refuse to be
mixed with tensors that are not. So whole runs can be followed, with their backward passes and the
reads by the host. The device is called `"meta"`, a name that needs no driver; what is done for a
device of the type `"cuda"` alone is not seen here, but by `fake_cuda`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("meta")
aten = torch.ops.aten
READS = (  # what a GPU reports to the host: numbers, shapes that depend on them, and errors
    aten._linalg_check_errors.default,
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
CROSSING = (aten._to_copy.default, aten.copy_.default, aten._pin_memory.default)


class OnGPU(Tensor):
    """A tensor whose numbers are on the CPU, and which says that they are elsewhere."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnGPU":
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=GPU,
        )
        made.numbers = numbers
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"OnGPU({self.numbers})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {}, Counter())


def run(func: Any, args: tuple, kwargs: dict[str, Any], waits: Counter) -> Any:
    """An operation on numbers of the CPU, after a look at the devices."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    ours = any(isinstance(x, OnGPU) for x in given)
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    if not ours and target != GPU:
        return func(*args, **kwargs)
    strangers = [x for x in given if type(x) in (Tensor, nn.Parameter) and x.ndim]
    if ours and strangers and func not in CROSSING:
        raise RuntimeError(f"{func}: tensors on {GPU} and on {strangers[0].device}")

    inner_args, inner_kwargs = tree_map(_numbers, (args, kwargs))
    if target is not None:
        inner_kwargs["device"] = torch.device("cpu")
    with _disable_current_modes():
        result = func(*inner_args, **inner_kwargs)
    to_host = func is aten._to_copy.default and target is not None and target != GPU
    if func in READS or (func in INDEXED and _masked(args[1])):
        waits["read"] += 1
    elif to_host or (func is aten.copy_.default and not isinstance(args[0], OnGPU)):
        waits["to host"] += 1
    elif func in CROSSING and not (
        isinstance(args[1], OnGPU) if func is aten.copy_.default else ours
    ):
        waits["from host"] += 1

    same = {id(_numbers(x)): x for x in given}  # what was changed in place is still itself

    def wrapped(x: Any) -> Any:
        if id(x) in same:
            return same[id(x)]
        return OnGPU(x) if isinstance(x, Tensor) and not to_host else x

    return tree_map(wrapped, result)


def _numbers(x: Any) -> Any:
    return x.numbers if isinstance(x, OnGPU) else x


def _masked(indices: Iterable[Any]) -> bool:
    return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices)


class _Made(TorchDispatchMode):
    """Puts tensors on the GPU that are made there, and counts the waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {}, self.waits)


@contextmanager
def fake_gpu() -> Iterator[Counter]:
    """A context with such a GPU, which gives the count of the waits for it: by kind."""
    tensor, autocast = torch.tensor, torch.autocast

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device) != GPU:
            return tensor(*args, device=device, **kwargs)
        mode.waits["from host"] += 1
        return OnGPU(tensor(*args, **kwargs))

    def cast(device: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if device == GPU.type else device, *args, **kwargs)

    # Module.to makes new parameters: a wrapper cannot become the data of an old one.
    overwrite = torch.__future__.set_overwrite_module_params_on_conversion
    overwrite(True)
    with (
        _Made() as mode,
        mock.patch.object(torch, "tensor", made),
        mock.patch.object(torch, "autocast", cast),
    ):
        try:
            yield mode.waits
        finally:
            overwrite(False)


def on_gpu(module: nn.Module, *others: nn.Module) -> nn.Module:
    """Moves the parameters and buffers of modules, and returns the first of them."""
    known: dict[int, Tensor] = {}
    for part in (part for root in (module, *others) for part in root.modules()):
        for tensors in (part._parameters, part._buffers):
            for name, x in tensors.items():
                if x is None or isinstance(x, OnGPU):
                    continue
                if id(x) not in known:
                    moved: Tensor = OnGPU(x.detach().clone())
                    if isinstance(x, nn.Parameter):
                        moved = nn.Parameter(moved, x.requires_grad)
                    known[id(x)] = moved
                tensors[name] = known[id(x)]
    return module
