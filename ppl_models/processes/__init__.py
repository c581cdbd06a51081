"""The processes that compute together."""

from ppl_models.processes.fingerprint import fingerprint
from ppl_models.processes.group import ALONE, ProcessError, Processes, apart, is_other, together
from ppl_models.processes.part import Part, by_parts, processes_of, takes_parts
from ppl_models.processes.share import Share, places_of, sharing
from ppl_models.processes.turns import Turns, in_turn

__all__ = [
    "ALONE",
    "Part",
    "ProcessError",
    "Processes",
    "Share",
    "Turns",
    "apart",
    "by_parts",
    "fingerprint",
    "in_turn",
    "is_other",
    "places_of",
    "processes_of",
    "sharing",
    "takes_parts",
    "together",
]
