"""What a module says of its steps of EM."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class HasEMStep(Protocol):
    """A module that knows the steps of EM.

    Under `torchrun` all processes take the same steps on all rows, unless `em_step` says that it
    takes a part of them, and adds its sums over the processes: `ppl_models.processes.by_parts`.
    """

    def initialise(self, x: Tensor) -> None:
        """Chooses where to start. Raises where the rows `x` cannot be fitted."""

    def em_step(self, x: Tensor | Iterable[Tensor]) -> Tensor:
        """Moves the parameters, and returns the objective *before*, in nats per row.

        `x` are all the rows, or batches of them that can be gone through more than once. The
        objective is the log evidence (with a penalty, where the model has one).

        Where rows may have weights, this and `initialise` take `sample_weight=None`, too: those of
        all rows, `(N,)`.
        """


@runtime_checkable
class HasStack(Protocol):
    """A module whose step of EM serves several restarts at once."""

    def stack(self, restarts: int) -> Any:
        """Returns a copy whose parameters have a leading dimension, and so has its objective."""


class Climber(Protocol):
    """The steps of EM of a module, one after the other."""

    def __call__(self) -> Tensor:
        """Takes one step; returns the objective *before*, in nats per row."""

    def state(self) -> dict[str, Tensor]:
        """What the next step begins with, in tensors that it leaves as they are."""

    def leap(self, factor: float, least: float) -> bool:
        """Goes the way of the last step so many times, if the objective is `least` or more there.

        Whether it did; else nothing has moved. The next step gives the objective there.
        """

    def parameters(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Such a state, or that of one of several restarts, as the module's `state_dict`."""


@runtime_checkable
class HasClimb(Protocol):
    """A module whose steps are faster where one follows the other."""

    def climbs(self, *x: Any) -> bool:
        """Whether they are for these rows."""

    def climb(self, *x: Tensor) -> Climber:
        """Returns what takes the steps of `em_step(*x)`, where that is so."""


@runtime_checkable
class HasCaveat(Protocol):
    """A module that knows what users must be told of its fit."""

    def caveat(self) -> str | None:
        """Says it; None where there is nothing to say."""
