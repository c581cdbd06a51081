"""What to say of a loss, or a gradient, that is not finite."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.training.batches import Batch
from ppl_models.infer.training.ends.slopes import origin


def blame_loss(objective: Objective, batch: Batch, loss: Tensor, when: str, moved: bool) -> str:
    """Says where a loss comes from; `moved` is whether a step was taken before."""
    for name, parameter in objective.named_parameters():
        if not torch.isfinite(parameter).all():
            cause = (
                f"the parameter {name} is not finite since the step before: its gradient was not"
            )
            break
    else:
        with Rows(batch.rows, batch.size, len(batch.values[0])):
            cause = objective.blame(*batch.values, size=batch.size)
    advice = "a smaller lr, clip=1.0, or a floor under scales"
    if not moved:
        advice = "other data, or initial values at which all log-densities are finite"
    return f"{objective.name}: the loss is {loss.item()} {when}; {cause}. Try {advice}."


def blame_slope(
    objective: Objective,
    batch: Batch,
    loss: Tensor,
    step: int,
    parameters: list[Tensor],
    evaluate: Callable[[Objective, Batch], Tensor],
) -> str:
    """Says where a gradient comes from, of a loss that is finite."""
    slopes = {name: x.grad for name, x in objective.named_parameters() if x.grad is not None}
    name = next(name for name, slope in slopes.items() if not slope.isfinite().all())
    cause = origin(lambda part: evaluate(objective, part), batch, parameters)
    return (
        f"{objective.name}: the gradient of the parameter {name} is not finite at step {step}, "
        f"where the loss is {loss.item():.5g}{cause}. All is as it was before that step. Try a "
        f"floor under what has a root, a logarithm or a quotient, such as x.clamp(min=1e-6), or a "
        f"smaller lr."
    )
