"""The processes that compute together."""

from ppl_models.processes.fingerprint import fingerprint
from ppl_models.processes.group import ALONE, ProcessError, Processes, is_other, together
from ppl_models.processes.share import Share, places_of, sharing

__all__ = [
    "ALONE",
    "ProcessError",
    "Processes",
    "Share",
    "fingerprint",
    "is_other",
    "places_of",
    "sharing",
    "together",
]
