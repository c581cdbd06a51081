"""Where the statements of a program are, by the names of their sites and parameters."""

from pyro.poutine.messenger import Messenger

from ppl_models.infer.programs.program import Program
from ppl_models.user_line import statement_below


class Lines(Messenger):
    """Takes note of the line of each statement of a program that runs, as `file:line`.

    Attributes:
        found: By name; None where the statement is one of Pyro's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str | None] = {}

    def _pyro_sample(self, message: dict) -> None:
        self.found.setdefault(message["name"], statement_below(Program.__call__.__code__))

    _pyro_param = _pyro_sample
