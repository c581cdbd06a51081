"""Data sets, real ones only: digits, images of clothes, sentences, distances of cities."""

from ppl_models.datasets.cities import eurodist
from ppl_models.datasets.images import (
    Binarize,
    Folder,
    Labelled,
    Part,
    binarize,
    binary_mnist,
    digits,
    fashion_mnist,
    mnist,
)
from ppl_models.datasets.sentences import Sentences, sst2, tiny_shakespeare, trec

__all__ = [
    "Binarize",
    "Folder",
    "Labelled",
    "Part",
    "Sentences",
    "binarize",
    "binary_mnist",
    "digits",
    "eurodist",
    "fashion_mnist",
    "mnist",
    "sst2",
    "tiny_shakespeare",
    "trec",
]
