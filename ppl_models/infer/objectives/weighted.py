r"""Several objectives as one: the sum of their losses, each with a weight.

.. math:: \sum_i w_i \, \ell_i

`fit` takes turns over a list of objectives, each with an optimiser of its own; what shares
parameters and belongs to one loss is added up instead.
"""

from collections.abc import Iterator, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from ppl_models.infer.objectives.objective import Objective, as_objectives, check_objective


def weighted(objectives: Mapping[Objective, float]) -> "Weighted":
    """The weighted sum of objectives, as an objective.

    Arguments:
        objectives: Each with its weight.

    Raises:
        TypeError: If they are no objectives with numbers.
        ValueError: If there are none, or a weight is not a positive number.

    Example:
        >>> from guides.conditional import LabelNormal
        >>> from ppl_models.infer.training.fit import fit
        >>> from ppl_models.infer.objectives.elbo import elbo
        >>> from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
        >>> model, guide = SemiSupervisedVAE(4, 2, 1), LabelNormal(4, 2, 1)
        >>> both = weighted({elbo(model, guide): 1.0, elbo(guide.classify): 2.0})
        >>> x, y = torch.ones(20, 4), torch.arange(20) % 3 - 1  # -1: not known
        >>> len(fit(both, (x, y), epochs=2, seed=0).history["loss"])
        2
    """
    return Weighted(objectives)


class Weighted(Objective):
    """The objective that `weighted` returns."""

    name = "weighted"

    def __init__(self, objectives: Mapping[Objective, float]) -> None:
        if not isinstance(objectives, Mapping):
            raise TypeError(
                f"weighted: expected objectives with their weights, got a "
                f"{type(objectives).__name__}. Try {{elbo(model, guide): 1.0, another: 2.0}}; "
                f"objectives in a list take turns, fit([first, second], x)."
            )
        if not objectives:
            raise ValueError("weighted: expected objectives, got none.")
        for objective, weight in objectives.items():
            check_objective(objective, "weighted: expected objectives")
            if isinstance(weight, bool) or not isinstance(weight, Real):
                raise TypeError(
                    f"weighted: expected a number as the weight of {objective.name!r}, got "
                    f"{weight!r}."
                )
            if not 0 < weight < float("inf"):
                raise ValueError(
                    f"weighted: expected a positive weight of {objective.name!r}, got {weight!r}."
                )
        self.parts = [(as_objectives(o)[0], weight) for o, weight in objectives.items()]
        self.arguments = self.parts[0][0].arguments

    def __repr__(self) -> str:
        return f"Weighted({' + '.join(f'{w:g} {o!r}' for o, w in self.parts)})"

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        return torch.stack([w * o.loss(*batch, size=size).double() for o, w in self.parts]).sum()

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        for objective, _ in self.parts:
            objective.prepare(*batch, size=size, data=data)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for i, (objective, _) in enumerate(self.parts):
            for name, parameter in objective.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{i}.{name}", parameter

    def modules(self) -> dict[str, nn.Module]:
        return {
            f"{i}.{name}": module
            for i, (objective, _) in enumerate(self.parts)
            for name, module in objective.modules().items()
        }

    def stepped(self) -> None:
        for objective, _ in self.parts:
            objective.stepped()

    def blame(self, *batch: Tensor, size: int) -> str:
        with torch.no_grad():
            for objective, _ in self.parts:
                if not torch.isfinite(objective.loss(*batch, size=size)):
                    return f"in {objective.name}, {objective.blame(*batch, size=size)}"
        return "each loss is finite by itself with other draws"
