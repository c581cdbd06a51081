"""Programs of Gaussians whose posteriors are known: a latent of each row, or one of all rows."""

import pyro
import pyro.distributions as dist

from ppl_models import data_plate


def rows(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def shared(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)
