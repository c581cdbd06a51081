"""A `Dataset` that gives a batch as it is, or columns by name; a loader of one process alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from ppl_models import GaussianMixture, data_plate, elbo, fit_em, log_evidence
from tests.support.oracles import binary
from tests.support.refusals import Refused, vae
from tests.support.runs import Rows, Seen, quiet, trained


class Together(Dataset):
    """Gives rows together, as `form` makes them."""

    def __init__(self, form: Any, x: Tensor | None = None) -> None:
        self.form, self.x = form, binary() if x is None else x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        raise AssertionError("rows are not read one by one")

    def __getitems__(self, rows: list[int]) -> Any:
        return self.form(self.x[rows])


class NoDataset:
    """The same without a class of torch."""

    x = binary()

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: list[int]) -> Tensor:
        return self.x[rows]


FORMS = {
    "tensor": Together(lambda x: x),
    "tuple": Together(lambda x: (x,)),
    "array": Together(lambda x: x.numpy()),
    "read-only array in double precision": Together(
        lambda x: np.broadcast_to(x.numpy().astype(float)[None], (1, *x.shape))[0]
    ),
    "array of other bytes": Together(lambda x: x.numpy().astype(">f8")),
    "columns": Together(lambda x: {"x": x}),
    "columns of arrays": Together(lambda x: {"x": x.numpy()}),
    "items": Together(list),
    "items in columns": Together(lambda x: [{"x": row} for row in x]),
    "part of a data set": Subset(TensorDataset(binary()), range(22)),
    "of no class of torch": NoDataset(),
    "one by one, in columns": Rows([{"x": row} for row in binary()]),
}


@pytest.mark.parametrize(
    ("form", "compile"), [(form, False) for form in FORMS] + [("columns of arrays", True)]
)
def test_the_fit_is_the_one_on_tensors(form, compile, graphs_as_traced):
    options = {"compile": compile, "epochs": 3 + compile}
    (expected, run), (found, same) = trained(binary(), **options), trained(FORMS[form], **options)
    torch.testing.assert_close(same.history, run.history)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def labelled(labels: bool) -> Seen:
    class Labelled(Seen):
        def forward(self, x, y=None, size=None):
            assert y is None or torch.equal(y, 2 * x)
            super().forward(x, y, size)

    return Labelled()


@pytest.mark.parametrize("labels", [False, True])
def test_columns_go_to_the_arguments_of_their_names(labels):
    x = torch.arange(11.0)
    form = (lambda x: {"y": 2 * x, "x": x}) if labels else (lambda x: {"x": x})
    model = labelled(labels)
    quiet(elbo(model), Together(form, x), epochs=1, batch_size=4, seed=0)
    assert len(model.batches) == 3


BAD = {
    "extra": (lambda x: {"x": x, "id": x[:, 0]}, r"\('x'\), got 'x', 'id': 'id' is no argument"),
    "several": (lambda x: {"a": x, "b": x}, r"got 'a', 'b': 'a', 'b' are no argument of it"),
    "none": (lambda x: {}, r"columns that are called as the arguments"),
    "fewer rows": (lambda x: x[:2], r"asked for 4 rows .* the Dataset gave tensors with 2"),
    "a number": (lambda x: x.sum(), r"asked for 4 rows .* the Dataset gave tensors with 0"),
    "not together": (lambda x: (x, x[:3]), r"the Dataset gave tensors with 4, 3"),
    "uneven": (
        lambda x: [row[: 4 - (n == 2)] for n, row in enumerate(x)],
        r"expected rows of one shape, got \(4,\) in row \d+ and \(3,\) in row \d+",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_batches(name):
    form, message = BAD[name]
    pair = vae()
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), Together(form), steps=2, batch_size=4)


def test_a_first_argument_that_is_missing():
    def model(x, y=None, size=None):
        with data_plate(x, size):
            raise AssertionError

    with pytest.raises(ValueError, match=r"\('x', 'y'\), got 'y': 'x' is missing"):
        quiet(elbo(model), Together(lambda x: {"y": x}), steps=2, batch_size=4)


@pytest.mark.parametrize("form", [lambda x: [["a"] * len(x)], lambda x: ["a"] * len(x), str])
def test_batches_that_are_no_numbers(form):
    pair = vae()
    with Refused(TypeError, "expected batches of tensors", *pair):
        quiet(elbo(*pair), Together(form), steps=2, batch_size=4)


def test_an_empty_one():
    pair = vae()
    with Refused(ValueError, "at least one row, got an empty Dataset", *pair):
        quiet(elbo(*pair), Together(lambda x: x, torch.zeros(0, 4)), steps=2, batch_size=4)


@pytest.mark.parametrize("as_batches", [False, True])
def test_rows_of_one_process_alone(as_batches):
    pair, data = vae(), TensorDataset(binary())
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    loader = DataLoader(data, batch_size=5, sampler=sampler)
    if as_batches:
        loader = DataLoader(data, batch_sampler=loader.batch_sampler)
    message = "a DistributedSampler.* Under torchrun the rows of a batch are split"
    with Refused(ValueError, message, *pair):
        quiet(elbo(*pair), loader, steps=2)
    with pytest.raises(ValueError, match=message):
        fit_em(GaussianMixture(4, 2), loader, progress=False)
    with pytest.raises(ValueError, match=message):
        log_evidence(*pair, loader)


def test_em_reads_a_few_rows_at_a_time():
    sizes = []

    def noting(x):
        sizes.append(len(x))
        return {"x": x}

    torch.manual_seed(0)
    fit_em(
        GaussianMixture(1, 2),
        Together(noting, torch.randn(9000, 1)),
        max_steps=2,
        tolerance=1.0,
        progress=False,
    )
    assert max(sizes) == 4096
