"""Data sets, real ones only: handwritten digits, images of clothes, ratings of films."""

from ppl_models.datasets.films import MovieLens, movielens
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
    "MovieLens",
    "Part",
    "binarize",
    "binary_mnist",
    "digits",
    "fashion_mnist",
    "mnist",
    "movielens",
]
