r"""Information criteria of models whose evidence is exact and whose parameters can be counted.

References:
    | Estimating the Dimension of a Model (Schwarz, 1978)
    | https://doi.org/10.1214/aos/1176344136
    | A New Look at the Statistical Model Identification (Akaike, 1974)
    | https://doi.org/10.1109/TAC.1974.1100705
"""

import math
from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models.checks import check_rows

CHUNK = 10_000  # rows that are scored at once


class InformationCriteria(ABC):
    """Gives `bic(x)` and `aic(x)` to a model with `evidence()` and `num_parameters`."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """The number of free parameters."""

    @abstractmethod
    def evidence(self) -> dist.Distribution:
        """Returns the distribution of a row."""

    @torch.no_grad()
    def bic(self, x: Tensor) -> float:
        r"""Returns :math:`-2 \log p(x_{1:N}) + P \log N` for `P` parameters; less is better."""
        return -2 * self._log_evidence(x) + self.num_parameters * math.log(len(x))

    @torch.no_grad()
    def aic(self, x: Tensor) -> float:
        r"""Returns :math:`-2 \log p(x_{1:N}) + 2 P` for `P` parameters; less is better."""
        return -2 * self._log_evidence(x) + 2 * self.num_parameters

    def _log_evidence(self, x: Tensor) -> float:
        density = self.evidence()
        check_rows(x, density.event_shape[0], type(self).__name__)
        own = density.mean.dtype  # as arrays are taken elsewhere, too
        return sum(density.log_prob(part.to(own)).double().sum().item() for part in x.split(CHUNK))
