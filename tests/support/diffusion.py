"""Diffusion models of every kind, and rows for each."""

import pytest
import torch
from torch import nn

from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.schedules import Learned, LogLinear, alpha_sigma
from ppl_models.likelihoods import Categorical

F64 = torch.float64
SHORT = LogLinear(3.0, -3.0)
KINDS = [
    {"target": "v"},
    {"target": "eps"},
    {"target": "x0", "loc": 0.3, "scale": 1.7},
    {"target": "v", "likelihood": Categorical(5)},
    {"target": "levels", "likelihood": Categorical(5)},
    {"target": "v", "schedule": Learned(3.0, -3.0)},
    {"target": "edm", "data_scale": 0.7},
]


def every_kind(function):
    name = lambda kind: "-".join(  # noqa: E731
        type(v).__name__ if k in ("likelihood", "schedule") else str(v) for k, v in kind.items()
    )
    return pytest.mark.parametrize("kind", KINDS, ids=name)(function)


def small(num_features=2, num_steps=2, **kind):
    """A model with a random network, in float64."""
    return Diffusion(num_features, num_steps=num_steps, **{"schedule": SHORT} | kind).double()


def rows(count, num_features, kind):
    if kind.get("likelihood"):
        return torch.randint(5, (count, num_features)).to(F64) / 4
    return torch.randn(count, num_features, dtype=F64)


class GaussianDenoiser(nn.Module):
    """The exact E[x | z_t] where the rows are independent normals of given variances."""

    def __init__(self, variances):
        super().__init__()
        self.variances = nn.Parameter(variances)

    def forward(self, z, log_snr):
        alpha, sigma = alpha_sigma(log_snr[:, None])
        return alpha * self.variances / (alpha**2 * self.variances + sigma**2) * z
