"""Programs that look at the whole batch, with their evidence in closed form."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from ppl_models import data_plate

LONG = torch.linspace(-2.0, 2.0, 60, dtype=torch.float64)


class Looking(nn.Module):
    """z ~ N(0, 1), x ~ N(z + its mean, its scale), and the posterior as guide."""

    def __init__(self, of_batch) -> None:
        super().__init__()
        self.of_batch = of_batch
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, x, size=None):
        mean, scale = self.of_batch(x)
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + mean + self.shift, scale), obs=x)

    def guide(self, x, size=None):
        mean, scale = self.of_batch(x)
        total = 1 + scale**2
        with data_plate(x, size):
            pyro.sample("z", dist.Normal((x - mean) / total, scale / total.sqrt()))

    def evidence_of(self, x):
        mean, scale = self.of_batch(x)
        return dist.Normal(mean, (1 + scale**2).sqrt()).log_prob(x)
