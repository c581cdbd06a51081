"""What is done to a flat graph before it becomes code: all that it reads becomes an input."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_models.infer.compiled.code.products import multiply_by_wide_vectors
from ppl_models.infer.compiled.code.small import make_small_once
from ppl_models.infer.compiled.code.solves import solve_here


def make_ready(graph: GraphModule) -> None:
    """Writes the operations of a graph in the forms whose code is the fastest."""
    make_small_once(graph)
    multiply_by_wide_vectors(graph)
    solve_here(graph)
    _draw_as_torch_does(graph)
    for node in graph.graph.nodes:
        node.meta.clear()  # of another trace


def closed(graph: GraphModule, moved: Iterable[Tensor] = ()) -> list[Tensor]:
    """Makes what a graph reads, besides its inputs, inputs of it, the last ones; returns that.

    Arguments:
        graph: The graph, which is changed.
        moved: Parameters, of which it may hold views.
    """
    others = ("placeholder", "get_attr")  # those of the latter are erased
    first = next(node for node in graph.graph.nodes if node.op not in others)
    owners = {x.untyped_storage().data_ptr(): x for x in moved}
    read: dict[int, Tensor] = {}
    places: dict[int, Node] = {}
    for node in list(graph.graph.find_nodes(op="get_attr")):
        tensor = getattr(graph, str(node.target))
        # A gradient within a loss holds transposed weights.
        owner = owners.get(tensor.untyped_storage().data_ptr(), tensor)
        owner = tensor if tensor.is_leaf and tensor.requires_grad else owner
        if id(owner) not in read:
            with graph.graph.inserting_before(first):
                places[id(owner)] = graph.graph.placeholder(f"read_{len(read)}")
            read[id(owner)] = owner
        with graph.graph.inserting_before(first):
            node.replace_all_uses_with(_view(graph, places[id(owner)], owner, tensor))
        graph.graph.erase_node(node)
    graph.recompile()
    return list(read.values())


def _view(graph: GraphModule, place: Node, owner: Tensor, tensor: Tensor) -> Node:
    """A view of a parameter, as one of what stands for it."""
    kinds = [(x.shape, x.stride(), x.storage_offset()) for x in (owner, tensor)]
    if kinds[0] == kinds[1]:
        return place
    if owner.ndim == 2 and (owner.t().shape, owner.t().stride(), kinds[0][2]) == kinds[1]:
        return graph.graph.call_function(torch.ops.aten.t.default, (place,))
    raise ValueError("it holds a part of a parameter")


def written(graph: GraphModule) -> list[int]:
    """Which inputs a graph writes into, by their places: themselves, or a view of them."""
    places = {node: n for n, node in enumerate(graph.graph.find_nodes(op="placeholder"))}
    of: dict[Node, int] = dict(places)  # the input that a node is a view of
    found: set[int] = set()
    for node in (node for node in graph.graph.nodes if node.op == "call_function"):
        schema = getattr(node.target, "_schema", None)
        if schema is None:  # a part of several results
            arguments, is_view = [], True
        else:
            arguments = list(zip(schema.arguments, node.args, strict=False))
            arguments += [(x, node.kwargs.get(x.name)) for x in schema.arguments]
            is_view = any(x.alias_info is not None for x in schema.returns)
        for argument, value in arguments:
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes and isinstance(value, Node) and value in of:
                found.add(of[value])
        source = node.args[0] if node.args else None
        if is_view and isinstance(source, Node) and source in of:
            of[node] = of[source]
    return sorted(found)


def _draw_as_torch_does(graph: GraphModule) -> None:
    """Makes draws into tensors of their own what the compiler leaves to torch."""
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.bernoulli.default):
        with graph.graph.inserting_before(node):
            is_plain = _is_plain(node.args[0].meta.get("val")) and not node.kwargs
            drawn = (_ones if is_plain else _ones_in_place)(graph, node)
        node.replace_all_uses_with(drawn)
        graph.graph.erase_node(node)
    graph.recompile()


def _ones(graph: GraphModule, node: Node) -> Node:
    """Ones as uniform numbers below their probabilities, as torch draws them on the CPU.

    For these the code has an entry of torch; NaN for what is no probability, where torch raises.
    """
    aten, call, chance = torch.ops.aten, graph.graph.call_function, node.args[0]
    value = chance.meta["val"]  # type: ignore[union-attr]
    like = {"dtype": value.dtype, "device": value.device}
    uniform = call(aten.rand.default, (list(value.shape),), like)
    ones = call(aten._to_copy.default, (call(aten.lt.Tensor, (uniform, chance)),), like)
    bounds = call(aten.ge.Scalar, (chance, 0)), call(aten.le.Scalar, (chance, 1))
    is_chance = call(aten.logical_and.default, bounds)
    return call(aten.where.ScalarOther, (is_chance, ones, torch.nan))


def _ones_in_place(graph: GraphModule, node: Node) -> Node:
    """Ones that are drawn in place, by way of Python."""
    aten, call = torch.ops.aten, graph.graph.call_function
    in_order: dict[str, Any] = {"memory_format": torch.contiguous_format}  # that of torch's draws
    empty = call(aten.empty_like.default, node.args[:1], in_order)
    return call(aten.bernoulli_.Tensor, (empty, node.args[0]), node.kwargs)


def _is_plain(value: object) -> bool:
    """Whether it is a tensor on the CPU in single or double precision."""
    kinds = (torch.float32, torch.float64)
    return isinstance(value, Tensor) and value.is_cpu and value.dtype in kinds
