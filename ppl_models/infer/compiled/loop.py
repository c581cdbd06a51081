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
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_models.infer.compiled.graph import HOST, Compiled
from ppl_models.infer.compiled.packs import packed
from ppl_models.infer.compiled.step import Step, Turn
from ppl_models.infer.compiled.traced.evaluations import HALF, NOISE, TOLERANCE, UNSTEADY
from ppl_models.infer.compiled.traced.traced import Traced
from ppl_models.infer.compiled.updates import Rule, rule_of
from ppl_models.infer.compiled.watch import Watch, holds

LONGEST = 2**14  # steps of a block
WORK = 1e9  # in a block, about a tenth of a second: see `_length`
ENTRIES = 2**20  # of a table of rows
PATIENCE = 16  # blocks between two comparisons at most: twice as many after each

# Adam moves a parameter as far for a gradient of nearly zero as for others, in a direction that
# is rounding. Its moments follow from gradients alone, and are compared more closely.
FOLLOWS, FOLLOWING = 100, ("parameter", "average")
CHANGES = "it changes numbers or tensors of its own while it runs, such as a count of calls"

Evaluate = Callable[..., Tensor]  # the loss of rows, (B,), and of the data


class Kind(NamedTuple):
    """Steps that one piece of code takes."""

    step: Step
    traced: tuple[Traced, ...]  # its losses

    @property
    def watch(self) -> Watch:
        """What was traced as a constant."""
        return [entry for each in self.traced for entry in each.watch]

    def holds(self) -> bool:
        """Whether it stands for the programs as they are now; takes numbers that changed."""
        return all(each.holds() for each in self.traced)


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
        self.buffers: list[Tensor] = []  # of the modules that run, and what they write into
        self.adapts = False  # whether an optimiser divides by the size of a gradient
        # Why steps do not come in blocks, if so: those that are not known here run one by one.
        self.refused: str | None = None

    def kind(
        self,
        key: Hashable,
        evaluates: Sequence[Evaluate],
        rows: Tensor,
        data: tuple[Tensor, ...],
        chooses: bool,
    ) -> Kind | None:
        """The code for steps of a kind, made where there is none; None where there can be none.

        Arguments:
            key: What the code depends on, besides what is watched.
            evaluates: The losses.
            rows: The rows of a batch, `(B,)`; all of them where a batch is the whole data.
            data: All rows.
            chooses: Whether other rows come with each step.
        """
        found = self.kinds.get(key)
        others = (kind for (known, *_), kind in self.made.items() if known == key)
        for kind in (found, *others):
            if kind is not None and kind.holds():
                self.kinds[key] = kind
                return kind
        traced: list[Traced] = []
        for n, (compiled, evaluate) in enumerate(zip(self.compiled, evaluates, strict=True)):
            each = None if found is None else found.traced[n]
            if each is None or not each.holds():
                each = compiled.trace((key, "step"), evaluate, (rows, *data))
            if each is None:
                self.refused = "a loss cannot be traced"
                return None
            traced.append(each)
        of = (key, *map(id, traced))
        if of in self.made:
            self.kinds[key] = Kind(self.made[of].step, tuple(traced))
            return self.kinds[key]
        graphs = [each.graph for each in traced]
        length = _length(graphs, len(rows) if chooses else 0)
        try:
            step = Step(self._turns(graphs, (rows, *data)), data, rows, chooses, length)
        except Exception as error:  # no compiler, or an operation that it does not know
            self.refused = f"{type(error).__name__}: {error}"
            return None
        held = [*step.written, *(b for compiled in self.compiled for b in compiled.buffers())]
        self.buffers = list({id(x): x for x in (*self.buffers, *held)}.values())
        self.adapts = any(pack.rule.counts for pack in step.packs)
        made = self.kinds[key] = self.made[of] = Kind(step, tuple(traced))
        return made

    def _turns(self, graphs: Sequence[GraphModule], inputs: tuple[Tensor, ...]) -> list[Turn]:
        """What each objective does."""
        turns: list[Turn] = []
        for graph, compiled, optimizer, parameters in zip(
            graphs, self.compiled, self.optimizers, self.parameters, strict=True
        ):
            rules = [rule_of(optimizer, group) for group in optimizer.param_groups]
            used = compiled.used_by(graph, inputs, parameters)
            before = {id(p) for turn in turns for pack in turn.packs for p in pack.parameters}
            if any(id(p) in before for p in used):
                raise ValueError("a parameter is moved by more than one optimiser")
            packs = packed(used, optimizer, _known(optimizer, rules, used), self.averages)
            turns.append(Turn(graph, packs, self.clip))
        return turns

    def run(
        self,
        kind: Kind,
        times: int,
        rows: Tensor,
        rates: Sequence[Tensor],
        weights: Tensor | None,
    ) -> list[Tensor]:
        """Takes steps, and returns the losses before each, by objectives: `(times,)`.

        Arguments:
            kind: The code.
            times: The number of steps, at most `kind.step.length`.
            rows: The rows of each step, `(times, B)`, if a batch is not the whole data.
            rates: The learning rates of each optimiser's groups, `(times, groups)`.
            weights: The weights of what is new in an average, `(times,)`.
        """
        step = kind.step
        if step.chooses:
            step.tables["rows"][:times] = rows
        for pack, table in zip(step.packs, step.tables["numbers"], strict=True):
            n = self.optimizers.index(pack.optimizer)
            group = next(g for g, x in enumerate(pack.optimizer.param_groups) if x is pack.group)
            table[:times] = pack.numbers(rates[n][:, group])
        if weights is not None:
            step.tables["weights"][:times] = weights
        for compiled in self.compiled:
            compiled.steps += times
        return step.run(times)

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
        if any(compiled.draws_on_host for compiled in self.compiled):
            return HOST
        if not holds(kind.watch):
            return CHANGES
        far = [n for n, (a, b) in enumerate(zip(ours, others, strict=True)) if not a.is_near(b)]
        if far and all(move.after.isfinite().all() for move in ours):
            again = self._moves(eager)
            for a, b in zip(ours, again, strict=True):
                if not torch.equal(a.after, b.after):
                    return UNSTEADY.format(a.name)
            noise = self._rounding(eager, ours)
            for n in far:
                if not ours[n].distance(others[n]) <= NOISE * noise[n]:
                    return f"a compiled step has another {ours[n].name} than the program itself"
        return None

    def _moves(self, take: Callable[[], Sequence[Tensor]]) -> list["Move"]:
        """The losses of a step and all that it moves, after which all is as before."""
        tolerance = self._tolerance()
        with self.untouched() as before:
            losses = take()
            moves = [Move("loss", x.detach(), torch.zeros_like(x), tolerance) for x in losses]
            for name, tensor, was in before:
                follows = self.adapts and name.startswith(FOLLOWING)
                moves.append(Move(name, tensor.detach().clone(), was, tolerance, follows))
        return moves

    def _rounding(self, eager: Callable[[], Sequence[Tensor]], ours: list["Move"]) -> list[float]:
        """How far each number moves where the last digits of the parameters do."""
        found = [0.0] * len(ours)
        moved = [p for parameters in self.parameters for p in parameters]
        for sign in (1, -1):
            with self.untouched():
                for p in moved:
                    p.data.add_(sign * torch.finfo(p.dtype).eps * (1 + p.data.abs()))
                near = self._moves(eager)
            for n, (a, b) in enumerate(zip(ours, near, strict=True)):
                found[n] = max(found[n], a.change(b))
        return found

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

    def snapshot(self) -> "Snapshot":
        """All that steps move."""
        named = [
            (("parameter " + name), p)
            for compiled in self.compiled
            for name, p in compiled.objective.named_parameters()
        ]
        return Snapshot(named, self.optimizers, list(self.averages.values()), self.buffers)


