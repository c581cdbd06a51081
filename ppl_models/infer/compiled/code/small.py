"""Small results that large ones read, made once.

Inductor writes what a number follows from into each loop that reads it. For a scale of five
components this is done again for each of the rows: all that is small is therefore made for itself.
"""

from collections.abc import Iterator

from torch import Tensor
from torch.fx import GraphModule, Node

TIMES = 8  # as many numbers in a result that reads it, or more


def make_small_once(graph: GraphModule) -> None:
    """Has the small results of a graph made by themselves that large ones read."""
    from torch._inductor.inductor_prims import force_stride_order  # which imports the compiler

    for node in list(graph.graph.nodes):
        value = node.meta.get("val")
        is_made = node.op == "call_function" and isinstance(value, Tensor) and not _is_view(node)
        if is_made and any(n >= TIMES * value.numel() for n in _readers(node)):
            with graph.graph.inserting_after(node):
                made = graph.graph.call_function(force_stride_order, (node, value.stride()))
            made.meta["val"] = value
            node.replace_all_uses_with(
                made, delete_user_cb=lambda user, made=made: user is not made
            )
    graph.recompile()


def _readers(node: Node) -> Iterator[int]:
    """The sizes of what reads a node or a view of it."""
    for user in node.users:
        if _is_view(user):
            yield from _readers(user)
        elif isinstance(user.meta.get("val"), Tensor):
            yield user.meta["val"].numel()


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(x.alias_info is not None for x in schema.returns)
