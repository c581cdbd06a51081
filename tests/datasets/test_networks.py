"""Graphs that are read; and pickles of which nothing but arrays is."""

import os
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from ppl_models.datasets import football, karate, planetoid
from ppl_models.datasets.planetoid import PARTS, read_arrays

ROOT = Path(os.environ.get("PPL_DATA_ROOT", Path(__file__).parents[3] / "shared" / "data"))


class Runs:
    """A pickle that makes a file where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


class Evaluates:
    def __reduce__(self):
        return eval, ("__import__('os').getcwd()",)


def write(folder, protocol=4):
    """A graph of six papers, of which 2 and 5 are the test, in the layout of Planetoid."""
    raw = folder / "Planetoid" / "Tiny" / "raw"
    raw.mkdir(parents=True)
    words = np.arange(18.0).reshape(6, 3)
    fields = np.eye(2)[[0, 1, 0, 1, 0, 1]]
    order = [5, 4]
    parts = {
        "x": csr_matrix(words[:2]),
        "y": fields[:2],
        "allx": csr_matrix(words[:4]),
        "ally": fields[:4],
        "tx": csr_matrix(words[order]),
        "ty": fields[order],
        "graph": defaultdict(list, {0: [1, 1, 0], 1: [0], 2: [5], 5: [2], 3: [], 4: []}),
    }
    for part, value in parts.items():
        (raw / f"ind.tiny.{part}").write_bytes(pickle.dumps(value, protocol))
    (raw / "ind.tiny.test.index").write_text("5\n4\n")
    return raw, words


@pytest.mark.parametrize("protocol", [3, 4])
def test_planetoid_is_put_together(tmp_path, protocol):
    _, words = write(tmp_path, protocol)
    papers = planetoid(tmp_path, "Tiny")
    np.testing.assert_array_equal(papers.x, words)
    assert papers.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert papers.edges.tolist() == [[0, 1], [2, 5]]
    assert papers.train.tolist() == [0, 1]
    assert papers.test.tolist() == [4, 5]


@pytest.mark.parametrize("where", ["alone", "in a list", "in an array", "in a dict"])
def test_what_is_no_array_is_refused_unexecuted(tmp_path, where):
    raw, _ = write(tmp_path)
    made = tmp_path / "made"
    bad = Runs(made)
    value = {
        "alone": bad,
        "in a list": [np.zeros(2), bad],
        "in an array": np.array([bad], dtype=object),
        "in a dict": defaultdict(list, {0: bad}),
    }[where]
    for part in PARTS:
        file = raw / f"ind.tiny.{part}"
        before = file.read_bytes()
        file.write_bytes(pickle.dumps(value, 4))
        with pytest.raises(ValueError, match=rf"{part}: .* it asks for \w+.mkdir, which no array"):
            planetoid(tmp_path, "Tiny")
        file.write_bytes(before)
    assert not made.exists()
    pickle.loads(pickle.dumps(bad, 2))
    assert made.exists()  # as it would have been


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_no_protocol_gets_around_the_list_of_names(tmp_path, protocol):
    for value, name in ((Evaluates(), "eval"), (print, "print"), (torch.zeros(1), "torch")):
        file = tmp_path / "file"
        file.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(ValueError, match=f"it asks for .*{name}.*Nothing of it was executed"):
            read_arrays(file)


def test_names_of_allowed_modules_are_not_all_allowed(tmp_path):
    for text in (b"cnumpy\nload\n.", b"cbuiltins\nlist.append\n.", b"cnumpy\nndarray.tofile\n."):
        (tmp_path / "file").write_bytes(text)
        with pytest.raises(ValueError, match="it asks for"):
            read_arrays(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"P1\n.")
    with pytest.raises(ValueError, match="it refers to something outside"):
        read_arrays(tmp_path / "file")


def test_files_that_are_cut_or_missing_say_so(tmp_path):
    raw, _ = write(tmp_path)
    file = raw / "ind.tiny.allx"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a pickle", pickle.dumps([1, 2])):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="again"):
            planetoid(tmp_path, "Tiny")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"found no .*ind\.tiny\.allx"):
        planetoid(tmp_path, "Tiny")


@pytest.mark.skipif(not (ROOT / "Planetoid").is_dir(), reason="Cora is not there")
def test_cora():
    papers = planetoid(ROOT, "Cora")
    assert papers.x.shape == (2708, 1433)
    assert papers.x.sum() == 49216
    assert papers.edges.shape == (5278, 2)
    assert papers.y[papers.train].bincount().tolist() == [20] * 7
    assert [len(part) for part in papers[3:]] == [140, 500, 1000]


@pytest.mark.skipif(not (ROOT / "Graphs").is_dir(), reason="football.gml is not there")
def test_football():
    graph, y = football(ROOT)
    assert (len(graph), graph.number_of_edges(), len(y.unique())) == (115, 613, 12)


def test_football_that_is_another_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"football\.gml, found none"):
        football(tmp_path)
    (tmp_path / "Graphs").mkdir()
    for text in ("graph [", 'graph [\n node [\n id 0\n label "a"\n ]\n]\n'):
        (tmp_path / "Graphs" / "football.gml").write_text(text)
        with pytest.raises(ValueError, match="expected a graph in GML"):
            football(tmp_path)


def test_karate():
    graph, y = karate()
    assert (len(graph), graph.number_of_edges(), y.sum()) == (34, 78, 17)
