r"""Blocks of training steps that run as compiled code, and how it is known that they are right.

A step is traced once, compiled, and repeated many times in one call (`native`), with no code of the
user's between two steps. Code stands for a program only where that is shown: when it is made, and
again at the end of blocks, a step of it is compared with a step of the program itself, on the
batch, the parameters and the state of that moment and with the same random numbers: the losses,
and all that the step moves. Where they differ beyond rounding, all goes back to where they last
agreed, and the program runs by itself from there.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_models.infer.compiled.beside import traced
from ppl_models.infer.compiled.graph import CHANGES, HOST, Compiled
from ppl_models.infer.compiled.steps.moves import Derived, Move, by_average, by_moments
from ppl_models.infer.compiled.steps.packs import Pack, packed
from ppl_models.infer.compiled.steps.snapshot import Snapshot
from ppl_models.infer.compiled.steps.step import Closed, Feed, Step, Turn
from ppl_models.infer.compiled.steps.updates import Rule, rule_of
from ppl_models.infer.compiled.traced.evaluations import (
    DRAWN,
    HALF,
    NOISE,
    TOLERANCE,
    UNSTEADY,
)
from ppl_models.infer.compiled.traced.rounding import OtherwiseRounded
from ppl_models.infer.compiled.traced.traced import Traced, copied
from ppl_models.infer.compiled.watch import Watch, holds

LONGEST = 2**14  # steps of a block
WORK = 1e9  # in a block, about a tenth of a second: see `_length`
ENTRIES = 2**20  # of a table of rows
PATIENCE = 16  # blocks between two comparisons at most: twice as many after each

OTHERWISE = "a compiled step has another {} than the program itself"

Evaluate = Callable[..., Tensor]  # the loss of rows, (B,), and of the values of a batch


class Use(NamedTuple):
    """How an objective is used in a step.

    Attributes:
        loss: Its loss, which writes into `reports` what is recorded beside it.
        turns: How many steps it takes, on so many parts of a batch.
        reports: Tensors for what is recorded.
        stepped: What it does after each step, if it does anything.
    """

    loss: Evaluate
    turns: int = 1
    reports: tuple[Tensor, ...] = ()
    stepped: Callable[[], None] | None = None


class Kind(NamedTuple):
    """Steps that one piece of code takes."""

    step: Step
    losses: tuple[Traced, ...]
    held: Watch  # what was traced as a constant besides

    @property
    def watch(self) -> Watch:
        """All that was traced as a constant."""
        return [*self.held, *(entry for loss in self.losses for entry in loss.watch)]

    def holds(self) -> bool:
        """Whether it stands for the programs as they are now; takes numbers that changed."""
        return holds(self.held) and all(loss.holds() for loss in self.losses)


Plan = Sequence[tuple[Kind, int]]  # how many steps of which kind


class Loop:
    """Steps of descent in blocks.

    Arguments:
        compiled: The losses, in their order.
        optimizers: What moves the parameters of each.
        parameters: Those that each moves.
        clip: The largest norm of a gradient.
        averages: The averages of parameters by their id.
    """

    def __init__(
        self,
        compiled: Sequence[Compiled],
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Sequence[Sequence[Tensor]],
        clip: float | None,
        averages: dict[int, Tensor],
    ) -> None:
        self.compiled, self.optimizers, self.parameters = compiled, optimizers, parameters
        self.clip, self.averages = clip, averages
        self.kinds: dict[Hashable, Kind] = {}  # of now
        self.made: dict[tuple[Hashable, ...], Kind] = {}  # all, by what was traced
        self.losses: dict[tuple[Hashable, int, int], Traced] = {}
        self.packs: dict[tuple[int, ...], list[Pack]] = {}  # by what they have of parameters
        self.buffers: list[Tensor] = []  # of the modules that run, and what they write into
        # Why steps do not come in blocks, if so: those that are not known here run one by one.
        self.refused: str | None = None

    def kind(
        self,
        key: Hashable,
        look: Callable[[tuple[Tensor, ...]], Sequence[Use]],
        feed: Feed,
    ) -> Kind | None:
        """The code for steps of a kind, made where there is none; None where there can be none.

        Arguments:
            key: What the code depends on, besides what is watched.
            look: Says what the objectives do, from the rows of a batch and its values.
            feed: Where their batches come from.
        """
        found = self._known(key)
        if found is not None:
            return found
        watch: Watch = []
        try:
            transform, batch = self._batch(feed, watch)
            uses = look(batch)
            losses = [self._losses(key, n, use, batch) for n, use in enumerate(uses)]
            whole = tuple(loss for each in losses for loss in each.values())
            of = (key, *map(id, whole))
            if of in self.made and holds(self.made[of].held):  # with other constants
                self.kinds[key] = self.made[of]._replace(losses=whole)
                return self.kinds[key]
            pairs = zip(uses, losses, strict=True)
            turns = [self._turn(n, *pair, batch, watch) for n, pair in enumerate(pairs)]
            _check_owners(turns)
            graphs = [loss.graph for turn in turns for loss in turn.losses]
            length = _length(graphs, len(feed.rows) if feed.chooses else 0)
            step = Step(turns, feed, min(length, feed.most), transform)
        except Exception as error:  # no compiler, or an operation that it does not know
            self.refused = self.refused or f"{type(error).__name__}: {error}"
            return None
        rooms = {id(x) for use in uses for x in use.reports}  # which the programs leave as they are
        held = [x for x in step.written if id(x) not in rooms]
        held += [b for compiled in self.compiled for b in compiled.buffers()]
        self.buffers = list({id(x): x for x in (*self.buffers, *held)}.values())
        made = self.kinds[key] = self.made[of] = Kind(step, whole, watch)
        return made

    def _known(self, key: Hashable) -> Kind | None:
        """The code for steps of a kind, if some stands for the programs as they are now."""
        others = (kind for (known, *_), kind in self.made.items() if known == key)
        for kind in (self.kinds.get(key), *others):
            if kind is not None and kind.holds():
                self.kinds[key] = kind
                return kind
        return None

    def _batch(self, feed: Feed, watch: Watch) -> tuple[Closed | None, tuple[Tensor, ...]]:
        """What is done with a batch, as a graph, and a batch; adds what the graph holds fast."""
        rows, values = feed.batch(feed.rows, feed.data)
        if feed.transform is None:
            return None, (rows, *values)
        graph, held = traced("the transform", feed.transform, values, self.untouched)
        watch.extend(held)
        with self.untouched():
            values = graph(*values)
        return Closed(graph), (rows, *values)

    def _losses(
        self, key: Hashable, n: int, use: Use, batch: tuple[Tensor, ...]
    ) -> dict[int, Traced]:
        """The losses of an objective, by the numbers of rows of what it takes a step on."""
        losses: dict[int, Traced] = {}
        for part in _parts(use, batch):
            width = len(part[0])
            if width not in losses:
                found = self.losses.get((key, n, width))
                if found is None or not found.holds():
                    found = self.compiled[n].trace((key, "step", width), use.loss, part)
                if found is None:
                    raise ValueError("a loss cannot be traced")
                losses[width] = self.losses[key, n, width] = found
        return losses

    def _turn(
        self,
        n: int,
        use: Use,
        traced_losses: dict[int, Traced],
        batch: tuple[Tensor, ...],
        watch: Watch,
    ) -> Turn:
        """What an objective does; adds what is held fast besides its losses."""
        parts = _parts(use, batch)
        graphs = {width: copied(loss.graph) for width, loss in traced_losses.items()}
        packs = self._packs(n, graphs[len(parts[0][0])], parts[0])
        stepped = None
        if use.stepped is not None:
            graph, held = traced("what is done after a step", use.stepped, (), self.untouched)
            watch.extend(held)
            stepped = Closed(graph, self._moved())
        closed = {width: Closed(graph, self._moved()) for width, graph in graphs.items()}
        losses = [closed[len(part[0])] for part in parts]
        return Turn(losses, packs, self.clip, use.reports, stepped)

    def _packs(self, n: int, graph: GraphModule, batch: tuple[Tensor, ...]) -> list[Pack]:
        """The parameters that an objective moves, the same packs of them for all its graphs."""
        used = self.compiled[n].used_by(graph, batch, self.parameters[n])
        optimizer = self.optimizers[n]
        rules = [rule_of(optimizer, group) for group in optimizer.param_groups]
        known = _known(optimizer, rules, used)
        key = (n, *map(id, used))
        if key not in self.packs:
            self.packs[key] = packed(used, optimizer, known, self.averages)
        return self.packs[key]

    def _moved(self) -> list[Tensor]:
        return [p for parameters in self.parameters for p in parameters]

    def mixes(self, first: Kind, second: Kind) -> bool:
        """Whether steps of two kinds can be of one block: they move the same tensors."""
        ours, theirs = first.step.packs, second.step.packs
        return len(ours) == len(theirs) and all(map(is_, ours, theirs))

    def run(
        self, plan: Plan, rows: Sequence[Tensor], rates: Sequence[Tensor], weights: Tensor | None
    ) -> list[Tensor]:
        """Takes steps, and returns the losses before each and what is reported: `(T,)`.

        Arguments:
            plan: The kinds of the steps in their order, and how many of each.
            rows: Of each kind in the plan, as they first come, the rows of its steps, `(T, B)`;
                not looked at where a batch is the whole data.
            rates: The learning rates of each optimiser's groups at each of its steps.
            weights: The weights of what is new in an average, `(T,)`.
        """
        steps = list({id(kind.step): kind.step for kind, _ in plan}.values())
        places = {id(step): n for n, step in enumerate(steps)}
        of = torch.cat([torch.full((times,), places[id(k.step)]) for k, times in plan])
        self._fill(steps, of, rates, weights)
        for n, step in enumerate(steps):
            if step.feed.chooses:
                step.tables["rows"][: len(rows[n])] = rows[n]
        for compiled in self.compiled:
            compiled.steps += len(of)
        packs = steps[0].packs
        for pack in packs:
            pack.load()
        inputs = [step.begin() for step in steps]
        for kind, times in plan:
            kind.step.native(times, inputs[places[id(kind.step)]])
        for pack, updates in zip(packs, _updates(steps, of), strict=True):
            pack.store()
            pack.counted(len(updates))
        return _in_order(steps, of)

    def _fill(
        self,
        steps: Sequence[Step],
        of: Tensor,
        rates: Sequence[Tensor],
        weights: Tensor | None,
    ) -> None:
        """Writes what optimisers and averages read into the tables of steps."""
        for m, updates in enumerate(_updates(steps, of)):
            pack = steps[0].packs[m]
            n = self.optimizers.index(pack.optimizer)
            group = next(g for g, x in enumerate(pack.optimizer.param_groups) if x is pack.group)
            numbers = pack.numbers(rates[n][:, group])
            for k, step in enumerate(steps):
                table = step.tables["numbers"][m]
                own = numbers if len(steps) == 1 else numbers[updates == k]
                table.view(-1, table.shape[-1])[: len(own)] = own
        for k, step in enumerate(steps):
            if weights is not None:
                own = weights[of == k]
                step.tables["weights"][: len(own)] = own

    def difference(
        self,
        kind: Kind,
        eager: Callable[[], Sequence[Tensor]],
        compiled: Callable[[], Sequence[Tensor]],
    ) -> str | None:
        """What differs between a step of the programs and one of the code; None where nothing does.

        Arguments:
            kind: The code.
            eager: Takes a step of the programs, and returns the losses.
            compiled: Takes the same step by the code.
        """
        if not holds(kind.watch):
            return CHANGES
        ours, others = self._moves(eager), self._moves(compiled)
        derived = self._derived(kind)
        if any(compiled.draws_on_host for compiled in self.compiled):
            return HOST
        if not holds(kind.watch):
            return CHANGES
        pairs = enumerate(zip(ours, others, strict=True))
        far = [n for n, (a, b) in pairs if id(a.of) not in derived and not a.is_near(b)]
        if far:
            again = self._moves(eager)
            for a, b in zip(ours, again, strict=True):
                if not torch.equal(a.after.nan_to_num(), b.after.nan_to_num()):
                    return UNSTEADY.format(a.name)
            noise = self._rounding(eager, ours)
            for n in far:
                if not ours[n].distance(others[n]) <= NOISE * noise[n]:
                    return OTHERWISE.format(ours[n].name)
        return self._stray(derived, ours, others)

    def _derived(self, kind: Kind) -> Derived:
        """What follows from the rest that a step moves, by the id of the tensor.

        Adam moves a parameter as far for a gradient of nearly zero as for others, in a direction
        that is rounding. Its moments follow from gradients alone, and are compared; where they say
        a parameter goes is reckoned from them, where it goes there at once.
        """
        found: Derived = {}
        for pack, table in zip(kind.step.packs, kind.step.tables["numbers"], strict=True):
            if pack.rule.moved is not None and table.shape[1] == 1:  # one update in a step
                for n, p in enumerate(pack.parameters):
                    found[id(p)] = partial(by_moments, pack, p, table[0, 0].unbind())
                    if pack.averages:
                        weight = kind.step.tables["weights"][0].item()
                        found[id(pack.averages[n])] = partial(by_average, p, weight)
        return found

    def _stray(self, derived: Derived, ours: list[Move], others: list[Move]) -> str | None:
        """What goes elsewhere than the rest says, in one of two steps alone."""
        steps = [{id(move.of): move for move in moves} for moves in (ours, others)]
        for name, reckon in derived.items():
            first, second = (step[name] for step in steps)
            strays = [step[name].after - reckon(step[name], step) for step in steps]
            if not first.allows(strays[0] - strays[1], second):
                return OTHERWISE.format(first.name)
        return None

    def _moves(self, take: Callable[[], Sequence[Tensor]]) -> list[Move]:
        """The losses of a step and all that it moves, after which all is as before."""
        tolerance = self._tolerance()
        with self.untouched() as before:
            losses = take()
            moves = [Move("loss", x.detach(), torch.zeros_like(x), tolerance) for x in losses]
            for name, tensor, was in before:
                moves.append(Move(name, tensor.detach().clone(), was, tolerance, tensor))
            drawn = torch.get_rng_state()
            moves.append(Move(DRAWN, drawn, drawn, tolerance))
        return moves

    def _rounding(self, eager: Callable[[], Sequence[Tensor]], ours: list[Move]) -> list[float]:
        """How far each number moves where the last digits of others do."""
        found = [0.0] * len(ours)
        for moved in (*self._beside(eager), *self._otherwise(eager)):
            for n, (a, b) in enumerate(zip(ours, moved, strict=True)):
                found[n] = max(found[n], a.change(b))
        return found

    def _beside(self, eager: Callable[[], Sequence[Tensor]]) -> Iterator[list[Move]]:
        """Steps from parameters of other last digits."""
        for sign in (1, -1):
            with self.untouched():
                for p in self._moved():
                    p.data.add_(sign * torch.finfo(p.dtype).eps * (1 + p.data.abs()))
                yield self._moves(eager)

    def _otherwise(self, eager: Callable[[], Sequence[Tensor]]) -> Iterator[list[Move]]:
        """Steps whose operations give other last digits."""

        def rounded(seed: int) -> Sequence[Tensor]:
            with OtherwiseRounded(seed):
                return eager()

        for seed in range(2):
            yield self._moves(partial(rounded, seed))

    def _tolerance(self) -> float:
        if any(compiled.halved for compiled in self.compiled):
            return HALF
        kinds = {p.dtype for parameters in self.parameters for p in parameters}
        return max(TOLERANCE.get(kind, HALF) for kind in kinds)

    @contextmanager
    def untouched(self) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
        """A context after which all is as before; gives what a step moves, and how it was."""
        kept = self.snapshot()
        with ExitStack() as stack:
            for compiled in self.compiled:
                stack.enter_context(compiled.untouched(()))
            try:
                yield kept.tensors
            finally:
                kept.restore()

    def snapshot(self) -> Snapshot:
        """All that steps move."""
        named = [
            (("parameter " + name), p)
            for compiled in self.compiled
            for name, p in compiled.objective.named_parameters()
        ]
        return Snapshot(named, self.optimizers, list(self.averages.values()), self.buffers)


def _known(
    optimizer: torch.optim.Optimizer, rules: Sequence[Rule | None], used: Sequence[Tensor]
) -> list[Rule]:
    """The rules, where all are known, and the optimiser keeps what they need, as after a step."""
    ids, found = {id(p) for p in used}, [rule for rule in rules if rule is not None]
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in used):
        raise ValueError("a parameter has a hook of its gradient")
    if not used or len(found) < len(rules):
        raise ValueError("an optimiser is of another kind, or has other settings")
    for group, rule in zip(optimizer.param_groups, found, strict=True):
        states = [optimizer.state.get(p, {}) for p in group["params"] if id(p) in ids]
        names = [*rule.slots, *(["step"] if rule.counts else [])]
        if not all(isinstance(s.get(n), (Tensor, int)) for s in states for n in names):
            raise ValueError("an optimiser has not taken a step with all parameters")
        if rule.counts and len({float(s["step"]) for s in states}) > 1:
            raise ValueError("parameters have taken different numbers of steps")
    return found


def _parts(use: Use, batch: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """The parts of a batch on which an objective takes a step each."""
    if use.turns == 1:
        return [batch]
    return list(zip(*(x.chunk(use.turns) for x in batch), strict=True))


def _check_owners(turns: Sequence[Turn]) -> None:
    """Raises where a parameter is moved by more than one optimiser."""
    moved = [id(p) for turn in turns for pack in turn.packs for p in pack.parameters]
    if len(set(moved)) < len(moved):
        raise ValueError("a parameter is moved by more than one optimiser")


def _updates(steps: Sequence[Step], of: Tensor) -> list[Tensor]:
    """For each pack its updates, by the number of the step's kind that they are of."""
    found = []
    for n, turn in enumerate(steps[0].turns):
        many = torch.tensor([len(step.turns[n].losses) for step in steps])
        found += [of.repeat_interleave(many[of])] * len(turn.packs)
    return found


