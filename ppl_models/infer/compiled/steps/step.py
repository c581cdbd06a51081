r"""A whole training step as one flat graph: rows, losses, gradients, optimisers and averages.

The losses come as graphs that were traced from the programs. Their parameters become inputs, and
what follows from a loss is traced once more, so that a step is one list of operations, without any
of Python's: all that lasts is written into its inputs. What differs from step to step is read from
tables at a place that the step itself moves on: the rows of the batch, the numbers of the
optimisers, the weight of an average; there the losses are written, too.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ppl_models.infer.compiled.code.flat import closed, make_ready, written
from ppl_models.infer.compiled.code.native import Native
from ppl_models.infer.compiled.steps.packs import AVERAGE, PARAMETER, Pack, all_tensors, overlap


class Closed:
    """A graph, and the tensors that it reads besides its inputs, as further inputs of it.

    Arguments:
        graph: The graph, which is changed.
        moved: Parameters, of which it may have held views.
    """

    def __init__(self, graph: GraphModule, moved: Iterable[Tensor] = ()) -> None:
        self.graph = graph
        self.read = closed(graph, moved)

    def __call__(self, known: dict[int, Tensor], *inputs: Tensor) -> Any:
        """Runs it on tensors that stand for those that it reads, by their ids."""
        return self.graph(*inputs, *(known[id(x)] for x in self.read))

    @property
    def dtype(self) -> torch.dtype:
        """That of its only result."""
        (output,) = self.graph.graph.find_nodes(op="output")
        (value,) = output.all_input_nodes
        return value.meta["val"].dtype


class Turn(NamedTuple):
    """What one objective does in a step.

    Attributes:
        losses: Its losses, graphs of the rows of a batch and of its values, one for each of the
            parts of a batch on which it takes a step.
        packs: The parameters that it moves.
        clip: The largest norm of its gradient; None for no clipping.
        reports: Tensors into which the losses write what is recorded beside them.
        stepped: What is done after each step, if anything is.
    """

    losses: list[Closed]
    packs: list[Pack]
    clip: float | None
    reports: tuple[Tensor, ...] = ()
    stepped: Closed | None = None

    @property
    def read(self) -> list[Tensor]:
        """What it reads and writes, besides the batch."""
        graphs = [*self.losses, *([self.stepped] if self.stepped else [])]
        return [*(x for graph in graphs for x in graph.read), *self.reports]

    @property
    def kinds(self) -> list[torch.dtype]:
        """The dtypes of what is recorded: the loss, and what it reports."""
        return [self.losses[0].dtype, *(x.dtype for x in self.reports)]


class Feed(NamedTuple):
    """Where the batches of steps come from.

    Attributes:
        rows: The rows of a first batch, `(B,)`; all of them where a batch is the whole data.
        data: All rows.
        chooses: Whether other rows come with each step, from a table.
        numbered: Whether the first of the data says which rows the programs are to see.
        transform: What is done with the values of a batch, if anything is.
        most: The largest number of steps that there is room for.
    """

    rows: Tensor
    data: tuple[Tensor, ...]
    chooses: bool = False
    numbered: bool = False
    transform: Callable[..., Any] | None = None
    most: int = 2**62

    def batch(self, rows: Tensor, data: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The rows that programs see, and their values, not yet transformed."""
        values = tuple(x.index_select(0, rows) if self.chooses else x for x in data)
        return (values[0], values[1:]) if self.numbered else (rows, values)


