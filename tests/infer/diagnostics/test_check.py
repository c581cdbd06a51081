"""The doctor of plates: planted mistakes are found, each at its line, and sound programs clear."""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import constraints

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, Check, FactorAnalysis, check, data_plate
from ppl_models.infer.diagnostics.doctor.finding import Finding
from ppl_models.likelihoods import Normal
from tests.support.every_objective import ALL, programs
from tests.support.programs import FUNCTIONS, OWNED
from tests.support.tutorials import PROGRAMS

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


OF_MORE = {  # rows, where the batch is a part of them
    "a program without size": (
        *(takes_no_size, for_shared, (ROW,), "m", takes_no_size),
        "no argument `size`",
    ),
    "a plate without its size": (no_size, for_shared, (ROW,), "x", no_size, "count 3 times"),
}


def is_found(name, found, site, where, said):
    assert not found
    right = [one for one in found.findings if said in " ".join(str(one).split())]
    assert len(right) == 1, str(found)
    assert right[0].site == site or site is None
    if where is not None:
        assert right[0].line.endswith(line_of(where, "# here")), str(found)
        assert str(right[0]).startswith(f"{right[0].line}:\n")
    assert right[0].remedy or name == "an error"
    assert len(found.findings) <= 2, str(found)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found_at_its_line(name):
    model, guide, batch, *rest = PLANTED[name]
    is_found(name, check(model, guide, *batch), *rest)


@pytest.mark.parametrize("name", OF_MORE)
def test_a_mistake_with_minibatches_is_found_at_its_line(name):
    model, guide, batch, *rest = OF_MORE[name]
    is_found(name, check(model, guide, *batch, size=36), *rest)


def test_at_least_sixteen_are_planted():
    assert len(PLANTED) >= 16


def test_other_devices_are_named():
    model = FactorAnalysis(3, 1).to("meta")
    found = check(model, None, X)
    assert "the data are on cpu, but model.loc is on meta" in str(found)
    assert "try: .to('cpu'), or model.to(x.device)" in str(found)


def test_a_device_inside_of_a_program_is_named():
    """The parameters of a site on another one than its value."""

    def model(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(torch.zeros(12, device="meta"), 1.0), obs=x)

    text = " ".join(str(check(model, None, ROW)).split())
    assert "its numbers are on more than one device" in text
    assert "got: its value cpu, loc meta, scale meta" in text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (X.where(X < 1, torch.nan), "rows hold NaN or infinity"),
        (X[:0], "expected: at least one row got: none"),
    ],
)
def test_data_that_no_program_takes_are_named(rows, said):
    assert said in " ".join(str(check(no_event_of_shared, AutoNormal, rows)).split())


def test_all_are_found_at_once():
    """Of several mistakes in both programs, each at its line."""

    def guide(x, size=None):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.param("idle", torch.zeros(()))
        pyro.sample("m", dist.LogNormal(loc, 1.0))

    def model(x=None, size=None):
        m = pyro.sample("m", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(m.double(), 1.0), obs=x)
            return pyro.sample("x", dist.Poisson(m.clamp(min=0.1)), obs=x)

    found = check(model, guide, ROW)
    text = " ".join(str(found).split())
    assert text.startswith(f"{len(found.findings)} things are wrong")
    for said in (
        "may draw values that the Beta of the model has no density for",
        "site 'y' of the model: its numbers are of more than one precision",
        "rows lie outside the support of its Poisson",
        "site 'x' of the model: a batch of 6 of 12 rows should count 2 times",
        "parameter guide.idle: the loss does not depend on it",
    ):
        assert said in text, str(found)


# --- sound programs ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in ALL.items() if row.evidence])
def test_it_is_silent_on_every_model(name):
    row = ALL[name]
    model, guide = programs(row.make())
    found = check(model, guide, *row.data)
    assert found, str(found)
    assert str(found) == "nothing wrong was found"


CASES = {**OWNED, **FUNCTIONS}


