"""Arrays on disk: a fit on them is the fit on the same rows in memory, and they stay on disk."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, GaussianMixture, Transformed, elbo, fit_em
from ppl_models.infer.reading.arrays import Mapped, mapped
from ppl_models.infer.reading.columns import Taken
from ppl_models.infer.training.batches import OnDisk, source
from ppl_models.likelihoods import Normal
from tests.support.oracles import binary, state
from tests.support.refusals import Refused, vae
from tests.support.runs import Seen, quiet, trained


def same(found: tuple, expected: tuple) -> bool:
    return found[1].history == expected[1].history and all(
        torch.equal(found[0][name], value) for name, value in expected[0].items()
    )


def halves(x: Tensor) -> Tensor:
    return x / 2


SOURCES = {
    "array": lambda x, on_disk: on_disk(x),
    "in double precision": lambda x, on_disk: on_disk(x, "float64"),
    "in half precision": lambda x, on_disk: on_disk(x, "float16"),
    "of bytes, transformed": lambda x, on_disk: Transformed(
        on_disk(x, "uint8"), transform=Tensor.float
    ),
    "a part of an array": lambda x, on_disk: on_disk(torch.cat([x, x]))[: len(x)],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_fit_is_the_one_in_memory(kind, on_disk):
    x = binary()
    assert same(trained(SOURCES[kind](x, on_disk)), trained(x))


def test_blocks_of_steps_are_those_in_memory(on_disk, graphs_as_traced):
    x, options = binary(), {"compile": True, "epochs": 4}
    double = Transformed(on_disk(2 * x, "float64"), transform=halves)
    assert same(trained(double, **options), trained(x, **options))


def test_several_arrays_and_tensors_stay_together(on_disk):
    class Together(Seen):
        def forward(self, x, y, size=None):
            assert torch.equal(y, 2 * x)
            super().forward(x, y, size)

    x = torch.arange(11.0)
    for data in ((on_disk(x), on_disk(2 * x)), (on_disk(x, "float64"), (2 * x).numpy())):
        model = Together()
        quiet(elbo(model), data, epochs=2, batch_size=4, seed=0)
        assert len(model.batches) == 6


def test_no_copy_is_made_of_what_is_on_disk(on_disk):
    x = on_disk(binary())
    rows = source(x, 5, torch.device("cpu"), taken=Taken(modules=[]))
    assert isinstance(rows, OnDisk)
    assert rows.tensors[0].data_ptr() == x.ctypes.data
    batch = next(rows.epoch(0, shuffle=False))
    assert batch.values[0].data_ptr() != x.ctypes.data  # what programs get is their own


def test_one_batch_of_all_rows_is_read_into_memory(on_disk):
    x = binary()
    for size in (None, 22, 100):
        assert same(trained(on_disk(x), batch_size=size), trained(x, batch_size=size))


def test_what_was_computed_from_an_array_is_in_memory(on_disk):
    x = on_disk(binary())
    assert mapped(x, []) is not None
    for there in (x.astype("f4"), x * 1.0, x[[3, 1]], np.array(x), TensorDataset(binary())):
        assert mapped(there, []) is None


def test_batches_go_to_a_device(on_disk):
    rows = source(on_disk(binary()), 5, torch.device("meta"))
    assert isinstance(rows, OnDisk)
    batch = next(rows.epoch(0))
    assert {batch.values[0].device.type, rows.tensors[0].device.type} == {"meta", "cpu"}
    assert not rows.recordable


def test_a_validation_on_disk(on_disk):
    x = binary()
    assert same(trained(x, validation=on_disk(x)), trained(x, validation=x))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_em_of_rows_on_disk(on_disk, weighted, start, float64):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(60, 2), torch.randn(40, 2) + 5])
    weight = torch.arange(100.0) if weighted else None
    found = []
    for data in (x, on_disk(x)):
        torch.manual_seed(1)
        model = GaussianMixture(2, 2)
        model.initialise(x)
        options = {"batch_size": None if data is x else 16, "sample_weight": weight}
        run = fit_em(model, data, initialise=start, seed=0, progress=False, **options)
        found.append((run.history["loss"][-1], state(model)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    if not start:  # both from there
        torch.testing.assert_close(found[0][1], found[1][1], atol=1e-3, rtol=1e-3)


def test_em_finds_a_bad_row(on_disk):
    x = torch.randn(100, 2)
    x[77, 1] = torch.nan
    model = GaussianMixture(2, 2)
    with Refused(ValueError, r"1 of 16 rows hold NaN or infinity \(row 77\)", model):
        fit_em(model, on_disk(x), batch_size=16, initialise=False, progress=False)


BAD = {
    "integers": (lambda on_disk: on_disk(torch.ones(9, 4), "int32"), TypeError, "x.float"),
    "words": (
        lambda on_disk: on_disk(np.full((9, 4), "a")),
        TypeError,
        r"data\[0\]: expected real numbers, got memmap with entries of type <U1",
    ),
    "records": (
        lambda on_disk: on_disk(np.zeros(9, [("a", "f4"), ("b", "f4")])),
        TypeError,
        r"data\[0\]: expected real numbers, got memmap with entries",
    ),
    "other bytes": (
        lambda on_disk: on_disk(torch.ones(9, 4), ">f4"),
        ValueError,
        r"data\[0\]: expected an array on disk in the order of this machine's bytes.* as float32",
    ),
    "lengths": (
        lambda on_disk: (on_disk(torch.ones(9, 4)), on_disk(torch.ones(8))),
        ValueError,
        r"same number of rows, got \[9, 8\]",
    ),
    "width": (lambda on_disk: on_disk(torch.ones(9, 3)), ValueError, "4 features"),
    "too many": (lambda on_disk: (on_disk(torch.ones(9, 4)),) * 2, TypeError, "2 tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays(name, on_disk):
    make, kind, message = BAD[name]
    pair = vae()
    with Refused(kind, message, *pair):
        quiet(elbo(*pair), make(on_disk), steps=2, batch_size=4)


def test_an_array_of_numbers_that_no_model_of_bits_could_give(on_disk):
    pair = vae()
    with Refused(ValueError, "outside the support", *pair):
        quiet(elbo(*pair), on_disk(torch.full((9, 4), 0.5)), steps=2, batch_size=4)
    quiet(
        elbo(VAE(4, 2, likelihood=Normal()), AmortizedNormal(4, 2)),
        on_disk(torch.ones(9, 4)),
        steps=2,
        batch_size=4,
    )


@pytest.mark.parametrize("compile", [False, True])
def test_the_system_is_told_what_comes_next(on_disk, monkeypatch, graphs_as_traced, compile):
    told = []
    monkeypatch.setattr(Mapped, "expect", lambda self, in_order: told.append(in_order))
    trained(on_disk(binary()), epochs=1 + compile, compile=compile)
    assert set(told) == {False}
    told.clear()
    x = on_disk(torch.randn(90, 1, generator=torch.Generator().manual_seed(0)))
    fit_em(GaussianMixture(1, 2), x, batch_size=50, progress=False, tolerance=1.0, seed=0)
    assert told[-1] is True
