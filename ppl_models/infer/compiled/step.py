r"""A whole training step as one flat graph: rows, losses, gradients, optimisers and averages.

The losses come as graphs that were traced from the programs. Their parameters become inputs, and
what follows from a loss is traced once more, so that a step is one list of operations, without any
of Python's: all that lasts is written into its inputs. What differs from step to step is read from
tables at a place that the step itself moves on: the rows of the batch, the numbers of the
optimisers, the weight of an average; there the losses are written, too.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ppl_models.infer.compiled.code.native import Native
from ppl_models.infer.compiled.code.products import multiply_by_wide_vectors
from ppl_models.infer.compiled.code.small import make_small_once
from ppl_models.infer.compiled.code.solves import solve_here
from ppl_models.infer.compiled.packs import AVERAGE, PARAMETER, Pack, all_tensors, overlap


@dataclass
class Turn:
    """What one objective does in a step.

    Attributes:
        graph: Its loss, a graph of the rows of a batch and of the data.
        packs: The parameters that it moves.
        clip: The largest norm of its gradient; None for no clipping.
    """

    graph: GraphModule
    packs: list[Pack]
    clip: float | None
    read: list[Tensor] = field(init=False)  # what else it reads, in the order of its inputs

    @property
    def dtype(self) -> torch.dtype:
        """That of the loss."""
        (output,) = self.graph.graph.find_nodes(op="output")
        (value,) = output.all_input_nodes
        return value.meta["val"].dtype

    def __post_init__(self) -> None:
        self.read = _closed(self.graph)


class Step:
    """A step as compiled code.

    Arguments:
        turns: What each objective does, in their order.
        data: The tensors that hold all rows.
        rows: The rows of a batch, `(B,)`.
        chooses: Whether other rows come with each step, from a table.
        length: The number of steps for which its tables have room.
    """

    def __init__(
        self,
        turns: list[Turn],
        data: tuple[Tensor, ...],
        rows: Tensor,
        chooses: bool,
        length: int,
    ) -> None:
        self.turns, self.data, self.chooses, self.length = turns, data, chooses, length
        self.packs = [pack for turn in turns for pack in turn.packs]
        own = {id(p) for pack in self.packs for p in pack.parameters}
        self.others = {id(x): x for turn in turns for x in turn.read if id(x) not in own}
        if overlap(all_tensors(self.packs), [*self.others.values(), *data]):
            raise ValueError("what an optimiser moves has two names, or a program reads its memory")
        table = torch.zeros(length, dtype=torch.float64)
        self.tables: dict[str, Any] = {
            "place": torch.zeros((), dtype=torch.int64),
            "rows": rows.new_zeros(length, len(rows)) if chooses else rows.clone(),
            "numbers": [pack.numbers(table).to(pack.dtype) for pack in self.packs],
            "weights": table.clone(),  # of what is new in an average
            "losses": [torch.zeros(length, dtype=turn.dtype) for turn in turns],
        }
        flat, form = self._inputs()
        with torch.no_grad():
            graph = make_fx(lambda *given: self._take(given, form), tracing_mode="fake")(*flat)
        written = [flat[n] for n in _written(graph)]
        if any(x is own for x in written for own in data):
            raise ValueError("a program writes into its rows")
        # What programs hold and write into, besides parameters.
        self.written = [x for x in written if id(x) in self.others]
        make_small_once(graph)
        multiply_by_wide_vectors(graph)
        solve_here(graph)
        _draw_as_torch_does(graph)
        for node in graph.graph.nodes:
            node.meta.clear()  # of another trace
        self.native = Native(graph, flat)

    def run(self, times: int) -> list[Tensor]:
        """Takes steps, and returns the losses before each, by objectives: `(times,)`."""
        self.tables["place"].zero_()
        self.native(times, self._inputs()[0])
        for pack in self.packs:
            pack.store()
            pack.counted(times)
        return [loss[:times].clone() for loss in self.tables["losses"]]

    def _inputs(self) -> tuple[list[Tensor], TreeSpec]:
        """All that a step reads and writes."""
        packs = [dict(zip(pack.names, pack.load(), strict=True)) for pack in self.packs]
        return tree_flatten([self.tables, list(self.data), list(self.others.values()), packs])

    def _take(self, given: tuple[Tensor, ...], form: TreeSpec) -> tuple[()]:
        """A step: all that it changes it changes in place."""
        tables, data, others, kept = tree_unflatten(given, form)
        place = tables["place"].view(1)
        rows = tables["rows"]
        rows = rows.index_select(0, place).squeeze(0) if self.chooses else rows
        known = dict(zip(self.others, others, strict=True))
        at = 0
        for turn, losses in zip(self.turns, tables["losses"], strict=True):
            mine = range(at, at := at + len(turn.packs))
            moved = [kept[n][PARAMETER].detach().requires_grad_() for n in mine]
            values = [own[PARAMETER] for own in kept]
            values[mine.start : mine.stop] = moved
            with torch.enable_grad():
                for pack, value in zip(self.packs, values, strict=True):
                    known.update(zip(map(id, pack.parameters), pack.split(value), strict=True))
                loss = turn.graph(rows, *data, *(known[id(x)] for x in turn.read))
                slopes = torch.autograd.grad(loss, moved)
            losses.index_put_((place,), loss.detach())
            slopes = slopes if turn.clip is None else _clipped(slopes, turn.clip)
            for n, slope in zip(mine, slopes, strict=True):
                numbers = tables["numbers"][n].index_select(0, place).squeeze(0).unbind()
                pack, own = self.packs[n], kept[n]
                pack.rule.move(own[PARAMETER], own, slope, numbers, pack.group)
        weight = tables["weights"].index_select(0, place).squeeze(0)
        for own in kept:
            if AVERAGE in own:
                average = own[AVERAGE]
                average.lerp_(own[PARAMETER].to(average.dtype), weight.to(average.dtype))
        tables["place"].add_(1)
        return ()


def _clipped(slopes: tuple[Tensor, ...], largest: float) -> tuple[Tensor, ...]:
    """Slopes whose norm together is at most so large, as torch's `clip_grad_norm_` has it."""
    norm = torch.stack([torch.linalg.vector_norm(slope) for slope in slopes]).norm()
    share = (largest / (norm + 1e-6)).clamp(max=1.0)
    return tuple(slope * share.to(slope.dtype) for slope in slopes)


