"""Rows that are read a part at a time, each of which is evaluated as if there were no others.

That is right where each row has an evidence of its own: its latents belong to it, and the guide
gives them for any rows. Of a part no more is kept than a few numbers of each row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ppl_models.infer.evidence.joint import Joint
from ppl_models.infer.evidence.pareto import Smoothed, Tails
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.tables import numbers_of
from ppl_models.infer.reading.arrays import is_on_disk
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.reading.in_order import in_order
from ppl_models.infer.reading.items import is_read
from ppl_models.scoped import mix


def parts_of(data: tuple[Any, ...], *programs: Any) -> Iterator[tuple[Tensor, ...]] | None:
    """Returns the parts of rows that are read; None where all are in memory."""
    given = data[0] if len(data) == 1 else data
    if not (is_on_disk(given) or is_read(given)):
        return None
    model, modules = Program(programs[0], "model"), modules_of_programs(*programs)
    taken, device = Taken(model.argument_names, modules), numbers_of(modules).device
    found = in_order(given, device, taken)
    return None if found is None else found.parts


def together(
    parts: Iterator[tuple[Tensor, ...]], evidence: Callable[..., Any], seed: int | None
) -> Any:
    """Returns the evidence of all rows, from `evidence(data, seed, of_parts)` of each part."""
    first = next(parts)
    second = next(parts, None)
    if second is None:
        return evidence(first, seed, False)
    found, start = [], 0
    for number, part in enumerate(chain([first, second], parts)):
        own = seed if seed is None or number == 0 else mix(seed, number)
        try:
            one = evidence(part, own, True)
        except (ValueError, FloatingPointError) as error:
            where = f" (Counted from row {start}.)" if start else ""
            raise type(error)(f"{error}{where}") from None
        found.append(_without_weights(one))
        start += len(part[0])
    return _joined(found)


def _without_weights(one: Any) -> Any:
    """An evidence with the shapes of the tails alone."""
    return one if one.tails is None else replace(one, tails=Shapes(one.pareto_k))


def _joined(found: list[Any]) -> Any:
    """One evidence of several."""
    kinds, features = {one.kind for one in found}, {one.num_features for one in found}
    if len(kinds) > 1:
        raise ValueError(
            f"log_evidence: the parts of the rows have evidences of several kinds: "
            f"{', '.join(sorted(kinds))}. Try method='importance'."
        )
    shapes = [one.tails.k for one in found if one.tails is not None]
    return replace(
        found[0],
        value=torch.cat([one.value for one in found]),
        row_variance=torch.cat([one.row_variance for one in found]),
        num_rows=sum(one.num_rows for one in found),
        num_features=features.pop() if len(features) == 1 else None,
        tails=Shapes(torch.cat(shapes)) if shapes else None,
    )


@dataclass(eq=False)
class Shapes(Tails):
    """What is kept of the tails of rows: their shapes, `(R,)`."""

    k: Tensor

    def __init__(self, k: Tensor) -> None:
        self.k = k

    def of_rows(self, rows: slice) -> "Shapes":
        return Shapes(self.k[rows])

    def smoothed(self) -> Smoothed:
        return Smoothed(self.k, self.k.new_zeros(0, len(self.k)))


def check_apart(joint: Joint) -> None:
    """Raises a ValueError where rows cannot be evaluated a part at a time."""
    if joint.tiled:
        return
    shared = [name for name in joint.latent if not joint.by_row]
    if shared:
        why = f"the latent(s) {', '.join(map(repr, shared))} are not of single rows, or depend on"
        why += " other rows: there is one evidence, of the whole data"
    else:
        why = "what the programs say of a row depends on the rows beside it, or the guide has"
        why += " parameters for each row"
    raise ValueError(
        f"data: rows that are read a part at a time must each have an evidence of their own, and "
        f"{why}. Try rows in memory, torch.from_numpy(numpy.array(x)), as far as they fit."
    )