class Step:
    """A step as compiled code.

    Arguments:
        turns: What each objective does, in their order.
        feed: Where batches come from.
        length: The number of steps for which its tables have room.
        transform: That of the feed, as a graph.
    """

    def __init__(
        self, turns: list[Turn], feed: Feed, length: int, transform: Closed | None = None
    ) -> None:
        self.turns, self.feed, self.length, self.transform = turns, feed, length, transform
        self.packs = [pack for turn in turns for pack in turn.packs]
        own = {id(p) for pack in self.packs for p in pack.parameters}
        read = [x for turn in turns for x in turn.read] + (transform.read if transform else [])
        self.others = {id(x): x for x in read if id(x) not in own}
        if overlap(all_tensors(self.packs), [*self.others.values(), *feed.data]):
            raise ValueError("what an optimiser moves has two names, or a program reads its memory")
        self.tables = self._tables()
        flat, form = self._inputs()
        with torch.no_grad():
            graph = make_fx(lambda *given: self._take(given, form), tracing_mode="fake")(*flat)
        changed = [flat[n] for n in written(graph)]
        if any(x is own for x in changed for own in feed.data):
            raise ValueError("a program writes into its rows")
        # What programs hold and write into, besides parameters.
        self.written = [x for x in changed if id(x) in self.others]
        make_ready(graph)
        self.native = Native(graph, flat)

    def _tables(self) -> dict[str, Any]:
        """What differs from step to step, and what is recorded."""
        rows, length = self.feed.rows, self.length
        table = torch.zeros(length, dtype=torch.float64)
        numbers = [pack.numbers(table[:1]).to(pack.dtype) for pack in self.packs]
        times = [len(turn.losses) for turn in self.turns for _ in turn.packs]
        return {
            "place": torch.zeros((), dtype=torch.int64),
            "rows": rows.new_zeros(length, len(rows)) if self.feed.chooses else rows.clone(),
            "numbers": [
                x.new_zeros(length, many, x.shape[1])
                for x, many in zip(numbers, times, strict=True)
            ],
            "weights": table,  # of what is new in an average
            "losses": [
                torch.zeros(length, dtype=kind) for turn in self.turns for kind in turn.kinds
            ],
        }

    def begin(self) -> list[Tensor]:
        """Goes to the start of its tables; returns all that a step reads and writes."""
        self.tables["place"].zero_()
        return self._inputs()[0]

    def _inputs(self) -> tuple[list[Tensor], TreeSpec]:
        packs = [dict(zip(pack.names, pack.tensors(), strict=True)) for pack in self.packs]
        data = list(self.feed.data)
        return tree_flatten([self.tables, data, list(self.others.values()), packs])

    def _take(self, given: tuple[Tensor, ...], form: TreeSpec) -> tuple[()]:
        """A step: all that it changes it changes in place."""
        tables, data, others, kept = tree_unflatten(given, form)
        known = dict(zip(self.others, others, strict=True))
        now = _Now(tables, tables["place"].view(1), kept, known)
        batch = self._batch(now, data)
        at, losses = 0, iter(tables["losses"])
        for turn in self.turns:
            mine = range(at, at := at + len(turn.packs))
            for number in self._turns(now, turn, mine, batch):
                next(losses).index_put_((now.place,), number)
        weight = now.at_place(tables["weights"])
        for own in kept:
            if AVERAGE in own:
                average = own[AVERAGE]
                average.lerp_(own[PARAMETER].to(average.dtype), weight.to(average.dtype))
        tables["place"].add_(1)
        return ()

    def _batch(self, now: "_Now", data: list[Tensor]) -> tuple[Tensor, ...]:
        """The rows of a batch, and its values as programs get them."""
        rows = now.tables["rows"]
        rows, values = self.feed.batch(now.at_place(rows) if self.feed.chooses else rows, data)
        if self.transform is not None:
            values = tuple(self.transform(now.known, *values))
        return (rows, *values)

    def _turns(
        self, now: "_Now", turn: Turn, mine: range, batch: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """The steps of an objective; returns the mean of its losses, and of what it reports."""
        many = len(turn.losses)
        parts = zip(*(x.chunk(many) if many > 1 else (x,) for x in batch), strict=True)
        found = [self._turn(now, turn, n, mine, part) for n, part in enumerate(parts)]
        if many == 1:
            return found[0]
        return [torch.stack(numbers).div(many).sum() for numbers in zip(*found, strict=True)]

    def _turn(
        self, now: "_Now", turn: Turn, number: int, mine: range, batch: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """Moves the parameters of an objective once; returns its loss, and what it reports."""
        moved = [now.kept[n][PARAMETER].detach().requires_grad_() for n in mine]
        with torch.enable_grad():
            known = dict(now.known)
            for n, pack in enumerate(self.packs):  # anew, as they have moved since the last turn
                value = moved[n - mine.start] if n in mine else now.kept[n][PARAMETER]
                known.update(zip(map(id, pack.parameters), pack.split(value), strict=True))
            loss = turn.losses[number](known, *batch)
            slopes = torch.autograd.grad(loss, moved)
        slopes = slopes if turn.clip is None else _clipped(slopes, turn.clip)
        for n, slope in zip(mine, slopes, strict=True):
            numbers = now.at_place(now.tables["numbers"][n])[number].unbind()
            pack, own = self.packs[n], now.kept[n]
            pack.rule.move(own[PARAMETER], own, slope, numbers, pack.group)
        if turn.stepped is not None:
            for pack, own in zip(self.packs, now.kept, strict=True):
                parts = pack.split(own[PARAMETER])
                known.update(zip(map(id, pack.parameters), parts, strict=True))
            turn.stepped(known)
        return [loss.detach(), *(now.known[id(x)].clone() for x in turn.reports)]


class _Now(NamedTuple):
    """Where a step is, and what it reads and writes."""

    tables: dict[str, Any]
    place: Tensor  # (1,)
    kept: list[dict[str, Tensor]]  # of each pack
    known: dict[int, Tensor]  # what stands for live tensors, by their ids

    def at_place(self, table: Tensor) -> Tensor:
        """What a table has for this step."""
        return table.index_select(0, self.place).squeeze(0)


def _clipped(slopes: tuple[Tensor, ...], largest: float) -> tuple[Tensor, ...]:
    """Slopes whose norm together is at most so large, as torch's `clip_grad_norm_` has it."""
    norm = torch.stack([torch.linalg.vector_norm(slope) for slope in slopes]).norm()
    share = (largest / (norm + 1e-6)).clamp(max=1.0)
    return tuple(slope * share.to(slope.dtype) for slope in slopes)
