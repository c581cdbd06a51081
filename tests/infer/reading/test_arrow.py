"""Tables of Arrow on disk, as `datasets` of Hugging Face keeps them: columns of numbers by name."""

import numpy as np
import pytest
import torch

from ppl_models import GaussianMixture, check_data, elbo, fit_em, log_evidence
from ppl_models.infer.reading.arrow import Table
from tests.support.oracles import binary
from tests.support.refusals import Refused, vae
from tests.support.runs import Seen, quiet, trained

datasets = pytest.importorskip("datasets", reason="needs datasets")


x = binary()


def table(columns, **features):
    found = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        found = found.cast_column(name, feature)
    return found


def of(x):
    return table({"x": x.numpy()})


def from_parquet(x, folder):
    datasets.disable_progress_bars()
    path = str(folder / "rows.parquet")
    of(x).to_parquet(path)
    return datasets.Dataset.from_parquet(path, cache_dir=str(folder))


def array(x):
    return table({"x": x.view(-1, 2, 2).numpy()}, x=datasets.Array2D((2, 2), "float32"))


def in_doubles(x):
    return table({"x": x.double().numpy()})


FORMS = {
    "lists": lambda x, folder: of(x),
    "lists of one length": lambda x, folder: table(
        {"x": x.numpy()}, x=datasets.Sequence(datasets.Value("float32"), length=4)
    ),
    "double precision": lambda x, folder: in_doubles(x),
    "parquet": from_parquet,
    "as tensors": lambda x, folder: of(x).with_format("torch"),
    "as arrays": lambda x, folder: of(x).with_format("numpy"),
    "chosen rows": lambda x, folder: of(torch.cat([1 - x, x])).select(range(22, 44)),
    "transformed": lambda x, folder: table({"bits": (1 - x).numpy()}).with_transform(
        lambda batch: {"x": 1 - torch.tensor(batch["bits"])}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_fit_is_the_one_on_tensors(form, tmp_path):
    x = binary()
    (expected, run), (found, same) = trained(x), trained(FORMS[form](x, tmp_path))
    assert same.history == run.history
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_rows_from_several_chunks_of_a_file():
    parts = [of(x[:5]), of(x[5:6]), of(x[6:])]
    rows = Table(datasets.concatenate_datasets(parts))
    assert len(rows.columns["x"].chunks) == 3
    some = [21, 0, 5, 4, 6, 5]
    assert np.array_equal(rows.__getitems__(some)["x"], x[some].numpy())
    assert np.array_equal(rows.__getitems__([4, 5, 6])["x"], x[4:7].numpy())
    assert {len(view) for view in rows.columns["x"].views.values()} == {5, 1, 16}


def test_rows_that_follow_each_other_across_an_empty_chunk():
    pa = pytest.importorskip("pyarrow")
    lists = [part.tolist() for part in (x[:5], x[:0], x[5:6], x[6:])]
    chunks = [pa.array(part, pa.list_(pa.float32())) for part in lists]
    rows = Table(datasets.Dataset(pa.table({"x": pa.chunked_array(chunks)})))
    assert len(rows.columns["x"].chunks) == 4
    for first, stop in ((0, 22), (3, 7), (4, 5), (5, 6), (21, 22), (0, 5)):
        found = rows.__getitems__(list(range(first, stop)))["x"]
        assert np.array_equal(found, x[first:stop].numpy())
        assert found.flags.writeable
    assert rows.columns is not None


def test_rows_of_other_lengths_in_other_chunks():
    rows = Table(datasets.concatenate_datasets([of(x[:5]), of(x[5:, :3])]))
    with pytest.raises(ValueError, match=r"column 'x', got some of \((3|4),\) and some of"):
        rows.__getitems__([7, 1])


def test_bits_are_copied():
    bits = [True, False, True, True]
    rows = Table(table({"x": bits}))
    assert rows.__getitems__([3, 1])["x"].tolist() == [True, False]
    assert rows.columns is None


def test_columns_of_two_dimensions():
    rows = array(binary())
    shapes = []

    class Square(Seen):
        def forward(self, x, size=None):
            shapes.append(tuple(x.shape))
            super().forward(x.flatten(1)[:, 0], size=size)

    quiet(elbo(Square()), rows, steps=2, batch_size=5)
    assert {shape[1:] for shape in shapes} == {(2, 2)}


def test_numbers_and_labels_by_name():
    class Labelled(Seen):
        def forward(self, x, y=None, size=None):
            assert y.dtype == torch.int64
            assert torch.equal(2 * x, y.to(x.dtype))
            super().forward(x, y, size)

    x = np.arange(11.0)
    model = Labelled()
    quiet(elbo(model), table({"y": (2 * x).astype(int), "x": x}), steps=3, batch_size=4)
    assert len(model.batches) == 3


def test_em_and_evidence_of_a_table():
    torch.manual_seed(0)
    x = torch.randn(60, 2)
    losses, values = [], []
    for data in (x, of(x)):
        torch.manual_seed(0)
        model = GaussianMixture(2, 2)
        model.initialise(x)
        run = fit_em(model, data, initialise=False, max_steps=3, tolerance=1.0, progress=False)
        losses.append(run.history["loss"])
        values.append(log_evidence(model, None, data).value)
        check_data(model, data)
    torch.testing.assert_close(*map(torch.tensor, losses))
    torch.testing.assert_close(*values)


BAD = {
    "other columns": (
        lambda: table({"image": x.numpy(), "id": range(22)}),
        ValueError,
        r"\('x'\), got 'image', 'id': 'image', 'id' are no argument of it.*rename_column",
    ),
    "words": (lambda: table({"x": ["a"] * 22}), TypeError, "expected real numbers"),
    "uneven lists": (
        lambda: table({"x": [[0.0] * (4 - (i == 3)) for i in range(5)]}),
        ValueError,
        "as many numbers each in the column 'x', got some of 3 and some of 4",
    ),
    "a list that is missing": (
        lambda: table({"x": [None, [0.0] * 4, [0.0] * 4]}),
        ValueError,
        "as many numbers each in the column 'x', got 1 without any",
    ),
    "a whole number that is missing": (
        lambda: table({"x": [None, 1, 2]}),
        ValueError,
        "the column 'x' of int64 has 1 empty entries in a batch.*data.filter",
    ),
    "no rows": (lambda: table({"x": []}), ValueError, "got an empty Dataset"),
    "several": (
        lambda: datasets.DatasetDict({"train": of(x), "test": of(x)}),
        TypeError,
        r"got several: 'train', 'test'. Try data\['train'\]",
    ),
    "a stream": (lambda: of(x).to_iterable_dataset(), TypeError, "no length.*streaming=False"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(name):
    make, kind, message = BAD[name]
    pair = vae()
    with Refused(kind, message, *pair):
        quiet(elbo(*pair), make(), steps=2, batch_size=22)


def test_a_number_that_is_missing_is_nan():
    model = GaussianMixture(2, 2, missing="marginalise")
    rows = table({"x": [[None, 1.0], [2.0, 3.0], [0.0, 1.0]] * 5})
    with pytest.raises(ValueError, match=r"5 of 15 rows hold NaN.*\(rows 0, 3, 6, 9, 12\)"):
        check_data(GaussianMixture(2, 2), rows)
    check_data(model, rows)
