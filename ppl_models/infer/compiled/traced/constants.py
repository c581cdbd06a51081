"""The constants of a graph: where they stand, and how they become inputs.

An operation on a tensor and a number takes the number's place for a tensor of no dimension, in the
precision in which torch would compute with the number, so that the result is of the same dtype.
Numbers that say how large something is, and those of operations that take no tensor in their place,
are no constants here, but a part of the graph.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

aten = torch.ops.aten
EXACT = 2**53  # integers beyond are no numbers in double precision
LIFTS = {aten.lift_fresh.default, aten.lift_fresh_copy.default}  # of `torch.tensor`

# For operations on a tensor and numbers: where the tensor is, where the numbers may be, and the
# operation on tensors.
SAME = ("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_")
ALIKE = ("gt", "ge", "lt", "le", "eq", "ne", "fill", "fill_")
PLACES: dict[Any, tuple[int, tuple[int, ...], Any]] = {
    **{getattr(aten, name).Tensor: (0, (1,), getattr(aten, name).Tensor) for name in SAME},
    **{getattr(aten, name).Scalar: (0, (1,), getattr(aten, name).Tensor) for name in ALIKE},
    aten.rsub.Scalar: (0, (1,), aten.rsub.Tensor),
    aten.pow.Tensor_Scalar: (0, (1,), aten.pow.Tensor_Tensor),
    aten.pow.Scalar: (1, (0,), aten.pow.Tensor_Tensor),
    aten.clamp.default: (0, (1, 2), aten.clamp.Tensor),
    aten.clamp_min.default: (0, (1,), aten.clamp_min.Tensor),
    aten.clamp_max.default: (0, (1,), aten.clamp_max.Tensor),
    aten.where.ScalarOther: (1, (2,), aten.where.self),
    aten.where.ScalarSelf: (2, (1,), aten.where.self),
    aten.masked_fill.Scalar: (0, (2,), aten.masked_fill.Tensor),
    aten.lerp.Scalar: (0, (2,), aten.lerp.Tensor),
}
KEEPS = {aten.fill.Scalar, aten.fill_.Scalar, aten.masked_fill.Scalar}  # the tensor's dtype
FULL = {aten.full.default: 1, aten.full_like.default: 1, aten.new_full.default: 2}


class Place(NamedTuple):
    """Where a constant stands: an argument of a node, or a tensor that was made of numbers."""

    node: int
    argument: int | None


class Anatomy:
    """A graph as its operations and its constants, apart.

    Arguments:
        graph: What was traced.
        held: Tensors that the program holds, which are no constants.
    """

    def __init__(self, graph: GraphModule, held: Iterable[Tensor]) -> None:
        self.constants: dict[Place, Any] = {}
        self._held = {id(x) for x in held}
        self._numbers: dict[Node, int] = {}
        self.nodes = [self._node(graph, n, node) for n, node in enumerate(graph.graph.nodes)]

    def differing(self, other: "Anatomy") -> set[Place] | None:
        """Where constants differ from those of another graph; None if more than that differs."""
        if self.nodes != other.nodes:
            return None
        pairs = ((p, c, other.constants[p]) for p, c in self.constants.items())
        return {place for place, mine, its in pairs if not _same(mine, its)}

    def _node(self, graph: GraphModule, n: int, node: Node) -> Any:
        self._numbers[node] = n
        if node.op == "get_attr":
            return self._attribute(n, node, getattr(graph, str(node.target)))
        arguments: list[Any] = list(node.args)
        for at in _places(node):
            self.constants[Place(n, at)] = arguments[at]
            arguments[at] = _Number
        parts = tree_map(self._part, (arguments, dict(node.kwargs)))
        return node.op, node.target, parts, _meta(node.meta.get("val"))

    def _attribute(self, n: int, node: Node, tensor: Any) -> Any:
        made = node.users and all(user.target in LIFTS for user in node.users)
        if not made or not isinstance(tensor, Tensor) or id(tensor) in self._held:
            return node.op, id(tensor)
        self.constants[Place(n, None)] = tensor
        return node.op, _meta(tensor)

    def _part(self, part: Any) -> Any:
        """An argument, told apart by its kind, too: `1` and `True` are equal."""
        return ("node", self._numbers[part]) if isinstance(part, Node) else (type(part), str(part))


class _Number:
    """Stands where there is a constant."""


def open_up(graph: GraphModule, places: Collection[Place]) -> dict[Place, Tensor]:
    """Makes constants of a graph tensors that it reads, and returns these."""
    tensors: dict[Place, Tensor] = {}
    for n, node in enumerate(list(graph.graph.nodes)):
        if Place(n, None) in places:
            tensors[Place(n, None)] = getattr(graph, str(node.target))
        elif any(place.node == n for place in places):
            read = _take_tensors(graph, node)
            tensors |= {p: read[p.argument] for p in places if p.node == n and p.argument in read}
    graph.recompile()
    return tensors


def _take_tensors(graph: GraphModule, node: Node) -> dict[int | None, Tensor]:
    """Makes an operation on numbers one on tensors, and returns these by their places."""
    kind, value = _dtype(node), node.meta["val"]
    arguments: list[Any] = list(node.args)
    wide = torch.float64 if kind.is_floating_point else torch.int64
    read: dict[int | None, Tensor] = {}
    for at in _places(node):
        read[at] = tensor = torch.tensor(arguments[at], dtype=wide, device=value.device)
        name = f"number_{at}_of_{node.name}"
        setattr(graph, name, tensor)
        with graph.graph.inserting_before(node):
            arguments[at] = graph.graph.get_attr(name)
            arguments[at].meta["val"] = tensor
            arguments[at] = graph.graph.call_function(aten.to.dtype, (arguments[at], kind))
            arguments[at].meta["val"] = tensor.to(kind)
    if node.target in FULL:
        with graph.graph.inserting_before(node):
            number = arguments[FULL[node.target]]
            whole = graph.graph.call_function(aten.expand.default, (number, list(value.shape)))
            node.replace_all_uses_with(graph.graph.call_function(aten.clone.default, (whole,)))
        whole.meta["val"] = value
        next(iter(whole.users)).meta["val"] = value
        graph.graph.erase_node(node)
    else:
        node.args, node.target = tuple(arguments), PLACES[node.target][2]
    return read


def _places(node: Node) -> list[int]:
    """The arguments of a node that are constants."""
    if node.target in FULL:
        at, value = FULL[node.target], node.meta["val"]
        strict = value.is_floating_point() and value.is_contiguous() and _is_on(value)
        return [at] if strict and _is_number(node.args[at]) else []
    if node.target not in PLACES:
        return []
    tensor, places, _ = PLACES[node.target]
    value = _value(node.args[tensor])
    found = [at for at in places if at < len(node.args) and _is_number(node.args[at])]
    if value is None or not _is_on(value) or not found:
        return []
    kinds = {torch.result_type(value, node.args[at]) for at in found}  # type: ignore[arg-type]
    real = len(kinds) == 1 and not any(kind.is_complex for kind in kinds)
    return found if real and (node.target not in KEEPS or kinds == {value.dtype}) else []


def _dtype(node: Node) -> torch.dtype:
    """The precision in which an operation computes with its numbers."""
    if node.target in FULL:
        return node.meta["val"].dtype
    value, at = _value(node.args[PLACES[node.target][0]]), _places(node)[0]
    assert value is not None
    return torch.result_type(value, node.args[at])  # type: ignore[arg-type]


def _is_on(value: Tensor) -> bool:
    """Whether it is where there is double precision."""
    return value.device.type in ("cpu", "cuda")


def _is_number(value: Any) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and (isinstance(value, float) or abs(value) < EXACT)


def _value(argument: Any) -> Tensor | None:
    value = argument.meta.get("val") if isinstance(argument, Node) else None
    return value if isinstance(value, Tensor) else None


def _meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return type(value)
    return value.shape, value.stride(), value.dtype, value.device


def _same(mine: Any, its: Any) -> bool:
    if isinstance(mine, Tensor):
        return bool(torch.equal(mine, its))
    return type(mine) is type(its) and mine == its
