"""Arrays and data frames, wherever rows are taken: as tensors of them, in the model's precision."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    FactorAnalysis,
    GaussianMixture,
    compare,
    elbo,
    fit,
    fit_em,
    from_pyro_svi,
    impute,
    log_evidence,
    predict,
)
from ppl_models.infer.programs.tables import as_rows
from ppl_models.likelihoods import Normal
from ppl_models.plates import data_plate
from ppl_models.transformed import Transformed

F32, F64 = torch.float32, torch.float64
ARRAY = np.random.default_rng(0).normal(size=(30, 3))
FORMS = [  # of the same rows
    ARRAY,
    np.asfortranarray(ARRAY),
    ARRAY[::-1][::-1],
    ARRAY.astype(">f8"),
    np.broadcast_to(ARRAY, (1, 30, 3))[0],  # not writeable
    pd.DataFrame(ARRAY, columns=list("abc"), index=np.arange(30)[::-1]),
    pd.DataFrame(ARRAY).astype("Float64"),
    pd.DataFrame(ARRAY).to_xarray().to_dataarray().transpose("index", "variable"),
]


def own(x, y=None, size=None):
    """A regression of counts, whose covariate is a number."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("y", dist.Poisson((slope * x[:, 0]).exp()), obs=y)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("rows", FORMS, ids=range(len(FORMS)))
def test_rows_are_those_of_the_tensor_in_the_precision_of_the_model(rows, dtype):
    model = FactorAnalysis(3, 1).to(dtype)
    x = torch.tensor(ARRAY, dtype=dtype)
    (found,) = as_rows((rows,), [model])
    assert found.dtype == dtype
    assert torch.equal(found, x)
    assert torch.equal(log_evidence(model, None, rows).value, log_evidence(model, None, x).value)
    posteriors = [from_pyro_svi(model, None, r, num_samples=5, seed=0) for r in (rows, x)]
    for group in ("posterior", "observed_data", "log_likelihood"):
        assert posteriors[0][group].equals(posteriors[1][group])


def test_fits_take_them_alike():
    frame, x = pd.DataFrame(ARRAY), torch.tensor(ARRAY, dtype=F32)
    losses = []
    for rows in (frame, ARRAY, x, (frame,), Transformed(ARRAY, transform=lambda part: part)):
        torch.manual_seed(0)
        objective = elbo(VAE(3, 1, Normal()), AmortizedNormal(3, 1))
        run = fit(objective, rows, epochs=2, batch_size=10, seed=0, validation=rows, progress=False)
        losses.append(run.history)
    assert all(loss == losses[0] for loss in losses)
    runs = [fit_em(GaussianMixture(3, 2), rows, seed=0, progress=False) for rows in (frame, x)]
    assert runs[0].history == runs[1].history
    candidates = [{k: GaussianMixture(3, k) for k in (1, 2)} for _ in range(2)]
    one, other = (
        compare(c, rows, folds=2, restarts=1, seed=0, progress=False)
        for c, rows in zip(candidates, (frame, x), strict=True)
    )
    assert torch.equal(one.held_out, other.held_out)


@pytest.mark.filterwarnings("ignore:log_evidence. 50 draws")  # of a fit of three steps
def test_covariates_and_counts_of_a_frame():
    frame = pd.DataFrame({"x": ARRAY[:, 0], "y": np.arange(30) % 4})
    guide = AutoNormal(own)
    given = frame[["x"]], frame["y"]
    (x, y) = as_rows(given, [])
    assert (x.dtype, y.dtype, y.shape) == (F32, torch.int64, (30,))
    fit(elbo(own, guide), given, epochs=3, seed=0, progress=False)
    again = AutoNormal(own)
    fit(elbo(own, again), (x, y), epochs=3, seed=0, progress=False)
    values = [
        log_evidence(own, g, *rows, num_samples=50, seed=0).mean
        for g, rows in ((guide, given), (again, (x, y)))
    ]
    assert values[0] == values[1]
    drawn = [predict(own, guide, new, num_samples=4, seed=0) for new in (frame[["x"]], x)]
    assert drawn[0]["predictions"].equals(drawn[1]["predictions"])


def test_missing_entries_of_a_frame():
    frame = pd.DataFrame(ARRAY).mask(ARRAY > 1.5)
    model = FactorAnalysis(3, 1, missing="marginalise")
    x = torch.tensor(frame.to_numpy(), dtype=F32)
    assert torch.equal(impute(model, None, frame, seed=0), impute(model, None, x, seed=0))
    assert log_evidence(model, None, frame).mean == log_evidence(model, None, x).mean
    own_kind = frame.astype("Float64")
    assert own_kind.isna().equals(frame.isna())
    assert log_evidence(model, None, own_kind).mean == log_evidence(model, None, x).mean


def test_integers_and_truth_values_stay():
    kinds = (np.int64, np.int32, np.uint8, np.bool_)
    expected = (torch.int64, torch.int32, torch.uint8, torch.bool)
    for kind, dtype in zip(kinds, expected, strict=True):
        (found,) = as_rows((np.array([0, 1], kind),), [FactorAnalysis(3, 1).double()])
        assert found.dtype == dtype
    big = np.array([2**53 + 1])
    assert as_rows((big,), [])[0].item() == 2**53 + 1
    array = np.zeros(3)
    (copied,) = as_rows((array,), [])
    array += 1
    assert not copied.any()


BAD = [
    (
        pd.DataFrame({"age": [1.0, 2.0], "name": ["a", "b"]}),
        r"'age' of float64, 'name' of (str|obj)",
    ),
    (pd.DataFrame({"x": [1.0, 2.0], "b": [True, False]}), "'b' of bool"),
    (pd.DataFrame({"t": pd.to_datetime(["2020-01-01", "2020-01-02"])}), "'t' of datetime64"),
    (pd.Series(["a", "b"]), "Series with entries of type (object|str)"),
    (np.array(["a", "b"]), "ndarray with entries of type <U1"),
    (np.array([1j, 2.0]), "complex128"),
    (np.array([(1.0, 2)], dtype=[("a", "f8"), ("b", "i8")]), "entries of type"),
    (np.ma.masked_array([[1.0], [2.0]], mask=[[True], [False]]), r"Try x.filled\(np.nan\)"),
]


@pytest.mark.parametrize(("rows", "message"), BAD, ids=range(len(BAD)))
def test_what_holds_no_numbers_is_refused(rows, message):
    model = FactorAnalysis(1, 1)
    for call in (
        lambda: log_evidence(model, None, rows),
        lambda: from_pyro_svi(model, None, rows),
        lambda: predict(model, None, rows),
        lambda: fit(elbo(model), rows, epochs=1),
        lambda: fit_em(model, rows),
        lambda: impute(model, None, rows),
    ):
        with pytest.raises(TypeError, match=rf"data\[0\]: expected .*{message}"):
            call()


def test_no_package_of_frames_is_imported():
    code = (
        "import sys, numpy, torch, ppl_models as p; m = p.FactorAnalysis(3, 1);"
        "p.log_evidence(m, None, numpy.zeros((4, 3)));"
        "assert not {'pandas', 'xarray', 'polars'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
