"""The processes that compute together."""

from ppl_models.processes.fingerprint import fingerprint
from ppl_models.processes.group import ALONE, ProcessError, Processes, together
from ppl_models.processes.part import Part, by_parts, processes_of, takes_parts

__all__ = [
    "ALONE",
    "Part",
    "ProcessError",
    "Processes",
    "by_parts",
    "fingerprint",
    "processes_of",
    "takes_parts",
    "together",
]
