"""The processes that compute together."""

from ppl_models.processes.fingerprint import fingerprint
from ppl_models.processes.group import ALONE, ProcessError, Processes, together

__all__ = ["ALONE", "ProcessError", "Processes", "fingerprint", "together"]
