"""Programs on a GPU that is not there: shapes and devices, but no numbers.

Tensors of `FakeTensorMode` know their device and nothing else. On them torch raises where two
devices meet in one operation, and at each read of a value by the host (`.item()`, `if tensor`),
which on a GPU would wait for all the work before it. A copy from the host, which waits too and
which no CUDA graph can hold, is refused here. (There is no backward pass on a GPU that is not
there.)
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pyro
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)


class FakeCuda:
    """Puts tensors and modules on a GPU that is not there."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode, self._known = mode, {}

    def tensor(self, x: Tensor) -> Tensor:
        """A fake one; the same for the same tensor."""
        if isinstance(x, FakeTensor):
            return x
        if id(x) not in self._known:
            fake = torch.empty_like(x, device=CUDA)
            if isinstance(x, nn.Parameter):
                fake = nn.Parameter(fake, x.requires_grad)
            self._known[id(x)] = fake, x  # which is kept, so that no other gets its id
        return self._known[id(x)][0]

    def objective(self, objective: Any) -> None:
        """Moves the modules of an objective."""
        self.modules(objective.modules().values())
        if hasattr(objective, "gan"):  # of a generator, whose modules are the critic's
            self.modules([objective.gan])

    def modules(self, roots: Iterable[nn.Module]) -> None:
        """Moves what `.to("cuda")` would move: parameters and buffers, and nothing else."""
        for module in (m for root in roots for m in root.modules()):
            for tensors in (module._parameters, module._buffers):
                for name, x in tensors.items():
                    tensors[name] = None if x is None else self.tensor(x)


class NoCopies(TorchDispatchMode):
    """Refuses what brings numbers from the host to the GPU while a program runs."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        from_host = any(x.device.type == "cpu" for x in given)
        constant = func is torch.ops.aten.lift_fresh.default  # torch.tensor(3.0, device="cuda")
        if any(x.device.type == "cuda" for x in made) and (
            constant or (from_host and func in COPIES)
        ):
            raise RuntimeError(f"a copy from the host to the GPU, by {func}")
        return result


COPIES = (
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,
)


@contextmanager
def fake_cuda(copies: bool = False) -> Iterator[FakeCuda]:
    """A context with a GPU that is not there, and without checks of values, as in `fit`.

    Arguments:
        copies: Whether numbers may come from the host.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with (
        pyro.validation_enabled(False),
        # These look for a GPU.
        mock.patch.object(torch, "_sample_dirichlet", torch.empty_like),
        mock.patch.object(torch.cuda, "get_rng_state", return_value=None),
        mock.patch.object(torch.cuda, "set_rng_state"),
        mode,
    ):
        if copies:
            yield FakeCuda(mode)
        else:
            with NoCopies():
                yield FakeCuda(mode)
