r"""Networks that are split over the processes of a run: parameters, gradients and moments.

Each of :math:`P` processes holds the rows :math:`r \lceil n / P \rceil, \dots` of each parameter with
`n` of them (its first dimension), and moves these alone. A network, or a large layer of one, is
gathered when it is called, and its gradient is summed and split at once:

.. math::
    g_{(r)} = \Big[ \sum_q \frac{B_q}{B} \, g_q \Big]_{(r)}

What belongs to no network that can be split stays whole on each process.

References:
    | PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023)
    | https://arxiv.org/abs/2304.11277
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_models.infer.programs.torch_internals import forget_shards
from ppl_models.infer.training.together.networks import Networks
from ppl_models.infer.training.together.trial import Numbers, evenly
from ppl_models.processes import Processes

ROWS = 4  # of a trial, for each process
CLOSE = {torch.float64: 1e-8}  # relative
SINGLE = 1e-3
NOISE = 1e-2  # of that, beside the largest gradient


class Part(NamedTuple):
    """A parameter, and what is here of it."""

    name: str
    whole: nn.Parameter  # the user's own, which is empty meanwhile
    shape: torch.Size
    sharded: Any  # the DTensor that stands in its modules
    here: nn.Parameter  # its rows, as the optimiser moves them
    places: list[tuple[nn.Module, str]]


class Kept(NamedTuple):
    """What a module was before it was sharded."""

    module: nn.Module
    kind: type
    attributes: set[str]
    hooks: dict[str, dict[Any, Any]]


class Shards:
    """The networks of an objective, sharded until they are joined again.

    Arguments:
        name: What to call the objective in errors.
        modules: The modules of its programs.
        numbers: Its loss on some of the first rows of a batch, by their places, and how many these
            are of.
        rows: How many rows there are to try.
        processes: Those that hold the shards.
        device: Where they are.

    Raises:
        ValueError: On all processes, if there is no network to shard, or a sharded one is another.
    """

    def __init__(
        self,
        name: str,
        modules: list[nn.Module],
        numbers: Numbers,
        rows: int,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.name, self.processes = name, processes
        self.parts: list[Part] = []
        self._kept: list[Kept] = []
        self._by_id: dict[int, Part] = {}
        trial = _Trial(name, modules, numbers, min(rows, ROWS * processes.count), processes, device)
        with evenly(modules, device):
            networks = Networks(modules, trial.whole)
            processes.check_agree(
                "shard", "", networks=[type(network).__name__ for network in networks.found]
            )
            if not networks.found:
                raise ValueError(
                    f"shard: {name}: expected a network that can be split over processes: a module "
                    f"with parameters, which are used in calls of its forward alone, whose tensors "
                    f"the loss depends on. Got none: what pyro.param, pyro.module or an autoguide "
                    f"make is not split. Try an nn.Module with the network as an attribute, as in "
                    f"VAE(784, 50, decoder=network), or shard=False."
                )
            slopes = trial.slopes(networks)
            networks.forget()
        self._shard(networks, device)
        try:
            trial.check(self, slopes)
        except BaseException:
            self.join()
            raise

    def _shard(self, networks: Networks, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(device.type, (self.processes.count,))
        whole = [_parameters(network) for network in networks.found]
        for network, units in zip(networks.found, networks.units, strict=True):
            self._kept += [_as_it_is(module) for module in network.modules()]
            for unit in units:
                fully_shard(unit, mesh=mesh, reshard_after_forward=True)
            for module in network.modules():
                if isinstance(module, FSDPModule):  # a sum: losses are weighted by rows
                    module.set_gradient_divide_factor(1.0)
                    module.set_force_sum_reduction_for_comms(True)
        self._kept = [
            kept._replace(attributes=vars(kept.module).keys() - kept.attributes)
            for kept in self._kept
        ]
        for found in whole:
            for name, parameter, places in found:
                module, key = places[0]
                self._take(name, parameter, getattr(module, key), places)

    @torch.no_grad()
    def _take(
        self, name: str, whole: nn.Parameter, sharded: Any, places: list[tuple[nn.Module, str]]
    ) -> None:
        here = nn.Parameter(sharded.to_local().detach(), whole.requires_grad)
        part = Part(name, whole, whole.shape, sharded, here, places)
        self.parts.append(part)
        self._by_id |= dict.fromkeys(map(id, (whole, sharded, here)), part)
        whole.data = whole.new_empty(0)  # its memory is let go; it comes back when they are joined

    def here(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """What an optimiser moves here of some parameters: their rows, or all of what is whole."""
        parts = [(p, self.part_of(p)) for p in parameters]
        return [p if part is None else part.here for p, part in parts]

    def part_of(self, parameter: Tensor) -> Part | None:
        """What is split of a parameter, as it stands in a module or as `here` gave it."""
        return self._by_id.get(id(parameter))

    def whole_ones(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Those of some parameters, as `here` gave them, that are whole on each process."""
        return [p for p in parameters if self.part_of(p) is None]

    def forget_slopes(self) -> None:
        """Lets the gradients go."""
        for part in self.parts:
            part.sharded.grad = part.here.grad = None

    def take_slopes(self) -> None:
        """Gives the rows that are here their gradients."""
        for part in self.parts:
            slope = part.sharded.grad
            part.here.grad = None if slope is None else slope.to_local()

    def clip(self, parameters: list[Tensor], most: float) -> None:
        """Scales gradients, so that their norm over all processes is no larger than `most`."""
        slopes = [(self.part_of(p) is not None, p.grad) for p in parameters if p.grad is not None]
        squares = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
        for is_split, slope in slopes:
            squares[is_split] += slope.double().square().sum().cpu()
        norm = (squares[0] + self.processes.total(squares[1])).sqrt().item()
        scale = most / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        if scale < 1 and slopes:
            torch._foreach_mul_([slope for _, slope in slopes], scale)

    def joined(self, x: Tensor) -> Tensor:
        """All rows of which each process has its own."""
        return torch.cat(self.processes.gather(x))

    def own(self, x: Tensor) -> Tensor:
        """The rows of a whole that are here."""
        width = -(-len(x) // self.processes.count)
        start = min(self.processes.rank * width, len(x))
        return x[start : start + width]

    @torch.no_grad()
    def join(self) -> None:
        """Makes all parameters whole again, and the modules what they were."""
        wholes = [self.joined(part.here.detach()) for part in self.parts]
        for kept in self._kept:
            kept.module.__class__ = kept.kind
            for name in kept.attributes:
                vars(kept.module).pop(name, None)
            for name, hooks in kept.hooks.items():
                vars(kept.module)[name].clear()
                vars(kept.module)[name].update(hooks)
            forget_shards(kept.module)
        for part, whole in zip(self.parts, wholes, strict=True):
            part.whole.data = whole
            for module, key in part.places:
                module.register_parameter(key, part.whole)
        self.parts.clear()
        self._by_id.clear()


class _Trial:
    """Whether a sharded objective is the objective: its loss and its gradient, on a few rows."""

    def __init__(
        self,
        name: str,
        modules: list[nn.Module],
        numbers: Numbers,
        rows: int,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.name, self.modules, self.numbers = name, modules, numbers
        self.rows, self.processes, self.device = rows, processes, device
        self.every = torch.arange(rows, device=device)
        self.expected = 0.0

    def whole(self) -> Tensor:
        """The loss of all rows, not sharded."""
        loss = self.numbers(self.every, self.rows)[self.name]
        self.expected = loss.item()
        self.close = CLOSE.get(loss.dtype, SINGLE)
        return loss

    def slopes(self, networks: Networks) -> dict[int, Tensor | None]:
        """What each process will have of the gradient, one unit at a time."""
        found: dict[int, Tensor | None] = {}
        width, rank = self.processes.count, self.processes.rank
        for unit in (unit for units in networks.units for unit in units):
            parameters = [p for p in unit.parameters() if id(p) not in found and p.requires_grad]
            if not parameters:
                continue
            slopes = torch.autograd.grad(
                networks.loss, parameters, retain_graph=True, allow_unused=True
            )
            for p, slope in zip(parameters, slopes, strict=True):
                parts = None if slope is None else slope.split(-(-len(slope) // width))
                empty = None if slope is None else slope[:0].clone()
                own = parts[rank].clone() if parts and rank < len(parts) else empty
                found[id(p)] = own
        return found

    def check(self, shards: Shards, slopes: dict[int, Tensor | None]) -> None:
        said: str | None = None
        own = self.every[self.processes.own(self.rows)]
        try:
            with evenly(self.modules, self.device):
                loss = self.numbers(own, self.rows)[self.name] * (len(own) / self.rows)
                loss.backward()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        self._refuse(said)
        found = self.processes.total(loss.detach().double()).item()
        if not abs(found - self.expected) <= self.close * (1 + abs(self.expected)):
            said = f"the loss of {self.rows} rows is {found:.6g}, and was {self.expected:.6g} before"
        self._refuse(said or self._unlike(shards, slopes))
        shards.forget_slopes()

    def _unlike(self, shards: Shards, slopes: dict[int, Tensor | None]) -> str | None:
        shards.take_slopes()
        expected = [slopes.get(id(part.whole)) for part in shards.parts]
        size = max((x.norm().item() for x in expected if x is not None), default=0.0)
        size = max(self.processes.gather_values(size))
        for part, slope in zip(shards.parts, expected, strict=True):
            found, none = part.here.grad, torch.zeros_like(part.here)
            a, b = (none if x is None else x for x in (slope, found))
            apart = (a - b).norm().item()
            if not apart <= self.close * (a.norm().item() + NOISE * size):
                return f"the gradient of {part.name} differs by {apart:.3g}"
        return None

    def _refuse(self, said: str | None) -> None:
        texts = self.processes.gather_values(said)
        if text := next(filter(None, texts), None):
            raise ValueError(
                f"shard: {self.name}: a sharded network is not what it was: {text}. Expected one "
                f"whose parameters are used in calls of its forward alone. Try shard=False."
            )


def _parameters(
    network: nn.Module,
) -> list[tuple[str, nn.Parameter, list[tuple[nn.Module, str]]]]:
    """The parameters of a network, and all places where each of them stands."""
    names: dict[int, str] = {id(p): name for name, p in network.named_parameters()}
    found: dict[int, tuple[str, nn.Parameter, list[tuple[nn.Module, str]]]] = {}
    for module in network.modules():
        for key, p in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(p), (names[id(p)], p, []))[2].append((module, key))
    return list(found.values())


def _as_it_is(module: nn.Module) -> Kept:
    hooks = {
        name: dict(value)
        for name, value in vars(module).items()
        if "hooks" in name and isinstance(value, dict)
    }
    return Kept(module, type(module), set(vars(module)), hooks)
