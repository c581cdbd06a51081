"""A traced loss, and what it holds fast: all that was a constant, but for numbers that are inputs.

Where what was watched has changed, the program is traced again. If the graph is the same but for
constants, these become inputs. Under further values of the numbers that changed, the inputs are
what the formulas say that were followed through the program, as long as all conditions come out
alike; else it is traced again, which costs no compilation where the graph is still the same.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import Graph, GraphModule

from ppl_models.infer.compiled.traced.constants import Anatomy, Place, open_up
from ppl_models.infer.compiled.traced.following import Constant, Formula, Record, value_of
from ppl_models.infer.compiled.watch import Spot, Watch, holds, is_same, spot_of


class Traced:
    """A loss as a graph.

    Arguments:
        graph: The graph.
        watch: What must stay as it is.
        anatomy: The graph as it was traced, its constants and all else apart.
        inputs: The tensors in place of constants.
    """

    def __init__(
        self,
        graph: GraphModule,
        watch: Watch,
        anatomy: Anatomy,
        inputs: dict[Place, Tensor] | None = None,
    ) -> None:
        self.graph, self.watch, self.anatomy = graph, watch, anatomy
        self.inputs = inputs or {}
        self.followed: Followed | None = None
        self.spots: list[Spot] = []  # of the numbers that are followed
        self.values: dict[Hashable, float] = {}  # of these, when it was traced
        self.takes = 0  # how often it took other numbers
        self.untried = False  # whether it should be compared with these

    def holds(self) -> bool:
        """Whether it stands for the program as it is now; takes numbers that changed."""
        return holds(self.watch) or (self.followed is not None and self._take(self.followed))

    def changed(self) -> list[Spot]:
        """Where the numbers are to be followed: none where something else has changed."""
        spots = {spot.key: spot for spot in self.spots}
        for now, before in self.watch:
            value = now()
            if not is_same(value, before):
                spot = spot_of(now)
                if spot is None or type(before) is not float or type(value) is not float:
                    return []
                spots[spot.key] = spot
        return list(spots.values())

    def opened(self, again: "Again", places: Iterable[Place]) -> "Traced":
        """What was traced again, with inputs where it differs, and where there are some here."""
        graph = copied(again.graph)
        inputs = open_up(graph, {*self.inputs, *places})
        new = Traced(graph, again.watch, again.anatomy, inputs)
        new.follow(again, self)
        return new

    def renew(self, again: "Again") -> None:
        """Takes the constants of what was traced again, a graph that is otherwise the same."""
        for place, tensor in self.inputs.items():
            constant = again.anatomy.constants[place]
            tensor.copy_(constant) if isinstance(constant, Tensor) else tensor.fill_(constant)
        self.follow(again, self)

    def follow(self, again: "Again", before: "Traced") -> None:
        """Finds out what gave the inputs, in a trace and in the one before."""
        spots = again.spots if again.record is not None else []
        old = [before.value(spot) for spot in spots]
        followed = None
        if again.record is not None and None not in old:
            known: dict[Place, list[Formula]] = {}
            if before.followed and [s.key for s in before.spots] == [s.key for s in spots]:
                known = before.followed.formulas
            formulas = _formulas(self.inputs, before.anatomy, again, old, known)
            followed = None if formulas is None else Followed(formulas, again.record)
        self.watch, self.anatomy, self.spots, self.followed = (
            *(again.watch, again.anatomy),
            *(spots, followed),
        )
        self.values = {spot.key: spot.get() for spot in spots}

    def value(self, spot: Spot) -> Any:
        """A number when this was traced; None if it was not watched."""
        if spot.key in self.values:
            return self.values[spot.key]
        found = (x for now, x in self.watch if (s := spot_of(now)) and s.key == spot.key)
        return next(found, None)

    def _take(self, followed: "Followed") -> bool:
        """Takes other values of the numbers that are followed, if it stands for the program."""
        if followed.places is None:
            numbers = {spot.key: n for n, spot in enumerate(self.spots)}
            spots = ((n, spot_of(now)) for n, (now, _) in enumerate(self.watch))
            followed.places = {n: numbers[s.key] for n, s in spots if s and s.key in numbers}
        values = [spot.get() for spot in self.spots]
        if not all(type(x) is float and math.isfinite(x) for x in values):
            return False
        others = (x for n, x in enumerate(self.watch) if n not in followed.places)
        found = followed.inputs(values) if holds(others) else None
        if found is None:
            return False
        for place, value in found.items():
            self.inputs[place].fill_(value)
        for n, number in followed.places.items():
            self.watch[n] = self.watch[n][0], values[number]
        self.takes += 1
        self.untried = self.untried or self.takes.bit_count() == 1  # the 1st, 2nd, 4th, ...
        return True


class Again(NamedTuple):
    """A program that was traced again.

    Attributes:
        graph: The graph.
        watch: What must stay as it is.
        anatomy: The graph's constants and all else, apart.
        spots: Where numbers were followed.
        record: What became of them; None where they were not.
    """

    graph: GraphModule
    watch: Watch
    anatomy: Anatomy
    spots: list[Spot]
    record: Record | None


class Followed:
    """Inputs as formulas of numbers.

    Arguments:
        formulas: For each input what may have given it.
        record: What the program asked, and the answers.
    """

    def __init__(self, formulas: dict[Place, list[Formula]], record: Record) -> None:
        self.formulas = formulas
        self.conditions = list(dict.fromkeys(record.conditions))
        self.places: dict[int, int] | None = None  # of the numbers in a watch

    def inputs(self, values: Sequence[float]) -> dict[Place, float] | None:
        """The inputs under other values; None where the graph may be another."""
        try:
            if any(value_of(c.formula, values) != c.answer for c in self.conditions):
                return None
            found = {p: {value_of(f, values) for f in fs} for p, fs in self.formulas.items()}
        except ArithmeticError:
            return None
        if any(len(each) != 1 for each in found.values()):  # of which it is one, but which?
            return None
        return {place: each.pop() for place, each in found.items()}


def _formulas(
    inputs: dict[Place, Tensor],
    was: Anatomy,
    again: Again,
    old: Sequence[float],
    known: dict[Place, list[Formula]],
) -> dict[Place, list[Formula]] | None:
    """Which formulas gave the inputs, in a trace and in the one before; None if one has none."""
    assert again.record is not None
    formulas: dict[Place, list[Formula]] = {}
    for place, tensor in inputs.items():
        new, before = (_number(x.constants[place]) for x in (again.anatomy, was))
        given = [f for f, value in again.record.formulas.items() if _gives(tensor, value, new)]
        if new is None:  # a tensor of many numbers
            return None
        if new == before:
            given = [f for f in given if f in known.get(place, ())]
            if all(x != spot.get() for x, spot in zip(old, again.spots, strict=True)):
                given.append(Constant(new))  # whatever the numbers are
        else:
            given = [f for f in given if _gives(tensor, _value_or_none(f, old), before)]
        if not given:
            return None
        formulas[place] = given
    return formulas


def _value_or_none(formula: Formula, values: Sequence[float]) -> Any:
    try:
        return value_of(formula, values)
    except ArithmeticError:
        return None


def _gives(tensor: Tensor, value: Any, number: Any) -> bool:
    """Whether a value is the number of an input, in the input's precision."""
    if not isinstance(value, float) or not isinstance(number, float):
        return False
    return value == number or tensor.new_tensor(value).item() == number


def _number(constant: Any) -> Any:
    """A constant as a number; a tensor of more than one is none."""
    if isinstance(constant, Tensor):
        return constant.item() if constant.ndim == 0 else None
    return constant


def copied(graph: GraphModule) -> GraphModule:
    """A graph with nodes of its own, on the same tensors."""
    copied = Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    for old, new in zip(graph.graph.nodes, copied.nodes, strict=True):
        new.meta = dict(old.meta)
    return GraphModule(graph, copied)


@contextmanager
def standing_in(spots: Sequence[Spot]) -> Iterator[Record]:
    """A context in which numbers that are followed stand in for those of the program."""
    record, before = Record(), [spot.get() for spot in spots]
    try:
        for n, (spot, value) in enumerate(zip(spots, before, strict=True)):
            spot.put(record.follow(value, n))
        yield record
    finally:
        record.open = False
        for spot, value in zip(spots, before, strict=True):
            spot.put(value)
