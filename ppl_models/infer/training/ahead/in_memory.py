"""The rows of the next steps where all rows are in memory: their order is known ahead."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ppl_models.infer.compiled.steps.step import Feed
from ppl_models.infer.training.batches import Batch, Chosen, InMemory
from ppl_models.infer.training.progress import Progress
from ppl_models.scoped import mix


class RowsAhead:
    """The next steps of a run on rows in memory. A kind of steps is known by its number of rows.

    Arguments:
        progress: Where the run is.
        train: Its rows.
        whole_epochs: Whether a block must end with an epoch, as there is something to do then.
    """

    def __init__(self, progress: Progress, train: InMemory, whole_epochs: bool) -> None:
        self.progress, self.train, self.whole_epochs = progress, train, whole_epochs
        self.refused: str | None = None
        self.transform = train.transform
        self.even, self.uneven = divmod(train.size, train.batch_size)  # batches, and rows left
        self._order: tuple[int, Tensor] | None = None

    @property
    def kind(self) -> int:
        """That of the next step."""
        return self._width(self.progress.batch)

    def feed(self, width: int) -> Feed:
        """Where batches of a kind come from."""
        rows = self._order_of(self.progress.epoch)[:width]
        chooses, transform = width < self.train.size, self.train.transform
        return Feed(rows, self.train.tensors, chooses, transform=transform)

    def other(self, width: int) -> tuple[Chosen, Tensor]:
        """A batch of other rows than those that were traced, for programs and for code."""
        rows = self._order_of(self.progress.epoch)[-width:].flip(0)
        rows = rows if width < self.train.size else rows.flip(0)
        return self._chosen(rows), rows[None]

    def now(self) -> Chosen:
        """The batch of the next step."""
        rows = self._order_of(self.progress.epoch)
        start = self.progress.batch * self.train.batch_size
        return self._chosen(rows[start : start + self.train.batch_size])

    def rest(self) -> Iterator[Batch]:
        """The batches up to the end of an epoch."""
        return self.train.epoch(
            mix(self.progress.order_seed, self.progress.epoch), self.progress.batch
        )

    def plan(self, most: int, lengths: Mapping[int, int]) -> list[tuple[int, int]]:
        """The kinds of the next steps, and how many of each.

        Arguments:
            most: The number of steps at most.
            lengths: The kinds that may come, and how many steps of each there may be.
        """
        left, batch, found = dict(lengths), self.progress.batch, []
        while most > 0:
            width = self._width(batch)
            taken = min(most, left.get(width, 0))
            if self.whole_epochs or self.uneven:
                taken = min(taken, self.even - batch if batch < self.even else 1)
            if not taken:
                break
            found.append((width, taken))
            left[width], most = left[width] - taken, most - taken
            batch = (batch + taken) % self.train.batches
            if self.whole_epochs and not batch:
                break
        return found

    def tables(self, plan: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The rows of steps, for each kind as it first comes; of whole data none."""
        widths = list(dict.fromkeys(width for width, _ in plan))
        if widths == [self.train.size]:
            return [self._order_of(0)[None]]
        parts: dict[int, list[Tensor]] = {width: [] for width in widths}
        size, epoch, batch = self.train.batch_size, self.progress.epoch, self.progress.batch
        for width, times in plan:
            while times > 0:
                if batch == self.train.batches:
                    epoch, batch = epoch + 1, 0
                taken = min(times, max(self.even - batch, 1))
                rows = self._order_of(epoch)[batch * size :][: taken * width]
                parts[width].append(rows.view(taken, width))
                times, batch = times - taken, batch + taken
        return [torch.cat(parts[width]) for width in widths]

    def position(self) -> None:
        """Where a loader was: there is none."""

    def forget(self) -> None:
        """Lets go of what came before: of rows in memory nothing."""

    def _width(self, batch: int) -> int:
        return self.uneven if batch == self.even else self.train.batch_size

    def _chosen(self, rows: Tensor) -> Chosen:
        return Chosen(self.train.tensors, rows, self.train.size, self.train.transform)

    def _order_of(self, epoch: int) -> Tensor:
        """The rows of an epoch in their order."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.train.order(mix(self.progress.order_seed, epoch))
        return self._order[1]
