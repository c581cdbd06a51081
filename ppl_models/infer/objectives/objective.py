r"""What can be descended.

An objective has a name, a loss in nats per row, and parameters. `fit` takes turns over one or more
of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ppl_models.prompt.lines import in_a_line


class Objective(Protocol):
    """What `fit` needs: a loss, and what it trains.

    An objective of your own has a `name` and the methods `loss`, `prepare`, `named_parameters`,
    `modules` and `blame`. All else has a default: an objective that inherits from this class has
    it from there, and one of any other class is given it by `fit`.

    Attributes:
        name: What to call its loss in the history, and itself in errors.
        turns: How many steps it takes for each one of the others, on so many parts of each batch.
        reports: Numbers by name that its last loss came with, to be recorded beside it.
        arguments: What batches hold, in order, by the names that columns of a table have.
        eager_because: Why its loss must not run as compiled code; None where it may.

    Example:
        >>> import torch
        >>> from ppl_models import fit
        >>> class SquaredError(Objective):
        ...     name = "squared error"
        ...     def __init__(self, network):
        ...         self.network = network
        ...     def loss(self, x, y, size=None):
        ...         return (self.network(x) - y).square().mean()
        ...     def prepare(self, *batch, size, data=None):
        ...         pass  # nothing to check, and no lazy parameters
        ...     def named_parameters(self):
        ...         return self.network.named_parameters()
        ...     def modules(self):
        ...         return {"network": self.network}
        ...     def blame(self, *batch, size):
        ...         return "the network"
        >>> x = torch.randn(20, 2)
        >>> network = torch.nn.Linear(2, 1)
        >>> run = fit(SquaredError(network), (x, x.sum(1, keepdim=True)), epochs=300, lr=0.05)
        >>> run.history["loss"][-1] < 1e-3
        True
    """

    name: str
    turns: int = 1
    reports: Mapping[str, Tensor] = {}
    arguments: Sequence[str] = ("x", "y")
    eager_because: str | None = None

    def __repr__(self) -> str:
        return in_a_line(self)

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

    def stepped(self) -> None:
        """Takes note of a step that was taken along it.

        In compiled blocks of steps this is a part of the code: what it changes must be tensors, in
        place. Where it changes anything else, steps are taken one by one.
        """
        return None

    def idle(self) -> list[str]:
        """The parameters that should have a gradient by its last loss, and have none."""
        return []

    def caveat(self, history: dict[str, list[float]]) -> str | None:
        """Says what users must know of the epochs so far; None, as here, where that is nothing."""
        return None


def no_caveat(history: dict[str, list[float]]) -> str | None:
    """The caveat of an objective that has none."""
    return None


def no_idle() -> list[str]:
    """The idle parameters of an objective that does not know of any."""
    return []


def nothing() -> None:
    """What an objective that keeps no count does after a step."""


DEFAULTS = {
    **{
        name: getattr(Objective, name)
        for name in ("turns", "reports", "arguments", "eager_because")
    },
    "caveat": no_caveat,
    "idle": no_idle,
    "stepped": nothing,
}


def as_objectives(given: Objective | Sequence[Objective]) -> list[Objective]:
    """One objective or several as a list, each complete.

    Raises:
        TypeError: If one is no objective.
        ValueError: If there is none, or two have the same name.
    """
    objectives = list(given) if isinstance(given, Sequence) else [given]
    if not objectives:
        raise ValueError("objective: expected one or more, got none. Try elbo(model, guide).")
    for objective in objectives:
        check_objective(objective, "objective: expected an objective")
    names = [objective.name for objective in objectives]
    if len(set(names)) < len(names):
        raise ValueError(
            f"objectives: expected names that differ, for the history, got {names}. "
            f"Try objective.name = 'another'."
        )
    return [_complete(objective) for objective in objectives]


def check_objective(objective: Any, expected: str) -> None:
    """Raises a TypeError, which says what was expected, where something is no objective."""
    if not hasattr(objective, "loss") or not hasattr(objective, "prepare"):
        raise TypeError(f"{expected}, got {type(objective).__name__}. Try elbo(model, guide).")


def modules_of(objectives: Sequence[Objective]) -> list[nn.Module]:
    """The modules of all objectives."""
    return [module for objective in objectives for module in objective.modules().values()]


def _complete(objective: Any) -> Objective:
    """Gives an objective the defaults of what it leaves out, where it inherits none."""
    for name, default in DEFAULTS.items():
        if not hasattr(objective, name):
            object.__setattr__(objective, name, default)  # also where it is frozen
    return objective
