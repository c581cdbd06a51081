"""Data sets: handwritten digits, images of clothes and distances of cities, real ones only."""

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

__all__ = [
    "Binarize",
    "Folder",
    "Labelled",
    "Part",
    "binarize",
    "binary_mnist",
    "digits",
    "eurodist",
    "fashion_mnist",
    "mnist",
]
