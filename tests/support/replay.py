"""What a CUDA graph does, on the CPU: operations recorded with their addresses, and run again.

While it is recorded nothing takes effect, and no value can be read. A replay runs the operations
anew, on the same memory and with other random numbers, and nothing of Python.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Losses = dict[str, Tensor]


class SimulatedRecorder:
    """Takes the place of `CudaRecorder`. `launches` counts runs, records and replays."""

    def __init__(self) -> None:
        self.launches = {"run": 0, "record": 0, "replay": 0}

    def run(self, function: Callable[[], Losses]) -> Losses:
        self.launches["run"] += 1
        return function()

    def record(self, function: Callable[[], Losses]) -> tuple[Callable[[], Any], Losses]:
        self.launches["record"] += 1
        rng = torch.get_rng_state()
        tape = _Tape()
        try:
            with tape:
                result = function()
        finally:
            torch.set_rng_state(rng)
            with torch.no_grad():
                for tensor, before in tape.before:
                    tensor.copy_(before)

        def replay() -> None:
            self.launches["replay"] += 1
            tape.replay()

        return replay, result


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        written = [
            tensor
            for argument, given in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors(given)
        ]
        reshaped = torch.Tag.inplace_view in func.tags  # what it holds stays
        unsaid = args[3:5] if func is torch.ops.aten.native_batch_norm.default else ()
        for tensor in (*written, *tensors(unsaid)):
            if not reshaped and not any(tensor is known for known, _ in self.before):
                self.before.append((tensor, tensor.clone()))
        result = func(*args, **kwargs)
        returned = [r.alias_info for r in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in returned)
        if not view and not reshaped:
            fresh = [] if written else [x.detach() for x in tensors(result)]
            # Aliases: a graph knows addresses and shapes, not objects that may change.
            self.operations.append((func, *tree_map(_alias, (args, kwargs)), fresh))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, fresh in self.operations:
            result = func(*args, **kwargs)
            for tensor, value in zip(fresh, tensors(result) if fresh else (), strict=True):
                tensor.copy_(value)


def _alias(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
