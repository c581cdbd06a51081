"""The processes that compute together."""

from ppl_models.processes.fingerprint import fingerprint
from ppl_models.processes.group import ALONE, ProcessError, Processes, is_other, together
from ppl_models.processes.part import Part, by_parts, processes_of, takes_parts
from ppl_models.processes.share import Share, places_of, sharing

__all__ = [
    "ALONE",
    "Part",
    "ProcessError",
    "Processes",
    "Share",
    "by_parts",
    "fingerprint",
    "is_other",
    "places_of",
    "processes_of",
    "sharing",
    "takes_parts",
    "together",
]
