"""The private parts of torch that programs and their training use, and why no public one would do.

`tests/infer/programs/test_internals.py` holds them to what is said here.
"""

import torch
from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping

# `Tensor.lerp_` of many tensors at once, on a GPU in one kernel: in public there is no such thing.
lerp_each_ = torch._foreach_lerp_

# What a subclass of Tensor has as its `__torch_function__` to see operations of ATen alone: torch's
# own have it, and it has no public name.
no_torch_function = torch._C._disabled_torch_function_impl


def tensor_of_no_values(
    cls: type[Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None
) -> Tensor:
    """An instance of a subclass that has a shape, a type and a device, and no memory.

    The way that torch documents for such subclasses (`__torch_dispatch__`), with an underscore.
    """
    return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)


def forget_shards(module: nn.Module) -> None:
    """Lets torch know no more that a module was given to `fully_shard`.

    There is a public way into `fully_shard`, and none out of it: a module that was in it once could
    not be given to it again.
    """
    _module_state_mapping.pop(module, None)
