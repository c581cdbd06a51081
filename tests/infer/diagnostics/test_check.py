"""The doctor of plates: planted mistakes are found, each at its line, and sound programs clear."""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

from ppl_models import check, data_plate
from tests.support.every_objective import ALL, programs

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1)
COUNTS = (5 * X[:, 0].abs()).floor()


def line_of(program, text):
    """The line of a program that holds some text, as it is reported."""
    lines, start = inspect.getsourcelines(program)
    (at,) = [n for n, line in enumerate(lines) if text in line]
    return f"test_check.py:{start + at}"


def local(x, size=None):
    """A guide for one number of a row."""
    loc = pyro.param("loc", torch.zeros(()))
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(loc, 1.0))


def of_rows(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def for_shared(x, size=None):
    pyro.sample("m", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))


# --- planted mistakes: model, guide, rows, the site, whose line, and what is said ---------------


def column(x, y=None, size=None):
    w = pyro.param("w", torch.ones(3, 1))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)  # here


def column_in_event(x, y=None, size=None):
    w = pyro.param("w", torch.ones(3, 1))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)  # here


def no_event(x=None, size=None):
    loc = pyro.param("loc", torch.zeros(3))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)  # here


def no_event_of_shared(x=None, size=None):
    m = pyro.sample("m", dist.Normal(torch.zeros(3), 1.0))  # here
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)


def no_size(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)  # here


def takes_no_size(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))  # here
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def two_latents(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))  # here
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, s), obs=x)


def misspelled(x, size=None):
    pyro.sample("m", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))  # here


def one_number(x, size=None):
    loc = pyro.param("loc", torch.zeros(1))
    pyro.sample("m", dist.Normal(loc, 1.0).to_event(1))  # here


def vector(x=None, size=None):
    m = pyro.sample("m", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)


def rate(x=None, size=None):
    m = pyro.sample("m", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(m.clamp(min=1e-3)), obs=x)


def normal_for_rate(x, size=None):
    pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 0.1))  # here


def masked_in_guide(x, size=None):
    loc = pyro.param("loc", torch.zeros(()))
    with data_plate(x, size), poutine.mask(mask=x > 0):
        pyro.sample("z", dist.Normal(loc, 1.0))  # here


def masked_and_read(x=None, size=None):
    with data_plate(x, size):
        with poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)  # here


def two_precisions(x=None, size=None):
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)  # here


def observed_outside(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        pass
    return pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)  # here


def drawn_outside(x, size=None):
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1))  # here


def of_counts(x=None, size=None):
    p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
    with data_plate(x, size):
        return pyro.sample("x", dist.Bernoulli(p), obs=x)  # here


def large_counts(x=None, size=None):
    r = pyro.param("r", torch.tensor(1e6), constraint=constraints.positive)
    with data_plate(x, size):
        return pyro.sample("x", dist.NegativeBinomial(r, torch.tensor(0.5)), obs=x)  # here


def detached(x=None, size=None):
    loc = pyro.param("loc", torch.zeros(()))
    width = pyro.param("width", torch.ones(()), constraint=constraints.positive)  # here
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, width.detach()), obs=x)


def whitened(x=None, size=None):
    loc = pyro.param("loc", torch.zeros(()))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc + x.mean(), 1.0), obs=x)  # here


def observing_guide(x, size=None):
    loc = pyro.param("loc", torch.zeros(()))
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("more", dist.Normal(loc, 1.0), obs=x)  # here


def without_data(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0))


def wavering(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    if torch.rand(()) > 0.5:
        pyro.sample("more", dist.Normal(m, 1.0), obs=torch.ones(()))  # here
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def infinite(x=None, size=None):
    loc = pyro.param("loc", torch.zeros(()))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc / (x - x), 1.0), obs=x)  # here


def broken(x=None, size=None):
    loc = pyro.param("loc", torch.zeros(()))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc + x @ x.T @ torch.ones(5), 1.0), obs=x)  # here


ROW = X[:, 0]
PLANTED = {
    "a column beside rows": (column, None, (X, Y), "y", column, "on the left of it"),
    "N x N inside of an event": (column_in_event, None, (X, Y), "y", column_in_event, "144 pairs"),
    "no to_event": (no_event, None, (X,), None, no_event, "12 entries"),
    "no to_event, as many": (no_event, None, (X[:3],), "x", no_event, "another on the left"),
    "no to_event of a shared latent": (
        *(no_event_of_shared, AutoNormal, (X,), "m", no_event_of_shared),
        "belongs to no plate",
    ),
    "a plate without its size": (no_size, for_shared, (ROW,), "x", no_size, "count 2 times"),
    "a program without size": (
        *(takes_no_size, for_shared, (ROW,), "m", takes_no_size),
        "no argument `size`",
    ),
    "a latent that the guide lacks": (
        *(two_latents, for_shared, (ROW,), "s", two_latents),
        "neither in the guide nor enumerated",
    ),
    "a latent of another name": (shared, misspelled, (ROW,), "mu", misspelled, "not latent in"),
    "a latent of another shape": (vector, one_number, (X,), "m", one_number, "another shape"),
    "a latent of another support": (
        *(rate, normal_for_rate, (COUNTS,), "m", normal_for_rate),
        "no density for",
    ),
    "masked in the guide alone": (
        *(of_rows, masked_in_guide, (ROW,), "z", masked_in_guide),
        "a mask leaves out entries",
    ),
    "masked and read": (masked_and_read, local, (ROW,), "x", masked_and_read, "no prior"),
    "two precisions": (two_precisions, None, (ROW,), "x", two_precisions, "more than one preci"),
    "observed outside of the plate": (
        *(observed_outside, for_shared, (ROW,), "x", observed_outside),
        "should count 2 times",
    ),
    "drawn outside of the plate": (
        *(of_rows, drawn_outside, (ROW,), "z", drawn_outside),
        "should count 2 times",
    ),
    "outside of the support": (of_counts, None, (COUNTS,), "x", of_counts, "outside the support"),
    "lost digits": (large_counts, None, (1e6 + COUNTS,), "x", large_counts, "in float64"),
    "a parameter without a gradient": (detached, None, (ROW,), None, detached, "not depend on it"),
    "rows that depend on each other": (whitened, None, (ROW,), "x", whitened, "depends on the oth"),
    "a guide that observes": (
        *(of_rows, observing_guide, (ROW,), "more", observing_guide),
        "are observed",
    ),
    "nothing observed": (without_data, local, (ROW,), None, None, "observes nothing"),
    "sites that come and go": (wavering, for_shared, (ROW,), "more", wavering, "some runs"),
    "a density that is not finite": (infinite, None, (ROW,), "x", infinite, "is nan at 12 of 12"),
    "an error": (broken, None, (X,), None, broken, "RuntimeError"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found_at_its_line(name):
    model, guide, batch, site, where, said = PLANTED[name]
    found = check(model, guide, *batch)
    assert not found
    right = [one for one in found.findings if said in " ".join(str(one).split())]
    assert len(right) == 1, str(found)
    assert right[0].site == site or site is None
    if where is not None:
        assert right[0].line.endswith(line_of(where, "# here")), str(found)
    assert len(found.findings) <= 2, str(found)


# --- sound programs ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in ALL.items() if row.evidence])
def test_it_is_silent_on_every_model(name):
    row = ALL[name]
    model, guide = programs(row.make())
    found = check(model, guide, *row.data)
    assert found, str(found)
    assert str(found) == "nothing wrong was found"
