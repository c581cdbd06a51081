"""Rows that are read a part at a time, each of which is evaluated as if there were no others.

That is right where each row has an evidence of its own: its latents belong to it, and the guide
gives them for any rows. Of a part no more is kept than a few numbers of each row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import Tensor

from ppl_models.infer.evidence.joint import Joint
from ppl_models.infer.evidence.pareto import Smoothed, Tails
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.tables import numbers_of
from ppl_models.infer.reading.arrays import is_on_disk
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.reading.in_order import Parts, in_order
from ppl_models.infer.reading.items import is_read
from ppl_models.prompt.bars import progress_bar
from ppl_models.scoped import mix


def parts_of(data: tuple[Any, ...], *programs: Any) -> Parts | None:
    """Returns the parts of rows that are read; None where all are in memory."""
    given = data[0] if len(data) == 1 else data
    if not (is_on_disk(given) or is_read(given)):
        return None
    model, modules = Program(programs[0], "model"), modules_of_programs(*programs)
    return in_order(given, numbers_of(modules).device, Taken(model.argument_names, modules))


def together(
    rows: Parts, evidence: Callable[..., Any], seed: int | None, progress: bool = False
) -> Any:
    """Returns the evidence of all rows, from `evidence(data, seed, of_parts)` of each part."""
    first, second = next(rows.parts), next(rows.parts, None)
    if second is None:
        return evidence(first, seed, False)
    whole = _Whole(rows.size)
    with progress_bar("log_evidence", rows.size, progress, unit="row") as advance:
        for number, part in enumerate(chain([first, second], rows.parts)):
            own = seed if seed is None or number == 0 else mix(seed, number)
            try:
                whole.add(evidence(part, own, True))
            except (ValueError, FloatingPointError) as error:
                where = f" (Counted from row {whole.count}.)" if whole.count else ""
                raise type(error)(f"{error}{where}") from None
            advance(len(part[0]))
    return whole.evidence()


class _Whole:
    """The evidence of rows, a part of which comes after the other, in its place.

    Arguments:
        size: The number of rows in all, at most.
    """

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self.first: Any = None
        self.numbers: dict[str, Tensor] = {}
        self.kinds: set[str] = set()
        self.features: set[int | None] = set()

    def add(self, one: Any) -> None:
        """Takes that of the next rows."""
        self.first = self.first or one
        self.kinds.add(one.kind)
        self.features.add(one.num_features)
        if len(self.kinds) > 1:
            raise ValueError(
                f"log_evidence: the parts of the rows have evidences of several kinds: "
                f"{', '.join(sorted(self.kinds))}. Try method='importance'."
            )
        rows = slice(self.count, self.count + one.num_rows)
        found = {"value": one.value, "row_variance": one.row_variance, "k": one.pareto_k}
        for name, numbers in found.items():
            if numbers is not None:
                self.numbers.setdefault(name, numbers.new_empty(self.size))[rows] = numbers
        self.count = rows.stop

    def evidence(self) -> Any:
        """That of all rows that came."""
        numbers = {name: x[: self.count] for name, x in self.numbers.items()}
        return replace(
            self.first,
            value=numbers["value"],
            row_variance=numbers["row_variance"],
            num_rows=self.count,
            num_features=self.features.pop() if len(self.features) == 1 else None,
            tails=Shapes(numbers["k"]) if "k" in numbers else None,
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
