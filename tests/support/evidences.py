"""Evidences that are made up, of a kind and with numbers that a test asks for."""

from typing import Any

import torch

from ppl_models import Evidence


def evidence(value: Any, kind: str = "exact", **changes: Any) -> Evidence:
    """One of rows in double precision, without Monte Carlo error unless it is given."""
    value = torch.as_tensor(value, dtype=torch.float64)
    given = {"num_rows": len(value), "num_samples": 0, "num_features": None} | changes
    variance = given.pop("row_variance", torch.zeros_like(value))
    return Evidence(value, kind, row_variance=variance, **given)
