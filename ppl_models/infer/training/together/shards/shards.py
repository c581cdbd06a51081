r"""Networks that are split over the processes of a run: parameters, gradients and moments.

Of a parameter with `n` rows (its first dimension) process `r` of `P` holds those from
:math:`r \lceil n / P \rceil` on, so many, and moves these alone. A network, or a large layer of
one, is gathered when it is called, and its gradient is summed and split at once:

.. math::
    g_{(r)} = \Big[ \sum_q \frac{B_q}{B} \, g_q \Big]_{(r)}

What belongs to no network that can be split stays whole on each process.

References:
    | PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023)
    | https://arxiv.org/abs/2304.11277
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ppl_models.checks import listed
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.programs.torch_internals import forget_shards
from ppl_models.infer.training.together.shards.networks import Networks
from ppl_models.infer.training.together.shards.trial import SameAsWhole
from ppl_models.infer.training.together.trial import Numbers, evenly
from ppl_models.processes import ProcessError, Processes
from ppl_models.user_line import warn

MUCH = 0.1  # of the parameters that stays whole, worth a warning


class Whole(NamedTuple):
    """A parameter of a network, and all places where it stands."""

    name: str
    parameter: nn.Parameter
    places: list[tuple[nn.Module, str]]


class Part(NamedTuple):
    """What is here of a parameter."""

    whole: Whole  # the user's own, which is empty meanwhile
    shape: torch.Size
    sharded: Any  # the DTensor that stands in its place
    here: nn.Parameter  # its rows, as the optimiser moves them


class Kept(NamedTuple):
    """What a module was before it was sharded."""

    module: nn.Module
    kind: type
    attributes: set[str]  # then those that it was given by that
    hooks: dict[str, dict[Any, Any]]


class Shards:
    """The networks of an objective, sharded until they are joined again.

    Arguments:
        objective: The objective.
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
        objective: Objective,
        numbers: Numbers,
        rows: int,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.processes = processes
        self.parts: list[Part] = []
        self._kept: list[Kept] = []
        self._by_id: dict[int, Part] = {}
        modules = list(objective.modules().values())
        trial = SameAsWhole(objective.name, modules, numbers, rows, processes, device)
        with evenly(modules, device):
            networks = Networks(modules, trial.whole)
            _check_found(networks, objective, processes)
            slopes = trial.slopes(networks)
            networks.forget()
        wholes = _wholes(networks.found, {id(p): n for n, p in objective.named_parameters()})
        self._shard(networks, wholes, device)
        try:
            trial.check(self, slopes)
        except ValueError:
            self.join()
            raise

    def _shard(self, networks: Networks, wholes: list[Whole], device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(device.type, (self.processes.count,))
        kept = [_as_it_is(module) for network in networks.found for module in network.modules()]
        for unit in (unit for units in networks.units for unit in units):
            unit.register_forward_hook(_without_views)  # before the hook that gathers it again
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        for module, _, attributes, _ in kept:
            attributes.symmetric_difference_update(vars(module))
            if isinstance(module, FSDPModule):  # a sum: losses are weighted by rows
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self._kept = kept
        for whole in wholes:
            self._take(whole)

    @torch.no_grad()
    def _take(self, whole: Whole) -> None:
        module, key = whole.places[0]
        sharded: Any = getattr(module, key)
        parameter = whole.parameter
        here = nn.Parameter(sharded.to_local().detach(), parameter.requires_grad)
        part = Part(whole, parameter.shape, sharded, here)
        self.parts.append(part)
        self._by_id |= dict.fromkeys(map(id, (parameter, sharded, here)), part)
        parameter.data = parameter.new_empty(0)  # its memory is let go, until they are joined

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

    def check_given(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
        """Raises where an optimiser has not the parameters that it was given."""
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if moved - {id(p) for p in parameters}:
            raise ValueError(
                "shard: expected an optimiser of the parameters that it was given, which are the "
                "rows that a process holds, got one that has others. Try a callable "
                "optimizer(parameters, lr=lr) that looks at these alone."
            )

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """A context in which networks are gathered, by all processes or with an error."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if not (isinstance(error, dist.DistError) or "gloo" in text):
                raise
            ours = self.processes
            raise ProcessError(
                f"process {ours.rank} of {ours.count} waited for parts of a network in vain "
                f"({text.strip().splitlines()[0][:200]}): another one has ended, stalls, or calls "
                f"networks in another order. Try its own output, programs that call the same "
                f"networks whatever their rows are, and fit(..., checkpoint=, resume=True) to go "
                f"on from the last checkpoint."
            ) from None

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
        if not slopes:
            return
        squares = torch.zeros(2, dtype=torch.float64, device=slopes[0][1].device)
        for is_split, slope in slopes:
            squares[int(is_split)] += torch.linalg.vector_norm(slope).double().square()
        norm = (squares[0] + self.processes.total(squares[1])).sqrt().item()
        scale = most / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        if scale < 1:
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
                del vars(kept.module)[name]
            for name, hooks in kept.hooks.items():
                vars(kept.module)[name].clear()
                vars(kept.module)[name].update(hooks)
            forget_shards(kept.module)
        for part, whole in zip(self.parts, wholes, strict=True):
            part.whole.parameter.data = whole
            for module, key in part.whole.places:
                module.register_parameter(key, part.whole.parameter)
        self._kept.clear()
        self.parts.clear()
        self._by_id.clear()


def _check_found(networks: Networks, objective: Objective, processes: Processes) -> None:
    """Raises where there is nothing to shard, or not the same; warns where much is left."""
    if not networks.found:
        raise ValueError(
            f"shard: {objective.name}: expected a network that can be split over processes: a "
            f"module with parameters that are used in calls of its forward alone, and that the "
            f"loss depends on through the tensors which these return. Got none; what pyro.param, "
            f"pyro.module or an autoguide makes stays whole. Try an nn.Module with the network as "
            f"an attribute, as in VAE(784, 50, decoder=network), or shard=False."
        )
    split = {id(p) for network in networks.found for p in network.parameters()}
    named = dict(objective.named_parameters())
    left = {name: x.numel() for name, x in named.items() if id(x) not in split}
    processes.check_agree(
        "shard",
        "Programs must call the same networks whatever they draw.",
        parameters_that_stay_whole=list(left),
        units=[[type(unit).__name__ for unit in units] for units in networks.units],
    )
    every = sum(x.numel() for x in named.values())
    if sum(left.values()) > MUCH * every:
        warn(
            f"shard: {objective.name}: {listed(list(left))} stay whole on each process, "
            f"{sum(left.values())} of {every} numbers, as they are used outside of a network's "
            f"forward, are statements of Pyro, or belong to an RNN."
        )


def _wholes(networks: list[nn.Module], names: dict[int, str]) -> list[Whole]:
    """The parameters of networks, and all places where each of them stands."""
    found: dict[int, Whole] = {}
    for module in (module for network in networks for module in network.modules()):
        for key, p in module.named_parameters(recurse=False, remove_duplicate=False):
            whole = Whole(names.get(id(p), key), p, [])
            found.setdefault(id(p), whole).places.append((module, key))
    return list(found.values())


def _without_views(module: nn.Module, _: Any, result: Any) -> Any:
    """Copies what is a view of another tensor: changed in place it would lose its hook."""
    return tree_map_only(Tensor, lambda x: x if x._base is None else x.clone(), result)


def _as_it_is(module: nn.Module) -> Kept:
    hooks = {
        name: dict(value)
        for name, value in vars(module).items()
        if "hooks" in name and isinstance(value, dict)
    }
    return Kept(module, type(module), set(vars(module)), hooks)
