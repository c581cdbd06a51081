r"""Which networks of a program can be sharded: those whose parameters no one else uses.

A sharded network is gathered when it is called and let go when it returns, and again for its
gradient. That is its forward, and nothing else, where

1. each use of its parameters is within a call of it,
2. the loss depends on them through what these calls return,
3. what they return are tensors, in memory of their own.

All of that is seen in one evaluation of the loss: calls by hooks, uses by torch's functions, and
the way from the loss to the parameters by the graph of its gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

LARGE = 2**20  # parameters of a layer that is gathered by itself
# What a shard tells of a parameter as well as the whole of it does.
OF_SHAPES = {"size", "dim", "numel", "stride", "is_floating_point", "is_complex", "element_size"}
OF_SHAPES |= {"shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "layout", "grad"}


class _Uses(TorchFunctionMode):
    """Takes note of where parameters are used, and of what modules return.

    Arguments:
        parameters: The parameters.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__()
        self.known = {id(p) for p in parameters}
        self.memory = {p.untyped_storage().data_ptr() for p in parameters}
        self.running: list[int] = []
        self.inside: dict[int, set[int]] = {}  # by parameter, the modules that run at each use
        self.returned: dict[int, set[Any]] = {}  # by module, the nodes of what its calls return
        self.unfit: set[int] = set()  # modules that return other things

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _name(func) not in OF_SHAPES:
            for x in tree_leaves((args, kwargs)):
                if id(x) in self.known:
                    running = set(self.running)
                    self.inside[id(x)] = self.inside.get(id(x), running) & running
        return func(*args, **(kwargs or {}))

    def enter(self, module: nn.Module, _: Any) -> None:
        self.running.append(id(module))

    def leave(self, module: nn.Module, _: Any, result: Any) -> None:
        nodes = self.returned.setdefault(id(module), set())
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.memory:
                nodes.add(x.grad_fn)
            elif isinstance(x, Tensor) or not isinstance(x, (type(None), int, float, str)):
                self.unfit.add(id(module))
        self.running.pop()


class _Statements(Messenger):
    """Takes note of parameters that stand in Pyro's store, by `pyro.param` or `pyro.module`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def _pyro_post_param(self, message: dict) -> None:
        self.found.add(id(message["value"].unconstrained()))


class Networks:
    """What can be sharded of some modules.

    Arguments:
        modules: The modules of programs.
        loss: A loss that they take part in.

    Attributes:
        found: The networks, of which none is a part of another one.
        loss: The loss, with its graph.
    """

    def __init__(self, modules: list[nn.Module], loss: Callable[[], Tensor]) -> None:
        parameters: list[Tensor] = [p for module in modules for p in module.parameters()]
        with _Statements() as statements, _noted(parameters) as self._uses:
            self.loss = loss()
        self._stored = statements.found
        self.found: list[nn.Module] = []
        self._taken: set[int] = set()
        for module in modules:
            self._look_at(module)
        self.units = [self._units(network) for network in self.found]

    def forget(self) -> None:
        """Lets the graph go, and the memory of the parameters that it holds."""
        del self.loss, self._uses

    def _look_at(self, module: nn.Module) -> None:
        taken = {id(p) for p in module.parameters()}
        if not taken or any(module in network.modules() for network in self.found):
            return
        if not taken & self._taken and self._fits(module):
            self.found.append(module)
            self._taken |= taken
            return
        for child in module.children():
            self._look_at(child)

    def _fits(self, module: nn.Module) -> bool:
        """Whether a module is all that uses its parameters."""
        uses, parameters = self._uses, list(module.parameters())
        nodes = uses.returned.get(id(module))
        if nodes is None or id(module) in uses.unfit or self._stored & {id(p) for p in parameters}:
            return False
        # The layers of an RNN keep a second list of their parameters, which would not follow.
        if any(isinstance(m, (PyroModule, nn.RNNBase)) for m in module.modules()):
            return False
        if len({p.dtype for p in parameters}) > 1 or not all(map(_can_be_split, parameters)):
            return False
        if any(id(module) not in uses.inside.get(id(p), {id(module)}) for p in parameters):
            return False
        return not {id(p) for p in parameters} & _reached(self.loss, nodes)

    def _units(self, network: nn.Module) -> list[nn.Module]:
        """The parts of a network that are gathered one by one, the innermost first."""
        units, taken = [], set()
        for module in reversed(list(network.modules())):
            own = [p for p in module.parameters() if id(p) not in taken]
            large = sum(p.numel() for p in own) >= LARGE
            if module is network or (large and self._fits(module)):
                units.append(module)
                taken |= {id(p) for p in own}
        return units


@contextmanager
def _noted(parameters: list[Tensor]) -> Iterator[_Uses]:
    uses = _Uses(parameters)
    before = register_module_forward_pre_hook(uses.enter)
    after = register_module_forward_hook(uses.leave)
    try:
        with uses:
            yield uses
    finally:
        before.remove()
        after.remove()


def _name(func: Any) -> str:
    """The name of a function, or of the attribute that it reads."""
    name = getattr(func, "__name__", "")
    return getattr(func.__self__, "__name__", "") if name == "__get__" else name


def _can_be_split(p: Tensor) -> bool:
    return p.dim() > 0 and p.is_contiguous() and p.is_floating_point()


def _reached(loss: Tensor, stops: set[Any]) -> set[int]:
    """The parameters that a loss depends on otherwise than through some nodes of its graph."""
    seen, left, found = set(stops), [loss.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        left += [following for following, _ in node.next_functions]
    return found