def _closed(graph: GraphModule) -> list[Tensor]:
    """Makes what a graph reads, besides its inputs, inputs of it, the last ones; returns that."""
    first = next(node for node in graph.graph.nodes if node.op != "placeholder")
    read: dict[int, Tensor] = {}
    places: dict[int, Node] = {}
    for node in list(graph.graph.find_nodes(op="get_attr")):
        tensor = getattr(graph, str(node.target))
        if id(tensor) not in read:
            with graph.graph.inserting_before(first):
                places[id(tensor)] = graph.graph.placeholder(f"read_{len(read)}")
            read[id(tensor)] = tensor
        node.replace_all_uses_with(places[id(tensor)])
        graph.graph.erase_node(node)
    graph.recompile()
    return list(read.values())


def _written(graph: GraphModule) -> list[int]:
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
    """Makes draws into tensors of their own draws in place, which the compiler leaves to torch."""
    aten = torch.ops.aten
    for node in graph.graph.find_nodes(op="call_function", target=aten.bernoulli.default):
        with graph.graph.inserting_before(node):
            empty = graph.graph.call_function(aten.empty_like.default, node.args[:1])
            drawn = graph.graph.call_function(
                aten.bernoulli_.Tensor, (empty, node.args[0]), node.kwargs
            )
        node.replace_all_uses_with(drawn)
        graph.graph.erase_node(node)
    graph.recompile()
