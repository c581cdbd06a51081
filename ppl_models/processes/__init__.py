"""The processes that compute together."""

from ppl_models.processes.fingerprint import fingerprint
from ppl_models.processes.group import ALONE, ProcessError, Processes, apart, together
from ppl_models.processes.turns import Turns, in_turn

__all__ = [
    "ALONE",
    "ProcessError",
    "Processes",
    "Turns",
    "apart",
    "fingerprint",
    "in_turn",
    "together",
]
