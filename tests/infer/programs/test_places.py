"""Errors of a user's program say at which line, and what it was called with."""

import inspect
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from ppl_models import check, data_plate, elbo, fit, log_evidence, nuts, predict
from ppl_models.infer.programs.checks import noting_batch

GROUPS = 12
X = torch.linspace(-1, 1, 50)
GROUP = torch.arange(50) % GROUPS
ONCE = {"epochs": 1, "progress": False}


def program(x, group, y=None, size=None):
    level = pyro.sample("level", dist.Normal(0, 1).expand([GROUPS]).to_event(1))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(level[group] + x, 1.0), obs=y)  # here


def line(function, mark="# here"):
    lines, start = inspect.getsourcelines(function)
    return start + next(n for n, text in enumerate(lines) if mark in text)


def place(function, arguments):
    found = re.escape(f"{function.__name__}({arguments}")
    found = found.replace("float32", r"float\d\d")  # nuts is in double precision
    return rf"test_places\.py:{line(function)}, in {found}"


def guide():
    made = AutoNormal(program)
    fit(elbo(program, made), (X, GROUP, X), **ONCE)
    return made


INDICES = {  # what is wrong, the data, and how the arguments are described
    "a float": ((X, GROUP.float(), X), "x: (50,) torch.float32, group: (50,) torch.float32, y: ("),
    "forgotten": ((X, X), "x: (50,) torch.float32, group: (50,) torch.float32, y: None, size: 50)"),
    "out of range": ((X, GROUP + 1, X), "x: (50,) torch.float32, group: (50,) torch.int64, y: ("),
}


@pytest.mark.parametrize(("data", "arguments"), INDICES.values(), ids=INDICES)
def test_an_index_that_is_none_is_told_with_its_line_and_arguments(data, arguments):
    said = place(program, arguments) + r".*: (index 12 is out|tensors used as).*Try x\.long\(\)"
    for call in (
        lambda: fit(elbo(program, AutoNormal(program)), data, **ONCE),
        lambda: log_evidence(program, AutoNormal(program), *data),
        lambda: nuts(program, *data, draws=2, tune=2, progress=False),
    ):
        with pytest.raises(IndexError, match=said):
            call()


@pytest.mark.parametrize("group", [GROUP + 1, GROUP.float()], ids=["new", "a float"])
def test_a_new_group_of_a_prediction(group):
    said = place(program, f"x: (50,) torch.float32, group: (50,) {group.dtype}, y: None")
    with pytest.raises(
        IndexError, match=said + r".*an entry for each group \(a new one has none\)"
    ):
        predict(program, guide(), X, group)


class Own(Exception):
    pass


def raising(error):
    def broken(x, size=None):
        raise error  # here

    return broken


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, size=None):
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(self.mean(x), 1.0), obs=x)

    def mean(self, x):
        return self.layer(x)  # here


@pytest.mark.parametrize(
    "kind", [ValueError, RuntimeError, TypeError, AttributeError, ZeroDivisionError]
)
def test_any_error_keeps_its_type_and_its_text(kind):
    broken = raising(kind("what it says"))
    said = r"test_places\.py:\d+, in broken\(x: \(50,\) torch.float32, size: 50\): what it says"
    with pytest.raises(kind, match=said) as caught:
        fit(elbo(broken), X, **ONCE)
    assert any(entry.name == "broken" for entry in caught.traceback)


def test_the_cause_that_the_user_named_is_kept():
    def broken(x, size=None):
        try:
            raise Own("first")
        except Own as own:
            raise ValueError("then") from own

    with pytest.raises(ValueError, match=r"in broken\(.*: then") as caught:
        fit(elbo(broken), X, **ONCE)
    assert isinstance(caught.value.__cause__, Own)


def test_an_error_of_a_class_of_its_own_stays_as_it_is():
    with pytest.raises(Own, match=r"^its own\n?") as caught:
        fit(elbo(raising(Own("its own"))), X, **ONCE)
    assert caught.value.args == ("its own",)
    assert "in broken(x: (50,)" in caught.value.__notes__[0]


@pytest.mark.parametrize("error", [KeyError("a key"), KeyError(3), ValueError(), AssertionError()])
def test_what_is_no_text_stays_as_it_is(error):
    said = str(error)
    with pytest.raises(type(error)) as caught:
        fit(elbo(raising(error)), X, **ONCE)
    assert str(caught.value) == said
    assert "in broken(x: (50,)" in caught.value.__notes__[0]


def test_the_line_is_the_innermost_and_the_arguments_are_the_programs():
    said = (
        rf"test_places\.py:{line(Layered.mean)}, in forward\(x: \(50,\) torch.float32, size: 50\)"
    )
    with pytest.raises(RuntimeError, match=said):
        fit(elbo(Layered()), X, **ONCE)


def test_errors_of_this_library_say_what_is_wrong_by_themselves():
    def plated(x, size=None):
        with data_plate(x, size=1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"^data_plate: "):
        fit(elbo(plated), X, **ONCE)


def test_a_place_is_told_once():
    def broken():
        raise ValueError("wrong")

    with pytest.raises(ValueError, match=r"^\S+test_places.py:\d+, in \S+: wrong\n") as caught:  # noqa: SIM117
        with noting_batch((X,)), noting_batch((X,)):
            broken()
    assert str(caught.value).count("test_places.py") == 1


def test_check_tells_the_line_once():
    found = str(check(program, AutoNormal(program), X, GROUP.float(), X))
    assert f"test_places.py:{line(program)}" in found
    assert "in program(" not in found
