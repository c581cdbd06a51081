"""Numbers of rows, (N,), beside a column of them, (N, 1): which tensor it is, and what to try."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from ppl_models import data_plate, elbo, fit, log_evidence, nuts

N = 50
X, Y = torch.linspace(-1, 1, N), torch.linspace(0, 1, N)
COLUMN = X[:, None]


def regression(x, y=None, size=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def networked(x, y=None, size=None):
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([2, 1]).to_event(2))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)


CASES = {
    "an outcome": (
        *(regression, (X, Y[:, None])),
        r"data\[1\] has shape \(50, 1\) where the site has \(50,\): try y\.squeeze\(1\)",
    ),
    "features": (
        *(regression, (COLUMN, Y)),
        r"data\[0\] has shape \(50, 1\) where .*\(50,\): try x\.squeeze\(1\), or mean\.squeeze",
    ),
    "both": (
        *(regression, (COLUMN, Y[:, None])),
        r"data\[0\] and data\[1\] have shape \(50, 1\).*: try x\.squeeze\(1\)",
    ),
    "a network": (
        *(networked, (torch.stack([X, Y], 1), Y)),
        r"data\[1\] has shape \(50,\) where the site has \(50, 1\): try mean\.squeeze\(-1\)",
    ),
}


@pytest.mark.parametrize(("model", "data", "said"), CASES.values(), ids=CASES)
def test_a_column_is_named(model, data, said):
    for call in (
        lambda: fit(elbo(model, AutoNormal(model)), data, epochs=1, progress=False),
        lambda: log_evidence(model, AutoNormal(model), *data),
        lambda: nuts(model, *data, draws=2, tune=2, progress=False),  # else N x N pairs, unseen
    ):
        with pytest.raises(ValueError, match=rf"site 'y' of the model.*{said}"):
            call()


def test_a_minibatch_names_it_too():
    with pytest.raises(ValueError, match=r"data\[1\] has shape \(10, 1\) .*try y\.squeeze\(1\)"):
        fit(
            elbo(regression, AutoNormal(regression)),
            *((X, Y[:, None]),),
            batch_size=10,
            epochs=1,
            progress=False,
        )


def test_what_fits_is_taken():
    made = AutoNormal(regression)
    run = fit(elbo(regression, made), (X, Y), epochs=1, progress=False)
    assert len(run.history["loss"]) == 1