def _in_order(steps: Sequence[Step], of: Tensor) -> list[Tensor]:
    """What steps have recorded, in the order of a plan."""
    columns = [step.tables["losses"] for step in steps]
    if len(steps) == 1:
        return [x[: len(of)].clone() for x in columns[0]]
    recorded = []
    for tables in zip(*columns, strict=True):
        whole = tables[0].new_empty(len(of))
        for n, table in enumerate(tables):
            whole[of == n] = table[: int((of == n).sum())]
        recorded.append(whole)
    return recorded


def _length(graphs: Sequence[GraphModule], width: int) -> int:
    """The number of steps of a block, a power of two, by what there is to compute.

    An operation counts 300, each number that it gives 4, and eight products of numbers in matrices
    1. No clock is asked: a run is the same each time.
    """
    work = 0.0
    for node in (node for graph in graphs for node in graph.graph.nodes):
        value = node.meta.get("val")
        numbers = value.numel() if isinstance(value, Tensor) else 0
        work += 300 + 4 * numbers
        if any(name in str(node.target) for name in ("mm", "linear", "matmul", "conv")):
            read = [n.meta.get("val") for n in node.all_input_nodes]
            sizes = [x.numel() for x in read if isinstance(x, Tensor)][:2]
            work += math.sqrt(math.prod(sizes) * max(numbers, 1)) / 8
    most = min(LONGEST, WORK / work, ENTRIES / max(width, 1))
    return 2 ** max(int(math.log2(max(most, 1))), 0)
