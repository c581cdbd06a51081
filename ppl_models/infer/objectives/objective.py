r"""What can be descended.

An objective has a name, a loss in nats per row, and parameters. `fit` takes turns over one or more
of them.
"""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn


class Objective(Protocol):
    """What `fit` needs: a loss, and what it trains."""

    name: str

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        """Returns the loss of a minibatch of `size` rows in all, in nats per row."""

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        """Checks a first batch before anything is trained, and creates lazy parameters.

        `data` are all the rows, where they are in memory.
        """

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """What is trained, unconstrained; complete once prepared."""

    def modules(self) -> dict[str, nn.Module]:
        """The modules that run, for devices, modes (train, eval) and buffers."""

    def blame(self, *batch: Tensor, size: int) -> str:
        """Says what made the loss of this batch infinite or undefined."""
