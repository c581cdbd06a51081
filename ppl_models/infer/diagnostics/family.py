r"""The best member of a guide's family for each row: numbers of its own in the place of a network.

.. math:: \max_\eta \, \mathbb{E}_{q_\eta(z)} [\log p(x, z) - \log q_\eta(z)]

by `fit`, where :math:`\eta` starts at what the encoder makes of the row, and nothing else moves.
Programs are called with the number of each row beside it, by which it finds its own, so that rows
stay independent, in any order and number.

Shapes: `N` rows, `E` outputs of an encoder for each.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppl_models.infer.evidence.joint import tile
from ppl_models.infer.objectives.elbo import EvidenceLowerBound
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.training.fit import fit
from ppl_models.scoped import kept_rng, modes

TILED = 8  # draws of a row in each step
# A bad start has gradients a thousand times those near the end: the step must soon forget them.
ADAM = partial(torch.optim.Adam, betas=(0.9, 0.95))


def best_of_rows(
    model: Callable[..., Any],
    guide: Any,
    data: tuple[Tensor, ...],
    steps: int,
    lr: float,
    seed: int,
) -> tuple[Callable[..., Any], "_OwnOutputs", tuple[Tensor, ...]]:
    """The model and the guide with outputs of each row's own, and the rows with their numbers."""
    rows = len(data[0])
    numbers = torch.arange(rows, device=data[0].device)
    with modes(modules_of_programs(model, guide), training=False):
        own = _OwnOutputs(guide, _outputs(guide, data))
        objective = _OfRows(_without_numbers(model), own)
        numbered = (*data, numbers)
        tiled = tile(numbered, slice(0, rows), TILED)
        others = modules_of_programs(model, guide)
        with kept_rng(data[0].device), objective.alone(tiled, others):
            fit(
                objective,
                tiled,
                steps=steps,
                lr=lr,
                optimizer=ADAM,
                schedule=_to_zero,
                seed=seed,
                compile=False,
                progress=False,
            )
    return _without_numbers(model), own, numbered


def _to_zero(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def _outputs(guide: Any, data: tuple[Tensor, ...]) -> Tensor:
    """What the encoder of a guide gives for the rows, `(N, E)`."""
    found: list[Tensor] = []
    hook = guide.encoder.register_forward_hook(lambda _, __, outputs: found.append(outputs))
    try:
        with torch.no_grad(), kept_rng(data[0].device):
            Program(guide, "guide")(*data, size=len(data[0]))
    finally:
        hook.remove()
    rows = len(data[0])
    if len(found) != 1 or not isinstance(found[0], Tensor) or len(found[0]) != rows:
        got = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in found]
        raise ValueError(
            f"inference_gap: expected {type(guide).__name__} to call its encoder once, with one "
            f"output for each of {rows} rows, got {len(found)} calls{f', {got}' if got else ''}. "
            f"Try a guide of the same family with one encoder, or log_evidence and elbo for the "
            f"whole gap."
        )
    return found[0].detach()


def _without_numbers(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model, called with the number of each row beside it."""
    program = Program(model, "model")

    def of_rows(*batch: Tensor, size: int | None = None) -> Any:
        return program(*batch[:-1], size=size)

    return of_rows


class _Given(nn.Module):
    """Stands for a network: gives what it was told to."""

    outputs: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor | None:
        return self.outputs


class _OwnOutputs(nn.Module):
    """A guide with numbers for each row, by which they find theirs, in the place of an encoder's.

    Arguments:
        guide: The guide.
        outputs: What its encoder gives, `(N, E)`: where the numbers start.
    """

    def __init__(self, guide: nn.Module, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs.clone())
        self.given = _Given()
        self.guide = copy.copy(guide)  # with the same parameters, but for those of its encoder
        vars(self.guide)["_modules"] = {**guide._modules, "encoder": self.given}
        self.program = Program(self.guide, "guide")

    def forward(self, *batch: Tensor, size: int | None = None) -> Any:
        self.given.outputs = self.outputs[batch[-1]]
        try:
            return self.program(*batch[:-1], size=size)
        finally:
            self.given.outputs = None


class _OfRows(EvidenceLowerBound):
    """The bound as an objective of nothing but the numbers of each row."""

    name = "gap"

    def __init__(self, model: Callable[..., Any], own: _OwnOutputs) -> None:
        super().__init__(model, own, None)
        self.own = own

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield "outputs", self.own.outputs

    def modules(self) -> dict[str, nn.Module]:
        return {}  # none that trains: the rest stays in evaluation mode

    @contextmanager
    def alone(self, batch: tuple[Tensor, ...], modules: list[nn.Module]) -> Iterator[None]:
        """A context in which the parameters of modules, and all others, are held."""
        with torch.no_grad():
            self.loss(*batch)  # those of a function are known once it has run
        found = [p for _, p in super().named_parameters()]
        found += [p for module in modules for p in module.parameters()]
        others = {id(p): p for p in found if p.requires_grad and p is not self.own.outputs}
        for parameter in others.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others.values():
                parameter.requires_grad_(True)
