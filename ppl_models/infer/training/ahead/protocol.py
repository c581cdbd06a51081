"""What blocks of steps ask of the batches to come."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ppl_models.infer.compiled.steps.step import Feed
from ppl_models.infer.reading.position import Position
from ppl_models.infer.training.batches import Batch, Chosen


class Ahead(Protocol):
    """The batches of the next steps, which are of a kind where their shapes are the same."""

    refused: str | None  # why steps cannot come in blocks, if so
    transform: Callable[..., Any] | None  # what steps do with a batch before, if anything

    @property
    def kind(self) -> Any:
        """That of the next step."""

    def feed(self, kind: Any) -> Feed:
        """Where batches of a kind come from."""

    def other(self, kind: Any) -> tuple[Chosen | Batch, Tensor]:
        """A batch of other rows than those that were traced, for programs and for code."""

    def now(self) -> Chosen | Batch:
        """The batch of the next step."""

    def rest(self) -> Iterator[Batch]:
        """The batches up to the end of an epoch, each to be followed by its step."""

    def plan(self, most: int, lengths: Mapping[Any, int]) -> list[tuple[Any, int]]:
        """The kinds of the next steps, and how many of each.

        Arguments:
            most: The number of steps at most.
            lengths: The kinds that may come, and how many steps of each there may be.
        """

    def tables(self, plan: Sequence[tuple[Any, int]]) -> list[Tensor]:
        """The rows of steps, for each kind as it first comes, `(T, B)`; of whole data none."""

    def position(self) -> Position | None:
        """Where a loader was after the batch of the last step, if it says so."""

    def forget(self) -> None:
        """Lets go of batches before the next step: the run does not go back to them."""