@pytest.mark.parametrize("name", CASES)
def test_it_is_silent_on_programs_of_every_style(name):
    case = CASES[name]()
    data = case.data if isinstance(case.data, tuple) else (case.data,)
    found = check(case.model, case.guide, *data)
    assert found, str(found)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_silent_on_tutorials(name):
    make, _, data = PROGRAMS[name]
    model, guide = make()
    found = check(model, guide, *data)
    assert found, str(found)


def walk(x):
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z.cumsum(0), s).to_event(1), obs=x)


def looped(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x{i}", dist.Normal(m, 1.0), obs=x[i])


def subsampled(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("x", dist.Normal(m, 1.0), obs=x[rows])


def masked_alike(x=None, size=None):
    with data_plate(x, size), poutine.mask(mask=x > 0):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def weighted(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with data_plate(x, size), poutine.scale(scale=0.5):
        pyro.factor("beside", -((x - m) ** 2))
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def correlated(x, size=None):
    chol = pyro.sample("chol", dist.LKJCholesky(3, 1.0))
    width = pyro.sample("width", dist.HalfNormal(torch.ones(3)).to_event(1))
    with data_plate(x, size):
        whole = dist.MultivariateNormal(torch.zeros(3), scale_tril=width[:, None] * chol)
        pyro.sample("x", whole, obs=x)


def of_all_rows(x, size=None):
    """The exact posterior, which needs all of them."""
    pyro.sample("m", dist.Normal(x.sum() / (1 + len(x)), (1 + len(x)) ** -0.5))


@pytest.mark.parametrize(
    ("model", "guide", "rows"),
    [
        (walk, AutoNormal, ROW),
        (looped, AutoNormal, ROW),
        (subsampled, AutoNormal, ROW),
        (masked_alike, AutoNormal, ROW),
        (weighted, AutoNormal, ROW),
        (correlated, AutoMultivariateNormal, X),
        (shared, of_all_rows, ROW),
        (shared, AutoNormal, ROW.double()),
        (rate, AutoNormal, COUNTS),
        (rate, AutoDelta, COUNTS.long()),
    ],
)
def test_it_is_silent_on_what_is_meant(model, guide, rows):
    found = check(model, guide, rows)
    if rows.dtype == torch.float64:
        assert "more than one precision" in str(found).replace("\n", " ")
        return
    assert found, str(found)


# --- what it leaves behind, and what it takes ----------------------------------------------------


def test_it_leaves_all_as_it_was():
    model = FactorAnalysis(3, 1).train()
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    assert check(model, ExactPosterior(model), X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_running_means_of_networks_stay_as_they_were():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    pair = VAE(3, 2, Normal()), AmortizedNormal(3, 2, encoder)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    assert check(*pair, X)
    assert all(torch.equal(x, before[name]) for name, x in encoder.state_dict().items())


def test_it_is_true_where_nothing_was_found():
    assert Check()
    assert str(Check()) == "nothing wrong was found"
    found = Check((Finding("site 'x': odd."),))
    assert not found
    assert str(found) == "1 thing is wrong\n1. site 'x': odd."


@pytest.mark.parametrize(
    ("args", "settings", "error", "message"),
    [
        ((shared, AutoNormal), {}, TypeError, r"check: expected tensors of rows, .* got none"),
        ((shared, AutoNormal, [1.0]), {}, TypeError, r"got list\. Try check\(model, guide, x\)"),
        ((shared, AutoNormal, torch.ones(())), {}, TypeError, r"expected tensors of rows"),
        ((3, AutoNormal, X), {}, TypeError, r"model: expected a Pyro program"),
        ((shared, "guide", X), {}, TypeError, r"guide: expected a Pyro program"),
        ((shared, AutoNormal, ROW), {"size": 3}, ValueError, r"size: expected .* 12 or more, got"),
        ((shared, AutoNormal, ROW), {"size": 13.5}, ValueError, r"got 13\.5"),
    ],
)
def test_no_other_input(args, settings, error, message):
    with pytest.raises(error, match=message):
        check(*args, **settings)


def test_a_program_that_takes_other_tensors():
    found = check(shared, AutoNormal, ROW, ROW, ROW)
    assert "each batch has 3 tensor(s)" in " ".join(str(found).split())


def test_arrays_are_rows():
    assert check(shared, AutoNormal, ROW.numpy())
