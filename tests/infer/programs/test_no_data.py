"""Data that no program takes: what came, and the tuple or the columns in its place."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from ppl_models import (
    check_data,
    data_plate,
    elbo,
    fit,
    from_pyro_svi,
    log_evidence,
    nuts,
    predict,
)
from ppl_models.infer.programs.tables import no_data, no_rows

X = torch.linspace(-1, 1, 20)
GROUP = torch.arange(20) % 4
DATA = (X, GROUP, X)
FRAME = pd.DataFrame({"x": X.numpy(), "group": GROUP.numpy(), "y": X.numpy()})
TUPLE = r"Try the tuple \(x, group, y\), in the order of the program's arguments"
ONE_BY_ONE = r"Try its tensors one by one, x, group, y, in the order of the program's arguments"


def program(x, group, y=None, size=None):
    level = pyro.sample("level", dist.Normal(0, 1).expand([4]).to_event(1))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(level[group] + x, 1.0), obs=y)


def fitted(data):
    guide = AutoNormal(program)
    fit(elbo(program, guide), data, epochs=1, progress=False)
    return guide


CONTAINERS = {
    "a list": ([*DATA], f"got list. {TUPLE}"),
    "a list of arrays": ([x.numpy() for x in DATA], f"got list. {TUPLE}"),
    "names": ({"x": X, "group": GROUP, "y": X}, f"got dict. {TUPLE}"),
    "None inside": ((X, GROUP, None), r"got a tuple whose item 2 is None. Try leaving it out"),
    "a tuple inside": (((X, GROUP), X), f"got a tuple whose item 0 is tuple. {TUPLE}"),
    "numbers": ([1.0, 2.0], r"got list. Try torch.as_tensor\(x\)"),
    "numbers inside": ((X, GROUP, [0.0] * 20), r"item 2 is list. Try torch.as_tensor\(x\)"),
}


@pytest.mark.parametrize(("data", "said"), CONTAINERS.values(), ids=CONTAINERS)
def test_what_fit_does_not_take(data, said):
    for call in (lambda: fitted(data), lambda: check_data(program, data, progress=False)):
        with pytest.raises(TypeError, match=said):
            call()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (([*DATA],), r"data\[0\]: .*got list. " + ONE_BY_ONE),
        ((DATA,), r"data\[0\]: .*got tuple. " + ONE_BY_ONE),
        (({"x": X, "group": GROUP},), r"data\[0\]: .*got dict. " + ONE_BY_ONE),
        ((X, GROUP, None), r"data\[2\]: .*got None. Try leaving it out"),
        ((X, GROUP, [0.0] * 20), r"data\[2\]: .*got list. Try torch.as_tensor\(x\)"),
    ],
    ids=["list", "tuple", "dict", "None", "numbers"],
)
def test_what_takes_rows_one_by_one(data, said):
    for call in (log_evidence, from_pyro_svi):
        with pytest.raises(TypeError, match=said):
            call(program, AutoNormal(program), *data)
    with pytest.raises(TypeError, match=said.replace("data", "new")):
        predict(program, fitted(DATA), *data)


def test_nuts_takes_no_list_for_a_tensor():
    with pytest.raises(TypeError, match=r"data\[0\]: .*got list. " + ONE_BY_ONE):
        nuts(program, [*DATA], draws=2, tune=2, progress=False)


def test_a_frame_is_one_matrix():
    said = r"one matrix, whose column names are not looked at: try \(df\.x, df\.group, df\.y\)"
    for call in (
        lambda: fitted(FRAME),
        lambda: log_evidence(program, AutoNormal(program), FRAME),
        lambda: predict(program, fitted(DATA), FRAME),
    ):
        with pytest.raises(TypeError, match=said):
            call()


def test_the_columns_of_a_frame_are_taken_one_by_one():
    by_columns = fitted((FRAME.x, FRAME.group, FRAME.y))
    evidence = log_evidence(program, by_columns, FRAME.x, FRAME.group, FRAME.y, num_samples=5)
    assert np.isfinite(evidence.mean)


def test_frames_are_not_spoken_of_where_several_tensors_are_too_few():
    def wide(x, group, z, y=None, size=None):
        return program(x, group, y, size)

    with pytest.raises(TypeError, match=r"Try data=\(x, group, z, y\), a ") as caught:
        log_evidence(wide, AutoNormal(wide), X, GROUP)
    assert "frame" not in str(caught.value)


def test_names_that_are_not_known_are_those_of_most_programs():
    assert "(x, y)" in no_data([X, X])
    assert "x, y" in no_rows([X, X])
    assert no_data(()) == "got tuple without an item. Try torch.as_tensor(data)."
