"""Data sets: handwritten digits and images of clothes, real ones only."""

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
from ppl_models.datasets.semeion import boxed, cropped, semeion

__all__ = [
    "Binarize",
    "Folder",
    "Labelled",
    "Part",
    "binarize",
    "binary_mnist",
    "boxed",
    "cropped",
    "digits",
    "fashion_mnist",
    "mnist",
    "semeion",
]
