"""The batches of the next steps where rows are streamed: they are read ahead of a block.

Each batch is read once, in the order in which steps one by one would read it, and kept until the
run cannot go back to it. A data set that draws from torch's generator draws between two steps: then
a block is one step. That shows when its first batches are read, in blocks that become longer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_models.infer.compiled.steps.step import Feed
from ppl_models.infer.reading.position import Position
from ppl_models.infer.training.batches import Batch, ByIndex, Loaded
from ppl_models.infer.training.progress import Progress
from ppl_models.scoped import mix
from ppl_models.user_line import warn

ROOM = 2**24  # bytes of the batches of a block
MOST = 256  # batches of a block, which are read before its first step
KINDS = 2  # of batches: whole ones, and the last of an epoch


class BatchesAhead:
    """The next steps of a run on streamed batches. A kind is known by the shapes of its batches.

    Arguments:
        progress: Where the run is.
        train: Its batches.
        whole_epochs: Whether a block must end with an epoch, as there is something to do then.
    """

    def __init__(self, progress: Progress, train: ByIndex | Loaded, whole_epochs: bool) -> None:
        self.progress, self.train, self.whole_epochs = progress, train, whole_epochs
        self.refused: str | None = None
        self.transform: Callable[..., Any] | None = None  # reading has done it
        self.draws = False  # whether reading moves the random numbers of torch
        self.most = 1  # batches that are read at once: twice as many each time
        self._read: dict[tuple[int, int], Batch] = {}  # by epoch and number
        self._end: tuple[int, int] | None = None  # of what was read, once anything was
        self._batches: Iterator[Batch] | None = None
        self._error: Exception | None = None  # at which reading ended
        self._feeds: dict[Any, Feed] = {}
        self._last: dict[Any, Batch] = {}  # of each kind
        self._draws: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # states around reads

    @property
    def kind(self) -> Any:
        """The shapes of the next batch."""
        found = _kind(self.now())
        if found not in self._feeds and len(self._feeds) == KINDS:
            self.refused = "the shapes of batches change again and again"
        return found

    def feed(self, kind: Any) -> Feed:
        """Where batches of a kind come from: room for those of a block."""
        if kind not in self._feeds:
            batch = self.now()
            tensors = _tensors(batch)
            most = min(ROOM // max(sum(x.numel() * x.element_size() for x in tensors), 1), MOST)
            width = len(tensors[0])
            if most < 2 or any(len(x) != width for x in tensors):
                self.refused = "batches are too large to be read ahead, or of different lengths"
                most = 1
            room = tuple(x.new_empty(most * width, *x.shape[1:]) for x in tensors)
            numbered = batch.rows is not None
            rows = torch.arange(width)
            self._feeds[kind] = Feed(rows, room, chooses=True, numbered=numbered, most=most)
            self._fill(kind, [batch])
        return self._feeds[kind]

    def other(self, kind: Any) -> tuple[Batch, Tensor]:
        """The last batch of a kind, its rows in another order."""
        batch = self._last[kind]
        rows = None if batch.rows is None else batch.rows.flip(0)
        other = Batch(tuple(x.flip(0) for x in batch.values), rows, batch.size)
        return other, self._fill(kind, [other])

    def now(self) -> Batch:
        """The batch of the next step."""
        found = self._at(self._place(0))
        if found is None:  # a loader that is shorter than it says
            raise RuntimeError("data: an epoch has fewer batches than its DataLoader says")
        return found

    def rest(self) -> Iterator[Batch]:
        """The batches up to the end of an epoch, each to be followed by its step."""
        while self.progress.batch < self.train.batches:
            self.forget()
            batch = self._at(self._place(0))
            if batch is None:
                return
            yield batch

    def plan(self, most: int, lengths: Mapping[Any, int]) -> list[tuple[Any, int]]:
        """The kinds of the next steps, as many as are read."""
        left, found = dict(lengths), list[tuple[Any, int]]()
        for n in range(min(most, 1 if self.draws else self.most)):
            place = self._place(n)
            if self.whole_epochs and place[0] > self._place(0)[0]:
                break
            batch = self._at(place, first=n == 0)
            kind = None if batch is None else _kind(batch)
            if not left.get(kind):
                break
            left[kind] -= 1
            if found and found[-1][0] == kind:
                found[-1] = kind, found[-1][1] + 1
            else:
                found.append((kind, 1))
        self.most = min(2 * self.most, MOST)
        return found

    def tables(self, plan: Sequence[tuple[Any, int]]) -> list[Tensor]:
        """The rows of steps in the room for their kinds, which their batches fill."""
        parts: dict[Any, list[Batch]] = {kind: [] for kind, _ in plan}
        kinds = [kind for kind, times in plan for _ in range(times)]
        for n, kind in enumerate(kinds):
            parts[kind].append(self._read[self._place(n)])
        return [self._fill(kind, batches) for kind, batches in parts.items()]

    def position(self) -> Position | None:
        """Where a loader was after the batch of the last step, if it says so."""
        return self._read[self._place(-1)].position

    def forget(self) -> None:
        """Lets go of batches before the next step."""
        here = self._place(0)
        self._read = {place: batch for place, batch in self._read.items() if place >= here}
        self._draws = {place: states for place, states in self._draws.items() if place >= here}

    def _fill(self, kind: Any, batches: list[Batch]) -> Tensor:
        """Puts batches into the room for their kind; returns where their rows are."""
        feed = self._feeds[kind]
        width = len(feed.rows)
        for n, batch in enumerate(batches):
            for room, x in zip(feed.data, _tensors(batch), strict=True):
                room[n * width : (n + 1) * width] = x
        return torch.arange(len(batches) * width).view(-1, width)

    def _place(self, ahead: int) -> tuple[int, int]:
        """The epoch of a step, and its number there."""
        epochs, batch = divmod(self.progress.batch + ahead, self.train.batches)
        return self.progress.epoch + epochs, batch

    def _at(self, place: tuple[int, int], first: bool = True) -> Batch | None:
        """A batch, which is read if it was not; None where there is none now.

        Arguments:
            place: Its epoch, and its number there.
            first: Whether its step is the next one.
        """
        if place in self._read:
            self._draw_again(place)
            return self._read[place]
        if self._error is not None and first:
            raise self._error
        if not first and (self.draws or self._error is not None):
            return None
        before = torch.get_rng_state()
        try:
            batch = self._next(place)
        except Exception as error:
            if first:
                raise
            self._error = error
            return None
        if batch is not None:
            self._read[place] = self._last[_kind(batch)] = batch
            self._look_at_draws(place, before, first)
        return batch

    def _look_at_draws(self, place: tuple[int, int], before: Tensor, first: bool) -> None:
        """Takes note of random numbers that reading a batch has drawn."""
        after = torch.get_rng_state()
        if torch.equal(before, after):
            return
        self._draws[place] = before, after
        if not first and not self.draws:
            warn(SOMETIMES)
        self.draws = True

    def _draw_again(self, place: tuple[int, int]) -> None:
        """Where a run has gone back, moves the random numbers as reading a batch did."""
        states = self._draws.get(place)
        if states is not None and torch.equal(states[0], torch.get_rng_state()):
            torch.set_rng_state(states[1])

    def _next(self, place: tuple[int, int]) -> Batch | None:
        """Reads the next batch."""
        epoch, number = place
        if self._batches is None or self._end != place:
            seed = mix(self.progress.order_seed, epoch)
            self._batches = self.train.epoch(seed, number)
        batch = next(self._batches, None)
        self._end = (epoch, number + 1)
        return batch


SOMETIMES = (
    "fit: the data draw random numbers from torch now and then, but not at first. Some were drawn "
    "ahead of the steps before them: the numbers are as random, but not those of compile=False."
)


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    """What is read of a batch: its rows, where they are known, and their values."""
    return batch.values if batch.rows is None else (batch.rows, *batch.values)


def _kind(batch: Batch) -> Any:
    rows = batch.rows is not None
    return (rows, *((tuple(x.shape), x.dtype) for x in batch.values))