class Move(NamedTuple):
    """A number that a step has changed."""

    name: str
    after: Tensor
    before: Tensor
    tolerance: float
    follows: bool = False  # from moments, by Adam

    def is_near(self, other: "Move") -> bool:
        if self.follows:
            return self._mostly_near(other)
        if not self.after.is_floating_point():
            return torch.equal(self.after, other.after)
        size = _norm(self.after - self.before)
        rounding = 8 * torch.finfo(self.after.dtype).eps * (1 + _norm(self.after))
        return self.distance(other) <= self.tolerance * size + rounding

    def _mostly_near(self, other: "Move") -> bool:
        """Whether half of the numbers or more are near: a wrong rule is wrong for all."""
        allowed = (self.after - self.before).abs_().mul_(FOLLOWS * self.tolerance)
        allowed.add_(self.after.abs().add_(1), alpha=8 * torch.finfo(self.after.dtype).eps)
        near = (self.after - other.after).abs_() <= allowed
        return int(near.count_nonzero()) >= near.numel() / 2

    def distance(self, other: "Move") -> float:
        return _norm(self.after - other.after)

    def change(self, other: "Move") -> float:
        """How far a step from other parameters changes it otherwise."""
        first, second = (x.after - x.before for x in (self, other))
        return _norm(first - second)


def _norm(x: Tensor) -> float:
    """Its norm, summed in double precision."""
    x = x if x.is_floating_point() else x.double()
    return torch.linalg.vector_norm(x, dtype=torch.float64).item()


class Snapshot:
    """What steps move, as it was at a time.

    Arguments:
        named: The parameters.
        optimizers: What moves them, with all that they keep.
        averages: Averages of parameters.
        buffers: Those of the modules that run.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        optimizers: Sequence[torch.optim.Optimizer],
        averages: Sequence[Tensor],
        buffers: Sequence[Tensor],
    ) -> None:
        live = [*named, *(("average", x) for x in averages), *(("buffer", x) for x in buffers)]
        states = [state for o in optimizers for state in o.state.values()]
        live += [(n, x) for s in states for n, x in s.items() if isinstance(x, Tensor)]
        self.tensors = [(name, x, x.detach().clone()) for name, x in live]
        plain = (bool, int, float)
        self.numbers = [(s, n, x) for s in states for n, x in s.items() if isinstance(x, plain)]
        groups = [group for o in optimizers for group in o.param_groups]
        self.settings = [(g, {n: x for n, x in g.items() if n != "params"}) for g in groups]
        self.rng = torch.get_rng_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Makes all what it was."""
        for _, tensor, before in self.tensors:
            tensor.copy_(before)
        for state, name, number in self.numbers:
            state[name] = number
        for group, settings in self.settings:
            group.update(settings)
        torch.set_rng_state(self.rng)


def _known(
    optimizer: torch.optim.Optimizer, rules: Sequence[Rule | None], used: Sequence[Tensor]
) -> list[Rule]:
    """The rules, where all are known, and the optimiser keeps what they need, as after a step."""
    ids, found = {id(p) for p in used}, [rule for rule in rules if rule is not None]
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
